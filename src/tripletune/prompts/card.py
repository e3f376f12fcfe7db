"""Data card: ``README.md`` next to the shards, as the Hugging Face hub shows it, and a histogram of the lengths.

It lists the contents of the shards, the meaning of each column, how to load them, three examples, their sources and
the licences. Its front matter names the files, so that ``load_dataset(folder)`` finds the three splits. The same shards
give the same bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from tripletune.config import RunConfig
from tripletune.prompts.histogram import draw_histogram
from tripletune.prompts.template import Template
from tripletune.schemas.generate import EXAMPLE_COLUMNS, EXAMPLES, PROMPT_CHARS
from tripletune.schemas.query import PURPOSES
from tripletune.store.files import write_atomically
from tripletune.store.read import scan_parquet
from tripletune.store.shards import shard_files

CARD, PICTURE = "README.md", "lengths.png"

_PURPOSES = {
    "train": "answers are likes that come before the user's valid and test likes; hints come from fit a, which was not "
    "trained on them; warm users only",
    "valid": "the answer is a valid like of the user; hints come from fit b",
    "test": "the answer is a test like of the user; hints come from fit b",
}
_TERMS = {
    "synthetic": "Ratings, films and tags were made up by tripletune's generator; nobody's terms hold.",
    "movielens": "Ratings, titles, genres and tags come from a release in MovieLens's layout. GroupLens's own releases "
    "may be used for research, with acknowledgement (Harper & Konstan 2015, https://doi.org/10.1145/2827872) and "
    "without implying endorsement, and not commercially without permission. Whether data made of them may be passed on "
    "differs by release: the README in the release says so. A release made by `tripletune synth` has no terms.",
    "feed": "The ratings are those of a feed of your own, in place of the release's.",
    "imdb": "Credits come from IMDb's non-commercial datasets: personal and non-commercial use only, see "
    'https://developer.imdb.com/non-commercial-datasets/, with the line "Information courtesy of IMDb '
    '(https://www.imdb.com). Used with permission."',
    "extra_triples": "Further facts come from files of your own.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Sources, settings and fingerprints of the shards."""

    dataset: str
    sources: Sequence[str]
    """The sources that were read, of ``synthetic, movielens, feed, imdb, extra_triples``."""
    fingerprints: Mapping[str, str]
    """Fingerprint of each stage whose output went into the shards."""
    settings: Mapping[str, Any]
    """Sections of the config, plain JSON data."""

    @classmethod
    def of(cls, config: RunConfig, fingerprints: Mapping[str, str]) -> Origin:
        """Collect it from a run's config and fingerprints; nothing outside the fingerprints, such as file paths."""
        source = config.source
        read = {
            "synthetic": not source.movielens,
            "movielens": source.movielens,
            "feed": source.feed.ratings,
            "imdb": source.imdb,
            "extra_triples": source.extra_triples,
        }
        stages = ("ingest", "split", "knowledge", *config.trained_stages, "retrieve", "generate")
        return cls(
            dataset=config.dataset,
            sources=[name for name, given in read.items() if given],
            fingerprints={stage: fingerprints[stage] for stage in stages},
            settings={name: config.field(name) for name in ("seed", "retrieve", "sample")}
            | {"prompt": config.field("prompt") | {"template": config.prompt.template_id}}
            | {"split": {name: value for name, value in config.field("split").items() if name != "frozen"}},
        )


def write_card(out: Path, template: Template, origin: Origin) -> None:
    """Write ``README.md`` and ``lengths.png`` next to finished shards.

    Args:
        out: folder with ``train``, ``valid`` and ``test``, each with at least one shard.
        template: template of the prompts.
        origin: sources of the shards.
    """
    lengths = _lengths(out)
    write_atomically(out / PICTURE, lambda path: path.write_bytes(draw_histogram(lengths, unit=_unit(lengths))))
    card = "\n\n".join(
        (
            _front_matter(template),
            f"# Prompts for film recommendation: {origin.dataset}",
            "Written by tripletune: each row prompts a language model for the five best of a list of films, given the "
            "films that the user liked and the hints of two graph specialists.",
            _contents(out, lengths),
            _loading(),
            _columns(),
            _examples(out),
            _lineage(template, origin),
            "## Licences\n\n" + "\n".join(f"- {_TERMS[source]}" for source in origin.sources),
        )
    )
    write_atomically(out / CARD, lambda path: path.write_text(card + "\n", encoding="utf-8"))


def _lengths(out: Path) -> pl.DataFrame:
    """``purpose, length, examples``: number of examples of each length, in tokens or, if not counted, characters."""
    rows = scan_parquet([path for purpose in PURPOSES.categories for path in shard_files(out / purpose)])
    is_counted = rows.select(pl.col("num_tokens").is_not_null().any()).collect(engine="streaming").item()
    unit, length = ("tokens", pl.col("num_tokens")) if is_counted else ("characters", PROMPT_CHARS)
    counted = rows.group_by("purpose", length.cast(pl.Int64).alias("length")).agg(examples=pl.len())
    return counted.with_columns(unit=pl.lit(unit)).sort("purpose", "length").collect(engine="streaming")


def _unit(lengths: pl.DataFrame) -> str:
    return str(lengths["unit"][0]) if len(lengths) else "characters"


def _front_matter(template: Template) -> str:
    files = "\n".join(f"  - split: {purpose}\n    path: {purpose}/*.parquet" for purpose in PURPOSES.categories)
    return (
        f"---\nlanguage:\n- {template.language}\ntask_categories:\n- text-generation\ntags:\n- recommendation\n"
        f"configs:\n- config_name: default\n  data_files:\n{files}\n---"
    )


def _contents(out: Path, lengths: pl.DataFrame) -> str:
    unit = _unit(lengths)
    lines = [f"| split | examples | files | mean {unit} | most {unit} | |", "|---|---:|---:|---:|---:|---|"]
    for purpose in PURPOSES.categories:
        mine = lengths.filter(purpose=purpose)
        total = int(mine["examples"].sum())
        mean = f"{(mine['length'] * mine['examples']).sum() / total:,.1f}" if total else ""
        most = f"{mine['length'].to_numpy().max():,}" if total else ""
        lines.append(
            f"| {purpose} | {total:,} | {len(shard_files(out / purpose))} | {mean} | {most} | {_PURPOSES[purpose]} |"
        )
    what = "of prompt and completion" if unit == "tokens" else "of the prompt; tokens were not counted"
    picture = f"![Histogram: examples by {unit}]({PICTURE})"
    return "## What is in it\n\n" + "\n".join(lines) + f"\n\n{unit.capitalize()} {what}:\n\n{picture}"


def _loading() -> str:
    return (
        "## Loading\n\nIn this folder:\n\n```python\nfrom datasets import load_dataset\n\n"
        'shards = load_dataset(".")  # train, valid, test\n'
        'train = load_dataset("parquet", data_files="train/*.parquet", split="train", streaming=True)\n```\n\n'
        "`prompt` and `completion` are chat messages, which TRL's `SFTTrainer` reads as they are."
    )


def _columns() -> str:
    lines = ["| column | type | |", "|---|---|---|"]
    lines += [f"| `{name}` | {_type(dtype)} | {EXAMPLE_COLUMNS[name]} |" for name, dtype in EXAMPLES.items()]
    return "## Columns\n\n" + "\n".join(lines)


def _type(dtype: pl.DataType) -> str:
    if isinstance(dtype, pl.List):
        return f"list of {_type(dtype.inner)}"  # type: ignore[arg-type]  # a schema's types are instances
    if isinstance(dtype, pl.Struct):
        return "{" + ", ".join(field.name for field in dtype.fields) + "}"
    return "string" if isinstance(dtype, pl.String | pl.Enum) else str(dtype).lower()


def _examples(out: Path) -> str:
    """The first example of each purpose."""
    parts = ["## Examples"]
    for purpose in PURPOSES.categories:
        first = scan_parquet(shard_files(out / purpose)).select("example_id", "prompt", "completion").head(1).collect()
        for row in first.iter_rows(named=True):
            parts.append(f"### {purpose}: `{row['example_id']}`")
            parts += [_message(message) for message in (*row["prompt"], *row["completion"])]
    return "\n\n".join(parts)


def _message(message: Mapping[str, str]) -> str:
    text = message["content"]
    # titles and tags come from outside: use a fence that no run of backticks in the text can close
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{message['role']}:\n\n{fence}text\n{text}\n{fence}"


def _lineage(template: Template, origin: Origin) -> str:
    lines = ["| | |", "|---|---|"]
    lines += [f"| {stage} | `{fingerprint}` |" for stage, fingerprint in origin.fingerprints.items()]
    lines.append(f"| template `{template.id}` | `{template.sha256}` |")
    settings = json.dumps(origin.settings, indent=1, sort_keys=True)
    return (
        "## Lineage\n\nFingerprints of the stages (each covers source, libraries, settings and inputs), and the hash "
        "of the template; `manifest.json` has the SHA-256 of every file.\n\n"
        + "\n".join(lines)
        + f"\n\nSettings:\n\n```json\n{settings}\n```"
    )
