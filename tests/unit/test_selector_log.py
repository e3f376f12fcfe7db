"""The log of an earlier run: what is learned from it, and that no answer of valid or test is."""

from __future__ import annotations

import json
import shutil

import numpy as np
import polars as pl
import pytest
import small_world

from tripletune.audit.feedback import find_other_questions
from tripletune.config import RetrieveConfig, SelectorConfig
from tripletune.errors import InputError
from tripletune.retrieve.histories import find_answers, find_history, find_questions, find_seen
from tripletune.retrieve.learned import NAME
from tripletune.retrieve.retriever import Retriever
from tripletune.schemas.base import conform
from tripletune.schemas.probe import FACT_CHANGES, FACT_CHANGES_NAME
from tripletune.schemas.query import PURPOSES, QUERY_KEY
from tripletune.selector.log import RunLog, read_log
from tripletune.selector.selector import NO_LOG, Judging, learn_selector
from tripletune.store.parquet import write_parquet

SEED = 7
RETRIEVE = RetrieveConfig(retriever="lightgcn", num_candidates=8, hint_films=5, explore_triples=0.5)
SETTINGS = SelectorConfig(min_facts=50, min_entropy=0.0, max_relation_share=1.0)
JUDGING = Judging(confidence=0.95, resamples=100, seed=SEED)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A world, and the log of a run in which only facts on directors helped."""
    world = small_world.make_world(tmp_path_factory.mktemp("world"))
    rows = small_world.read_split(world)
    queries = find_questions(rows)
    parts = find_history(rows, queries), find_seen(rows, queries), find_answers(rows, queries)
    retriever = Retriever.load(world.knowledge, world.specialists, RETRIEVE, num_liked_triples=4, seed=SEED)
    _, choices = retriever.retrieve_users(queries, *parts)
    answers = parts[2].group_by(QUERY_KEY).agg(answers="movie_id")
    examples = answers.with_columns(example_id=pl.format("{}:{}:{}", "user_id", pl.col("purpose").cast(str), "cutoff"))
    for (purpose,), mine in examples.group_by("purpose"):
        (world.generate / purpose).mkdir()
        write_parquet(world.generate / purpose / "shard-000.parquet", mine)
    (world.retrieve / "choices").mkdir()
    write_parquet(world.retrieve / "choices" / "shard-000.parquet", choices)
    rng = np.random.default_rng(1)
    changes = choices.join(examples, on=QUERY_KEY).with_columns(
        system=pl.lit("tuned"),
        how=pl.lit("without"),
        share=pl.lit(0.5),
        before=pl.lit(-2.0),
        change=(pl.col("relation") == "director").cast(float) + pl.Series(rng.normal(0, 0.1, len(choices))),
        distance=pl.lit(0.1),
        first_changed=pl.lit(False),
    )
    (world.root / "probe").mkdir()
    write_parquet(world.probe / FACT_CHANGES_NAME, conform(changes, FACT_CHANGES))
    return world


@pytest.fixture
def world(made, tmp_path):
    """A copy to damage."""
    return small_world.World(shutil.copytree(made.root, tmp_path / "world"))


def run_of(world) -> RunLog:
    return RunLog(world.probe, world.generate, world.retrieve, world.split)


def learn(world, run, out, settings=SETTINGS):
    out.mkdir()
    return learn_selector(run, world.split, world.knowledge, world.rgat, world.lightgcn, out, settings, JUDGING)


def rewrite(path, change) -> None:
    write_parquet(path, change(pl.read_parquet(path)))


def test_only_training_rows_are_read_each_with_its_propensity(made):
    feedback = read_log(run_of(made), made.split)
    facts = feedback.facts
    assert set(facts["purpose"].cast(str)) == {"train"}
    assert feedback.dropped["of valid or test"] > 100
    choices = pl.read_parquet(made.retrieve / "choices").filter(purpose="train")
    assert facts["propensity"].to_list() == choices.sort(facts.columns[:6])["propensity"].to_list()


def test_of_two_facts_of_a_film_each_has_half_of_the_probability(world):
    def twice(choices):
        other = choices.with_columns(entity=pl.lit("other"), rank=pl.lit(1, pl.Int8))
        return pl.concat([choices, other])

    once = read_log(run_of(world), world.split).facts["propensity"]
    rewrite(world.retrieve / "choices" / "shard-000.parquet", twice)
    assert read_log(run_of(world), world.split).facts["propensity"].to_list() == (once / 2).to_list()


def test_a_valid_row_that_says_it_is_of_training_is_refused(world):
    as_train = pl.lit("train", PURPOSES).alias("purpose")
    path = world.probe / FACT_CHANGES_NAME
    rewrite(path, lambda facts: facts.with_columns(as_train))
    with pytest.raises(InputError, match=r"\d+:(valid|test):\d+ is no training example"):
        read_log(run_of(world), world.split)
    # and where the shards and choices tell the same lie, the split does not
    for purpose in ("valid", "test"):
        shutil.copy(world.generate / purpose / "shard-000.parquet", world.generate / "train" / f"{purpose}.parquet")
    rewrite(world.retrieve / "choices" / "shard-000.parquet", lambda choices: choices.with_columns(as_train))
    with pytest.raises(InputError, match="are no training questions, first 10:test"):
        read_log(run_of(world), world.split)


def test_an_answer_of_valid_in_a_training_example_is_refused(world):
    rows = small_world.read_split(world)
    held_out = rows.filter(label="valid", user_id=5)["movie_id"].item()
    swapped = pl.when(pl.col("user_id") == 5).then(pl.concat_list(pl.lit(held_out, pl.Int32))).otherwise("answers")
    rewrite(world.generate / "train" / "shard-000.parquet", lambda one: one.with_columns(answers=swapped))
    with pytest.raises(InputError, match=f"1 of .* first 5:train:.*: its answer {held_out} is valid there"):
        read_log(run_of(world), world.split)


def test_what_this_run_holds_out_is_dropped_and_counted(world, tmp_path):
    now = tmp_path / "now"
    later = small_world.World(now)
    later.split.mkdir(parents=True)
    rows = small_world.read_split(world)
    unseen = pl.col("unseen") | (pl.col("user_id") == 4)
    label = pl.when((pl.col("user_id") == 6) & (pl.col("label") == "target")).then(pl.lit("valid")).otherwise("label")
    small_world.write_split(later, rows.with_columns(unseen=unseen, label=label.cast(rows.schema["label"])))
    whole, left = (read_log(run_of(world), split) for split in (world.split, later.split))
    assert left.dropped["no training question any more"] == len(whole.facts.filter(pl.col("user_id").is_in([4, 6])))
    assert left.facts.equals(whole.facts.filter(pl.col("user_id").is_in([4, 6]).not_()))


def test_why_an_example_is_no_training_question(made):
    rows = small_world.read_split(made)
    target = rows.filter(label="target", user_id=5).sort("position").row(0, named=True)
    earlier = rows.filter(label="graph", user_id=5)["movie_id"][0]
    cases = {
        "right": (5, target["position"], [target["movie_id"]]),
        "cutoff": (5, target["position"] + 1000, [target["movie_id"]]),
        "early": (5, target["position"], [earlier]),
        "unrated": (5, target["position"], [target["movie_id"], 9999]),
        "unseen": (small_world.NUM_VIEWERS, 3, [1]),
    }
    examples = pl.DataFrame(
        [(name, *case) for name, case in cases.items()],
        schema={"example_id": str, "user_id": pl.Int32, "cutoff": pl.Int32, "answers": pl.List(pl.Int32)},
        orient="row",
    )
    assert dict(find_other_questions(examples, made.split).iter_rows()) == {
        "cutoff": "no target like is at its cutoff",
        "early": f"its answer {earlier} is graph there",
        "unrated": "its answer 9999 is not rated there",
        "unseen": "its user is unseen",
    }


def test_a_fact_that_was_not_chosen_is_refused(world):
    rewrite(world.retrieve / "choices" / "shard-000.parquet", lambda choices: choices.filter(pl.col("user_id") != 4))
    with pytest.raises(InputError, match=r"4:train:.* was probed with a fact of film"):
        read_log(run_of(world), world.split)


def test_what_helped_is_chosen_from_then_on(made, tmp_path):
    facts = learn(made, run_of(made), tmp_path / "selector")
    assert facts["refused"] == ""
    assert facts["relations"]["learned"]["director"] > 0.9  # a twelfth of the films has no director with a name
    assert facts["values"][facts["learner"]]["minus_personal_low"] > 0.2
    asked = RETRIEVE.model_copy(update={"triple_choice": "learned", "explore_triples": 0.0})
    rows = small_world.read_split(made)
    queries = find_questions(rows)
    parts = find_history(rows, queries), find_seen(rows, queries), find_answers(rows, queries)
    shares = {}
    for name, folder in (("learned", tmp_path / "selector"), ("none", None)):
        retriever = Retriever.load(
            made.knowledge, made.specialists, asked, num_liked_triples=4, seed=SEED, selector=folder
        )
        choices = retriever.retrieve_users(queries, *parts)[1]
        of_test = (
            choices.filter(purpose="test")
            .join(small_world.triples(), on="movie_id")
            .filter((pl.col("relation_right") == "director") & (pl.col("entity_right") != "person:nm9"))
        )
        shares[name] = (of_test["relation"] == "director").mean()
    assert shares["learned"] > 0.95
    assert shares["none"] < 0.6


def test_the_file_has_the_same_bytes_again(made, tmp_path):
    for name in ("first", "second"):
        learn(made, run_of(made), tmp_path / name)
    assert (tmp_path / "first" / NAME).read_bytes() == (tmp_path / "second" / NAME).read_bytes()


def test_without_a_log_or_with_a_refused_choice_the_personal_one_is_used_and_the_reason_kept(made, tmp_path, caplog):
    assert learn(made, None, tmp_path / "none")["refused"] == NO_LOG
    assert NO_LOG in caplog.text
    strict = SETTINGS.model_copy(update={"min_entropy": 1.0, "max_relation_share": 0.3})
    assert learn(made, run_of(made), tmp_path / "collapsed", strict)["refused"].startswith("it collapsed")
    stored = json.loads((tmp_path / "collapsed" / NAME).read_text())
    assert stored["refused"].startswith("it collapsed")
    assert stored["weights"]
    asked = RETRIEVE.model_copy(update={"triple_choice": "learned"})
    for folder in ("none", "collapsed"):
        retriever = Retriever.load(
            made.knowledge, made.specialists, asked, num_liked_triples=4, seed=SEED, selector=tmp_path / folder
        )
        assert retriever.selectors == {}
