"""Templates: what is shipped, and what a wrong one is told."""

from __future__ import annotations

import hashlib

import pytest

from tripletune.errors import ConfigError
from tripletune.prompts.template import FOLDER, SLOTS, load_template, parse_template, shipped

GOOD = (FOLDER / "hints-first.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_template_is_known_by_its_name_and_bytes(name):
    template = load_template(name)
    content = (FOLDER / f"{name}.txt").read_bytes()
    assert template.id == name
    assert template.sha256 == hashlib.sha256(content).hexdigest()
    assert sorted(template.slots) == sorted(SLOTS)
    assert template.user in content.decode()


def test_the_published_order_asks_before_the_hints_and_ours_after_them():
    assert load_template("published").slots[0] == "candidates"
    assert load_template("hints-first").slots == ("liked", "disliked", "ranking", "similar", "triples", "candidates")


def test_an_unknown_template_is_answered_with_the_shipped_ones():
    with pytest.raises(ConfigError, match=r"'mine' is not there; the shipped templates are: hints-first, published"):
        load_template("mine")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("{liked}", "{likes}", r"unknown slot \{likes\}.*hints-first, published"),
        ("{liked}\n", "", r"no slot \{liked\}.*hints-first, published"),
        ("{liked}", "{liked}\n{liked}", r"slot \{liked\} 2 times"),
        ("{liked}", "- {liked}", r"\{liked\} must stand alone on its line"),
        ("{liked}", "{liked}!", r"\{liked\} must stand alone on its line"),
        ("[system]", "{ [system]", "front matter|must be UTF-8 text"),
        ("Films the viewer liked", "Films { the viewer liked", "braces outside"),
        ("You recommend", "{liked} You recommend", "braces outside"),
        ("[user]", "[viewer]", "must be UTF-8 text"),
        ("id: hints-first", "name: hints-first", "must be UTF-8 text"),
    ],
)
def test_a_wrong_template_says_what_is_wrong(old, new, message):
    assert old in GOOD
    with pytest.raises(ConfigError, match=message) as error:
        parse_template(GOOD.replace(old, new, 1).encode(), where="mine.txt")
    assert "mine.txt" in str(error.value)
    assert "\n" not in str(error.value)


def test_bytes_that_are_not_text_are_refused():
    with pytest.raises(ConfigError, match="must be UTF-8 text"):
        parse_template(b"\xff\xfe", where="mine.txt")
