"""Examples to probe, and models that are planted in the place of a language model: what each one relies on is known."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import polars as pl

from tests.unit.prompt_frames import RELATIONS, build, frames, movies, plain_names, plain_titles
from tripletune.config import ProbeConfig, PromptConfig
from tripletune.probe.changes import (
    Variant,
    compare,
    control_variants,
    fact_variants,
    part_variants,
    perturbed_variants,
)
from tripletune.probe.counterfactual import FactPool
from tripletune.probe.inputs import Inputs, rendered_as_published
from tripletune.probe.scores import score_prompts
from tripletune.prompts.engine import Frame
from tripletune.prompts.sanitise import display_titles
from tripletune.prompts.template import load_template

SEED = 7
ScoreFilm = Callable[[str, str, int], float]
"""A planted model's score of a candidate: from the user's message, the candidate's title and its place, from 0."""
Answer = Callable[[pl.DataFrame], pl.DataFrame]
"""``answers``, all candidates, and ``scores``, of each of some prompts, as ``Answerer.score``."""


def frame_of(template: str) -> Frame:
    """That of ``prompt_frames.build``, with the template's own lines reserved as in a run."""
    loaded = load_template(template)
    return Frame(
        template=loaded,
        titles=display_titles(movies(plain_titles())),
        settings=PromptConfig(template=template),
        specialists={"lightgcn": "l", "rgat": "r"},
        seed=SEED,
    )


def examples_of(template: str) -> pl.DataFrame:
    """Published examples of ``prompt_frames``, whose answers are all candidates."""
    return build(template, num_viewers=16).sort("user_id", "purpose", "cutoff")


def pool() -> FactPool:
    """Facts of all films: those of the frames, so that each relation has several entities."""
    facts = frames(plain_names(), RELATIONS)[1]
    return FactPool.of(facts.select("movie_id", "relation", "entity", "entity_name").unique(), SEED)


def planted(score: ScoreFilm) -> Answer:
    """Answers of a planted model: all candidates by its scores, the first shown of equals first."""

    def answer(prompts: pl.DataFrame) -> pl.DataFrame:
        rows = []
        for prompt, films, titles in prompts.select("prompt", "candidates", "candidate_titles").iter_rows():
            text = prompt[1]["content"]
            scored = [
                (score(text, title, place), film) for place, (film, title) in enumerate(zip(films, titles, strict=True))
            ]
            best = sorted(range(len(films)), key=lambda place: (-scored[place][0], place))
            rows.append(
                {"answers": [scored[place][1] for place in best], "scores": [scored[place][0] for place in best]}
            )
        return pl.DataFrame(rows, schema={"answers": pl.List(pl.Int32), "scores": pl.List(pl.Float32)})

    return answer


def hashed(*texts: str) -> float:
    """A number from 0 to 4 that any letter of the texts changes."""
    digest = hashlib.sha256("\n".join(texts).encode()).digest()
    return int.from_bytes(digest[:4], "big") / 2**30


def sections(text: str) -> dict[str, str]:
    """Sections of a prompt of the template ``letters``, in its order."""
    names = ("liked", "disliked", "hint 1", "hint 1", "hint 2", "rest", "rest")
    found: dict[str, str] = {}
    for name, part in zip(names, text.split("\n\n"), strict=True):
        found[name] = found.get(name, "") + part
    return found


def always_a(text: str, title: str, place: int) -> float:
    """The label alone decides."""
    return -float(place)


def all_but_hint_2(text: str, title: str, place: int) -> float:
    """Everything but hint 2 decides; what it says of candidates is not looked at."""
    parts = sections(text)
    return hashed(title, *(parts[name] for name in ("liked", "disliked", "hint 1")))


def hint_2_alone(text: str, title: str, place: int) -> float:
    """The facts about a film decide."""
    return hashed(*(line for line in sections(text)["hint 2"].split("\n") if line.startswith(f"- {title} - ")))


def probe(
    answer: Answer,
    template: str = "letters",
    *,
    settings: ProbeConfig | None = None,
    users: Sequence[int] = (),
    **more: Any,
) -> dict[str, pl.DataFrame]:
    """The logs of a planted model, over all examples of a template."""
    examples = examples_of(template)
    settings = settings or ProbeConfig(users=99, facts=2, perturbations=("candidates-reshuffled",))
    inputs = Inputs.of(examples, replace(frame_of(template), **more))
    whole = rendered_as_published(inputs, examples)
    rows = range(len(whole))
    facts = pool()
    variants: list[Variant] = [
        *control_variants(whole, rows, rows),
        *part_variants(inputs, whole, rows, facts),
        *fact_variants(inputs, whole, rows, settings.facts, facts if settings.swap_facts else None),
        *perturbed_variants(inputs, whole, rows, settings.perturbations),
    ]
    changed = pl.concat(variant.prompts.drop("row") for variant in variants)
    before, after = (score_prompts(prompts, answer(prompts), None) for prompts in (whole, changed))
    return compare(whole, variants, before, after)
