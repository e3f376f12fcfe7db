"""A night on which one viewer in a hundred rated one more film, against a night that asks everybody.

    python benchmarks/increments.py --viewers 20000      # a synthetic release, specialists of a few steps

The first night trains, retrieves and generates. The second has one more rating of a seeded hundredth of the viewers and
pins the first one's specialists. It is done twice, in processes of their own: beside the first night's outputs, of
which it takes over what is still right, and without them. Both must write the same bytes; wall and CPU time are
the process's own, from the start of retrieve (imports included) to the end of generate, audit and card included; peak
memory is the manifests'. Results go to benchmarks/increments.md.
"""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import polars as pl
import psutil
import typer

from tripletune import stages
from tripletune.config import RunConfig, SyntheticConfig
from tripletune.data.synthetic import write_release
from tripletune.fingerprint import sha256_file
from tripletune.paths import RunPaths
from tripletune.rank import audits
from tripletune.runs import RunRecord, utc_now, write_run

SEED = 7
SHARE = 0.01
FIRST = "first-night"
BEFORE = ("ingest", "split", "knowledge")
MEASURED = ("retrieve", "generate")
REPORT = Path(__file__).with_name("increments.md")


def settings(release: Path, *, pin: str = "") -> RunConfig:
    """The default settings, but for specialists that hardly train: what they know is no matter here."""
    few = {"max_steps": 20, "eval_every": 10}
    return RunConfig.model_validate(
        {
            "dataset": "nights",
            "seed": SEED,
            "source": {"movielens": str(release), "imdb": str(release / "imdb")},
            "lightgcn": few,
            "rgat": few,
            "sasrec": few,
            "specialists": {"pin": pin},
        }
    )


def run_first_night(release: Path, artifacts: Path) -> None:
    """All stages up to generate, and the run's file, so that it can be pinned."""
    config = settings(release)
    paths = stages.resolve(config, artifacts)
    for stage in (*BEFORE, *config.trained_stages, *MEASURED):
        getattr(stages, f"run_{stage}")(paths, config)
        print(f"{stage}: {paths.manifest(stage)['seconds']:.1f} s", flush=True)
    record = RunRecord(
        name=FIRST,
        dataset=config.dataset,
        status="completed",
        started=utc_now(),
        config=config.model_dump(mode="json"),
        fingerprints=dict(paths.fingerprints),
    )
    write_run(artifacts, record)


def rate_one_more(release: Path) -> int:
    """A film that a viewer has not rated, with five stars, after everything else; the number of viewers who do."""
    ratings = pl.read_csv(release / "ratings.csv")
    users, films = ratings["userId"].unique().sort().to_numpy(), ratings["movieId"].unique().sort().to_numpy()
    rng = np.random.default_rng(SEED)
    chosen = np.sort(rng.choice(users, max(1, round(SHARE * len(users))), replace=False))
    mine = ratings.filter(pl.col("userId").is_in(chosen)).group_by("userId").agg("movieId").sort("userId")
    new = [rng.choice(np.setdiff1d(films, rated.to_numpy())) for rated in mine["movieId"]]
    rows = pl.DataFrame({"userId": chosen, "movieId": new})
    rows = rows.with_columns(rating=pl.lit(5.0), timestamp=pl.lit(ratings["timestamp"].max() + 1))
    pl.concat([ratings, rows.cast(ratings.schema)]).write_csv(release / "ratings.csv")
    return len(chosen)


def run_second_night(release: Path, artifacts: Path) -> dict[str, Any]:
    """Retrieve and generate under the pin; what they took, and what they say of themselves."""
    config = settings(release, pin=FIRST)
    paths = stages.resolve(config, artifacts)
    audit, audit_seconds = audits.audit_night, []

    def timed(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        try:
            return audit(*args, **kwargs)
        finally:
            audit_seconds.append(time.perf_counter() - began)

    audits.audit_night = timed
    start, used = time.perf_counter(), time.process_time()
    for stage in MEASURED:
        getattr(stages, f"run_{stage}")(paths, config)
    return {
        "wall": time.perf_counter() - start,
        "cpu": time.process_time() - used,
        "peak_mib": max(paths.manifest(stage)["peak_bytes"] for stage in MEASURED) / 2**20,
        "stages": {stage: paths.manifest(stage)["seconds"] for stage in MEASURED},
        "audit": sum(audit_seconds),
        "facts": {key: value for key, value in paths.manifest("generate")["facts"].items() if "reused" in key},
        "changed": paths.manifest("generate")["facts"].get("viewers_changed"),
        "files": _hashes(paths),
    }


def _hashes(paths: RunPaths) -> dict[str, str]:
    return {
        f"{stage}/{path.relative_to(paths.folder(stage))}": sha256_file(path)
        for stage in MEASURED
        for path in sorted(paths.folder(stage).rglob("*.parquet"))
    }


def main(
    viewers: Annotated[int, typer.Option(help="Of the synthetic release.")] = 20_000,
    movies: Annotated[int, typer.Option(help="Of the synthetic release.")] = 4_000,
    night: Annotated[str, typer.Option(hidden=True, help="Run the second night in this folder and print it.")] = "",
) -> None:
    if night:
        print(json.dumps(run_second_night(Path(night) / "release", Path(night) / "artifacts")))
        return
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        size = SyntheticConfig(viewers=viewers, movies=movies)
        print(write_release(root / "release", size, SEED), flush=True)
        run_first_night(root / "release", root / "artifacts")
        rated = rate_one_more(root / "release")
        config = settings(root / "release", pin=FIRST)
        paths = stages.resolve(config, root / "artifacts")
        for stage in BEFORE:
            getattr(stages, f"run_{stage}")(paths, config)
        (root / "full").mkdir()
        shutil.copytree(root / "release", root / "full" / "release")
        gone = shutil.ignore_patterns(*MEASURED)
        shutil.copytree(root / "artifacts", root / "full" / "artifacts", ignore=gone)
        found = {name: _measure(root if name == "increment" else root / "full") for name in ("full", "increment")}
    same = found["full"].pop("files") == found["increment"].pop("files")
    text = _report(found, viewers=viewers, movies=movies, rated=rated, same=same)
    print(text)
    if not same:
        raise typer.Exit(1)
    REPORT.write_text(text, encoding="utf-8")


def _measure(root: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, "--night", str(root)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def _without_audit(one: dict[str, Any]) -> float:
    return float(one["wall"] - one["audit"])


def _report(found: dict[str, Any], *, viewers: int, movies: int, rated: int, same: bool) -> str:
    full, increment = found["full"], found["increment"]
    rows = [
        f"| {name} | {one['stages']['retrieve']:.1f} | {one['stages']['generate']:.1f} | "
        f"{one['audit']:.1f} | {one['wall']:.1f} | {one['cpu']:.1f} | {one['peak_mib']:,.0f} |"
        for name, one in found.items()
    ]
    return "\n".join(
        [
            "# Nightly increments",
            "",
            f"{viewers:,} viewers and {movies:,} films, synthetic; {rated:,} viewers rated one more film. Specialists",
            "pinned to the first night. "
            f"`python benchmarks/increments.py --viewers {viewers} --movies {movies}`, {platform.machine()}, "
            f"{psutil.cpu_count()} cores, Python {platform.python_version()}, polars {pl.__version__}.",
            "",
            "| second night | retrieve s | generate s | of it audit s | both s | CPU s | peak MiB |",
            "|---|---|---|---|---|---|---|",
            *rows,
            "",
            f"Increment / full: {increment['wall'] / full['wall']:.3f} of the wall time, "
            f"{increment['cpu'] / full['cpu']:.3f} of the CPU time. "
            f"The bytes of all Parquet files are {'the same' if same else 'NOT the same'}.",
            "Without the audit, which proves every example every night, it is "
            f"{_without_audit(increment) / _without_audit(full):.3f} of the wall time.",
            f"Taken over: {increment['facts']}; asked again: {increment['changed']}. The full night: {full['facts']}.",
            "",
        ]
    )


if __name__ == "__main__":
    typer.run(main)
