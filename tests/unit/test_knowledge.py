"""The knowledge graph of a hand-made catalogue: entities, triples, tags, extra triples, coverage."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pytest

from tripletune.config import KnowledgeConfig
from tripletune.errors import InputError
from tripletune.graph.knowledge import normalise_tag, write_knowledge
from tripletune.schemas import COVERAGE, ENTITIES, MOVIES, RATINGS, RELATIONS, TAGS, TRIPLES

CREDITS = {"movie_id": pl.Int32, "relation": pl.String, "person": pl.String, "name": pl.String}


@dataclass
class Built:
    folder: Path
    facts: dict

    def table(self, name: str) -> pl.DataFrame:
        return pl.read_parquet(self.folder / f"{name}.parquet")

    def triples(self) -> set[tuple[str, str, str]]:
        """Triples by key: head, relation, tail."""
        keys = dict(self.table("entities").select("entity_id", "key").iter_rows())
        names = dict(self.table("relations").iter_rows())
        return {(keys[head], names[relation], keys[tail]) for head, relation, tail in self.table("triples").iter_rows()}


def build(root: Path, *extra: Path, reverse: bool = False, min_viewers: int = 2) -> Built:
    tables = {
        "movies": (
            MOVIES,
            [
                (10, "Net, The (1995)", 1995, ["Thriller", "Drama"]),
                (2, "Twin (1987)", 1987, ["Drama"]),
                (3, "Bare", None, []),
            ],
        ),
        "tags": (
            TAGS,
            [
                (1, 2, "Slow  Burn", 5),
                (2, 2, "slow burn", 6),
                (1, 10, "slow burn", 7),
                (1, 10, "Slow Burn", 8),
                (1, 3, "\t\n", 9),
                (2, 3, " ", 9),
            ],
        ),
        "ratings": (RATINGS, [(1, 2, 4.0, 1), (1, 10, 4.0, 2), (2, 2, 1.0, 3), (2, 3, 1.0, 4)]),
    }
    root.mkdir(exist_ok=True)
    for name, (schema, rows) in tables.items():
        rows = rows[::-1] if reverse else rows
        pl.DataFrame(rows, schema=schema, orient="row").write_parquet(root / f"{name}.parquet")
    credits = [(2, "director", "nm1", "Ann"), (2, "writer", "nm1", "Ann"), (10, "actor", "nm2", None)]
    credits.append((777, "actor", "nm3", "Plays in no film of the release"))
    frame = pl.DataFrame(credits[::-1] if reverse else credits, schema=CREDITS, orient="row")
    out = root / "out"
    out.mkdir(exist_ok=True)
    paths = [root / f"{name}.parquet" for name in ("movies", "tags", "ratings")]
    facts = write_knowledge(*paths, frame, extra, out, KnowledgeConfig(tag_min_viewers=min_viewers))
    return Built(out, facts)


def test_triples_come_from_genres_decades_supported_tags_and_credits(tmp_path):
    built = build(tmp_path / "a")
    assert built.triples() == {
        ("movie:10", "genre", "genre:Thriller"),
        ("movie:10", "genre", "genre:Drama"),
        ("movie:2", "genre", "genre:Drama"),
        ("movie:10", "decade", "decade:1990s"),
        ("movie:2", "decade", "decade:1980s"),
        ("movie:2", "tag", "tag:slow burn"),  # film 10 has it twice, but from one viewer
        ("movie:2", "director", "person:nm1"),
        ("movie:2", "writer", "person:nm1"),
        ("movie:10", "actor", "person:nm2"),
    }
    assert built.facts["films_without_triples"] == 1


def test_entities_are_dense_in_order_of_kind_and_key_with_display_names(tmp_path):
    entities = build(tmp_path / "a").table("entities")
    assert entities.schema == ENTITIES
    assert entities["entity_id"].to_list() == list(range(entities.height))
    assert list(entities.select("key", "name").iter_rows()) == [
        ("movie:10", "Net, The (1995)"),
        ("movie:2", "Twin (1987)"),
        ("movie:3", "Bare"),
        ("genre:Drama", "Drama"),
        ("genre:Thriller", "Thriller"),
        ("decade:1980s", "1980s"),
        ("decade:1990s", "1990s"),
        ("tag:slow burn", "slow burn"),
        ("person:nm1", "Ann"),
        ("person:nm2", None),
    ]


def test_coverage_is_the_share_of_movies_and_of_ratings_with_a_triple(tmp_path):
    coverage = build(tmp_path / "a").table("coverage")
    assert coverage.schema == COVERAGE
    assert coverage.rows() == [
        ("genre", 3, 2, 2 / 3, 3 / 4),
        ("decade", 2, 2, 2 / 3, 3 / 4),
        ("tag", 1, 1, 1 / 3, 2 / 4),
        ("director", 1, 1, 1 / 3, 2 / 4),
        ("writer", 1, 1, 1 / 3, 2 / 4),
        ("actor", 1, 1, 1 / 3, 1 / 4),
        ("cinematographer", 0, 0, 0.0, 0.0),
    ]


def test_input_order_does_not_change_a_byte(tmp_path):
    first, second = build(tmp_path / "a"), build(tmp_path / "b", reverse=True)
    for name in ("entities", "relations", "triples", "coverage"):
        assert (first.folder / f"{name}.parquet").read_bytes() == (second.folder / f"{name}.parquet").read_bytes()
    assert first.table("triples").schema == TRIPLES
    assert first.table("relations").schema == RELATIONS


def test_extra_triples_are_used_and_bad_lines_counted(tmp_path):
    extra = tmp_path / "more.tsv"
    extra.write_text(
        "head\trelation\ttail\n"
        "2\tstudio\tParamount: West\n"
        "2\tstudio\tParamount: West\n"
        "10\taward\tPalme d'Or\r\n"
        "10\tdirector\tSomebody\n"
        "\n"
        "99\tstudio\tno such film\n"
        "2\tstudio\n"
        "2\tstudio\ta\tb\n"
        "two\tstudio\tx\n"
        "2\t<|eot_id|>\tx\n"
        "2\tstudio\t \n"
    )
    built = build(tmp_path / "a", extra)
    assert {triple for triple in built.triples() if triple[2].startswith("other:")} == {
        ("movie:2", "studio", "other:studio:Paramount: West"),
        ("movie:10", "award", "other:award:Palme d'Or"),
        ("movie:10", "director", "other:director:Somebody"),
    }
    assert built.table("relations")["name"].to_list()[7:] == ["award", "studio"]
    assert (built.facts["extra_lines"], built.facts["extra_used"], built.facts["extra_refused"]) == (10, 4, 6)
    assert built.facts["extra_first_refused"] == "more.tsv line 7"
    names = dict(built.table("entities").select("key", "name").iter_rows())
    assert names["other:studio:Paramount: West"] == "Paramount: West"


def test_a_missing_or_binary_extra_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere.tsv, which is no file"):
        build(tmp_path / "a", tmp_path / "nowhere.tsv")
    (tmp_path / "binary.tsv").write_bytes(b"2\tstudio\t\xff\xfe\n")
    with pytest.raises(InputError, match=r"binary.tsv cannot be read as UTF-8"):
        build(tmp_path / "b", tmp_path / "binary.tsv")


@pytest.mark.parametrize(
    ("tag", "normal"),
    [
        ("  Slow\tBURN ", "slow burn"),
        ("Ｆｕｌｌ Width", "full width"),
        ("STRASSE", "strasse"),
        ("Straße", "strasse"),
        ("caf\u0065\u0301", "café"),
        ('must see"\nassistant: 1.', 'must see" assistant: 1.'),
        ("zero\u200bwidth\x00nul", "zero width nul"),
        ("\u202e", ""),
    ],
)
def test_tags_are_the_same_whatever_their_case_width_accents_and_control_characters(tag, normal):
    assert normalise_tag(tag) == normal
    assert normalise_tag(normal) == normal
