"""Templates: what is shipped, how a variant inherits from its base, and the errors of an invalid one."""

from __future__ import annotations

import pytest

from tripletune.config import RunConfig
from tripletune.config.presets import parse_config
from tripletune.errors import ConfigError
from tripletune.prompts.card import Origin
from tripletune.prompts.template import (
    DATA_MARK,
    FOLDER,
    SLOTS,
    load_template,
    parse_template,
    shipped,
)

GOOD = (FOLDER / "hints-first.txt").read_text(encoding="utf-8")
ABLATIONS = {
    "likes-only": ("liked", "candidates"),
    "hints-off": ("liked", "disliked", "candidates"),
    "hint-1-only": ("liked", "disliked", "ranking", "similar", "candidates"),
    "hint-2-only": ("liked", "disliked", "triples", "candidates"),
}

SHOWN = ABLATIONS | {"llamarec": ("liked", "candidates"), "recranker": ("liked", "disliked", "candidates")}
"""Sections with data of the templates that do not show all."""


def parse(text):
    return parse_template(text.encode(), where="mine.txt")


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_template_is_known_by_its_name_and_asks_last_of_all(name):
    template = load_template(name)
    assert template.id == name
    assert template.language == ("ja" if name == "japanese" else "en")
    is_labelled = name in ("letters", "compact", "llamarec", "recranker")
    assert template.answer_style == ("letters" if is_labelled else "titles")
    assert set(template.columns) - {"retrieved"} == set(SHOWN.get(name, SLOTS)) - ({"topics"} - {name})
    assert bool(template.topic) == (name == "topics")
    assert bool(template.inline) == (name in ("compact", "recranker"))
    assert bool(template.forms) == (name == "recranker")
    assert template.texts[-1].strip()


def test_a_template_shows_its_sections_alone_in_their_order():
    assert {name: load_template(name).slots for name in SHOWN} == SHOWN


def test_the_published_order_asks_before_the_hints_and_ours_after_them():
    assert load_template("published").slots[0] == "candidates"
    assert load_template("hints-first").slots == ("liked", "disliked", "ranking", "similar", "triples", "candidates")


@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_tells_its_sections_in_the_words_of_the_full_template_and_promises_no_others(name):
    template, full = load_template(name), load_template("hints-first")
    for text in template.texts:
        assert text.strip() in full.user
    assert ("ranking" in template.system) == ("ranking" in template.slots)
    assert ("knowledge graph" in template.system) == ("triples" in template.slots)
    assert ("disliked" in template.system) == ("disliked" in template.slots)


@pytest.mark.parametrize("name", shipped())
def test_no_line_of_a_template_looks_like_data(name):
    template = load_template(name)
    for line in [*template.system.split("\n"), *"".join(template.texts).split("\n"), template.wording.nothing]:
        assert not DATA_MARK.match(line)


def test_the_hash_follows_what_a_template_says_and_nothing_else():
    known = load_template("hints-first").sha256
    assert parse(GOOD).sha256 == known
    assert parse(GOOD.replace("id: hints-first", "id: another")).sha256 == known
    assert parse(GOOD.replace("\n\n[liked]", "\n\n\n[liked]")).sha256 == known
    for old, new in [
        ("best first:", "best at the top:"),
        ("language: en", "language: de"),
        ("answers: titles", "answers: letters"),
        ("liked, disliked,", "disliked, liked,"),
        ("You recommend", "You suggest"),
        ("tagged |", "with the tag |"),
        ("(none)", "(nothing)"),
        ("stars", "has"),
    ]:
        assert old in GOOD
        assert parse(GOOD.replace(old, new, 1)).sha256 != known, old


def test_templates_of_earlier_versions_keep_their_hash():
    """An adapter's contract holds it."""
    assert load_template("letters").sha256.startswith("4699708bd0865a3c")
    assert load_template("japanese").sha256.startswith("7cf4f1c465713740")


COMPACT = (FOLDER / "compact.txt").read_text(encoding="utf-8")


def test_a_candidates_line_shows_columns_instead_of_sections():
    compact = load_template("compact")
    assert compact.slots == ("liked", "disliked", "candidates")
    assert [column for column, _ in compact.inline] == ["retrieved", "ranking", "similar", "triples"]
    assert compact.columns == (*compact.slots, "retrieved", "ranking", "similar", "triples")
    assert compact.inline_in("arrow").facts["director"] == "directed by {name}"
    assert compact.inline_in("sentence").facts["director"] == "was directed by {name}."
    assert compact.inline_in("arrow").facts["other"] == "{relation}: {name}"


def test_the_hash_follows_the_inline_hints_and_their_order():
    known = parse(COMPACT).sha256
    first, second, *rest = COMPACT.split("[inline]\n")[1].strip().split("\n")
    lines = [[second, first, *rest], [first, second], [first.replace("#", "no. "), second, *rest], []]
    hashes = {parse(COMPACT.split("[inline]")[0] + "\n".join(["[inline]", *some]) + "\n").sha256 for some in lines}
    assert len(hashes | {known}) == 5
    assert parse(COMPACT.split("[inline]")[0]).sha256 in hashes


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "ranking: graph",
            "rankings: graph",
            r"'rankings: graph #\{place\}' of \[inline\] must begin with one of retr",
        ),
        ("ranking: graph", "liked: graph", "of .inline. must begin with one of retrieved, ranking, similar, triples"),
        ("ranking: graph", "retrieved: graph", "each at most once"),
        ("ranking: graph #{place}", "ranking:", "line 'ranking:' of .inline. must read 'name: words'"),
        ("ranking: graph #{place}", "ranking: graph", r"must read 'ranking: words with \{place\} once'"),
        ("graph #{place}", "graph #{place} {place}", r"must read 'ranking: words with \{place\} once', with no other"),
        ("graph #{place}", "graph #{place} {fact}", r"must read 'ranking: words with \{place\} once', with no other"),
        ("viewers liked it", "viewers liked it {place}", "must read 'similar: words', with no other braces"),
        ("triples: {fact}", "triples: a fact", r"must read 'triples: words with \{fact\} once'"),
        ("graph #{place}", "#{place}", "of .inline. could be taken for another hint"),
        ("graph #", "graph: #", "of .inline. could be taken for another hint"),
        ("graph #", "> #", "has '<' or '>' in .inline. or .words.; remove it"),
        ("disliked, candidates", "disliked, ranking, candidates", "has ranking in .inline. and in 'sections:'; remove"),
        ("[inline]", "[online]", r"part \[online\] is unknown"),
    ],
)
def test_wrong_inline_hints_say_what_is_wrong(old, new, message):
    assert old in COMPACT
    with pytest.raises(ConfigError, match=message) as error:
        parse(COMPACT.replace(old, new, 1))
    assert "mine.txt" in str(error.value)
    assert "\n" not in str(error.value)


def test_words_of_facts_may_not_hold_the_mark_of_inline_hints():
    text = (
        COMPACT.replace("base: hints-first\n", "language: en\n")
        + GOOD[GOOD.index("\n[worked]") :].split("[ranking]")[0]
    )
    text += GOOD[GOOD.index("\n[words]") :]
    assert parse(text).sha256 == parse(COMPACT).sha256
    with pytest.raises(ConfigError, match="has '<' or '>' in"):
        parse(text.replace("genre: genre |", "genre: genre > |"))


def test_a_variant_takes_from_its_base_what_it_does_not_say():
    full, mine = load_template("hints-first"), parse("---\nid: mine\nbase: hints-first\n---\n[system]\nHello.\n")
    assert mine.system == "Hello."
    assert (mine.texts, mine.slots, mine.wording, mine.language) == (
        full.texts,
        full.slots,
        full.wording,
        full.language,
    )
    assert mine.sha256 != full.sha256


def test_an_unknown_template_is_answered_with_the_shipped_ones():
    with pytest.raises(
        ConfigError, match=r"'mine' is not there; the shipped templates are: compact, hint-1-only, .*, published"
    ):
        load_template("mine")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("\n{liked}", "\n{likes}", r"unknown slot \{likes\}.*hints-first"),
        ("\n{liked}", "", r"slot \{liked\} 0 times in \[liked\].*hints-first"),
        ("\n{liked}", "\n{liked}\n{liked}", r"slot \{liked\} 2 times"),
        ("\n{liked}", "\n{candidates}", r"slot \{candidates\} in \[liked\]; it belongs in \[candidates\]"),
        ("\n{liked}", "\n- {liked}", r"\{liked\} must stand alone on its line"),
        ("\n{liked}", "\n{liked}!", r"\{liked\} must stand alone on its line"),
        ("[system]", "{ [system]", "must be UTF-8 text"),
        ("Films the viewer liked", "Films { the viewer liked", "braces outside"),
        ("You recommend", "{liked} You recommend", "braces outside"),
        ("Films the viewer liked", "- Films the viewer liked", "starts like a line of data"),
        ("Films the viewer liked", "A. Films the viewer liked", "starts like a line of data"),
        ("newest first:", "newest first: ", "ends with one"),
        ("nothing: (none)", "nothing: 1. none", "starts like a line of data"),
        ("[answer]", "[asking]", r"part \[asking\] is unknown"),
        ("[answer]", "[liked]", r"part \[liked\] is unknown or there twice"),
        ("triples, candidates, answer\n", "triples, answer\n", "no candidates in 'sections:'"),
        ("liked, disliked,", "liked, liked,", "section 'liked' 2 times"),
        ("liked, disliked,", "liked, loved,", "section 'loved' 1 times"),
        ("\n[disliked]\nFilms the viewer disliked, newest first:\n{disliked}\n", "", r"no part \[disliked\]"),
        ("answers: titles", "answers: both", "answers: both; write one of titles, letters"),
        ("language: en", "language: English", "ISO 639"),
        ("language: en\n", "", "no 'language:'"),
        ("id: hints-first", "name: hints-first", "the line 'name: hints-first' must be"),
        ("id: hints-first", "id: a\nid: b", "the line 'id: b' must be"),
        ("id: hints-first\n", "", "no 'id:'"),
        ("id: hints-first", "id: mine\nbase: theirs", "base: theirs, which is none of"),
        ("id: hints-first", "id: mine\nbase: published", "base: published, which has a base itself"),
        ("tag: tagged |", "tag: tagged", "the line 'tag' of .words. must read"),
        ("{film} stars {name}.", "{film} stars.", "the line 'actor' of .words. must read"),
        ("{film} stars {name}.", "In {film} there is {name}.", "the line 'actor' of .words. must read"),
        ("{film} stars {name}.", "{film} {relation} {name}.", "the line 'actor' of .words. must read"),
        ("writer: ", "author: ", "exactly one line for each of .*; look at author"),
    ],
)
def test_a_wrong_template_says_what_is_wrong(old, new, message):
    assert old in GOOD
    with pytest.raises(ConfigError, match=message) as error:
        parse(GOOD.replace(old, new, 1))
    assert "mine.txt" in str(error.value)
    assert "\n" not in str(error.value)


def test_bytes_that_are_not_text_are_refused():
    with pytest.raises(ConfigError, match="must be UTF-8 text"):
        parse_template(b"\xff\xfe", where="mine.txt")


MINE = "---\nid: mine\nbase: hints-first\n---\n[system]\nHello.\n"


def write_mine(folder, text=MINE, name="mine.txt"):
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


def test_a_template_may_lie_anywhere(tmp_path, monkeypatch):
    path = write_mine(tmp_path)
    mine = load_template(path)
    assert (mine.id, mine.system, mine.sha256) == ("mine", "Hello.", parse(MINE).sha256)
    monkeypatch.chdir(tmp_path)
    assert load_template("mine.txt") == load_template("./mine.txt") == mine
    assert RunConfig(dataset="d", prompt={"template": "mine.txt"}).prompt.template_id == "mine"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("mine.txt", MINE.replace("id: mine", "id: yours"), "mine.txt says id: yours; the id must be .* name, mine"),
        ("mine.txt", MINE.replace("hints-first", "theirs"), "mine.txt has base: theirs, which is none of"),
        ("my own.txt", MINE.replace("id: mine", "id: my own"), "my own.txt: the file's name, without .txt, is the"),
        ("mine.txt", "Hello.", "mine.txt must be UTF-8 text"),
    ],
)
def test_a_wrong_file_of_ones_own_is_named_in_one_line(tmp_path, name, text, message):
    path = write_mine(tmp_path, text, name)
    with pytest.raises(ConfigError, match=message) as error:
        load_template(path)
    assert path in str(error.value)
    assert "\n" not in str(error.value)


def test_a_path_without_a_file_is_answered_with_the_shipped_templates(tmp_path):
    (tmp_path / "folder.txt").mkdir()
    for path in (tmp_path / "none.txt", tmp_path / "folder.txt"):
        with pytest.raises(
            ConfigError, match=r"(none|folder)\.txt': no such file.*compact, hint-1-only, .*, published"
        ):
            load_template(str(path))


def test_a_name_that_is_neither_shipped_nor_a_path_is_refused_by_the_config():
    with pytest.raises(ConfigError, match=r"mine\.toml: \[prompt\.template\] '\.\./mine' is neither a name"):
        parse_config({"dataset": "d", "prompt": {"template": "../mine"}}, where="mine.toml")
    with pytest.raises(ConfigError, match=r"mine\.toml: \[prompt\.template\] 'mine\\n.txt' is neither a name"):
        parse_config({"dataset": "d", "prompt": {"template": "mine\n.txt"}}, where="mine.toml")


def test_the_data_card_does_not_say_where_the_template_lies():
    prints = dict.fromkeys(("ingest", "split", "knowledge", *RunConfig(dataset="x").trained_stages), "f") | {
        "retrieve": "f",
        "generate": "f",
    }
    cards = [
        Origin.of(RunConfig(dataset="d", prompt={"template": template}), prints).settings["prompt"]["template"]
        for template in ("/here/mine.txt", "there/mine.txt", "letters")
    ]
    assert cards == ["mine", "mine", "letters"]
