"""The rules of ``tests.page_rules``: each finds its fault; and a browser's own checks, where it is installed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from written_run import write_run

from docs.screenshot import find_browser
from tests.page_rules import contrast, faults
from tests.unit.compared_runs import values_of, write_compared
from tripletune.compare.compare import compare_runs
from tripletune.compare.pages import write_comparison
from tripletune.compare.runs import read_scores
from tripletune.config import EvaluateConfig, QualityConfig
from tripletune.evaluate.evaluate import evaluate_run
from tripletune.html.pages import render_page
from tripletune.quality.report import report_quality

STYLE = render_page("templates/style.html.j2")
GOOD = f"""<!doctype html><html lang="en"><head><meta name="viewport"><title>t</title>{STYLE}</head><body>
<main><h1>one</h1>
<a href="#x">x</a><h2 id="x">two</h2><pre tabindex="0">p</pre>
<div class="wide" tabindex="0" role="group" aria-label="l"><table>
<caption>c</caption><tr><th scope="col">h</th></tr></table></div>
</main></body></html>"""


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


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A written run with the three pages in ``out``."""
    run = write_run(tmp_path_factory.mktemp("pages"))
    out = run.root / "out"
    out.mkdir()
    trained = {**run.specialists, "finetune": run.finetune}
    settings = EvaluateConfig(bootstrap_resamples=100)
    evaluate_run(run.rank, run.generate, run.retrieve, run.split, out, settings, 3, trained, ingest=run.ingest)
    report_quality(run.generate, run.split, out, QualityConfig(), run="one", before=None)
    for name, gain in (("a", 0.0), ("b", 0.3)):
        write_compared(run.root / "store", name, {"test": values_of(60, 1, gain)})
    read = [read_scores(name, run.root / "store") for name in ("a", "b")]
    write_comparison(out, compare_runs(read, confidence=0.95, resamples=100))
    return out


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_in_a_browser_and_no_page_is_wider_than_the_window(
    run: Path, scheme: str, width: int
) -> None:
    sync_api = pytest.importorskip("playwright.sync_api")
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    browser_path = find_browser()
    if browser_path is None:
        pytest.skip("no Chromium or Chrome is installed")
    spoiled = run / "spoiled.html"
    spoiled.write_text(GOOD.replace(' lang="en"', "").replace("<h1>", '<h1 style="color:#ccc">'), encoding="utf-8")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        page = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme).new_page()
        found = {}
        for file in ("report", "quality", "comparison", "spoiled"):
            page.goto((run / f"{file}.html").as_uri())
            page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            found[file] = [one["id"] for one in axe.run(page).response["violations"]]
        browser.close()
    assert found.pop("spoiled") == (["color-contrast"] if scheme == "light" else []) + ["html-has-lang"]
    assert found == {"report": [], "quality": [], "comparison": []}
