"""The GPU queue names what exists, and nothing that needs a GPU is missing from it."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "benchmarks" / "gpu"
QUEUE = (SCRIPTS / "queue.md").read_text(encoding="utf-8")
TOOLS = {"pack.py", "session.py", "llm_kit.py", "llm_results.py", "llm_training.py"}
TOOLS |= {"report_command.py", "speed_kit.py", "speed_parts.py", "speed_training.py"}
MARK = re.compile(r"mark\.gpu\b")


def test_every_file_the_queue_names_exists():
    named = set(re.findall(r"(?:benchmarks|tests)/[\w/.]+\.(?:py|md)", QUEUE))
    assert named
    assert {name for name in named if not (ROOT / name).is_file()} == set()


def test_every_test_file_with_a_gpu_part_is_in_the_command_that_runs_them():
    (command,) = re.findall(r"python3 -m pytest -m gpu ([^|>\n]+)", QUEUE)
    marked = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "tests").rglob("test_*.py")
        if MARK.search(path.read_text(encoding="utf-8")) and path != Path(__file__)
    }
    assert {word for word in command.split() if word.endswith(".py")} == marked


def test_every_script_has_an_entry_and_a_deadline():
    scripts = [path for path in SCRIPTS.glob("*.py") if path.name not in TOOLS]
    assert scripts
    for path in scripts:
        assert f"python3 benchmarks/gpu/{path.name} measure" in QUEUE
        assert re.search(r"^    with Session\(", path.read_text(encoding="utf-8"), re.MULTILINE)


def test_every_entry_has_a_section_and_every_section_an_entry():
    rows = re.findall(r"^\| (?:~~)?(\d+)(?:~~)? \| \[([^\]]+)\]\(#([^)]+)\)", QUEUE, re.MULTILINE)
    sections = re.findall(r"^## (\d+)\. (.+)$", QUEUE, re.MULTILINE)
    assert [(number, title) for number, title, _ in rows] == sections
    for number, title, anchor in rows:
        assert anchor == re.sub(r"[^\w -]", "", f"{number}. {title}").lower().replace(" ", "-")
