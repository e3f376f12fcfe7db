"""The knowledge graph of a hand-made catalogue: entities, triples, tags, extra triples, coverage, hubs."""

from __future__ import annotations

import gzip
import random
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import polars as pl
import pytest

from tripletune.config import KnowledgeConfig
from tripletune.config.presets import parse_config
from tripletune.errors import InputError
from tripletune.knowledge.build import write_knowledge
from tripletune.knowledge.facts import normalise_tag
from tripletune.pipeline.resolve import resolve
from tripletune.pipeline.stages import run_ingest, run_knowledge
from tripletune.schemas.ingest import MOVIES, RATINGS, TAGS
from tripletune.schemas.knowledge import COVERAGE, ENTITIES, RELATION_NAMES, RELATIONS, TRIPLES

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


MIDNIGHT_2020 = 1577836800
"""1 January 2020, 0:00 UTC."""


def build(root: Path, *extra: Path, seed: int | None = None, tags_before: date | None = None, hubs: int = 1) -> Built:
    """Write the inputs; with a seed, the rows of every table are shuffled."""

    def in_some_order(rows: list[tuple]) -> list[tuple]:
        return rows if seed is None else random.Random(seed).sample(rows, len(rows))

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
                (1, 10, "twist", MIDNIGHT_2020 - 1),
                (2, 10, "twist", MIDNIGHT_2020),
                (2, 2, "twist", MIDNIGHT_2020 + 5),
            ],
        ),
        "ratings": (RATINGS, [(1, 2, 4.0, 1), (1, 10, 4.0, 2), (2, 2, 1.0, 3), (2, 3, 1.0, 4)]),
    }
    root.mkdir(exist_ok=True)
    for name, (schema, rows) in tables.items():
        pl.DataFrame(in_some_order(rows), schema=schema, orient="row").write_parquet(root / f"{name}.parquet")
    credits = [(2, "director", "nm1", "Ann"), (2, "writer", "nm1", "Ann"), (10, "actor", "nm2", None)]
    credits += [(10, "composer", "nm4", "Ann"), (777, "actor", "nm3", "Plays in no film of the release")]
    frame = pl.DataFrame(in_some_order(credits), schema=CREDITS, orient="row")
    out = root / "out"
    out.mkdir(exist_ok=True)
    paths = [root / f"{name}.parquet" for name in ("movies", "tags", "ratings")]
    settings = KnowledgeConfig(tag_min_viewers=2, hub_films=hubs)
    facts = write_knowledge(*paths, frame, extra, out, settings, tags_before)
    return Built(out, facts)


def test_triples_come_from_genres_decades_supported_tags_and_credits(tmp_path):
    built = build(tmp_path / "a")
    assert built.triples() == {
        ("movie:10", "genre", "genre:Thriller"),
        ("movie:10", "genre", "genre:Drama"),
        ("movie:2", "genre", "genre:Drama"),
        ("movie:10", "decade", "decade:1990s"),
        ("movie:2", "decade", "decade:1980s"),
        ("movie:2", "tag", "tag:slow burn"),  # film 10 has it twice, but from one user
        ("movie:10", "tag", "tag:twist"),
        ("movie:2", "director", "person:nm1"),
        ("movie:2", "writer", "person:nm1"),
        ("movie:10", "actor", "person:nm2"),
        ("movie:10", "composer", "person:nm4"),  # a namesake of nm1
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
        ("tag:twist", "twist"),
        ("person:nm1", "Ann"),
        ("person:nm2", None),
        ("person:nm4", "Ann"),
    ]


def test_coverage_is_the_share_of_movies_and_of_ratings_with_a_triple(tmp_path):
    built = build(tmp_path / "a")
    coverage = built.table("coverage")
    assert coverage.schema == COVERAGE
    assert coverage.rows() == [
        ("genre", 3, 2, 2 / 3, 3 / 4),
        ("decade", 2, 2, 2 / 3, 3 / 4),
        ("tag", 2, 2, 2 / 3, 3 / 4),
        ("director", 1, 1, 1 / 3, 2 / 4),
        ("writer", 1, 1, 1 / 3, 2 / 4),
        ("actor", 1, 1, 1 / 3, 1 / 4),
        ("cinematographer", 0, 0, 0.0, 0.0),
        ("composer", 1, 1, 1 / 3, 1 / 4),
        ("producer", 0, 0, 0.0, 0.0),
        ("editor", 0, 0, 0.0, 0.0),
    ]
    for name in ("triples", "share_of_movies", "share_of_ratings"):
        assert built.facts[f"{name}_by_relation"] == dict(coverage.select("relation", name).iter_rows())


def test_relation_ids_are_fixed_in_their_order(tmp_path):
    ids = dict(build(tmp_path / "a").table("relations").select("name", "relation_id").iter_rows())
    names = "genre decade tag director writer actor cinematographer composer producer editor"
    assert ids == {name: number for number, name in enumerate(names.split())}
    assert tuple(ids) == RELATION_NAMES


def test_tags_from_the_day_of_the_cut_on_do_not_count(tmp_path):
    built = build(tmp_path / "a", tags_before=date(2020, 1, 1))
    tags = {triple for triple in built.triples() if triple[1] == "tag"}
    assert tags == {("movie:2", "tag", "tag:slow burn")}  # of "twist" on film 10, one of two came at midnight
    assert built.facts["tags_after_cut"] == 2
    later = build(tmp_path / "b", tags_before=date(2020, 1, 2))
    assert later.triples() == build(tmp_path / "c").triples()
    assert later.facts["tags_after_cut"] == 0


def test_hubs_are_kept_and_counted_by_relation(tmp_path):
    built = build(tmp_path / "a")
    assert built.facts["hubs"] == {
        "genre": {"largest": "Drama", "films": 2, "hubs": 1},
        "decade": {"largest": "1980s", "films": 1, "hubs": 0},  # the first by key of two
        "tag": {"largest": "slow burn", "films": 1, "hubs": 0},
        "director": {"largest": "Ann", "films": 1, "hubs": 0},
        "writer": {"largest": "Ann", "films": 1, "hubs": 0},
        "actor": {"largest": "person:nm2", "films": 1, "hubs": 0},
        "composer": {"largest": "Ann", "films": 1, "hubs": 0},
    }
    none = build(tmp_path / "b", hubs=2)
    assert none.facts["hubs"]["genre"]["hubs"] == 0
    assert none.triples() == built.triples()


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_input_order_does_not_change_a_byte(tmp_path, seed):
    first, second = build(tmp_path / "a"), build(tmp_path / "b", seed=seed)
    assert first.facts == second.facts
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
    assert built.table("relations")["name"].to_list()[10:] == ["award", "studio"]
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


def fingerprint(**split: object) -> str:
    """Fingerprint of the knowledge stage under a split."""
    config = parse_config({"dataset": "toy", "split": split}, "test")
    return resolve(config, Path("nowhere")).fingerprints["knowledge"]


def test_only_global_time_makes_the_graph_depend_on_the_day_of_the_cut():
    days = {"valid_from": date(2020, 1, 1), "test_from": date(2020, 6, 1)}
    later = {"valid_from": date(2020, 2, 1), "test_from": date(2020, 6, 1)}
    assert fingerprint() == fingerprint(protocol="ratio")
    cut = fingerprint(protocol="global_time", **days)
    assert cut != fingerprint()
    assert cut != fingerprint(protocol="global_time", **later)
    assert cut == fingerprint(protocol="global_time", **{**days, "test_from": date(2020, 7, 1)})


def release(root: Path) -> dict[str, str]:
    """Two films, two users and a tag of both, at midnight and the second before; dumps without name.basics rows."""
    texts = {
        "movies.csv": "movieId,title,genres\n1,One (1995),Drama\n2,Two (1996),Comedy\n",
        "ratings.csv": "userId,movieId,rating,timestamp\n1,1,4.0,1500000000\n2,2,4.0,1500000000\n",
        "tags.csv": f"userId,movieId,tag,timestamp\n1,1,Twist,{MIDNIGHT_2020 - 1}\n2,1,twist,{MIDNIGHT_2020}\n",
        "links.csv": "movieId,imdbId,tmdbId\n1,0000001,\n2,0000002,\n",
        "title.basics": "tconst\tstartYear\ntt0000001\t1995\ntt0000002\t1956\n",
        "title.crew": "tconst\tdirectors\twriters\ntt0000001\tnm1\t\\N\ntt0000002\tnm2\t\\N\n",
        "title.principals": "tconst\tordering\tnconst\tcategory\n",
        "name.basics": "nconst\tprimaryName\n",
    }
    for name, text in texts.items():
        folder = root / ("ml" if name.endswith("csv") else "imdb")
        folder.mkdir(exist_ok=True)
        if name.endswith("csv"):
            (folder / name).write_text(text)
        else:
            (folder / f"{name}.tsv.gz").write_bytes(gzip.compress(text.encode()))
    return {"movielens": str(root / "ml"), "imdb": str(root / "imdb")}


def test_the_stage_hands_over_the_cut_of_the_split_and_the_years_of_the_release(tmp_path):
    split = {"protocol": "global_time", "valid_from": date(2020, 1, 1), "test_from": date(2020, 6, 1)}
    settings = {"dataset": "toy", "source": release(tmp_path), "knowledge": {"tag_min_viewers": 2}}
    for protocol, late in (({}, None), (split, 1)):
        config = parse_config({**settings, "split": protocol}, "test")
        paths = resolve(config, tmp_path / "artifacts")
        run_ingest(paths, config)
        run_knowledge(paths, config)
        facts = paths.manifest("knowledge")["facts"]
        assert facts.get("tags_after_cut") == late
        assert facts["triples_by_relation"]["tag"] == (0 if late else 1)
        assert (facts["years_compared"], facts["year_disagreements"]) == (2, 1)
        assert facts["triples_by_relation"]["director"] == 2
