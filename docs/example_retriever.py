"""Add the guide's retriever, item-kNN, to a copy of this checkout and run it: ``python -m docs.example_retriever``.

With ``--until retrieve`` only the stages up to retrieve are run, without Prefect and without a language model.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from docs.example_checkout import ROOT, Checkout

EXAMPLE = ROOT / "docs" / "examples" / "itemknn"
CONFIG = "configs/itemknn.toml"
UP_TO_RETRIEVE = ("ingest", "split", "knowledge", "rgat", "lightgcn", "itemknn", "ease", "retrieve")
RUN_STAGES = """
import sys
from tripletune.cli.main import app

for stage in sys.argv[2:]:
    app(args=[stage, "--config", sys.argv[1]], standalone_mode=False)
"""
COUNT_LISTS = """
import glob
import polars as pl

(path,) = glob.glob("artifacts/itemknn/retrieve/*/rankings.parquet")
print(pl.read_parquet(path)["retriever"].value_counts().sort("retriever").rows())
"""


def add_retriever(checkout: Checkout) -> None:
    """All that the guide tells to do: a folder below ``models/``, its name in the list, and a preset that uses it."""
    checkout.add(EXAMPLE / "models", "src/tripletune/models")
    checkout.replace(
        "src/tripletune/config/models.py",
        "RETRIEVERS = (*SHIPPED_RETRIEVERS,)",
        'RETRIEVERS = (*SHIPPED_RETRIEVERS, "itemknn")',
    )
    (checkout.folder / CONFIG).write_bytes((EXAMPLE / "itemknn.toml").read_bytes())


def run_until_retrieve(checkout: Checkout) -> str:
    """What the stages print, and how many rows of ``rankings.parquet`` each list has."""
    printed = checkout.python("-c", RUN_STAGES, CONFIG, *UP_TO_RETRIEVE)
    return printed + checkout.python("-c", COUNT_LISTS)


def run_all(checkout: Checkout) -> str:
    """The retriever's row of the run's table, and what ``recommend`` prints."""
    printed = checkout.tripletune("run", "--config", CONFIG)
    rows = [line for line in printed.splitlines() if line.split()[:1] == ["itemknn"]]
    return "\n".join([*rows, checkout.tripletune("recommend", "--user", "1")])


def main() -> None:
    """Print what the example changes, and what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--until", choices=["retrieve"], help="run the stages up to this one")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        checkout = Checkout.copy(Path(folder) / "tripletune")
        add_retriever(checkout)
        print(checkout.changes())
        print(run_until_retrieve(checkout) if arguments.until else run_all(checkout))


if __name__ == "__main__":
    main()
