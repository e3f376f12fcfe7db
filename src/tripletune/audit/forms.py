"""Audit of the short forms: each shows what its audited list shows and no more, and its label is the right one.

Shares no code with the stage that writes them. A list's own prompt was audited when it was published, so a short form
whose evidence is a beginning of it, and whose films are candidates with their lines, can leak nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tripletune.audit.leaks import MAX_PER_KIND, Leak
from tripletune.forms import FormTexts
from tripletune.schemas.base import conform
from tripletune.schemas.forms import FORMS
from tripletune.store.read import read_parquet
from tripletune.store.shards import shard_files

_LABELS = {"pointwise": ["Yes", "No"], "pairwise": ["A", "B"]}
_MARKS = {"pointwise": ("- ",), "pairwise": ("A. ", "B. ")}
_DEVIATIONS = 5.0
"""Standard deviations from one half at which a label counts as told by its place; chance gets there once in a million
runs."""
_Wrong = tuple[int, str, str]
"""Rule, kind and detail of a leak."""
_READ = ["example_id", "user_id", "purpose", "cutoff", "prompt", "answers", "candidates", "candidate_letters"]


def audit_forms(shards: Path, forms: Path, texts: FormTexts, limit: int | None = MAX_PER_KIND) -> list[Leak]:
    """Check every row of the short forms against the example that it is cut from.

    Args:
        shards: the generate stage's folder.
        forms: the forms stage's folder, or its work folder.
        texts: of the template.
        limit: leaks of one kind that are reported; None: all.

    Returns:
        The leaks; rule 0 where columns contradict each other, rule 3 where a prompt shows more than its list's does or
        labels are told by their place.
    """
    found: dict[str, list[Leak]] = {}
    first = dict.fromkeys(_LABELS, 0)
    total = dict.fromkeys(_LABELS, 0)
    for path in shard_files(forms / "train"):
        rows = conform(read_parquet(path), FORMS)
        lists = read_parquet(shards / "train" / path.name, columns=_READ)
        by_id = {example["example_id"]: example for example in lists.iter_rows(named=True)}
        for row in rows.iter_rows(named=True):
            total[row["form"]] += 1
            first[row["form"]] += row["completion"][0]["content"] == _LABELS[row["form"]][0]
            for rule, kind, detail in _wrong(row, by_id.get(row["of"]), texts):
                found.setdefault(kind, []).append(Leak(rule, kind, row["example_id"], detail))
    leaks = [leak for several in found.values() for leak in several[:limit]]
    return leaks + [leak for form in _LABELS for leak in _unbalanced(form, first[form], total[form])]


def _wrong(row: Mapping[str, Any], example: Mapping[str, Any] | None, texts: FormTexts) -> Iterator[_Wrong]:
    """What is wrong with a row."""
    if example is None or any(row[name] != example[name] for name in ("user_id", "purpose", "cutoff")):
        yield 0, "form of no example", f"{row['of']} is no example of this user and cutoff"
        return
    films = row["candidates"]
    if not set(films) <= set(example["candidates"]) or len(set(films)) != len(_MARKS[row["form"]]):
        yield 0, "form of other films", f"films {films} are not so many distinct candidates of {row['of']}"
        return
    right = [film for film in films if film in example["answers"]]
    said = row["completion"][0]["content"]
    if row["answers"] != right or _label_of(row, right) != said:
        yield 0, "form with a wrong label", f"answered {said!r}, answers among {films}: {right}"
    if row["candidate_letters"] != _LABELS[row["form"]]:
        yield 0, "form with other labels", f"labels are {row['candidate_letters']}"
    yield from _wrong_text(row, example, texts)


def _label_of(row: Mapping[str, Any], right: list[int]) -> str:
    """The label that says which of the films are answers."""
    labels = _LABELS[row["form"]]
    if row["form"] == "pointwise":
        return labels[0] if right else labels[1]
    return labels[row["candidates"].index(right[0])] if len(right) == 1 else "neither"


def _wrong_text(row: Mapping[str, Any], example: Mapping[str, Any], texts: FormTexts) -> Iterator[_Wrong]:
    """A prompt that is anything but a beginning of the list's, the question, and the films' lines."""
    (system, user), (list_system, listed) = (
        [message["content"] for message in one["prompt"]] for one in (row, example)
    )
    lines = listed.split("\n")
    shown = []
    for mark, film in zip(_MARKS[row["form"]], row["candidates"], strict=True):
        label = f"{example['candidate_letters'][example['candidates'].index(film)]}. "
        own = [line for line in lines if line.startswith(label)]
        shown.append(mark + own[-1].removeprefix(label) if own else "")
    question = str(getattr(texts, row["form"])).replace("{candidates}", "\n".join(shown))
    if system != list_system or not user.endswith(f"\n\n{question}"):
        yield 3, "form with other text", f"the prompt does not end with the question about {row['candidates']}"
    elif not listed.startswith(user.removesuffix(f"\n\n{question}") + texts.before):
        yield 3, "form with other evidence", f"its evidence is not that of {row['of']}"
    elif len(user) > len(listed):
        yield 0, "form longer than its list", f"{len(user)} characters, and the token budget counted {len(listed)}"


def _unbalanced(form: str, first: int, total: int) -> Iterator[Leak]:
    """One leak where a form's labels are so unequal that one of them is the better guess."""
    if total and abs(first - total / 2) > _DEVIATIONS * (total / 4) ** 0.5:
        detail = f"{first} of {total} are answered {_LABELS[form][0]}"
        yield Leak(3, "form told by its label", form, detail)
