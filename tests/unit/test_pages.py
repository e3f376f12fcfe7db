"""The rules of ``tests.page_rules``: each finds its fault; and a browser's own checks, where it is installed."""

from __future__ import annotations

import re

import pytest

from tests.page_rules import contrast, faults
from tripletune.html.pages import render_page

STYLE = render_page("templates/style.html.j2")
GOOD = f"""<!doctype html><html lang="en"><head><meta name="viewport"><title>t</title>{STYLE}</head><body><h1>one</h1>
<a href="#x">x</a><h2 id="x">two</h2><pre tabindex="0">p</pre>
<div class="wide" tabindex="0" role="group" aria-label="l"><table>
<caption>c</caption><tr><th scope="col">h</th></tr></table></div>
</body></html>"""


def test_a_good_page_has_no_fault() -> None:
    assert faults(GOOD) == []


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        (' lang="en"', "", "no lang"),
        ("<title>t</title>", "", "no title"),
        ("<h1>one</h1>", "", "0 <h1>"),
        ("<h1>one</h1>", "<h1>one</h1><h1>one</h1>", "2 <h1>"),
        ("<h2 ", "<h4 ", "<h4> after level 1"),
        (' scope="col"', "", "without scope"),
        ("<caption>c</caption>", "", "without caption"),
        (' tabindex="0" role', " role", "outside of a labelled box"),
        ('<pre tabindex="0">', "<pre>", "the keyboard can't scroll"),
        ('href="#x"', 'href="#y"', "a link to #y"),
        ('href="#x"', 'href="http://x"', "a link to http://x"),
        ("</table>", "", "closes <table>"),
        ('<meta name="viewport">', "", "no viewport"),
        ("--soft:#566074", "--soft:#99a2b2", "--soft on --page"),
        ("--c2:#f59a58", "--c2:#5a3a20", "--c2 on --page has"),
    ],
)
def test_each_rule_finds_its_fault(old: str, new: str, fault: str) -> None:
    spoiled = GOOD.replace(old, new, 1)
    if old.startswith("<h2"):
        spoiled = spoiled.replace("</h2>", "</h4>")
    assert spoiled != GOOD
    assert any(fault in one for one in faults(spoiled))


def test_contrast_is_that_of_the_guideline() -> None:
    assert contrast("#000", "#ffffff") == pytest.approx(21)
    assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.01)  # the guideline's lightest grey on white


def test_the_style_reads_no_colour_that_is_not_in_both_palettes() -> None:
    palettes = [set(re.findall(r"--([\w-]+):", block)) for block in re.findall(r":root \{([^}]*)\}", STYLE)]
    assert len(palettes) == 2
    assert palettes[0] == palettes[1] == set(re.findall(r"var\(--([\w-]+)\)", STYLE)) | {"c1", "c2", "c3", "c4"}
