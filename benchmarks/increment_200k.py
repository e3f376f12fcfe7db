"""A night with pinned specialists on which one viewer in a hundred rated one more film, at MovieLens 32M's size.

    python benchmarks/generate_200k.py --work FOLDER     # the night before, of which this takes over what it can
    python benchmarks/increment_200k.py --work FOLDER    # some ten minutes

Retrieval and shards of the new night, once beside the earlier outputs and once without them, each in a process of its
own. The bytes must be the same. Neither does the audit, which proves everything every night and takes what
generate_200k.md says. Results go to benchmarks/increment_200k.md; smaller nights, with the audit: increments.py.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import polars as pl
import typer
from generate_200k import CONFIG

from tripletune.data.split import write_split
from tripletune.fingerprint import sha256_file
from tripletune.increments import write_unchanged
from tripletune.prompts.shards import generate_shards
from tripletune.retrieve.candidates import retrieve_all
from tripletune.threads import map_in_threads

SHARE = 0.01
KINDS = ("full", "increment")
REPORT = Path(__file__).with_name("increment_200k.md")


def split_next_night(work: Path) -> None:
    """The split of the same ratings and one more, of a popular film, of a seeded hundredth of the viewers."""
    ratings = pl.read_parquet(work / "ingest" / "ratings.parquet")
    users, films = ratings["user_id"].unique().sort().to_numpy(), ratings["movie_id"].value_counts(sort=True)
    rng = np.random.default_rng(CONFIG.seed)
    chosen = np.sort(rng.choice(users, round(SHARE * len(users)), replace=False))
    new = pl.DataFrame({"user_id": chosen, "movie_id": rng.choice(films["movie_id"].head(500).to_numpy(), len(chosen))})
    new = new.with_columns(rating=pl.lit(5.0), timestamp=pl.lit(ratings["timestamp"].max()))
    new = new.cast({name: ratings.schema[name] for name in new.columns}).select(ratings.columns)
    new = new.join(ratings, on=["user_id", "movie_id"], how="anti")
    night = work / "next-night"
    shutil.rmtree(night, ignore_errors=True)
    (night / "split").mkdir(parents=True)
    path = night / "ratings.parquet"
    pl.concat([ratings, new]).sort("user_id", maintain_order=True).write_parquet(path)
    write_split(path, night / "split", CONFIG.split, CONFIG.seed)


def run_night(work: Path, kind: str) -> dict[str, Any]:
    """Retrieval and shards, in this process."""
    night, before, specialists = work / "next-night", work / "first-64", work / "specialists"
    retrieve, shards, unchanged = (night / kind / name for name in ("retrieve", "shards", "unchanged"))
    retrieve.mkdir(parents=True)
    shards.mkdir()
    again = kind == "increment"
    start, used = time.perf_counter(), time.process_time()
    found = retrieve_all(
        night / "split",
        work / "knowledge",
        before / "lightgcn",
        specialists / "rgat",
        retrieve,
        CONFIG.retrieve,
        num_liked_triples=CONFIG.prompt.triples_for_liked,
        seed=CONFIG.seed,
        sasrec=specialists / "sasrec",
        ease=specialists / "ease",
        earlier=before / "retrieve" if again else None,
    )
    retrieved = time.perf_counter()
    if again:
        write_unchanged(before / "retrieve", retrieve, unchanged)
    generate_shards(
        work / "ingest",
        night / "split",
        retrieve,
        shards,
        CONFIG.prompt,
        CONFIG.retrieve,
        dislike=CONFIG.split.dislike,
        specialists={"lightgcn": "made up", "rgat": "made up"},
        seed=CONFIG.seed,
        tokenizer=(str(work / "tokenizer"), ""),
        previous=before / "shards" if again else None,
        unchanged=unchanged if again else None,
        map_jobs=lambda write, jobs: map_in_threads(write, jobs, most=2) and None,
    )
    end = time.perf_counter()
    return {
        "retrieve": retrieved - start,
        "shards": end - retrieved,
        "cpu": time.process_time() - used,
        "facts": {name: value for name, value in found.items() if name.startswith("viewers_")},
        "files": {
            path.relative_to(night / kind).as_posix(): sha256_file(path)
            for folder in (retrieve, shards)
            for path in sorted(folder.rglob("*.parquet"))
        },
    }


def main(
    work: Annotated[str, typer.Option(help="Folder of generate_200k.py.")],
    kind: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Measure, compare, and write benchmarks/increment_200k.md."""
    if kind:
        print(json.dumps(run_night(Path(work), kind)))
        return
    split_next_night(Path(work))
    found: dict[str, Any] = {}
    for one in reversed(KINDS):
        asked = [sys.executable, __file__, "--work", work, "--kind", one]
        done = subprocess.run(asked, check=True, stdout=subprocess.PIPE, text=True)
        found[one] = json.loads(done.stdout.splitlines()[-1])
    same = found["full"]["files"] == found["increment"]["files"]
    whole = {one: found[one]["retrieve"] + found[one]["shards"] for one in KINDS}
    columns = {one: (found[one]["retrieve"], found[one]["shards"], whole[one], found[one]["cpu"]) for one in KINDS}
    rows = [f"| {one} | " + " | ".join(f"{value:.0f}" for value in columns[one]) + " |" for one in KINDS]
    text = "\n".join(
        [
            "# A night's increment at MovieLens 32M's size",
            "",
            "What is measured and how: the head of `increment_200k.py`. Wall seconds, two cores.",
            "",
            "| next night | retrieve s | shards s | both s | CPU s |",
            "|---|--:|--:|--:|--:|",
            *rows,
            "",
            f"Increment / full: {whole['increment'] / whole['full']:.3f} of the wall time. The bytes of all "
            f"{len(found['full']['files'])} files are {'the same' if same else 'NOT the same'}.",
            f"Viewers: {found['increment']['facts']}.",
            "",
        ]
    )
    print(text)
    if not same:
        raise typer.Exit(1)
    REPORT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
