"""Measure whether R-GAT chooses the fact that matters to a user: planted preferences, and lift on real ratings.

    python benchmarks/rgat_choice.py planted                       # a synthetic release of 20,000 users
    python benchmarks/rgat_choice.py planted --size ml-1m          # a weaker signal, longer histories
    python benchmarks/rgat_choice.py real --movielens ml-latest-small --imdb imdb

Each makes what it needs by the stages ingest, split, knowledge and rgat (kept under --artifacts and found again),
lets every mode of ``retrieve.triples`` choose one fact per liked film, and rewrites its part of rgat_choice.md.

Planted. Each user of a synthetic release prefers one entity or none. Among the liked films that carry it: how often
is it the chosen one? ``optimal`` chooses the likeliest preference by the generator's own probabilities, given the same
history. The last columns place each mode between ``random`` (0) and ``optimal`` (1). A profile's top relation is the
one whose mass is highest above that of the mean user, ``mass / mean mass``; plain mass is shown as well. A strong
claim is a top relation at least as far above the mean user as the median one of users with a preference.

Real. Lift: share of a user's held-out likes that have the chosen entity, over the share among films as popular as
those (the 20 nearest by number of likes) that the user did not rate; means over chosen entities, then users, then
the quotient. Choices for ``target`` answers are fit A's, for ``test`` fit B's, from the likes before the first answer.

Intervals are 95 %, bootstrap over users.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer
from rgat_measures import SEED, measure_planted, measure_real

REPORT = Path(__file__).with_name("rgat_choice.md")
MEANING = (
    "`place`: 0 is a choice at random, 1 that of the best possible detector, which knows how the data were made; the",
    "aim was .8 for warm and .7 for unseen viewers. `lift`: 1 means that the chosen fact says nothing of what the",
    "viewer likes next; an interval of `personal minus it` above 0 means that the personal choice says more.",
)
STAGES = ("ingest", "split", "knowledge", "rgat")


def make(artifacts: Path, preset: str, release: list[str]) -> tuple[dict[str, Path], dict[str, Any]]:
    """The stages' folders, each made in a process of its own or found again; and what R-GAT's training cost."""
    artifacts.mkdir(parents=True, exist_ok=True)
    config = artifacts / "rgat_choice.toml"
    config.write_text(preset, encoding="utf-8")
    folders: dict[str, Path] = {}
    began = time.time()
    for stage in STAGES:
        options = ["--config", str(config), "--artifacts", str(artifacts), *release]
        with tempfile.TemporaryFile("w+", encoding="utf-8") as told:
            child = subprocess.Popen([sys.executable, "-m", "tripletune.cli.main", stage, *options], stdout=told)
            _, status, usage = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
            if child.returncode:
                raise SystemExit(f"{stage} failed with exit code {child.returncode}")
            told.seek(0)
            folders[stage] = Path(told.read().split("\n")[-2])
        print(f"{stage:10} {usage.ru_utime + usage.ru_stime:6.1f} s CPU", file=sys.stderr)
    path = folders["rgat"] / "manifest.json"
    manifest = json.loads(path.read_text())
    facts = {name: manifest["facts"][name] for name in ("steps", "best_valid_ndcg_at_10", "triples", "likes_b")}
    cpu = round(usage.ru_utime + usage.ru_stime, 1) if path.stat().st_mtime > began else None  # None: found again
    return folders, facts | {"cpu_seconds": cpu, "peak_gib": round(manifest["peak_bytes"] / 2**30, 2)}


def publish(artifacts: Path, part: str, title: str, found: dict[str, Any]) -> None:
    """Keep the figures of this part, and render all parts that were measured so far."""
    results = artifacts / "rgat_choice.json"
    parts = json.loads(results.read_text()) if results.exists() else {}
    parts[part] = {"title": title, **found}
    results.write_text(json.dumps(parts, indent=1) + "\n", encoding="utf-8")
    REPORT.write_text(render(parts), encoding="utf-8")
    print(REPORT.read_text(encoding="utf-8"))


def render(parts: dict[str, Any]) -> str:
    """The tables, in Markdown."""
    libraries = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "dgl", "polars", "numpy"))
    memory = psutil.virtual_memory().total / 2**30
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GiB; Python {platform.python_version()}"
    lines = ["# Which fact R-GAT tells a viewer", "", "What is measured and how: the head of `rgat_choice.py`.", ""]
    lines += [f"{machine}, {libraries}", "", *MEANING, ""]
    for found in parts.values():
        lines += [f"## {found['title']}", "", f"`{found['command']}`", "", _cost(found["cost"]), ""]
        lines += _planted(found["planted"]) if "planted" in found else []
        for purpose, real in found.get("real", {}).items():
            lines += _real(purpose, real)
    return "\n".join(lines)


def _cost(cost: dict[str, Any]) -> str:
    times = f"{cost['cpu_seconds']} s of CPU" if cost["cpu_seconds"] else "made in an earlier run"
    return (
        f"R-GAT, both fits: {times}, peak {cost['peak_gib']} GiB; {cost['likes_b']:,} likes, {cost['triples']:,} "
        f"triples, {cost['steps']} steps a fit, valid ndcg_at_10 {cost['best_valid_ndcg_at_10']:.4f}."
    )


def _planted(found: dict[str, Any]) -> list[str]:
    lines = []
    for what, title in (("entity", "Chosen entity, on liked films that carry it"), ("relation", "Top of the profile")):
        warm, unseen = found[what]["warm"], found[what]["unseen"]
        lines += [f"| {title} | warm | place | 95 % | unseen | place | 95 % |", "|---|--:|--:|---|--:|--:|---|"]
        for mode in warm:
            cells = [
                f"{one['share']:.3f} | {one['place']:.3f} | {one['interval'][0]:.3f} to {one['interval'][1]:.3f}"
                for one in (warm[mode], unseen[mode])
            ]
            lines.append(f"| {mode} | {' | '.join(cells)} |")
        lines.append("")
    claims = found["claims"]
    told = [f"{name} {100 * claim['claimed']:.1f} % (bar {claim['bar']:.2f})" for name, claim in claims.items()]
    counted = ", ".join(f"{number:,} {name}" for name, number in found["viewers"].items())
    return [*lines, f"Viewers: {counted}. Strong claims for viewers without a preference: {', '.join(told)}.", ""]


def _real(purpose: str, found: dict[str, Any]) -> list[str]:
    answers = {"train": "target (fit A)", "test": "test (fit B)", "valid": "valid (fit B)"}[purpose]
    lines = [
        f"Answers: {answers}; {found['viewers']} viewers, {found['answers']:,} held-out likes.",
        "",
        "| | lift | 95 % | personal minus it | held-out | matched | only this film has it | no other like has it |",
        "|---|--:|---|---|--:|--:|--:|--:|",
    ]
    for mode, one in found["modes"].items():
        less = "" if mode == "personal" else f"{one['personal_minus'][0]:.2f} to {one['personal_minus'][1]:.2f}"
        lines.append(
            f"| {mode} | {one['lift']:.2f} | {one['interval'][0]:.2f} to {one['interval'][1]:.2f} | {less} "
            f"| {one['held']:.3f} | {one['matched']:.3f} | {one['only_this_film']:.3f} | {one['no_other_like']:.3f} |"
        )
    return [*lines, ""]


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)
ArtifactsOption = Annotated[Path, typer.Option(help="Where releases and stages are kept and found again.")]
ARTIFACTS = Path("artifacts")


@app.command()
def planted(
    size: Annotated[str, typer.Option(help="A release of `tripletune synth`; empty: made by the options below.")] = "",
    viewers: Annotated[int, typer.Option(help="Viewers of the made-up release.")] = 20_000,
    movies: Annotated[int, typer.Option(help="Its films.")] = 1_000,
    strength: Annotated[float, typer.Option(help="Log-odds that a preference adds.")] = 2.5,
    artifacts: ArtifactsOption = ARTIFACTS,
) -> None:
    """Planted preferences: places between random and the best possible detector."""
    name = size or f"planted-{viewers}-{movies}-{strength:g}"
    preset = f'dataset = "{name}"\nseed = {SEED}\n'
    options: list[str] = []
    if size:
        release = artifacts / f"release-{size}"
        if not (release / "truth.parquet").exists():
            command = [sys.executable, "-m", "tripletune.cli.main", "synth", "--size", size, "--out", str(release)]
            subprocess.run(command, check=True)
        options = ["--movielens", str(release), "--imdb", str(release / "imdb")]
    else:
        preset += f"[synthetic]\nviewers = {viewers}\nmovies = {movies}\npreference_strength = {strength}\n"
    folders, cost = make(artifacts, preset, options)
    started = time.perf_counter()
    found = measure_planted(folders, release if size else folders["ingest"] / "release")
    print(f"measured in {time.perf_counter() - started:.0f} s", file=sys.stderr)
    asked = f"--size {size}" if size else f"--viewers {viewers} --movies {movies} --strength {strength:g}"
    command = f"python benchmarks/rgat_choice.py planted {asked}"
    title = f"Planted: {f'the synthetic {size} release' if size else f'{viewers:,} viewers, strength {strength:g}'}"
    publish(artifacts, name, title, {"command": command, "cost": cost, "planted": found})


@app.command()
def real(
    movielens: Annotated[str, typer.Option(help="Folder or zip of ml-latest-small.")],
    imdb: Annotated[str, typer.Option(help="Folder with IMDb's dumps.")],
    test: Annotated[bool, typer.Option(help="Also the test likes: look once, when everything is chosen.")] = False,
    artifacts: ArtifactsOption = ARTIFACTS,
) -> None:
    """Lift of held-out likes on real ratings."""
    name = "rgat-choice-real"
    options = ["--movielens", movielens, "--imdb", imdb]
    folders, cost = make(artifacts, f'dataset = "{name}"\nseed = {SEED}\n', options)
    found = {purpose: measure_real(folders, purpose) for purpose in ("train", "test" if test else "valid")}
    command = "python benchmarks/rgat_choice.py real --movielens ml-latest-small --imdb imdb" + " --test" * test
    publish(artifacts, name, "Real: ml-latest-small with credits", {"command": command, "cost": cost, "real": found})


if __name__ == "__main__":
    app()
