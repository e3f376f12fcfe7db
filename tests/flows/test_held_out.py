"""A real run with three held-out likes per user in valid and test, through all stages up to promote."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import polars as pl
import pytest

from tests.flows.conftest import MICRO, MicroRun, call_tripletune
from tripletune.audit.audit import PURPOSES
from tripletune.config import RankConfig
from tripletune.judges import judges
from tripletune.prompts.engine import prompt_contract
from tripletune.rank.predict import rank_shards
from tripletune.schemas.query import QUERY_KEY
from tripletune.store.fingerprint import sha256_file
from tripletune.store.paths import SCRATCH
from tripletune.store.runs import read_run

pytestmark = pytest.mark.slow

NUM_CUTOFFS, RANKED = 3, 10
CHANGED = {
    "shards = 3": f"shards = 3\nheld_out = {NUM_CUTOFFS}",
    "viewers = 120": "viewers = 60",
    "max_viewers = 24": f"max_viewers = {RANKED}",
    "unconstrained_viewers = 4": "unconstrained_viewers = 1",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> MicroRun:
    text = MICRO
    for before, after in CHANGED.items():
        assert text.count(before) == 1
        text = text.replace(before, after)
    folder = tmp_path_factory.mktemp("held_out")
    config, root, home = folder / "micro.toml", folder / "artifacts", folder / "prefect"
    config.write_text(text)
    done = call_tripletune("run", "--config", str(config), "--artifacts", str(root), home=home)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-8000:]
    return MicroRun(config, root, home, read_run(root), done.stdout)


def examples(run: MicroRun, purpose: str) -> pl.DataFrame:
    return pl.read_parquet(run.paths.folder("generate") / purpose / "*.parquet")


def test_every_user_has_an_example_for_each_held_out_like_and_nothing_leaks(run: MicroRun) -> None:
    ids = pl.concat(examples(run, purpose)["example_id"] for purpose in PURPOSES)
    assert ids.is_unique().all()
    for purpose in ("valid", "test"):
        frame = examples(run, purpose)
        assert frame.group_by("user_id").len()["len"].unique().to_list() == [NUM_CUTOFFS]
        assert frame["answers"].list.len().unique().to_list() == [1]
    audited = run.call("audit")
    assert audited.returncode == 0, audited.stdout + audited.stderr
    asked = examples(run, "test").sort("user_id", "cutoff").row(1, named=True)
    told = ("--user", str(asked["user_id"]), "--purpose", "test", "--cutoff", str(asked["cutoff"]))
    shown = run.call("prompt", *told)
    assert f"held-out likes: {asked['answers'][0]}" in shown.stdout.replace("\n", " "), shown.stdout + shown.stderr
    served = run.call("recommend", "--user", str(asked["user_id"]))
    assert served.returncode == 0, served.stderr[-3000:]


def test_queries_are_ranked_and_users_are_measured_and_compared(run: MicroRun) -> None:
    ranked = pl.read_parquet(run.paths.folder("rank") / "predictions.parquet")
    assert ranked.select(*QUERY_KEY, "system", "constrained").is_unique().all()
    per_system = ranked.filter(pl.col("constrained")).group_by("purpose", "system")
    counts = per_system.agg(pl.len(), users=pl.col("user_id").n_unique()).select("len", "users").unique()
    assert counts.rows() == [(RANKED * NUM_CUTOFFS, RANKED)]
    values = pl.read_parquet(run.paths.folder("evaluate") / "per_viewer.parquet")
    assert values.select("user_id", "purpose", "row").is_unique().all()
    facts = json.loads((run.paths.folder("evaluate") / "metrics.json").read_text())
    assert facts["rerank_viewers"] == RANKED
    assert facts["retrieval_viewers"] == examples(run, "test")["user_id"].n_unique()
    users = ranked.filter(purpose="valid")["user_id"].unique()
    (decision,) = run.root.glob("*/promote/*/decision.json")
    assert json.loads(decision.read_text())["num_viewers"] == judges(users, 3).sum() > 1


def test_ranking_killed_between_pieces_goes_on_to_the_same_bytes(run: MicroRun, tmp_path: Path) -> None:
    config = run.record.settings()
    settings = RankConfig(batch_size=8, max_viewers=3, unconstrained_viewers=1)
    contract = prompt_contract(config.prompt, config.retrieve)
    shards, adapter = run.paths.folder("generate"), run.paths.folder("finetune")
    rank_shards(shards, adapter, tmp_path / "whole", settings, contract, config.seed, folder_of=run.paths.folder)
    pieces = tmp_path / "whole" / SCRATCH / "pieces"
    shutil.copytree(pieces, tmp_path / "killed" / SCRATCH / "pieces")
    (tmp_path / "killed" / SCRATCH / "pieces" / "test-tuned-constrained-00000.parquet").unlink()
    rank_shards(shards, adapter, tmp_path / "killed", settings, contract, config.seed, folder_of=run.paths.folder)
    whole, killed = (tmp_path / name / "predictions.parquet" for name in ("whole", "killed"))
    assert sha256_file(whole) == sha256_file(killed)
    joined = pl.read_parquet(whole).join(
        pl.concat(examples(run, purpose) for purpose in ("valid", "test")).select(
            *QUERY_KEY, "candidates", "retrieved"
        ),
        on=QUERY_KEY,
        how="left",
    )
    assert len(joined) == 2 * 3 * NUM_CUTOFFS * 4 + 2 * NUM_CUTOFFS  # purposes, users, systems; without constraint
    assert (joined["answers"].list.set_difference(joined["candidates"]).list.len() == 0).all()
    in_order = joined.filter(system="retriever")
    assert in_order["answers"].equals(in_order["retrieved"].rename("answers"))
    shuffled = joined.filter(system="random")
    assert shuffled["answers"].list.sort().equals(shuffled["candidates"].list.sort().rename("answers"))
