"""Prompt shards like those of the generate stage, made without it: for the tests of finetuning and ranking.

The task to learn: the answer is the head of the hint's ranking, so copying five lines of the prompt is right.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from tripletune.schemas.answers import candidate_letters
from tripletune.schemas.generate import EXAMPLES

_FIRST = [
    "Silent",
    "Crimson",
    "Broken",
    "Golden",
    "Distant",
    "Hidden",
    "Last",
    "Electric",
    "Paper",
    "Wild",
    "Lonely",
    "Burning",
    "Frozen",
    "Quiet",
    "Iron",
]
_SECOND = [
    "River",
    "Garden",
    "Horizon",
    "Letter",
    "Empire",
    "Shadow",
    "Harvest",
    "Mirror",
    "Station",
    "Orchard",
    "Voyage",
    "Winter",
    "Signal",
    "Circus",
]
PROMPT_CONTRACT = {"template": "test", "answer_style": "titles", "num_candidates": 20}
LETTERS_CONTRACT = {**PROMPT_CONTRACT, "answer_style": "letters"}


def title(movie: int) -> str:
    """A distinct title per movie id; every seventh is a prefix of another."""
    if movie % 7 == 0:
        return title(movie + 1).rsplit(" (", 1)[0]
    return f"{_FIRST[movie % 15]} {_SECOND[movie // 15 % 14]} {1 + movie // 210} ({1950 + movie * 7 % 70})"


def example(
    user: int, purpose: str, *, num_movies: int = 150, long: bool = True, letters: bool = False
) -> dict[str, object]:
    rng = np.random.default_rng([user, len(purpose)])
    movies = [int(movie) for movie in rng.choice(num_movies, size=35, replace=False)]
    retrieved, liked = movies[:20], movies[20:]
    shown = [int(movie) for movie in rng.permutation(retrieved)]
    answers = retrieved[:5] if purpose == "train" else [retrieved[int(rng.integers(0, 24)) % 20 if user % 5 else 0]]
    lines = ["The viewer liked, newest first:", *(f"- {title(movie)}" for movie in liked[: 15 if long else 3])]
    lines += ["", "Hint 1, the ranking of a graph model:"]
    lines += [f"{k}. {title(movie)}" for k, movie in enumerate(retrieved[:10], 1)]
    if long:
        lines += ["", "Hint 2:", *(f"- {title(movie)} - genre - Drama" for movie in shown)]
    labels = candidate_letters(20) if letters else []
    marks = [f"{label}." for label in labels] or ["-"] * 20
    shown_lines = [f"{mark} {title(movie)}" for mark, movie in zip(marks, shown, strict=True)]
    lines += ["", "Which five of these will the viewer like most?", *shown_lines]
    said = [labels[shown.index(movie)] if letters else title(movie) for movie in retrieved[:5]]
    completion = "\n".join(name if letters else f"{k}. {name}" for k, name in enumerate(said, 1))
    return {
        "example_id": f"{user}:train:15" if purpose == "train" else f"{user}:{purpose}",
        "user_id": user,
        "purpose": purpose,
        "unseen": False,
        "cutoff": 15,
        "prompt": [
            {"role": "system", "content": "You recommend films. Answer with five lines and nothing else."},
            {"role": "user", "content": "\n".join(lines)},
        ],
        "completion": [{"role": "assistant", "content": completion}],
        "answers": answers,
        "answer_ratings": [5.0 - 0.5 * (place // 2) for place in range(len(answers))],
        "candidates": shown,
        "candidate_titles": [title(movie) for movie in shown],
        "candidate_letters": labels,
        "retrieved": retrieved,
        "liked": liked,
        "disliked": [],
        "ranking": retrieved[:10],
        "similar": [],
        "triples": [],
        "topics": [],
        "template_id": "test",
        "template_sha256": "0" * 64,
        "lightgcn": "a" * 32,
        "rgat": "b" * 32,
    }


def write_shards(
    folder: Path, *, train: int, valid: int, test: int, long: bool = True, letters: bool = False, files: int = 2
) -> Path:
    """``<folder>/<purpose>/shard-NNN.parquet``; returns the folder."""
    for purpose, count in (("train", train), ("valid", valid), ("test", test)):
        (folder / purpose).mkdir(parents=True, exist_ok=True)
        rows = [example(user, purpose, long=long, letters=letters) for user in range(1, count + 1)]
        for number in range(files):
            frame = pl.DataFrame(rows[number::files], schema=EXAMPLES)
            frame.write_parquet(folder / purpose / f"shard-{number:03d}.parquet")
    return folder
