"""Agreement of users in age group, gender and occupation: by hand, and in the search for similar users."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from tripletune.config import RunConfig
from tripletune.errors import ConfigError, InputError
from tripletune.models.lightgcn.serve import LightGCNFit
from tripletune.models.serving.catalogue import Catalogue
from tripletune.pipeline.resolve import resolve
from tripletune.retrieve.people import People
from tripletune.retrieve.similar import Neighbours
from tripletune.schemas.ingest import USERS

USERS_TABLE = pl.DataFrame(
    [
        (1, "F", 24, "artist", "1"),
        (2, "F", 18, "artist", "2"),  # all three agree with 1
        (3, "F", 25, "artist", "3"),  # the next age group begins at 25
        (4, "M", 60, "artist", "4"),
        (5, "M", 17, "lawyer", "5"),  # nothing agrees with 1
        (6, None, 20, None, "6"),  # the age alone is known
    ],
    schema=USERS,
    orient="row",
)


def agreement(weight: float, first: int, second: int) -> float:
    of_first_F, of_second_F = People(USERS_TABLE, weight).vectors(np.array([first, second]))
    return float(of_first_F @ of_second_F)


@pytest.mark.parametrize(("other", "thirds"), [(1, 3), (2, 3), (3, 2), (4, 1), (5, 0), (6, 1), (7, 0), (-1, 0)])
def test_each_equal_attribute_counts_a_third_of_the_weight(other: int, thirds: int) -> None:
    assert agreement(0.6, 1, other) == pytest.approx(0.2 * thirds)
    assert agreement(0.6, other, 1) == pytest.approx(0.2 * thirds)


def test_unknown_attributes_agree_with_nothing_not_even_with_each_other() -> None:
    assert agreement(0.6, 6, 6) == pytest.approx(0.2)
    assert agreement(0.6, -1, -1) == 0


def alike(weight: float, exact_users: int | None = None) -> Neighbours:
    """Users 2 to 5 like the same film, so that only attributes distinguish them; all vectors are equal."""
    catalogue = Catalogue([1, 2], seed=0)
    fit = LightGCNFit(
        catalogue=catalogue,
        pool_vectors_MD=torch.eye(2)[torch.from_numpy(catalogue.order_M)],
        movie_vectors_MD=torch.eye(2),
        bias_M=torch.zeros(2),
        half_life=0.0,
        power=1.0,
    )
    likes = pl.DataFrame({"user_id": [1, 2, 3, 4, 5], "movie_id": [1] * 5, "age": [0] * 5})
    people = People(USERS_TABLE, weight) if weight else None
    return Neighbours.build(fit, likes, seed=0, exact_users=exact_users, people=people)


@pytest.mark.parametrize("exact_users", [None, 5, 4])
def test_similarity_is_the_cosine_plus_the_agreement(exact_users: int | None) -> None:
    near = alike(0.6, exact_users)
    assert (near.clusters is not None) == (exact_users == 4)
    user_UK, similarity_UK = near.nearest(torch.tensor([[0.0, 3.0]]).roll(1), np.array([1]), 4)
    cosine = float(near.unit_VD[0, :2] @ torch.tensor([1.0, 0.0]))
    assert near.users_V[user_UK[0]][:3].tolist() == [2, 3, 4]
    np.testing.assert_allclose(similarity_UK[0] - cosine, [0.6, 0.4, 0.2, 0.0], atol=1e-6)


@pytest.mark.parametrize("exact_users", [5, 4])
def test_a_stranger_is_compared_by_the_cosine_alone(exact_users: int) -> None:
    asked_UD, users_U = torch.tensor([[1.0, 2.0]]), np.array([-1])
    with_people, without = (alike(weight, exact_users).nearest(asked_UD, users_U, 5)[1] for weight in (0.6, 0.0))
    np.testing.assert_allclose(with_people, without, atol=1e-6)


@pytest.mark.parametrize("exact_users", [5, 4])
def test_nobody_is_their_own_neighbour_in_either_search(exact_users: int) -> None:
    near = alike(0.6, exact_users)
    user_UK, similarity_UK = near.nearest(torch.ones(5, 2), np.arange(1, 6), 5)
    for user, row_K in zip(range(1, 6), user_UK, strict=True):
        assert row_K[-1] == -1
        assert set(near.users_V[row_K[:-1]].tolist()) == {1, 2, 3, 4, 5} - {user}
    assert (similarity_UK[:, -1] == -torch.inf).all()


def test_an_empty_table_is_refused(tmp_path: Path) -> None:
    USERS_TABLE.clear().write_parquet(tmp_path / "users.parquet")
    with pytest.raises(InputError, match="this release has no users"):
        People.read(tmp_path, 0.5)


def run(release: Path | None) -> RunConfig:
    source = {"movielens": str(release)} if release else {}
    return RunConfig.model_validate({"dataset": "d", "source": source, "retrieve": {"similar_people": 0.5}})


@pytest.mark.parametrize("kind", ["synthetic", "folder", "zip"])
def test_the_setting_is_refused_where_the_release_has_no_users(tmp_path: Path, kind: str) -> None:
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n", encoding="utf-8")
    with zipfile.ZipFile(tmp_path / "release.zip", "w") as packed:
        packed.write(tmp_path / "ratings.csv", "ml/ratings.csv")
    release = {"synthetic": None, "folder": tmp_path, "zip": tmp_path / "release.zip"}[kind]
    with pytest.raises(ConfigError, match=r"retrieve.similar_people = 0.5 needs a release with ages") as error:
        resolve(run(release), tmp_path / "artifacts")
    assert "\n" not in str(error.value)


def test_retrieve_reads_ingest_only_where_attributes_count(tmp_path: Path) -> None:
    for name in ("u.data", "u.item", "u.user"):
        (tmp_path / name).write_text("", encoding="utf-8")
    with zipfile.ZipFile(tmp_path / "release.zip", "w") as packed:
        packed.write(tmp_path / "u.user", "ml-100k/u.user")
    for release in (tmp_path, tmp_path / "release.zip"):
        paths = resolve(run(release), tmp_path / "artifacts")
        assert "ingest" in paths.ingredients["retrieve"]["parents"]
    plain = resolve(RunConfig.model_validate({"dataset": "d", "source": {"movielens": str(tmp_path)}}), tmp_path / "a")
    assert "ingest" not in plain.ingredients["retrieve"]["parents"]
