"""How often the champion moves, and where its true quality goes, when promotion decides on noise.

    python benchmarks/gate.py

A run's adapter has a true quality (its ndcg_at_5 over all possible users); promotion sees some hundred users. A query's
relevant film has a score that all rankers share in part, and its place in the list of 20 follows from it; a ranker of
higher quality shifts it. Queries are new in each run, or frozen: the same users, and each adapter keeps its luck with
them. Decisions are those of ``tripletune.promote.decision``. The earlier rule is the same function with the champion as
the one reference, an absolute margin of .01 and nothing else; its first adapter passes. "by value" is the new rule, but
for the title of best version, which goes to the higher value on the users at hand.
"""

# Shape letters in this file: U users, P places of a list
from __future__ import annotations

import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import typer
from scipy.optimize import brentq
from scipy.stats import norm

from tripletune.config import PromoteConfig
from tripletune.promote import decision as gate
from tripletune.promote.decision import PromotionDecision, Reference, Rule, decide_promotion

Floats = npt.NDArray[np.float64]
REPORT = Path(__file__).with_name("gate.md")
PLACES, TOP = 20, 5
GAIN_P = np.array([1 / np.log2(place + 2) for place in range(TOP)])
OWN = 0.25
"""Share of a ranker's own noise in a score's variance: two adapters of equal quality then differ by about .16 (standard
deviation over users)."""
FINDABLE = 0.35
"""Queries whose relevant film is among the candidates."""
QUALITY, RETRIEVER, UNTUNED, TRAINING = 0.075, 0.070, 0.045, 0.003
"""True ndcg_at_5 of the adapters at the start, of the retriever's order and of the untuned model; and the standard
deviation of an adapter's true quality from one training to the next."""
RUNS, RESAMPLES, WEEK = 200, 300, 7
STEP = {"stays": 0.0, "falls": -0.0001, "rises": 0.0001}
"""How the true quality that a training gives changes from one run to the next."""
REGISTRIES = 3


def true_quality(shift: float) -> float:
    """ndcg_at_5 over all users of a ranker whose relevant films' scores are shifted by so much.

    A place p of the list of 20 is the interval of the p-th part of a standard normal distribution.
    """
    edges = norm.isf(np.arange(TOP + 1) / PLACES)
    return float(FINDABLE * (np.diff(norm.sf(edges - shift)) * GAIN_P).sum())


def shift_of(quality: float) -> float:
    """The shift that gives a true quality."""
    return float(brentq(lambda shift: true_quality(shift) - quality, -3.0, 3.0))


@dataclass(frozen=True)
class Case:
    """What is simulated."""

    rule: str
    trend: str
    frozen: bool = False
    users: int = 300


CASES = (
    *(Case(rule, trend) for trend in STEP for rule in ("earlier", "new")),
    *(Case(rule, "stays", frozen=True) for rule in ("earlier", "new")),
    Case("by value", "falls"),
    *(Case(rule, "stays", users=1500) for rule in ("earlier", "new")),
)


@dataclass(frozen=True)
class Ranker:
    """A ranker's true quality, the shift that gives it, and its luck with frozen queries."""

    quality: float
    shift: float
    luck_U: Floats
    run: int = 0
    """That trained it."""


@dataclass
class Registry:
    """Champions in the order of their promotion, and which is the best."""

    champions: list[Ranker] = field(default_factory=list)
    best: Ranker | None = None

    @property
    def champion(self) -> Ranker | None:
        return self.champions[-1] if self.champions else None

    def earlier(self, run: int) -> Ranker | None:
        """The champion of a week ago."""
        return next((one for one in reversed(self.champions) if one.run <= run - WEEK), None)


class World:
    """Queries of each run."""

    def __init__(self, case: Case, seed: int) -> None:
        self.rng, self.users, self.frozen = np.random.default_rng(seed), case.users, case.frozen
        self.draw_queries()

    def draw_queries(self) -> None:
        self.shared_U = self.rng.normal(size=self.users)
        self.findable_U = self.rng.random(self.users) < FINDABLE

    def ranker(self, quality: float, run: int = 0) -> Ranker:
        return Ranker(quality, shift_of(quality), self.rng.normal(size=self.users), run)

    def measure(self, ranker: Ranker) -> pl.DataFrame:
        """Users' values on this run's queries."""
        luck_U = ranker.luck_U if self.frozen else self.rng.normal(size=self.users)
        score_U = np.sqrt(1 - OWN) * self.shared_U + np.sqrt(OWN) * luck_U + ranker.shift
        place_U = np.floor(norm.sf(score_U) * PLACES).astype(int)
        values_U = np.where(self.findable_U & (place_U < TOP), GAIN_P[np.minimum(place_U, TOP - 1)], 0.0)
        return pl.DataFrame({"user_id": np.arange(self.users), "ndcg_at_5": values_U})


@dataclass(frozen=True)
class Outcome:
    """One registry after all runs."""

    moves: int
    titles: int
    change: float
    """True quality of the last champion minus that of the first."""
    lowest: float
    behind: float
    """Mean over runs of the champion's true quality minus what a training gives on average at that time."""
    spread: float
    """Standard deviation over users of the paired difference from the champion."""


def simulate(case: Case, seed: int) -> Outcome:
    """One registry over 200 runs of training, ranking and promotion."""
    world, registry = World(case, seed), Registry()
    floors = {gate.RETRIEVER: world.ranker(RETRIEVER), gate.UNTUNED: world.ranker(UNTUNED)}
    decide = earlier_rule if case.rule == "earlier" else new_rule
    titles, behind, spread = 0, [], []
    for run in range(RUNS):
        if not case.frozen:
            world.draw_queries()
        mean = QUALITY + STEP[case.trend] * run
        new = world.ranker(mean + world.rng.normal(0, TRAINING), run)
        scores = world.measure(new)
        versions = (registry.champion, registry.best, registry.earlier(run))
        measured = {one.run: world.measure(one) for one in versions if one}
        if registry.champion:
            theirs = measured[registry.champion.run]
            spread.append(float((scores["ndcg_at_5"] - theirs["ndcg_at_5"]).to_numpy().std()))
        decision = decide(scores, registry, measured, {name: world.measure(one) for name, one in floors.items()}, run)
        if decision.promote:
            registry.champions.append(new)
            is_best = decision.is_best
            if case.rule == "by value" and registry.best:
                is_best = value_of(scores) > value_of(measured[registry.best.run])
            titles += is_best and registry.best is not None
            registry.best = new if is_best else registry.best
        if registry.champion:
            behind.append(registry.champion.quality - mean)
    qualities = [one.quality for one in registry.champions]
    change = qualities[-1] - qualities[0]
    return Outcome(len(qualities) - 1, titles, change, min(qualities), float(np.mean(behind)), float(np.mean(spread)))


def value_of(scores: pl.DataFrame) -> float:
    """Mean over users."""
    return float(scores["ndcg_at_5"].to_numpy().mean())


Scores = dict[int, pl.DataFrame]


def earlier_rule(
    scores: pl.DataFrame, registry: Registry, measured: Scores, floors: dict[str, pl.DataFrame], run: int
) -> PromotionDecision:
    """Not worse than the champion by .01; the first adapter passes."""
    if not registry.champion:
        return PromotionDecision(True, "there is no champion yet")
    theirs = measured[registry.champion.run]
    margin = 0.01 / max(value_of(theirs), 1e-9)
    return decide_promotion(scores, [Reference(gate.CHAMPION, theirs)], Rule(margin, 0.95, 2, RESAMPLES, run))


def new_rule(
    scores: pl.DataFrame, registry: Registry, measured: Scores, floors: dict[str, pl.DataFrame], run: int
) -> PromotionDecision:
    """What promotion does, with its defaults."""
    versions = {gate.CHAMPION: registry.champion, gate.BEST: registry.best, gate.EARLIER: registry.earlier(run)}
    references = [
        Reference(name, measured[one.run] if one else None, why="there is none") for name, one in versions.items()
    ]
    references += [Reference(name, values) for name, values in floors.items()]
    defaults = PromoteConfig()
    rule = Rule(defaults.relative_margin, defaults.confidence, defaults.min_users, RESAMPLES, run)
    return decide_promotion(scores, references, rule)


HEAD = """# A gate that holds

What is simulated: the head of `gate.py`. An adapter's true ndcg_at_5 is {quality} at the start, with a standard
deviation of {training} between trainings; the retriever's is {retriever}, the untuned model's {untuned}. Means over
{registries} registries of {runs} runs each; "falls" and "rises": by .0001 a run, .02 in all.
`python benchmarks/gate.py`, {seconds:.0f} s.

| trained adapters | queries | users who judge | rule | moves of the champion | new best versions | {change} | {lowest} | {lead} | {spread} |
|---|---|--:|---|--:|--:|--:|--:|--:|--:|
"""  # noqa: E501
COLUMNS = {
    "change": "true quality, last champion minus first",
    "lowest": "lowest true quality of a champion",
    "lead": "champion minus what a training gives then, mean",
    "spread": "deviation of a paired difference",
}


def main() -> None:
    """Simulate every case, and write the first part of the page; what it means is written by hand below."""
    start = time.perf_counter()
    jobs = list(product(CASES, range(REGISTRIES)))
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(simulate, *zip(*jobs, strict=True)))
    numbers = {"quality": QUALITY, "training": TRAINING, "retriever": RETRIEVER, "untuned": UNTUNED}
    lines = [HEAD.format(**numbers, **COLUMNS, registries=REGISTRIES, runs=RUNS, seconds=time.perf_counter() - start)]
    for case in CASES:
        outcomes = [one for (other, _), one in zip(jobs, found, strict=True) if other == case]
        lines.append(table_row(case, outcomes))
    text = REPORT.read_text(encoding="utf-8") if REPORT.is_file() else ""
    tail = text[text.index(MEANING) :] if MEANING in text else f"{MEANING}\n"
    REPORT.write_text("".join(lines) + "\n" + tail, encoding="utf-8")


MEANING = "## What it means"


def table_row(case: Case, outcomes: list[Outcome]) -> str:
    """The means over registries of one case."""

    def mean(name: str) -> float:
        return float(np.mean([getattr(one, name) for one in outcomes]))

    cells = [case.trend, "frozen" if case.frozen else "new in each run", str(case.users), case.rule]
    cells += [f"{mean('moves'):.1f}", "" if case.rule == "earlier" else f"{mean('titles'):.1f}"]
    cells += [f"{mean('change'):+.4f}", f"{mean('lowest'):.4f}", f"{mean('behind'):+.4f}", f"{mean('spread'):.3f}"]
    return f"| {' | '.join(cells)} |\n"


if __name__ == "__main__":
    typer.run(main)
