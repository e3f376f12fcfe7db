"""Add the retriever of the guide, item-kNN, to a copy of the checkout: ``python -m docs.example_retriever [--run]``.

Without ``--run`` the stages up to retrieve run. With it the whole flow does: the retriever is then in the run's table
and report, and answers ``recommend``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import polars as pl

from docs.checkout import TINY, Checkout, with_example

SETTINGS = f"""{TINY}
[models.itemknn]
neighbours = 20
[retrieve]
retriever = "itemknn"
num_candidates = 10
[finetune]
num_train_epochs = 0.5
save_steps = 5
[finetune.tiny]
vocab_size = 800
hidden_size = 32
intermediate_size = 64
num_heads = 2
num_kv_heads = 1
[rank]
max_viewers = 24
"""
ONE_PROCESS = """
import sys
from tripletune.cli.main import main

for stage in sys.argv[1:]:
    print(f"$ tripletune {stage} --config tiny.toml", flush=True)
    if code := main([stage, "--config", "tiny.toml"]):
        sys.exit(code)
"""
"""The commands of some stages; a process for each would import torch as many times."""
STAGES = ("ingest", "split", "knowledge", "rgat", "lightgcn", "itemknn", "ease", "retrieve")


def main(run: bool = False) -> str:
    """What came of the new retriever, and how many existing lines it took."""
    with with_example("retriever") as checkout:
        found = run_flow(checkout) if run else run_stages(checkout)
        return "\n".join([found, checkout.changed_lines()])


def run_stages(checkout: Checkout) -> str:
    """What the stages print, and the lists in the rankings that they end with."""
    (checkout.folder / "tiny.toml").write_text(SETTINGS, encoding="utf-8")
    printed = checkout.run("-c", ONE_PROCESS, *STAGES)
    rankings = pl.read_parquet(Path(checkout.folder, printed.splitlines()[-1]) / "rankings.parquet")
    return f"{printed}lists: {', '.join(rankings['retriever'].unique().sort())}"


def run_flow(checkout: Checkout) -> str:
    """The retriever's row of the run's table, whether the report has it, and what it recommends."""
    table = checkout.tripletune("run", settings=SETTINGS)
    row = next(line for line in table.splitlines() if line.strip("│ ").startswith("itemknn "))
    (report,) = checkout.folder.glob("artifacts/tiny/evaluate/*/report.html")
    is_in_report = '<th scope="row">itemknn</th>' in report.read_text(encoding="utf-8")
    (rankings,) = checkout.folder.glob("artifacts/tiny/retrieve/*/rankings.parquet")
    user = str(pl.read_parquet(rankings)["user_id"].min())
    films = checkout.run("-m", "tripletune.cli.main", "recommend", "--user", user, "--artifacts", "artifacts")
    return f"{row}\nin the report: {is_in_report}\n{films}"


if __name__ == "__main__":
    print(main(run="--run" in sys.argv[1:]))
