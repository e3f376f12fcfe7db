"""The forms stage: for each training example one question about a film and one choice between two.

As published, a mixture of one example of each form is trained on. Which films are asked about is a hash of the example:
half of the questions are about an answer, and half of the choices show the answer first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from tripletune.errors import InputError
from tripletune.forms import LABELS, FormTexts, ListPrompt
from tripletune.schemas.forms import FORMS
from tripletune.schemas.generate import PROMPT_CHARS
from tripletune.stable_hash import pair_hash
from tripletune.store.parquet import write_parquet
from tripletune.store.paths import Facts
from tripletune.store.read import read_parquet
from tripletune.store.shards import shard_files

_DRAWS = 28 << 40
"""Added to the run's seed for what the short forms ask: nothing in common with the order of the candidates."""
_SHARES = {"pointwise": "yes_share", "pairwise": "first_share"}
"""Fact with the share of a form's first label."""
_READ = [
    *("example_id", "user_id", "purpose", "cutoff", "prompt", "answers", "answer_ratings", "candidates"),
    *("candidate_titles", "candidate_letters", "retrieved", "template_id", "template_sha256"),
]


def write_forms(shards: Path, out: Path, forms: Sequence[str], texts: FormTexts, seed: int) -> Facts:
    """Write ``train/shard-NNN.parquet``, rows of ``FORMS``.

    Args:
        shards: the generate stage's folder.
        out: work folder.
        forms: the short forms, keys of ``LABELS``.
        texts: of the template that the shards were rendered with.
        seed: of the run.

    Returns:
        Facts: examples by form, yes_share (of the questions, those about an answer), first_share (of the choices, those
        that show the answer first), mean_prompt_chars.

    Raises:
        InputError: no short form can be asked of any example, as all its candidates are answers.
        ContractError: the shards were rendered with another template.
    """
    (out / "train").mkdir(parents=True, exist_ok=True)
    written = []
    for shard in shard_files(shards / "train"):
        examples = read_parquet(shard, columns=_READ)
        frame = pl.DataFrame(list(_rows(examples, forms, texts, seed)), schema=FORMS)
        write_parquet(out / "train" / shard.name, frame)
        written.append(frame.select("form", "completion", chars=PROMPT_CHARS))
    whole = pl.concat(written) if written else pl.DataFrame()
    if whole.is_empty():
        raise InputError(f"{shards / 'train'}: no example has candidates that are no answers, so no form can be asked")
    said = whole.select("form", label=pl.col("completion").list.first().struct.field("content"))
    labels = {form: said.filter(form=form)["label"].to_list() for form in forms}
    return {
        "examples": {form: len(found) for form, found in labels.items()},
        **{_SHARES[form]: round(found.count(LABELS[form][0]) / len(found), 4) for form, found in labels.items()},
        "mean_prompt_chars": round(float(whole["chars"].mean() or 0.0), 1),  # type: ignore[arg-type]  # integers
    }


def _rows(examples: pl.DataFrame, forms: Sequence[str], texts: FormTexts, seed: int) -> Iterator[dict[str, Any]]:
    users, cutoffs = examples["user_id"].to_numpy(), examples["cutoff"].to_numpy()
    draws = {
        name: pair_hash(users, cutoffs, seed + _DRAWS + number).tolist()
        for number, name in enumerate(("answer", "other", *LABELS))
    }
    for row, example in enumerate(examples.iter_rows(named=True)):
        answers = [film for film in example["candidates"] if film in set(example["answers"])]
        others = [film for film in example["candidates"] if film not in set(example["answers"])]
        if not answers or not others:
            continue
        answer, other = answers[draws["answer"][row] % len(answers)], others[draws["other"][row] % len(others)]
        prompt = ListPrompt.cut(example["prompt"], example["candidate_letters"], texts, example["example_id"])
        for form in forms:
            has_answer_first = draws[form][row] % 2 == 0
            pair = [answer, other] if has_answer_first else [other, answer]
            yield _row(example, form, prompt, pair if form == "pairwise" else pair[:1], has_answer_first)


def _row(example: dict[str, Any], form: str, prompt: ListPrompt, films: list[int], is_first: bool) -> dict[str, Any]:
    """A row of ``FORMS`` about these films, whose answer is the form's first label or its second one."""
    places = [example["candidates"].index(film) for film in films]
    ratings = dict(zip(example["answers"], example["answer_ratings"], strict=True))
    answers = [film for film in films if film in ratings]
    return {
        **{name: example[name] for name in ("user_id", "purpose", "cutoff", "template_id", "template_sha256")},
        "example_id": f"{example['example_id']}:{form}",
        "form": form,
        "of": example["example_id"],
        "prompt": getattr(prompt, form)(*places),
        "completion": [{"role": "assistant", "content": LABELS[form][0 if is_first else 1]}],
        "answers": answers,
        "answer_ratings": [ratings[film] for film in answers],
        "candidates": films,
        "candidate_titles": [example["candidate_titles"][place] for place in places],
        "candidate_letters": list(LABELS[form]),
        "retrieved": [film for film in example["retrieved"] if film in films],
    }
