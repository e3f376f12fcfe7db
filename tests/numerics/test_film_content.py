"""What text vectors add to a film's: against dense algebra, and the ranking of films that nobody has rated."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import save_file

from tests.graph_cases import FIRST_MOVIE, NUM_MOVIES, director_of, plant_split
from tests.sequence_cases import given, settings, some_content
from tripletune.models.sequence.content import NEVER, RIDGE, SHRINK, FilmContent, read_content
from tripletune.models.sequence.fit import train_sequence
from tripletune.models.sequence.serve import load_sequence
from tripletune.store.catalogue import read_catalogue, write_catalogue

NEW = 12
"""Films in the catalogue that nobody has rated."""


def some_films(*, tied: bool = True) -> tuple[FilmContent, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    rated_M = torch.tensor([5.0, 0.0, 1.0, 7.0, 0.0, 2.0])
    content = FilmContent(some_content(6, 4), rated_M, 3, tied=tied)
    with torch.no_grad():
        for parameter in content.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return content, torch.randn(6, 3, generator=generator), torch.randn(6, generator=generator)


@pytest.mark.parametrize("scored", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_a_vector_is_its_own_and_the_projection_of_its_content(tied, scored):
    content, own_MD, own_M = some_films(tied=tied)
    weight_XD = content.score_XD if scored and not tied else content.read_XD
    want_MD = np.array(
        [own if known else 0 * own for own, known in zip(own_MD.numpy(), content.is_known_M, strict=True)]
    )
    want_MD = want_MD + content.content_MX.numpy() @ weight_XD.detach().numpy()
    film_C = torch.tensor([3, 1, 0])
    got_CD = content.vectors(own_MD[film_C], film_C, scored=scored).detach().numpy()
    np.testing.assert_allclose(got_CD, want_MD[[3, 1, 0]], rtol=1e-5)
    np.testing.assert_allclose(content.whole(own_MD, scored=scored).numpy(), want_MD, rtol=1e-5)
    projected_M = content.content_MX.numpy() @ content.bias_X.detach().numpy() + float(content.base.detach())
    want_M = np.where(content.is_known_M, own_M, projected_M)
    np.testing.assert_allclose(content.whole_bias(own_M).numpy(), want_M, rtol=1e-5)
    # in training a film without ratings is nobody's alternative
    got_C = content.biases(own_M[film_C], film_C).detach().numpy()
    np.testing.assert_allclose(got_C, [own_M[3], projected_M[1] + NEVER, own_M[0]], rtol=1e-5)


def test_a_dropped_film_has_its_projection_alone():
    content, own_MD, own_M = some_films()
    films = torch.arange(6)
    content.drop(0.999, torch.Generator().manual_seed(0))
    assert content.own_M.tolist() == [0.0] * 6
    want_MD = content.content_MX @ content.read_XD
    torch.testing.assert_close(content.vectors(own_MD, films, scored=True), want_MD)
    want_M = content.content_MX @ content.bias_X + content.base + torch.where(content.is_known_M, 0.0, NEVER)
    torch.testing.assert_close(content.biases(own_M, films), want_M)
    content.drop(0.0, torch.Generator().manual_seed(0))
    assert content.own_M.tolist() == content.is_known_M.float().tolist()


def test_the_start_is_a_ridge_regression_and_keeps_the_vectors_of_films_with_many_ratings():
    rated_M = torch.tensor([0.0, 1.0, 3.0, 10.0, 1e9, 40.0, 7.0, 2.0])
    content_MX = some_content(8, 5)
    own_MD, bias_M = torch.randn(8, 3, generator=torch.Generator().manual_seed(9)), rated_M.log1p()
    content = FilmContent(content_MX, rated_M, 3, tied=True)
    rest_MD = content.start(own_MD, bias_M, rated_M)
    features, wanted = content_MX.double().numpy(), np.column_stack([own_MD, bias_M]).astype(np.float64)
    trust = (rated_M / (rated_M + SHRINK)).double().numpy()
    base = np.average(wanted[:, -1], weights=trust)
    wanted[:, -1] -= base
    penalty = RIDGE * np.mean((features**2 * trust[:, None]).sum(axis=0))
    # the penalty as further rows of a least squares problem
    rows = np.vstack([features * np.sqrt(trust)[:, None], np.sqrt(penalty) * np.eye(5)])
    solved = np.linalg.lstsq(rows, np.vstack([wanted * np.sqrt(trust)[:, None], np.zeros((5, 4))]), rcond=None)[0]
    np.testing.assert_allclose(content.read_XD.detach().numpy(), solved[:, :3], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(content.bias_X.detach().numpy(), solved[:, 3], rtol=1e-4, atol=1e-6)
    assert float(content.base.detach()) == pytest.approx(base, rel=1e-6)
    start_MD = content.whole(rest_MD, scored=True)
    torch.testing.assert_close(start_MD[4], own_MD[4], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(start_MD[0], content_MX[0] @ content.read_XD.detach())


def director_texts(folder: Path, split: Path) -> Path:
    """Text vectors that name a film's director, as the stage ``text`` writes them."""
    folder.mkdir()
    ids = read_catalogue(split).tolist()
    vectors = torch.nn.functional.one_hot(torch.tensor([director_of(movie - FIRST_MOVIE) for movie in ids])).float()
    save_file({"text": vectors}, folder / "films.safetensors")
    pl.DataFrame({"row": range(len(ids)), "movie_id": ids}).write_parquet(folder / "movies.parquet")
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("content")
    plant_split(folder / "split")
    write_catalogue(folder / "split", range(FIRST_MOVIE, FIRST_MOVIE + NUM_MOVIES + NEW))
    director_texts(folder / "text", folder / "split")
    return folder


@functools.cache
def trained(world: Path, kinds: tuple[str, ...]) -> Path:
    out = world / f"out-{'-'.join(kinds)}"
    out.mkdir()
    train_sequence(world / "split", out, settings(max_steps=30), 7, {kind: world / kind for kind in kinds})
    return out


def liked(parity: int) -> list[tuple[int, int, float, int, bool]]:
    films = [movie for movie in range(NUM_MOVIES) if director_of(movie) % 2 == parity][:8]
    return [(0, FIRST_MOVIE + movie, 5.0, place, True) for place, movie in enumerate(films)]


@pytest.mark.parametrize("parity", [0, 1])
def test_films_that_nobody_has_rated_rank_by_what_they_are_about(world, parity):
    fit = load_sequence(trained(world, ("text",)), seed=5, fits=("b",))["b"]
    score_M = (fit.users(given(liked(parity), 1)) @ fit.movie_vectors_MD.T + fit.model.bias_M)[0]
    new = range(NUM_MOVIES, NUM_MOVIES + NEW)
    of_parity = {
        side: score_M[torch.from_numpy(fit.catalogue.columns([FIRST_MOVIE + m for m in new if m % 2 == side]))]
        for side in (0, 1)
    }
    assert of_parity[parity].min() > of_parity[1 - parity].max()
    # and above rated films of the other directors: they are candidates
    others = [FIRST_MOVIE + m for m in range(NUM_MOVIES) if director_of(m) % 2 != parity]
    assert of_parity[parity].min() > score_M[torch.from_numpy(fit.catalogue.columns(others))].mean()


def test_without_content_a_new_film_ranks_below_nearly_all(world):
    fit = load_sequence(trained(world, ()), seed=5, fits=("b",))["b"]
    score_M = (fit.users(given(liked(0), 1)) @ fit.movie_vectors_MD.T + fit.model.bias_M)[0]
    column_N = torch.from_numpy(
        fit.catalogue.columns(np.arange(FIRST_MOVIE + NUM_MOVIES, FIRST_MOVIE + NUM_MOVIES + NEW))
    )
    assert score_M[column_N].median() < score_M.median()


def test_content_is_read_by_film_whatever_its_order(world, tmp_path):
    ids = read_catalogue(world / "split")
    want_MX = torch.nn.functional.one_hot(torch.tensor([director_of(int(one) - FIRST_MOVIE) for one in ids])).float()
    assert torch.equal(read_content({"text": world / "text"}, ids, "a"), want_MX)
    shuffled = pl.read_parquet(world / "text" / "movies.parquet").sample(fraction=1.0, shuffle=True, seed=1)
    tensors = {"text": want_MX[torch.from_numpy(shuffled["row"].to_numpy().copy())].contiguous()}
    save_file(tensors, tmp_path / "films.safetensors")
    shuffled.with_columns(row=pl.int_range(len(shuffled))).write_parquet(tmp_path / "movies.parquet")
    assert torch.equal(read_content({"text": tmp_path}, ids, "a"), want_MX)
    assert read_content({}, ids, "a") is None
