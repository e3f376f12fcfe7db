"""What one run's probe measures is what the next run's selector learns, and what its hint 2 shows.

The stages are the real ones, on a synthetic release; only the language model is planted: the more directors a prompt
names, the surer it is of the right film.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from tests.adapters import write_adapter
from tripletune.config import RunConfig
from tripletune.pipeline.registry import BY_NAME, reusable_stages
from tripletune.pipeline.resolve import resolve
from tripletune.probe import probe
from tripletune.prompts.engine import prompt_contract
from tripletune.selector.selector import NO_LOG
from tripletune.serve.prompting import Prompter, rows_of
from tripletune.store.paths import RunPaths
from tripletune.store.runs import RunRecord, write_run
from tripletune.store.shards import shard_files, split_files

HELPS = "director"
SETTINGS: dict[str, Any] = {
    "dataset": "toy",
    "seed": 3,
    "synthetic": {"viewers": 120, "movies": 100, "mean_ratings": 40},
    "split": {"shards": 2},
    "rgat": {"max_steps": 8, "eval_every": 4, "dim": 16},
    "lightgcn": {"max_steps": 10, "eval_every": 5, "dim": 16},
    "retrieve": {"retriever": "lightgcn", "triple_choice": "learned", "explore_triples": 0.5},
    "selector": {"min_facts": 50, "max_relation_share": 1.0, "min_entropy": 0.0},
    "probe": {"users": 40, "purposes": ["train", "test"], "facts": 6, "swap_facts": False, "perturbations": []},
    "evaluate": {"bootstrap_resamples": 100},
}


def surer_with_directors(prompts: pl.DataFrame, *_: Any) -> tuple[pl.DataFrame, float]:
    """In the place of the language model: every candidate's score under each prompt, and no seconds."""
    rows = []
    for messages, candidates, answers in prompts.select("prompt", "candidates", "answers").iter_rows():
        surer = 0.05 * messages[-1]["content"].count(" - directed by - ")
        scores = [surer if film in answers else 0.0 for film in candidates]
        best = sorted(range(len(candidates)), key=lambda place, scores=scores: -scores[place])
        rows.append(([candidates[place] for place in best], [scores[place] for place in best]))
    schema = {"answers": pl.List(pl.Int32), "scores": pl.List(pl.Float64)}
    return pl.DataFrame(rows, schema=schema, orient="row"), 0.0


def run(root: Path, name: str, started: str, **changes: dict[str, Any]) -> tuple[RunPaths, RunConfig]:
    """A completed run up to its probe."""
    sections = {section: {**SETTINGS[section], **change} for section, change in changes.items()}
    config = RunConfig.model_validate({**SETTINGS, **sections})
    paths = resolve(config, root)
    names = [stage.name for stage in reusable_stages(config)]
    for stage in names[: names.index("generate") + 1]:
        BY_NAME[stage].run(paths, config)
    contract = prompt_contract(config.prompt, config.retrieve)
    paths.build("finetune", lambda work: {"made": write_adapter(work, paths.folder("generate"), contract).name})
    BY_NAME["probe"].run(paths, config)
    record = RunRecord(
        name=name,
        dataset="toy",
        status="completed",
        started=started,
        config=config.model_dump(mode="json"),
        fingerprints=dict(paths.fingerprints),
        stages=dict.fromkeys(names, "made"),
    )
    write_run(root, record)
    return paths, config


def share_of_directors(paths: RunPaths) -> float:
    """Of the films in test prompts that have a director, the share whose fact is about one."""
    shown = pl.read_parquet(shard_files(paths.folder("generate") / "test")).explode("triples").unnest("triples")
    knowledge = paths.folder("knowledge")
    relations = pl.read_parquet(knowledge / "relations.parquet").filter(name=HELPS)
    heads = pl.read_parquet(knowledge / "triples.parquet").join(
        relations, left_on="relation", right_on="relation_id", how="semi"
    )
    keys = pl.read_parquet(knowledge / "entities.parquet").join(heads, left_on="entity_id", right_on="head", how="semi")
    films = shown.with_columns(key=pl.format("movie:{}", "movie_id")).join(keys, on="key", how="semi")
    assert films.height > 100
    return float((films["relation"] == HELPS).mean())  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_facts_that_helped_in_one_run_are_those_that_the_next_one_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "_score", surer_with_directors)
    first, _ = run(tmp_path, "first", "2026-01-01")
    assert first.manifest("selector")["facts"]["refused"] == NO_LOG
    assert first.manifest("retrieve")["facts"]["triples_chosen_by"] == "personal"

    second, config = run(tmp_path, "second", "2026-01-02", rgat={"max_steps": 12})
    learned = second.manifest("selector")
    assert list(learned["ingredients"]["inputs"].values()) == [first.fingerprints["probe"]]
    assert learned["facts"]["refused"] == ""
    assert second.manifest("retrieve")["facts"]["triples_chosen_by"] == "learned"

    plain, _ = run(tmp_path, "plain", "2026-01-03", rgat={"max_steps": 12}, retrieve={"triple_choice": "personal"})
    assert share_of_directors(second) > 0.9 > share_of_directors(plain) + 0.2

    shards = pl.read_parquet(shard_files(second.folder("generate") / "test")).sort("user_id", "cutoff")
    rows = rows_of(list(split_files(second.folder("split")).values()))
    queries = shards.select("user_id", "purpose", "cutoff", "unseen")
    made = Prompter.load(second, config, None).prompts(rows, queries)
    assert_frame_equal(made.sort("user_id", "cutoff"), shards)
