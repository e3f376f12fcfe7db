"""The data card: datasets loads the folder by it, text from data stays inside its fence, and bytes are reproducible."""

from __future__ import annotations

import re
import struct

import polars as pl
import pytest
import small_world
import yaml
from datasets import load_dataset

from tests.unit.test_engine import generate, retrieve
from tripletune.config import RetrieveConfig, RunConfig, SampleConfig, SourceConfig
from tripletune.prompts.card import Origin, write_card
from tripletune.prompts.template import load_template
from tripletune.schemas.generate import EXAMPLE_COLUMNS, EXAMPLES
from tripletune.schemas.query import PURPOSES

HOSTILE = ["```", "~~~ </pre> (1999)", "a ````` b", "## Licences\nnone", "``` text\r```"]
PRINTS = dict.fromkeys(
    ("ingest", "split", "knowledge", *RunConfig(dataset="x").specialist_stages, "retrieve", "generate"), "f" * 32
)


def origin(**source):
    return Origin.of(RunConfig(dataset="made-up", source=SourceConfig(**source)), PRINTS)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    world = small_world.make_world(tmp_path_factory.mktemp("world"))
    movies = pl.read_parquet(world.ingest / "movies.parquet")
    titles = [HOSTILE[n % 5] + str(n) for n in range(len(movies))]
    movies.with_columns(title=pl.Series(titles)).write_parquet(world.ingest / "movies.parquet")
    retrieve(world, RetrieveConfig(retriever="lightgcn"))
    out = tmp_path_factory.mktemp("out")
    generate(world, out)
    write_card(out, load_template("hints-first"), origin())
    return out


def card(folder):
    return (folder / "README.md").read_text(encoding="utf-8")


def outside_fences(text):
    """Lines that are Markdown, by CommonMark's rule for fences; and the blocks within."""
    outside, blocks, fence = [], [], ""
    for line in re.split(r"\r\n|\n|\r", text):
        run = re.match(r" {0,3}(`{3,}|~{3,})", line)
        if fence:
            if run and run[1][0] == fence[0] and len(run[1]) >= len(fence) and line.strip() == run[1]:
                fence = ""
            else:
                blocks[-1].append(line)
        elif run:
            fence = run[1]
            blocks.append([])
        else:
            outside.append(line)
    assert not fence
    return outside, ["\n".join(block) for block in blocks]


def test_datasets_loads_the_folder_as_the_card_says(shards, tmp_path):
    loaded = load_dataset(str(shards), cache_dir=str(tmp_path))
    for purpose in PURPOSES.categories:
        rows = pl.concat(pl.read_parquet(path) for path in sorted((shards / purpose).glob("*.parquet")))
        assert loaded[purpose].num_rows == len(rows) > 0
        assert loaded[purpose]["example_id"] == rows["example_id"].to_list()
        assert loaded[purpose][0]["prompt"] == rows["prompt"][0].to_list()
        assert f"| {purpose} | {len(rows):,} | 2 |" in card(shards)


def first_ids(folder):
    first = {purpose: pl.read_parquet(folder / purpose / "shard-000.parquet") for purpose in ("train", "valid", "test")}
    return {purpose: rows["example_id"][0] for purpose, rows in first.items()}


def test_titles_cannot_break_out_of_the_examples(shards):
    outside, blocks = outside_fences(card(shards))
    assert [line for line in outside if line.startswith("#")] == [
        "# Prompts for film recommendation: made-up",
        *(f"## {title}" for title in ("What is in it", "Loading", "Columns", "Examples")),
        *(f"### {purpose}: `{first}`" for purpose, first in first_ids(shards).items()),
        "## Lineage",
        "## Licences",
    ]
    assert not any("(1999)" in line for line in outside)
    shown = pl.read_parquet(shards / "test" / "shard-000.parquet").row(0, named=True)
    assert shown["prompt"][1]["content"].replace("\r", "\n") in blocks
    assert sum("`````" in block for block in blocks) >= 3


def test_not_even_whole_lines_of_backticks_break_out(shards, tmp_path):
    hostile = "```\n## Licences\n`````\n~~~\nnone"
    for purpose in ("train", "valid", "test"):
        (tmp_path / purpose).mkdir()
        rows = pl.read_parquet(shards / purpose / "shard-000.parquet")
        completion = pl.Series(
            [[{"role": "assistant", "content": hostile}]] * len(rows), dtype=rows["completion"].dtype
        )
        rows.with_columns(completion=completion).write_parquet(tmp_path / purpose / "shard-000.parquet")
    write_card(tmp_path, load_template("hints-first"), origin())
    outside, blocks = outside_fences(card(tmp_path))
    assert blocks.count(hostile) == 3
    assert outside.count("## Licences") == 1


def test_every_column_and_its_meaning_is_told(shards):
    assert list(EXAMPLE_COLUMNS) == EXAMPLES.names()
    for name, meaning in EXAMPLE_COLUMNS.items():
        assert re.search(rf"^\| `{name}` \| [^|]+ \| {re.escape(meaning)} \|$", card(shards), re.MULTILINE)


def test_the_front_matter_names_each_split_and_the_language(shards):
    front = yaml.safe_load(card(shards).split("---\n")[1])
    assert front["language"] == ["en"]
    assert front["configs"][0]["data_files"] == [
        {"split": purpose, "path": f"{purpose}/*.parquet"} for purpose in ("train", "valid", "test")
    ]


def test_the_picture_says_nothing_of_who_drew_it_and_bytes_repeat(shards, tmp_path):
    before = [(shards / name).read_bytes() for name in ("README.md", "lengths.png")]
    write_card(shards, load_template("hints-first"), origin())
    assert [(shards / name).read_bytes() for name in ("README.md", "lengths.png")] == before
    png, chunks, place = before[1], [], 8
    while place < len(png):
        (length,) = struct.unpack(">I", png[place : place + 4])
        chunks.append(png[place + 4 : place + 8])
        place += 12 + length
    assert set(chunks) <= {b"IHDR", b"pHYs", b"IDAT", b"IEND"}  # no tEXt, no tIME


@pytest.mark.parametrize(
    ("source", "told", "untold"),
    [
        ({}, "made up by tripletune's generator", "GroupLens"),
        ({"movielens": "ml.zip"}, "GroupLens", "IMDb"),
        ({"movielens": "ml.zip", "imdb": "imdb"}, "personal and non-commercial use only", "generator"),
    ],
)
def test_the_terms_are_those_of_the_sources_that_were_read(shards, source, told, untold):
    write_card(shards, load_template("hints-first"), origin(**source))
    licences = card(shards).split("## Licences")[-1]
    assert told in licences
    assert untold not in licences
    assert "ml.zip" not in card(shards)  # the same release elsewhere gives the same bytes


def test_lineage_tells_fingerprints_template_and_settings(shards):
    settings = RunConfig(dataset="made-up", sample=SampleConfig(method="uniform", viewers=123))
    write_card(shards, load_template("letters"), Origin.of(settings, PRINTS | {"split": "5" * 32}))
    text = card(shards)
    assert f"| split | `{'5' * 32}` |" in text
    assert f"| template `letters` | `{load_template('letters').sha256}` |" in text
    assert '"viewers": 123' in text
