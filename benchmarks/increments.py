"""Benchmark of an incremental run, in which one user in a hundred has one more rating, against a full run.

    python benchmarks/increments.py                  # 20,000 users, specialists of a few steps
    python benchmarks/increments.py --work FOLDER    # MovieLens 32M's size, on what generate_200k.py left there

A first run has retrieved and generated. The second has one more rating of a seeded hundredth of the users, and the
first one's specialists. It is done twice, in processes of their own: with the first run's outputs, of which it reuses
the rows that are still right, and without them. Both must write the same bytes; wall and CPU time are the process's
own, from the start of retrieve (imports included) to the end of generate, audit, card and manifests included; peak
memory is the manifests'. Results go to benchmarks/increments.md or increments_200k.md.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import generate_200k
import numpy as np
import polars as pl
import psutil
import typer

from tripletune.audit import audit as audits
from tripletune.config import RunConfig, SyntheticConfig
from tripletune.data.split.write import write_split
from tripletune.pipeline import stages
from tripletune.pipeline.registry import BY_NAME, reusable_stages
from tripletune.pipeline.resolve import resolve
from tripletune.store.fingerprint import Ingredients, sha256_file
from tripletune.store.paths import Facts, RunPaths
from tripletune.store.runs import RunRecord, utc_now, write_run
from tripletune.synthetic.release import write_release
from tripletune.threads import map_in_threads

SEED = 7
SHARE = 0.01
FIRST = "first-night"
BEFORE = ("ingest", "split", "knowledge")
MEASURED = ("retrieve", "generate")
TOLD = ("viewers_reused", "reused", "nothing_reused", "examples_proven_anew")


@dataclass(frozen=True, slots=True)
class Night:
    """Config, fingerprints and ingredients of a run whose other stages are finished, for a process of its own."""

    artifacts: str
    config: dict[str, Any]
    fingerprints: Mapping[str, str]
    ingredients: Mapping[str, Ingredients]

    @classmethod
    def of(cls, paths: RunPaths, config: RunConfig) -> Night:
        """From the result of ``resolve``, or from paths made by hand."""
        return cls(str(paths.root), config.model_dump(mode="json"), paths.fingerprints, paths.ingredients)

    def without_earlier(self, root: Path) -> Night:
        """The same run in a store without earlier outputs of retrieve and generate."""
        gone = shutil.ignore_patterns(*MEASURED)
        shutil.copytree(self.artifacts, root, ignore=gone, copy_function=os.link)
        return Night(str(root), self.config, self.fingerprints, self.ingredients)

    def run(self) -> dict[str, Any]:
        """Retrieve and generate in this process; returns their costs and their facts."""
        config = RunConfig.model_validate(self.config)
        paths = RunPaths(
            root=Path(self.artifacts),
            dataset=config.dataset,
            fingerprints=self.fingerprints,
            ingredients=self.ingredients,
        )
        seconds = _clock_audit()
        start, used = time.perf_counter(), time.process_time()
        stages.run_retrieve(paths, config)
        stages.run_generate(paths, config, lambda write, jobs: map_in_threads(write, jobs, most=2) and None)
        facts = paths.manifest("generate")["facts"]
        return {
            "wall": time.perf_counter() - start,
            "cpu": time.process_time() - used,
            "peak_mib": max(paths.manifest(stage)["peak_bytes"] for stage in MEASURED) / 2**20,
            "stages": {stage: paths.manifest(stage)["seconds"] for stage in MEASURED},
            "audit": sum(seconds),
            "examples": sum(facts["examples"].values()),
            "taken over": {key: facts[key] for key in TOLD if key in facts},
            "changed": facts.get("viewers_changed"),
            "files": {
                f"{stage}/{path.relative_to(paths.folder(stage))}": sha256_file(path)
                for stage in MEASURED
                for path in sorted(paths.folder(stage).rglob("*.parquet"))
            },
        }


def _clock_audit() -> list[float]:
    audit, seconds = audits.audit_work_folder, []

    def timed(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        try:
            return audit(*args, **kwargs)
        finally:
            seconds.append(time.perf_counter() - began)

    audits.audit_work_folder = timed
    return seconds


def synthetic_nights(root: Path, viewers: int, movies: int) -> Night:
    """A release of this size, its first run by the real stages, and the second up to the split."""
    release, artifacts = root / "release", root / "artifacts"
    print(write_release(release, SyntheticConfig(viewers=viewers, movies=movies), SEED), flush=True)
    config = _settings(release)
    paths = resolve(config, artifacts)
    names = [spec.name for spec in reusable_stages(config)]
    for stage in names[: names.index(MEASURED[-1]) + 1]:
        BY_NAME[stage].run(paths, config)
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
    ratings = pl.read_csv(release / "ratings.csv")
    names = {"user_id": "userId", "movie_id": "movieId"}
    new = _one_more(ratings.rename({theirs: ours for ours, theirs in names.items()})).rename(names)
    pl.concat([ratings, new.cast(ratings.schema)]).write_csv(release / "ratings.csv")
    pinned = _settings(release, pin=FIRST)
    tonight = resolve(pinned, artifacts)
    for stage in BEFORE:
        BY_NAME[stage].run(tonight, pinned)
    return Night.of(tonight, pinned)


def _settings(release: Path, *, pin: str = "") -> RunConfig:
    """The default settings, but for specialists that hardly train: their quality does not matter here."""
    few = {"max_steps": 20, "eval_every": 10}
    return RunConfig.model_validate(
        {
            "dataset": "nights",
            "seed": SEED,
            "source": {"movielens": str(release), "imdb": str(release / "imdb")},
            "lightgcn": few,
            "rgat": few,
            "sequence": few,
            "specialists": {"pin": pin},
        }
    )


def full_size_nights(root: Path, work: Path) -> Night:
    """The specialists of generate_200k.py under the split of two runs; the first is run in a process of its own."""
    config = generate_200k.CONFIG.model_copy(
        update={"finetune": generate_200k.CONFIG.finetune.model_copy(update={"model": str(work / "tokenizer")})}
    )
    ratings = pl.read_parquet(work / "ingest" / "ratings.parquet")
    new = _one_more(ratings).select(ratings.columns).cast(dict(ratings.schema))
    path = root / "ratings.parquet"
    pl.concat([ratings, new]).sort("user_id", maintain_order=True).write_parquet(path)
    nights = []
    for number, source in enumerate((work / "ingest" / "ratings.parquet", path)):
        paths = _paths_by_hand(config, root / "artifacts", number)
        paths.build("split", lambda out, source=source: write_split(source, out, config.split, config.seed))
        for stage in ("ingest", "knowledge", *config.trained_stages):
            paths.build(stage, lambda out, stage=stage: _link_stage(work, stage, out))
        nights.append(Night.of(paths, config))
    _measure(nights[0], root / "first.json")
    return nights[1]


def _paths_by_hand(config: RunConfig, artifacts: Path, night: int) -> RunPaths:
    """Paths of a run by number; the second differs in the split and later stages, the fits are the first run's."""
    new = ("split", *MEASURED)
    prints = {spec.name: str(night if spec.name in new else 0) * 32 for spec in reusable_stages(config)}
    ingredients: dict[str, Ingredients] = {
        spec.name: {
            "source": {},
            "libraries": {},
            "fields": {},
            "parents": {
                parent: "0" * 32 if spec.name in config.trained_stages else prints[parent]
                for parent in spec.parents_of(config)
            },
            "inputs": {},
        }
        for spec in reusable_stages(config)
    }
    return RunPaths(root=artifacts, dataset=config.dataset, fingerprints=prints, ingredients=ingredients)


def _link_stage(work: Path, stage: str, out: Path) -> Facts:
    source = work / stage if (work / stage).is_dir() else work / "specialists" / stage
    for path in source.iterdir():
        os.link(path.resolve(), out / path.name)
    if stage not in BEFORE and not (out / "trained_on.parquet").exists():  # made up, as if fitted to the same rows
        os.link((work / "specialists" / "lightgcn" / "trained_on.parquet").resolve(), out / "trained_on.parquet")
    return {}


def _one_more(ratings: pl.DataFrame) -> pl.DataFrame:
    """Five stars for a film that a user has not rated, after everything else, of a seeded hundredth of the users:
    ``user_id, movie_id, rating, timestamp``."""
    users, films = ratings["user_id"].unique().sort().to_numpy(), ratings["movie_id"].unique().sort().to_numpy()
    rng = np.random.default_rng(SEED)
    chosen = np.sort(rng.choice(users, max(1, round(SHARE * len(users))), replace=False))
    mine = ratings.filter(pl.col("user_id").is_in(chosen)).group_by("user_id").agg("movie_id").sort("user_id")
    new = [rng.choice(np.setdiff1d(films, rated.to_numpy())) for rated in mine["movie_id"]]
    rows = pl.DataFrame({"user_id": chosen, "movie_id": new})
    return rows.with_columns(rating=pl.lit(5.0), timestamp=pl.lit(ratings["timestamp"].max() + 1))


def _measure(night: Night, file: Path) -> dict[str, Any]:
    """Measure the run in a process of its own."""
    file.write_text(json.dumps(asdict(night)), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, __file__, "--night", str(file)], check=True, stdout=subprocess.PIPE, text=True
    )
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"{file.stem}: {measured['wall']:.1f} s, {measured['cpu']:.1f} CPU s", flush=True)
    return measured


def main(
    work: Annotated[str, typer.Option(help="Folder of generate_200k.py; without it, a small release is made.")] = "",
    viewers: Annotated[int, typer.Option(help="Of the small release.")] = 20_000,
    movies: Annotated[int, typer.Option(help="Of the small release.")] = 4_000,
    night: Annotated[str, typer.Option(hidden=True, help="Do the run that this file describes, and print it.")] = "",
) -> None:
    if night:
        print(json.dumps(Night(**json.loads(Path(night).read_text(encoding="utf-8"))).run()))
        return
    with tempfile.TemporaryDirectory(dir=work or None) as folder:
        root = Path(folder)
        tonight = full_size_nights(root, Path(work).resolve()) if work else synthetic_nights(root, viewers, movies)
        nights = {"full": tonight.without_earlier(root / "full"), "increment": tonight}
        found = {name: _measure(one, root / f"{name}.json") for name, one in nights.items()}
    same = found["full"].pop("files") == found["increment"].pop("files")
    command = "--work FOLDER" if work else f"--viewers {viewers} --movies {movies}"
    text = _report(found, command=command, same=same)
    print(text)
    if not same:
        raise typer.Exit(1)
    Path(__file__).with_name("increments_200k.md" if work else "increments.md").write_text(text, encoding="utf-8")


def _report(found: dict[str, Any], *, command: str, same: bool) -> str:
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
            f"{full['examples']:,} examples; a hundredth of the viewers rated one more film. Specialists pinned to the "
            "first night.",
            f"`python benchmarks/increments.py {command}`, {platform.machine()}, {psutil.cpu_count()} cores, "
            f"Python {platform.python_version()}, polars {pl.__version__}.",
            "",
            "| second night | retrieve s | generate s | of it audit s | both s | CPU s | peak MiB |",
            "|---|---|---|---|---|---|---|",
            *rows,
            "",
            f"Increment / full: {increment['wall'] / full['wall']:.3f} of the wall time, "
            f"{increment['cpu'] / full['cpu']:.3f} of the CPU time. "
            f"The bytes of all Parquet files are {'the same' if same else 'NOT the same'}.",
            f"Taken over: {increment['taken over']}; asked again: {increment['changed']}. "
            f"The full night: {full['taken over']}.",
            "",
        ]
    )


if __name__ == "__main__":
    typer.run(main)
