"""Data of ``llm.py``: what ``prepare`` keeps of shards and model, read and tokenised again; and a small random kit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import torch
from llm_training import PAD, Row, Variant, load_model, num_tokens
from torch.nn import functional

from tripletune.answer_lines import LineTokens
from tripletune.behaviour.tables import FILMS, read_film_tables, write_film_tables
from tripletune.chat import load_tokenizer
from tripletune.errors import TrainingError
from tripletune.finetune.label_batches import label_logits, pad_labels, tokenize_labels
from tripletune.judges import judges
from tripletune.residual import calibrate_prior
from tripletune.schemas.answers import LETTERS, candidate_letters
from tripletune.schemas.behaviour import SLOTS

if TYPE_CHECKING:
    from tripletune.behaviour.space import FilmVectors

_SHOWN = ("example_id", "prompt", "candidates", "candidate_titles", "candidate_letters", "answers", "retrieved")
COLUMNS = ("user_id", "purpose", "liked", "disliked", *_SHOWN)
PURPOSES = ("train", "valid", "test")
SEED = 7
_PAGE, _BASE_NAME = "kit.json", "the kit's model"
_MODEL_FILES = {".json", ".jinja", ".safetensors"}
_TOKENIZED_AT_ONCE, _NUM_REFERENCE = 1000, 2
_FILM_LISTS = ("liked", "disliked", "answers", "candidates", "retrieved")
_FIRST_DRAWN = 100


@dataclass(frozen=True, slots=True)
class Prompts:
    """The examples of one generate stage."""

    name: str
    frame: pl.DataFrame
    """``part`` (train, select, judge or test), ``hit`` (whether an answer is a candidate), ``row`` (its number among
    ``rows``; null without a hit), and the lists of films; without the prompts."""
    rows: list[Row]
    """Examples with a hit."""
    prior: tuple[float, ...]
    """Of the retriever's places, calibrated on the training examples."""
    texts: list[Row] = field(default_factory=list)
    """Training examples as text alone, where ``rows`` have behaviour tokens."""

    def training_rows(self) -> list[Row]:
        """What ``llm_training.train`` takes."""
        return [*self.texts, *self.part("train")]

    def part(self, name: str) -> list[Row]:
        """Rows of the part, in the order of ``frame``."""
        return [self.rows[row] for row in self.frame.filter(part=name)["row"].drop_nulls()]

    def tokens_read(self) -> int:
        """Tokens that a trained model reads."""
        return sum(num_tokens(self.part(name)) for name in ("select", "judge", "test"))


@dataclass(frozen=True, slots=True)
class Kit:
    """A folder of ``prepare``, and where it is computed."""

    folder: Path
    names: list[str]
    """Of the shards, the main ones first."""
    reference: dict[str, Any]
    """Of ``read_reference`` where it was prepared."""
    films: dict[str, Any]
    """Of the film vectors: ``source``, ``cosine`` and ``shared`` films of both fits, and by name of shards the
    ``columns`` that list the films of the prompts' lines, none where behaviour tokens can't be; empty without vectors.
    """
    tokenizer: Any
    device: torch.device

    @classmethod
    def read(cls, folder: Path, device: torch.device) -> Kit:
        """Read the page and the model's tokenizer."""
        page = json.loads((folder / _PAGE).read_text(encoding="utf-8"))
        tokenizer = load_tokenizer(folder / "model")
        return cls(folder, page["shards"], page["reference"], page["films"], tokenizer, device)

    def prompts(self, name: str) -> Prompts:
        """Read and tokenise the examples of some shards, as text alone."""
        frame = self.read_shards(name)
        rows = self.tokenize(frame)
        places = [
            [place for place, share in zip(rows[row]["places"], rows[row]["targets"], strict=True) if share]
            for row in frame.filter(part="train")["row"].drop_nulls()
        ]
        prior = calibrate_prior(places, max(len(row["places"]) for row in rows))
        kept = frame.drop("prompt", "candidate_titles", "candidate_letters")
        return Prompts(name, kept, rows, tuple(round(float(value), 6) for value in prior))

    def with_films(self, prompts: Prompts) -> Prompts:
        """The same examples with behaviour tokens."""
        rows = self.tokenize(self.read_shards(prompts.name), self.film_columns(prompts.name))
        return replace(prompts, rows=rows, texts=prompts.part("train"))

    def film_columns(self, name: str) -> list[str]:
        """Columns that list the films of the prompts' lines; none where these shards get no behaviour tokens."""
        return self.films["columns"][name] if self.films else []

    def model(self, variant: Variant, seed: int, dtype: torch.dtype | None = None) -> Any:
        """See ``load_model``."""
        vectors_RD = read_film_tables(self.folder / FILMS).vectors_RD if variant.behaviour else None
        return load_model(self.folder / "model", variant, seed, self.device, dtype, vectors_RD)

    def read_shards(self, name: str) -> pl.DataFrame:
        """Some shards with ``part``, ``hit`` and ``row``, see ``Prompts``."""
        frame = pl.read_parquet(self.folder / "shards" / f"{name}.parquet")
        purpose, is_judge = pl.col("purpose").cast(pl.String), judges(frame["user_id"], SEED)
        halves = pl.when(is_judge).then(pl.lit("judge")).otherwise(pl.lit("select"))
        return frame.with_columns(
            part=pl.when(purpose == "valid").then(halves).otherwise(purpose),
            hit=pl.col("candidates").list.set_intersection("answers").list.len() > 0,
        ).with_columns(row=pl.when("hit").then(pl.col("hit").cum_sum() - 1))

    def tokenize(self, frame: pl.DataFrame, film_columns: Sequence[str] = ()) -> list[Row]:
        """Examples with a hit, in the order of ``frame``; with behaviour tokens where columns list their films.

        Raises:
            TrainingError: the prompts have other lines of data than these films.
        """
        lines, rows = LineTokens(self.tokenizer), []
        tables = read_film_tables(self.folder / FILMS) if film_columns else None
        for (purpose,), examples in frame.filter("hit").group_by("purpose", maintain_order=True):  # sorted by it
            named: dict[str, Any] = {"base_name": _BASE_NAME, "objective": "listwise"}
            if tables:
                named["behaviour"] = tables.tokens(str(purpose), self.tokenizer, film_columns, _BASE_NAME)
            for some in examples.select({*_SHOWN, *film_columns}).iter_slices(_TOKENIZED_AT_ONCE):
                given = some.to_dict(as_series=False)
                columns = tokenize_labels(given, self.tokenizer, lines, LETTERS, **named)
                rows += [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        return rows


def read_reference(kit: Kit, prompts: Prompts, dtype: torch.dtype) -> dict[str, Any]:
    """Tokens of the first test prompts, and their labels' logits from the untuned model, without autocast."""
    rows, model = prompts.part("test")[:_NUM_REFERENCE], kit.model(Variant(epochs=0), SEED, dtype).eval()
    logits = []
    with torch.inference_mode():
        for row in rows:
            batch = {name: values.to(kit.device) for name, values in pad_labels([row], PAD, prompts.prior).items()}
            logits.append(label_logits(model, batch)[0][0].tolist())
    return {"input_ids": [row["input_ids"] for row in rows], "logits": logits}


def keep_kit(
    shards: Mapping[str, Path], model: Path, out: Path, films: tuple[str, FilmVectors, FilmVectors] | None = None
) -> None:
    """Write the folder that ``measure`` reads.

    Args:
        shards: name to folder of a generate stage, the main one first.
        model: folder in Hugging Face's layout.
        out: new folder.
        films: name of their source, and the film vectors of its fit a and fit b.
    """
    if out.exists():
        raise SystemExit(f"llm: {out} is there already; remove it or choose another --out")
    (out / "shards").mkdir(parents=True)
    (out / "model").mkdir()
    for name, generated in shards.items():
        _keep_shards(generated, out / "shards" / f"{name}.parquet")
    for file in sorted(model.iterdir()):
        if file.suffix in _MODEL_FILES and file.name != "manifest.json":
            shutil.copyfile(file, out / "model" / file.name)
    page: dict[str, Any] = {"shards": list(shards), "reference": {}, "films": _keep_films(films, out) if films else {}}
    (out / _PAGE).write_text(json.dumps(page), encoding="utf-8")
    kit = Kit.read(out, torch.device("cpu"))
    if films:
        page["films"]["columns"] = {name: _film_columns(kit, name) for name in kit.names}
    page["reference"] = read_reference(kit, kit.prompts(kit.names[0]), torch.float32)
    (out / _PAGE).write_text(json.dumps(page) + "\n", encoding="utf-8")


def _keep_shards(generated: Path, target: Path) -> None:
    """One file with what is read of a generate stage's folder."""
    files = [sorted((generated / purpose).glob("shard-*.parquet")) for purpose in PURPOSES]
    if not all(files):
        raise SystemExit(f"llm: {generated} lacks shards of train, valid or test; name a finished generate folder")
    frame = pl.concat(pl.read_parquet(file, columns=list(COLUMNS)) for file in chain.from_iterable(files))
    if not frame["candidate_letters"].list.len().min():
        raise SystemExit(f"llm: {generated} has candidates without letters; use a template with 'answers: letters'")
    frame.sort("purpose", "user_id", "example_id").write_parquet(target, compression="zstd", compression_level=12)


def _keep_films(films: tuple[str, FilmVectors, FilmVectors], out: Path) -> dict[str, Any]:
    """One file with the vectors of fit a, and of fit b in their space; how well they fit."""
    from tripletune.behaviour.space import align  # only here: measuring needs no pydantic

    source, first, second = films
    aligned = align(second, first)
    write_film_tables(out / FILMS, first, aligned.vectors)
    return {"source": source, "cosine": aligned.cosine, "shared": aligned.shared}


def _film_columns(kit: Kit, name: str) -> list[str]:
    """See ``Kit.films``. The columns of sections that a template does not show are empty."""
    frame = kit.read_shards(name)
    columns = [slot for slot in SLOTS if frame[slot].list.len().sum()]
    try:
        kit.tokenize(frame, columns)
    except TrainingError as error:
        print(f"llm: {name} gets no behaviour tokens: {error}")
        return []
    return columns


def draw_generated(folder: Path, users: int = 24, films: int = 40, shown: int = 12) -> None:
    """Shards as a generate stage writes them, small and random: the retriever's order is right more often than not, and
    some answers are no candidates."""
    for number, purpose in enumerate(PURPOSES):
        rows = [_draw_example(user, purpose, number, films, shown) for user in range(1, users + 1)]
        (folder / purpose).mkdir(parents=True)
        types = {"user_id": pl.Int32, "cutoff": pl.Int32, **dict.fromkeys(_FILM_LISTS, pl.List(pl.Int32))}
        pl.DataFrame(rows, schema_overrides=types).write_parquet(folder / purpose / "shard-000.parquet")


def _draw_example(user: int, purpose: str, number: int, films: int, shown: int) -> dict[str, Any]:
    random = np.random.default_rng([user, number])
    drawn = [int(film) for film in _FIRST_DRAWN + random.choice(films, shown + 1, replace=False)]
    retrieved, missed = drawn[:shown], drawn[shown]
    answer = retrieved[min(int(random.geometric(0.3)) - 1, shown - 1)]
    is_missed = purpose != "train" and user % 4 == 0
    candidates = [int(film) for film in random.permutation(retrieved)]
    titles, letters = [_title(film) for film in candidates], candidate_letters(shown)
    lines = [f"{letter}. {title}" for letter, title in zip(letters, titles, strict=True)]
    others = sorted({*range(_FIRST_DRAWN, _FIRST_DRAWN + films)} - {*drawn})
    liked, disliked = others[: user % 3], others[-1:] * (user % 2)
    likes, dislikes = ([f"- {_title(film)}" for film in some] for some in (liked, disliked))
    content = "\n".join(["Liked:", *likes, "Disliked:", *dislikes, "Candidates:", *lines])
    return {
        "example_id": f"{user}:{purpose}",
        "user_id": user,
        "purpose": purpose,
        "cutoff": 9,
        "prompt": [{"role": "system", "content": "You recommend."}, {"role": "user", "content": content}],
        "completion": [{"role": "assistant", "content": letters[candidates.index(answer)]}],
        "liked": liked,
        "disliked": disliked,
        "answers": [missed if is_missed else answer],
        "candidates": candidates,
        "candidate_titles": titles,
        "candidate_letters": letters,
        "retrieved": retrieved,
    }


def _title(film: int) -> str:
    """Of different lengths, so that the longest prompt need not have most films."""
    return f"Film {film}{' again' * (film % 10)} (1999)"


def draw_films(films: int = 40, width: int = 8) -> tuple[str, FilmVectors, FilmVectors]:
    """Vectors of the films of ``draw_generated`` in two fits: the second mirrored, with some noise; each lacks one."""
    from tripletune.behaviour.space import FilmVectors

    random, ids_M = np.random.default_rng(SEED), _FIRST_DRAWN + np.arange(films)
    first_MD = random.normal(size=(films, width))
    second_MD = -first_MD + 0.3 * random.normal(size=first_MD.shape)
    first, second = (
        FilmVectors(ids_M[has_M], functional.normalize(torch.from_numpy(drawn_MD[has_M]).float(), dim=1), fit)
        for fit, drawn_MD, has_M in (("a", first_MD, ids_M > ids_M[0]), ("b", second_MD, ids_M < ids_M[-1]))
    )
    return "drawn", first, second


def draw_kit(folder: Path) -> Path:
    """A kit of two small random sets of shards, random film vectors and a tiny model; its folder."""
    from tripletune.config import TinyLlamaConfig  # only here: measuring needs no pydantic
    from tripletune.finetune.tiny import write_tiny_llama

    shards = {"tiny": folder / "one", "smaller": folder / "two"}
    draw_generated(shards["tiny"])
    draw_generated(shards["smaller"], users=16)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1}
    train = shards["tiny"] / "train" / "shard-000.parquet"
    write_tiny_llama([train], folder / "base", TinyLlamaConfig(vocab_size=400, **shape), SEED)
    keep_kit(shards, folder / "base", folder / "kit", draw_films())
    return folder / "kit"
