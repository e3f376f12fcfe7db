"""Later stages with labels that only some protocols give."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tests.unit.split_frames import split_ratings
from tests.unit.test_split_protocols import days_of_2000
from tripletune.cli import main as cli
from tripletune.config import RunConfig, SplitConfig
from tripletune.data.split.write import write_split
from tripletune.errors import ConfigError
from tripletune.models.training.interactions import Interactions, read_interactions
from tripletune.pipeline import stages
from tripletune.prompts.evidence import collect_evidence
from tripletune.retrieve.histories import find_answers, find_history, find_questions
from tripletune.store.paths import RunPaths

GLOBAL_TIME = SplitConfig(protocol="global_time", valid_from=date(2000, 1, 3), test_from=date(2000, 1, 5))
RATIO = SplitConfig(protocol="ratio", valid_share=0.3, test_share=0.3, like=1.0, dislike=1.0)


def learned_from(settings: SplitConfig, folder: Path) -> tuple[pl.DataFrame, Interactions]:
    days_of_2000(1).write_parquet(folder / "ratings.parquet")
    write_split(folder / "ratings.parquet", folder / "split", settings, 0)
    return split_ratings(days_of_2000(1), settings, 0), read_interactions(folder / "split")


@pytest.mark.parametrize("settings", [GLOBAL_TIME, RATIO], ids=["global_time", "ratio"])
def test_fits_learn_from_graph_and_target_alone(tmp_path, settings):
    split, interactions = learned_from(settings, tmp_path)
    for fit, labels in (("a", ["graph"]), ("b", ["graph", "target"])):
        likes = interactions.fits[fit]
        users = likes.user_ids_U[likes.user_E.numpy()]
        films = interactions.movie_ids_M[likes.movie_E.numpy()]
        want = split.filter(pl.col("label").is_in(labels), ~pl.col("unseen"))
        assert set(zip(users, films, strict=True)) == set(want.select("user_id", "movie_id").iter_rows())


def test_early_stopping_asks_each_viewers_newest_valid_like_and_never_looks_at_a_test_like(tmp_path):
    split, interactions = learned_from(RATIO, tmp_path)
    asked = interactions.valid
    films = interactions.movie_ids_M
    answers = dict(zip(asked.likes.user_ids_U.tolist(), films[asked.answer_U].tolist(), strict=True))
    rows = split.filter(~pl.col("unseen"))
    seen = np.column_stack([asked.likes.user_ids_U[asked.seen_user_S], films[asked.seen_movie_S]]).tolist()
    tested = set(split.filter(pl.col("label") == "test").select("user_id", "movie_id").iter_rows())
    assert not tested & {tuple(pair) for pair in seen}
    queries = 0
    for (user,), own in rows.group_by("user_id"):
        valid = own.filter(pl.col("label") == "valid").sort("position")
        if valid.height and user in answers:
            queries += valid.height > 1
            assert answers[user] == valid["movie_id"][-1]
    assert queries > 20


def test_a_later_like_is_evidence_of_later_questions_and_an_answer_of_none():
    split = split_ratings(days_of_2000(2), GLOBAL_TIME, 0)
    queries = find_questions(split)
    later = set(split.filter(pl.col("label") == "later").select("user_id", "movie_id").iter_rows())
    assert not later & set(find_answers(split, queries).select("user_id", "movie_id").iter_rows())
    places = {(user, film): place for user, film, place in split.select("user_id", "movie_id", "position").iter_rows()}
    cutoffs = {(user, purpose): cut for user, purpose, cut in queries.drop("unseen").iter_rows()}
    evidence = collect_evidence(split, queries, dislike=3.0, max_liked=99, max_disliked=99)
    liked = evidence.select("user_id", "purpose", movie_id="liked").explode("movie_id", empty_as_null=False)
    history = find_history(split, queries).select("user_id", "purpose", "movie_id")
    assert set(liked.iter_rows()) == set(history.iter_rows())
    shown = [(user, purpose, film) for user, purpose, film in history.iter_rows() if (user, film) in later]
    assert {purpose for _, purpose, _ in shown} == {"test"}
    assert all(places[user, film] < cutoffs[user, purpose] for user, purpose, film in shown)


@pytest.mark.parametrize("stage", [stages.run_retrieve, stages.run_generate])
def test_prompts_of_a_ratio_split_are_refused(tmp_path, stage):
    config = RunConfig(dataset="x", split=RATIO)
    with pytest.raises(ConfigError, match=r"split\.protocol = 'ratio' serves retrieval benchmarks.*use leave_one_out"):
        stage(RunPaths(root=tmp_path, dataset="x", fingerprints={}), config)


def test_a_run_refuses_a_ratio_split_before_anything_starts(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])  # presets name files of the checkout
    (tmp_path / "c.toml").write_text('dataset = "x"\n[split]\nprotocol = "ratio"\n')
    assert cli.main(["run", "--config", str(tmp_path / "c.toml"), "--artifacts", str(tmp_path / "a")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("tripletune: split.protocol = 'ratio' serves retrieval benchmarks")
    assert line.endswith("use leave_one_out or global_time")
    assert not (tmp_path / "a").exists()
