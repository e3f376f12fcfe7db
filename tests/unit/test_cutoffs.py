"""Several training examples of one user, each with a later cutoff: their evidence and their answers."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import small_world
from small_world import World

from tripletune.audit.audit import audit_shards
from tripletune.cli.recommend import explain_prompt
from tripletune.config import PromptConfig, RetrieveConfig, RunConfig
from tripletune.errors import InputError
from tripletune.prompts.evidence import collect_answers, collect_evidence
from tripletune.prompts.shards import generate_shards
from tripletune.retrieve.candidates import retrieve_all
from tripletune.retrieve.histories import find_answers, find_history, find_questions, find_seen
from tripletune.schemas.base import conform
from tripletune.schemas.generate import EXAMPLES
from tripletune.schemas.query import QUERY_KEY
from tripletune.schemas.split import SPLIT, SPLIT_LABELS
from tripletune.schemas.training import TRAINED_ON
from tripletune.store.paths import Facts, RunPaths

SEED = 7
NUM_CUTOFFS = 3
PLAIN = RetrieveConfig(retriever="lightgcn", similar_films=0)
MANY = PLAIN.model_copy(update={"train_cutoffs": NUM_CUTOFFS})

# position: film; the targets are 15, 17, 18, 20 and 21
ROWS = pl.DataFrame(
    [
        (1, 10, 5.0, 0, 0, "graph", False),
        (1, 11, 2.5, 0, 1, "other", False),
        (1, 12, 4.0, 0, 2, "graph", False),
        (1, 13, 4.0, 0, 3, "graph", False),
        (1, 15, 4.5, 0, 4, "target", False),
        (1, 16, 1.0, 0, 5, "other", False),
        (1, 17, 5.0, 0, 6, "target", False),
        (1, 18, 4.0, 0, 7, "target", False),
        (1, 19, 3.5, 0, 8, "other", False),
        (1, 20, 4.5, 0, 9, "target", False),
        (1, 21, 4.0, 0, 10, "target", False),
        (1, 22, 4.0, 0, 11, "valid", False),
        (1, 23, 4.0, 0, 12, "test", False),
        (2, 10, 4.0, 0, 0, "target", True),
        (2, 11, 4.0, 0, 1, "target", True),
        (2, 12, 4.0, 0, 2, "valid", True),
    ],
    schema=SPLIT,
    orient="row",
)


def test_three_cutoffs_of_one_viewer_by_hand() -> None:
    # five target likes in three windows: likes 0, 1-2 and 3-4
    questions = find_questions(ROWS, train_cutoffs=3)
    assert questions.select("user_id", "purpose", "cutoff").rows() == [
        (1, "train", 4),
        (1, "train", 6),
        (1, "train", 9),
        (1, "valid", 11),
        (1, "test", 12),
        (2, "valid", 2),
    ]
    assert questions.schema["cutoff"] == pl.Int32
    mine = questions.filter(purpose="train")
    history = find_history(ROWS, mine).group_by("cutoff", maintain_order=True)
    assert [(cutoff, list(zip(own["movie_id"], own["age"], strict=True))) for (cutoff,), own in history] == [
        (4, [(13, 0), (12, 1), (10, 2)]),
        (6, [(15, 0), (13, 1), (12, 2), (10, 3)]),
        (9, [(18, 0), (17, 1), (15, 2), (13, 3), (12, 4), (10, 5)]),
    ]
    seen = find_seen(ROWS, mine).group_by("cutoff", maintain_order=True).agg("movie_id")
    assert seen.rows() == [
        (4, [10, 11, 12, 13]),
        (6, [10, 11, 12, 13, 15, 16]),
        (9, [10, 11, 12, 13, 15, 16, 17, 18, 19]),
    ]
    evidence = collect_evidence(ROWS, mine, dislike=3.0, max_liked=4, max_disliked=5)
    assert evidence.select("cutoff", "liked", "disliked").rows() == [
        (4, [13, 12, 10], [11]),
        (6, [15, 13, 12, 10], [16, 11]),
        (9, [18, 17, 15, 13], [16, 11]),
    ]
    for answers in (find_answers(ROWS, mine), collect_answers(ROWS, mine)):
        assert answers.group_by("cutoff", maintain_order=True).agg("movie_id", "rating").rows() == [
            (4, [15, 17, 18, 20, 21], [4.5, 5.0, 4.0, 4.5, 4.0]),
            (6, [17, 18, 20, 21], [5.0, 4.0, 4.5, 4.0]),
            (9, [20, 21], [4.5, 4.0]),
        ]


@pytest.mark.parametrize(("asked", "cutoffs"), [(1, [4]), (2, [4, 7]), (4, [4, 6, 7, 9]), (9, [4, 6, 7, 9, 10])])
def test_no_more_cutoffs_than_target_likes(asked: int, cutoffs: list[int]) -> None:
    assert find_questions(ROWS, train_cutoffs=asked).filter(purpose="train")["cutoff"].to_list() == cutoffs


def test_windows_are_spread_evenly_from_the_first_target_like_on() -> None:
    for num_likes in range(1, 14):
        likes = {
            "user_id": [1] * num_likes,
            "position": np.arange(num_likes) * 3 + 2,
            "label": ["target"] * num_likes,
            "unseen": [False] * num_likes,
        }
        rows = pl.DataFrame(likes, schema={name: SPLIT[name] for name in likes})
        for asked in range(1, 16):
            # in another order of the rows, which must not matter
            shuffled = rows.sample(fraction=1, shuffle=True, seed=asked)
            first = (find_questions(shuffled, train_cutoffs=asked)["cutoff"].to_numpy() - 2) / 3
            lengths = np.diff([*first, num_likes])
            assert len(first) == min(asked, num_likes)
            assert first[0] == 0
            assert lengths.min() >= 1
            assert lengths.max() - lengths.min() <= 1


def make(world: World, out: Path, settings: RetrieveConfig) -> tuple[Facts, Facts]:
    """Folders ``retrieve`` and ``generate`` in ``out``."""
    for stage in ("retrieve", "generate"):
        (out / stage).mkdir(parents=True)
    sources = (world.split, world.knowledge, world.specialists, out / "retrieve")
    found = retrieve_all(*sources, settings, num_liked_triples=5, seed=SEED)
    written = generate_shards(
        world.ingest,
        world.split,
        out / "retrieve",
        out / "generate",
        PromptConfig(),
        settings,
        dislike=3.0,
        specialists={"lightgcn": "l", "rgat": "r"},
        seed=SEED,
    )
    return found, written


def read(folder: Path) -> pl.DataFrame:
    frame = pl.concat(pl.read_parquet(path) for path in sorted(folder.glob("shard-*.parquet")))
    return frame.sort(QUERY_KEY, maintain_order=True)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return small_world.make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def facts(world: World) -> tuple[Facts, Facts]:
    """Several cutoffs, written next to the world."""
    for stage in ("retrieve", "generate"):
        (world.root / stage).rmdir()
    return make(world, world.root, MANY)


def with_rows(world: World, folder: Path, rows: pl.DataFrame) -> World:
    for stage in ("ingest", "knowledge", "lightgcn", "rgat"):
        shutil.copytree(getattr(world, stage), folder / stage)
    (folder / "split").mkdir()
    small_world.write_split(World(folder), rows)
    return World(folder)


def before_window(rows: pl.DataFrame, number: int) -> pl.DataFrame:
    """The rows as if the windows before this one were graph likes; users without such a window have no query."""
    numbered = []
    for _, own in rows.group_by("user_id", maintain_order=True):
        targets = own.filter(pl.col("label") == "target")["position"].to_list()
        starts = [targets[place * len(targets) // NUM_CUTOFFS] for place in range(NUM_CUTOFFS)] if targets else []
        if len(targets) < NUM_CUTOFFS:
            starts = targets
        start = starts[number] if number < len(starts) else 99
        moved = (pl.col("label") == "target") & (pl.col("position") < start)
        numbered.append(own.with_columns(label=pl.when(moved).then(pl.lit("graph", SPLIT_LABELS)).otherwise("label")))
    return pl.concat(numbered)


@pytest.mark.parametrize("candidates", ["retrieved", "kerag"])
def test_each_example_is_the_one_that_a_later_first_target_like_would_give(
    world: World, tmp_path: Path, candidates: str
) -> None:
    """The specialists' files are the same, so nothing but the user's own rows can make a difference."""
    many = MANY.model_copy(update={"candidates": candidates})
    make(world, tmp_path / "many", many)
    rows, parts = small_world.read_split(world), []
    for number in range(NUM_CUTOFFS):
        other = with_rows(world, tmp_path / f"world-{number}", before_window(rows, number))
        out = tmp_path / f"out-{number}"
        make(other, out, many.model_copy(update={"train_cutoffs": 1}))
        parts.append(out)
    for name in ("generate/train", "retrieve/retrieved", "retrieve/choices", "retrieve/profiles"):
        got = read(tmp_path / "many" / name).filter(purpose="train")
        want = pl.concat(read(out / name).filter(purpose="train") for out in parts)
        assert got.select(QUERY_KEY).n_unique() > got["user_id"].n_unique()
        assert got.equals(want.sort(QUERY_KEY, maintain_order=True))


@pytest.mark.bytes
def test_valid_and_test_and_the_earliest_examples_are_those_of_a_single_cutoff(
    world: World, facts: tuple[Facts, Facts], tmp_path: Path
) -> None:
    found, _ = make(world, tmp_path, PLAIN)
    for purpose in ("valid", "test"):
        for path in (world.generate / purpose).glob("*.parquet"):
            assert path.read_bytes() == (tmp_path / "generate" / purpose / path.name).read_bytes()
    rankings = "retrieve/rankings.parquet"
    assert (world.root / rankings).read_bytes() == (tmp_path / rankings).read_bytes()
    one, many = read(tmp_path / "generate" / "train"), read(world.generate / "train")
    assert len(many) > len(one)
    assert many.join(one, on="example_id", how="semi").equals(one)
    assert facts[0]["viewers"] == found["viewers"] == found["questions"]
    assert facts[0]["questions"]["train"] == len(read(world.retrieve / "retrieved").filter(purpose="train"))
    assert facts[1]["train_without_answer"] == facts[0]["questions"]["train"] - len(many)


def test_rows_from_a_cutoff_on_change_nothing_that_is_known_there(
    world: World, facts: tuple[Facts, Facts], tmp_path: Path
) -> None:
    rows = small_world.read_split(world)
    second = (
        find_questions(rows, train_cutoffs=NUM_CUTOFFS)
        .filter(purpose="train")
        .group_by("user_id")
        .agg(pl.col("cutoff").sort())
    )
    second = second.select("user_id", second=pl.col("cutoff").list.get(1, null_on_oob=True)).drop_nulls()
    # the later films in reverse order: other likes between the cutoffs, and none that a fit was trained on
    is_late = pl.col("position") >= pl.col("second")
    moved = rows.join(second, on="user_id", how="left").with_columns(is_late=is_late.fill_null(False))
    backwards = pl.col("movie_id").reverse().over("user_id", "is_late")
    moved = moved.with_columns(movie_id=pl.when("is_late").then(backwards).otherwise("movie_id"))
    other = with_rows(world, tmp_path / "world", conform(moved, SPLIT))
    make(other, tmp_path / "out", MANY)
    for name in ("retrieved", "choices"):
        before, after = (
            read(folder / name).filter(purpose="train").join(second, on="user_id")
            for folder in (world.retrieve, tmp_path / "out" / "retrieve")
        )
        known = pl.col("cutoff") <= pl.col("second")
        assert before.filter(known).equals(after.filter(known))
        assert not before.filter(~known).equals(after.filter(~known))


@pytest.fixture
def run(world: World, facts: tuple[Facts, Facts], tmp_path: Path) -> World:
    """A copy to damage, with lists of what the fits were trained on."""
    shutil.copytree(world.root, tmp_path / "run")
    rows = small_world.read_split(world).filter(~pl.col("unseen"))
    trained = [
        rows.filter(pl.col("label").is_in(labels)).with_columns(fit=pl.lit(fit))
        for fit, labels in (("a", ["graph"]), ("b", ["graph", "target"]))
    ]
    for stage in ("lightgcn", "rgat"):
        path = tmp_path / "run" / stage / "trained_on.parquet"
        conform(pl.concat(trained), TRAINED_ON).write_parquet(path)
    return World(tmp_path / "run")


def leaks(run: World) -> list[tuple[int, str, str]]:
    found = audit_shards(run.generate, run.split, run.retrieve, {"lightgcn": run.lightgcn, "rgat": run.rgat})
    return [(leak.rule, leak.kind, leak.subject) for leak in found]


def test_a_run_with_several_cutoffs_has_no_leak(run: World) -> None:
    train = read(run.generate / "train")
    assert train["user_id"].is_duplicated().sum() > 20
    assert train["example_id"].is_unique().all()
    assert leaks(run) == []


Row = dict[str, Any]


def plant(run: World, change: Callable[[Row, Row], object]) -> tuple[str, str]:
    """Change two examples of one user, the earlier and the later; their ids."""
    path = run.generate / "train" / "shard-000.parquet"
    rows = pl.read_parquet(path).to_dicts()
    earlier, later = next(pair for pair in pairwise(rows) if pair[0]["user_id"] == pair[1]["user_id"])
    ids = (earlier["example_id"], later["example_id"])
    change(earlier, later)
    pl.DataFrame(rows, schema=EXAMPLES).write_parquet(path)
    return ids


def test_evidence_that_only_a_later_cutoff_may_show_is_found(run: World) -> None:
    earlier, _ = plant(run, lambda earlier, later: earlier.update(liked=later["liked"]))
    found = leaks(run)
    assert (2, "evidence that does not precede the cutoff", earlier) in found
    assert {subject for _, _, subject in found} == {earlier}


def test_a_later_cutoffs_hints_under_an_earlier_cutoff_are_found(run: World) -> None:
    """Two queries of one user mixed up: evidence and hints of one with the cutoff of another."""

    def mix(earlier: Row, later: Row) -> None:
        earlier["cutoff"], later["cutoff"] = later["cutoff"], earlier["cutoff"]

    earlier, later = plant(run, mix)
    found = leaks(run)
    assert (2, "evidence that does not precede the cutoff", later) in found
    assert (2, "answer before the cutoff", earlier) in found
    assert {(0, "example id of another query", name) for name in (earlier, later)} <= set(found)


def test_an_answer_that_a_later_cutoff_already_knows_is_found(run: World) -> None:
    def repeat(earlier: Row, later: Row) -> None:
        known = next(film for film in later["liked"] if film not in earlier["liked"])
        later["answers"] = [known, *later["answers"]][:5]

    _, later = plant(run, repeat)
    found = leaks(run)
    assert (2, "answer before the cutoff", later) in found
    assert (3, "answer in the evidence", later) in found


def test_a_film_liked_between_two_cutoffs_is_no_candidate_of_the_later(run: World) -> None:
    def show(earlier: Row, later: Row) -> None:
        between = next(film for film in later["liked"] if film not in earlier["liked"])
        for name in ("candidates", "retrieved"):
            later[name] = [*later[name][:-1], between]

    _, later = plant(run, show)
    assert (2, "shown film was rated before the cutoff", later) in leaks(run)


def test_a_cutoff_where_no_target_like_is_is_found(run: World) -> None:
    earlier, _ = plant(run, lambda earlier, later: earlier.update(cutoff=earlier["cutoff"] - 1))
    assert (2, "no held-out like at the cutoff", earlier) in leaks(run)


def test_one_question_under_two_ids_is_found(run: World) -> None:
    def copy(earlier: Row, later: Row) -> None:
        kept = later["example_id"]
        later.update(earlier)
        later["example_id"] = kept

    _, later = plant(run, copy)
    assert leaks(run) == [(0, "example id of another query", later)]


def test_a_fit_a_that_learned_from_evidence_of_a_later_cutoff_is_found(run: World) -> None:
    example = read(run.generate / "train").row(0, named=True)
    path = run.lightgcn / "trained_on.parquet"
    stolen = pl.DataFrame([(example["user_id"], example["answers"][0], "a")], TRAINED_ON, orient="row")
    pl.concat([pl.read_parquet(path), stolen]).write_parquet(path)
    assert leaks(run) == [(1, "fit a trained on more than graph likes", f"lightgcn fit a, user {example['user_id']}")]


def test_a_viewers_prompt_is_explained_at_the_cutoff_asked_for(run: World, tmp_path: Path) -> None:
    stages = ("split", "retrieve", "generate")
    paths = RunPaths(root=tmp_path / "artifacts", dataset="d", fingerprints=dict.fromkeys(stages, "f" * 32))

    def publish(stage: str) -> Callable[[Path], Facts]:
        def copy(work: Path) -> Facts:
            shutil.copytree(run.root / stage, work, dirs_exist_ok=True)
            return {}

        return copy

    for stage in stages:
        paths.build(stage, publish(stage))
    config = RunConfig(dataset="d", retrieve=MANY)
    train = read(run.generate / "train")
    user = train.filter(pl.col("user_id").is_duplicated())["user_id"][0]
    mine = train.filter(user_id=user)
    choices = read(run.retrieve / "choices")
    for example in mine.iter_rows(named=True):
        lines = explain_prompt(paths, config, user, "train", example["cutoff"])
        text = "\n".join(line for line, origin in lines if origin != "template, system message")
        assert text.startswith(example["prompt"][1]["content"])
        assert lines[-1][1] == f"answers, from position {example['cutoff']} on"
        own = choices.filter(user_id=user, purpose="train", cutoff=example["cutoff"])
        score = {
            (movie, relation, entity): value
            for movie, relation, entity, value in own.select("movie_id", "relation", "entity", "score").iter_rows()
        }
        facts = [(one["movie_id"], one["relation"], one["entity"]) for one in example["triples"]]
        assert [origin for _, origin in lines if origin.startswith("hint 2: movie")] == [
            f"hint 2: movie {fact[0]}, {fact[1]} {fact[2]}, score {score[fact]:.4g}" for fact in facts
        ]
    assert explain_prompt(paths, config, user, "train") == explain_prompt(
        paths, config, user, "train", mine["cutoff"][0]
    )
    with pytest.raises(
        InputError, match=rf"--cutoff 0: no such train example of user {user}; there are {mine['cutoff'][0]}, "
    ):
        explain_prompt(paths, config, user, "train", 0)
    other = config.model_copy(update={"prompt": PromptConfig(template="published")})
    with pytest.raises(
        InputError, match=r"prompt\.template = 'published' is no longer what these prompts were made with"
    ):
        explain_prompt(paths, other, user, "train")
