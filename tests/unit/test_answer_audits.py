"""Faults that are planted in a run's answers are found by the audits of the answers, and nothing else is."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy.stats import binomtest
from written_run import Run, rewrite, title, write, write_run

from tripletune.config import EvaluateConfig
from tripletune.evaluate.answers.audit import audit_answers
from tripletune.evaluate.answers.groups import describe_users, terciles
from tripletune.evaluate.answers.record import said_p
from tripletune.evaluate.answers.section import answers_section
from tripletune.evaluate.answers.titles import TitleIndex, title_key
from tripletune.evaluate.answers.written import (
    FORM,
    INVENTED,
    NOT_SHOWN,
    OUTSIDE,
    UNREADABLE,
    VALID,
    Offer,
    audit_written,
    kind_of_answer,
)
from tripletune.evaluate.evaluate import evaluate_run
from tripletune.schemas.answers import LETTERS, TITLES
from tripletune.schemas.ingest import USERS
from tripletune.schemas.rank import PREDICTIONS
from tripletune.store.popularity import film_popularity

SETTINGS = EvaluateConfig(bootstrap_resamples=500)
NUM_USERS = 120
Order = Callable[[dict[str, Any]], Iterable[int]]


def examples_of(run: Run, purpose: str = "test") -> list[dict[str, Any]]:
    return pl.read_parquet(run.generate / purpose / "*.parquet").sort("user_id").to_dicts()


def plant(run: Run, orders: dict[str, Order], texts: dict[str, Callable[[dict[str, Any]], str]]) -> None:
    """Replace the predictions by orders of the candidates, and, of test, by texts written without constraint."""
    rows = []
    for purpose in ("valid", "test"):
        for row in examples_of(run, purpose):
            key = {"user_id": row["user_id"], "purpose": purpose, "cutoff": row["cutoff"], "text": ""}
            for system, order in orders.items():
                rows.append({**key, "system": system, "constrained": True, "answers": list(order(row)), "valid": True})
            for system, text in texts.items() if purpose == "test" else ():
                said = text(row)
                valid = said == listed(row["candidate_titles"][:5])
                said_row = {"system": system, "constrained": False, "answers": [], "valid": valid, "text": said}
                rows.append({**key, **said_row})
    write(run.rank / "predictions.parquet", rows, PREDICTIONS)


def listed(films: Iterable[str]) -> str:
    return "\n".join(f"{number}. {film}" for number, film in enumerate(films, 1))


def shuffled(row: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """An example that shows its candidates in another order, as prompts do; the written run only turns them round."""
    films = rng.permuted(row["candidates"]).tolist()
    return {**row, "candidates": films, "candidate_titles": [title(film) for film in films]}


def is_woman(user: int) -> bool:
    return user % 5 < 2  # has nothing to do with whose film retrieval missed, which are every third


def only_hits(row: dict[str, Any], *, hit: bool) -> list[int]:
    """The candidates with the held-out film first or last."""
    rest = [film for film in row["retrieved"] if film != row["answers"][0]]
    held_out = [film for film in row["answers"] if film in row["candidates"]]
    return [*held_out, *rest] if hit else [*rest, *held_out]


@pytest.fixture(scope="module")
def audits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Verdicts by audit and system, of a run whose systems have one fault each."""
    run = write_run(tmp_path_factory.mktemp("planted"), num_viewers=NUM_USERS)
    rng = np.random.default_rng(0)
    for path in sorted((run.generate / "test").glob("*.parquet")):
        rewrite(path, lambda rows: [shuffled(row, rng) for row in rows])
    counts = film_popularity(run.split)["test"]
    likes = dict(counts.select("movie_id", "likes").iter_rows())
    people = [
        {"user_id": user, "gender": "F" if is_woman(user) else "M", "age": 30, "occupation": "1", "zip": "0"}
        for user in run.order
    ]
    pl.DataFrame(people, schema=USERS).write_parquet(run.ingest / "users.parquet")
    by_chance = {row["user_id"]: rng.permuted(row["candidates"]).tolist() for row in examples_of(run)}
    orders: dict[str, Order] = {
        "random": lambda row: by_chance[row["user_id"]],
        "retriever": lambda row: rng.permuted(row["candidates"]).tolist(),
        "untuned": lambda row: [row["candidates"][0], *rng.permuted(row["candidates"][1:]).tolist()],
        "tuned": lambda row: sorted(row["candidates"], key=lambda film: (-likes.get(film, 0), film)),
        "tuned-int8": lambda row: row["candidates"],
        "tuned+retriever": lambda row: only_hits(row, hit=not is_woman(row["user_id"])),
    }
    texts: dict[str, Callable[[dict[str, Any]], str]] = {
        "untuned": lambda row: listed(["Heat of the Void (2031)", *row["candidate_titles"][:4]]),
        "tuned": lambda row: listed(row["candidate_titles"][: 5 if row["user_id"] % 2 else 4]),
    }
    plant(run, orders, texts)
    out = run.root / "evaluate"
    out.mkdir()
    trained = {**run.specialists, "finetune": run.finetune}
    facts = evaluate_run(run.rank, run.generate, run.retrieve, run.split, out, SETTINGS, 3, trained, ingest=run.ingest)
    told = json.loads((out / "answers.json").read_text(encoding="utf-8"))
    verdicts = {(one["audit"], one["row"]): one for one in told["verdicts"]}
    return {"run": run, "out": out, "facts": facts, "told": told, "verdicts": verdicts}


def state(audits: dict[str, Any], audit: str, row: str) -> str:
    found: str = audits["verdicts"][audit, row]["state"]
    return found


def test_a_model_that_always_answers_the_first_place_is_found(audits: dict[str, Any]) -> None:
    verdict = audits["verdicts"]["positions", "untuned"]
    assert verdict["state"] == "found"
    assert verdict["words"].startswith("prefers place 1: 100 % of first answers, 5 % expected")
    assert audits["facts"]["untuned_top_place_share"] == 1


def test_a_model_that_copies_the_order_shown_is_found_by_its_order(audits: dict[str, Any]) -> None:
    assert "tau 1.00" in audits["verdicts"]["positions", "tuned-int8"]["words"]
    assert audits["facts"]["tuned-int8_place_tau"] == pytest.approx(1)


def test_a_model_that_copies_popularity_is_found(audits: dict[str, Any]) -> None:
    verdict = audits["verdicts"]["popularity", "tuned"]
    assert verdict["state"] == "found"
    assert verdict["words"].startswith("orders the candidates by popularity")
    assert audits["facts"]["tuned_popularity_tau"] > 0.95  # not 1: films with equal likes are ordered too


def test_a_model_that_is_worse_for_one_group_is_found(audits: dict[str, Any]) -> None:
    verdict = audits["verdicts"]["groups", "tuned+retriever"]
    assert verdict["state"] == "found"
    assert verdict["words"].startswith("worse than for other users: gender: F, -")
    assert audits["facts"]["tuned_with_retriever_worst_group_gap"] < -0.4


def test_invented_titles_are_found_and_told_from_a_wrong_form(audits: dict[str, Any]) -> None:
    assert audits["verdicts"]["written", "untuned"]["words"].startswith("invents titles in 120 of 120 answers")
    assert audits["told"]["invented"] == {"untuned": ["1. Heat of the Void (2031)"], "tuned": []}
    assert state(audits, "written", "tuned") == "none"
    assert "60 candidates in the wrong form" in audits["verdicts"]["written", "tuned"]["words"]
    assert (audits["facts"]["untuned_invented_titles"], audits["facts"]["tuned_invented_titles"]) == (1, 0)


@pytest.mark.parametrize(("answers", "words"), [(4, "4 of 4 answers (39.8 to 100.0 %)"), (1, "1 of 1 answers")])
def test_a_share_of_answers_has_the_exact_interval_of_any_share(answers: int, words: str) -> None:
    texts = [
        {"user_id": user, "cutoff": 9, "system": "tuned", "text": "", "valid": True, "candidate_titles": ["Heat"]}
        for user in range(answers)
    ]
    frame = pl.DataFrame(texts).with_columns(candidate_letters=pl.lit(["A"]))
    found, _ = audit_written(frame, LETTERS, pl.Series(["Heat"]), ["tuned"], SETTINGS)
    assert found.verdicts[0].words == f"no invented title in {answers} answers; valid: {words}"
    exact = binomtest(answers, answers).proportion_ci(SETTINGS.confidence, method="exact")
    want = (1.0, exact.low, exact.high) if answers > 1 else (1.0, None, None)  # one answer shows nothing of others
    assert found.lines[0][4:7] == pytest.approx(want)


def test_no_system_is_accused_of_what_it_does_not_do(audits: dict[str, Any]) -> None:
    for row in ("random", "retriever"):
        assert {state(audits, audit, row) for audit in ("positions", "popularity", "groups")} == {"none"}, row
    assert state(audits, "popularity", "untuned") == state(audits, "groups", "untuned") == "none"
    assert state(audits, "positions", "tuned") == state(audits, "positions", "tuned+retriever") == "none"
    assert state(audits, "groups", "tuned") == "none"


def test_groups_that_are_too_small_are_not_judged(audits: dict[str, Any]) -> None:
    lines = pl.read_parquet(audits["out"] / "answers.parquet").filter(pl.col("audit") == "groups")
    judged = set(lines.filter(pl.col("measure") == "gap")["part"])
    measured = set(lines["part"])
    # all users are of one age and know equally many likes, so neither splits them
    assert {"gender: F", "gender: M", "taste: low"} <= judged
    assert {"age: 25 to 34", "activity: middle"} <= measured - judged
    # 14 rated films, two of them disliked, and the one that is asked for
    assert audits["told"]["ranges"]["activity: middle"] == "11 to 11 likes"
    assert "not judged" in (audits["out"] / "report.html").read_text(encoding="utf-8")


def test_places_of_the_first_query_sum_to_one_and_means_are_those_of_the_metrics(audits: dict[str, Any]) -> None:
    lines = pl.read_parquet(audits["out"] / "answers.parquet")
    first = lines.filter(pl.col("measure") == "first").group_by("row").agg(pl.col("value").sum())
    assert first["value"].to_list() == pytest.approx([1.0] * 6)
    five = lines.filter(pl.col("measure") == "five").group_by("row").agg(pl.col("value").sum())
    assert five["value"].to_list() == pytest.approx([5.0] * 6)
    women, men = (
        lines.row(
            by_predicate=(pl.col("part") == f"gender: {name}")
            & (pl.col("measure") == "ndcg_at_5")
            & (pl.col("row") == "tuned"),
            named=True,
        )
        for name in "FM"
    )
    mean = (women["value"] * women["num_users"] + men["value"] * men["num_users"]) / NUM_USERS
    assert mean == pytest.approx(audits["facts"]["tuned_ndcg_at_5"])


def test_coverage_and_likes_are_those_counted_by_hand(audits: dict[str, Any]) -> None:
    run = audits["run"]
    likes = dict(film_popularity(run.split)["test"].select("movie_id", "likes").iter_rows())
    named = [sorted(row["candidates"], key=lambda film: (-likes.get(film, 0), film))[:5] for row in examples_of(run)]
    lines = pl.read_parquet(audits["out"] / "answers.parquet").filter(pl.col("row") == "tuned", pl.col("part") == "")
    found = dict(lines.filter(pl.col("audit") == "popularity").select("measure", "value").iter_rows())
    assert found["coverage"] == len({film for films in named for film in films}) / 60
    assert found["likes"] == pytest.approx(np.mean([[likes.get(film, 0) for film in films] for films in named]))


def test_candidates_in_the_retrievers_order_leave_positions_unjudged(audits: dict[str, Any], tmp_path: Path) -> None:
    run = audits["run"].copy_to(tmp_path / "ordered")
    for path in sorted((run.generate / "test").glob("*.parquet")):
        rewrite(path, lambda rows: [{**row, "candidates": row["retrieved"]} for row in rows])
    scores = pl.read_parquet(audits["out"] / "per_viewer.parquet").filter(
        pl.col("purpose") == "test", pl.col("row").is_in(["random", "tuned"])
    )
    folders = {stage: run.root / stage for stage in ("ingest", "split", "generate", "rank")}
    (tmp_path / "out").mkdir()
    found = audit_answers(folders, scores.select("user_id", "row", "ndcg_at_5"), tmp_path / "out", SETTINGS, 0)
    positions = {one.state for one in found.verdicts if one.audit == "positions"}
    assert positions == {"not judged"}
    assert not [line for line in found.lines if line.audit == "positions"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Matrix, The (1999)", "**The Matrix** (1999"),
        ("Amélie (Fabuleux destin d'Amélie Poulain, Le) (2001)", "amelie (2001)"),
        ("Good, the Bad and the Ugly, The (1966)", "The Good, The Bad and The Ugly (1966)"),
        ("Shawshank Redemption, The (1994)", '"The Shawshank Redemption" (1994)'),
        ("  Heat (1995)", "Heat  (1995)."),
    ],
)
def test_a_title_is_known_in_another_spelling(one: str, other: str) -> None:
    assert title_key(one) == title_key(other)


def test_films_of_one_name_are_told_apart_by_their_year() -> None:
    films = TitleIndex(["Sabrina (1995)", "Sabrina (1954)", "8½ (8 1/2) (1963)"])
    assert title_key("Sabrina (1954)") in films
    assert title_key("Sabrina") in films
    assert title_key("Sabrina (1977)") not in films
    assert title_key("9½ (1963)") not in films


CATALOGUE = TitleIndex([title(film) for film in range(60)])
OFFER = {
    "titles": Offer(TITLES, [], TitleIndex([title(1), title(2)])),
    "letters": Offer(LETTERS, ["A", "B"], TitleIndex([title(1), title(2)])),
}


@pytest.mark.parametrize(
    ("style", "text", "kind"),
    [
        ("titles", f"1. {title(1)}\n2. {title(9)}\n3. Odd One (1999)", INVENTED),
        ("titles", f"1. {title(1)}\n2. {title(9)}", NOT_SHOWN),
        ("titles", f"1. {title(1)}\n2. {title(1)}", FORM),
        ("titles", f"{title(1)}", FORM),
        ("titles", "1. Odd One", INVENTED),
        ("titles", "The viewer likes films", UNREADABLE),
        ("titles", "1. \n2. ", UNREADABLE),
        ("titles", "", UNREADABLE),
        ("letters", "A\nA", FORM),
        ("letters", "A.", FORM),
        ("letters", "A\nQ", OUTSIDE),
        ("letters", f"A. {title(1)}", FORM),
        ("letters", f"Q. {title(9)}", NOT_SHOWN),
        ("letters", "Odd One (1999", INVENTED),
        ("letters", "The", UNREADABLE),
        ("letters", "1. The best choice", UNREADABLE),
    ],
)
def test_an_answer_that_is_not_valid_has_the_kind_of_its_worst_line(style: str, text: str, kind: str) -> None:
    assert kind_of_answer(text, OFFER[style], CATALOGUE)[0] == kind
    assert kind != VALID


def test_thirds_keep_equal_values_together() -> None:
    frame = pl.DataFrame({"likes": [1, 1, 1, 1, 5, 6, 7, 8, 9]})
    assert frame.select(terciles(pl.col("likes"))).to_series().to_list() == [
        *["low"] * 4,
        *["middle"] * 2,
        *["high"] * 3,
    ]
    same = pl.DataFrame({"likes": [4, 4, 4]})
    assert same.select(terciles(pl.col("likes"))).to_series().to_list() == ["middle"] * 3


def test_users_are_described_by_what_was_known_at_their_first_query() -> None:
    likes = pl.DataFrame(
        [(1, 2, 10), (1, 2, 11), (1, 5, 10), (1, 5, 11), (1, 5, 12), (2, 4, 12)],
        {"user_id": pl.Int32, "cutoff": pl.Int32, "movie_id": pl.Int32},
        orient="row",
    )
    queries = pl.DataFrame({"user_id": [1, 1, 2, 3], "cutoff": [2, 5, 4, 0]}).cast(pl.Int32)
    popularity = pl.DataFrame({"movie_id": [10, 12], "quantile": [0.5, 0.9]}).cast({"movie_id": pl.Int32})
    people = pl.DataFrame([(1, "F", 17, "", ""), (2, None, None, "", "")], USERS, orient="row")
    found = describe_users(likes, queries, popularity, people).to_dicts()
    assert [row["likes"] for row in found] == [2, 1, 0]
    assert [row["popularity"] for row in found] == [0.25, 0.9, None]
    assert [row["age"] for row in found] == ["under 18", None, None]
    assert [row["gender"] for row in found] == ["F", None, None]


def test_a_p_value_is_written_as_in_the_report() -> None:
    assert [said_p(value) for value in (0.0004, 0.0312, 1.0)] == ["p < .001", "p = .031", "p = 1.000"]


@pytest.mark.parametrize("num_users", [0, 1, 3])
def test_a_run_with_few_users_is_audited_as_far_as_they_reach(num_users: int, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", num_viewers=3, unseen=())
    few = pl.read_parquet(run.rank / "predictions.parquet").filter(pl.col("user_id") <= num_users)
    few.write_parquet(run.rank / "predictions.parquet")
    rows = [(user, row, 0.5) for row in ("random", "retriever", "untuned", "tuned") for user in range(1, num_users + 1)]
    scores = pl.DataFrame(rows, {"user_id": pl.Int32, "row": pl.String, "ndcg_at_5": pl.Float64}, orient="row")
    folders = {stage: run.root / stage for stage in ("ingest", "split", "generate", "rank")}
    found = audit_answers(folders, scores, tmp_path, SETTINGS, 0)
    assert {one.state for one in found.verdicts if one.audit == "groups"} == ({"not judged"} if num_users else set())
    assert "found" not in {one.state for one in found.verdicts if one.audit != "written"}
    assert bool(answers_section(found)) == bool(num_users)
