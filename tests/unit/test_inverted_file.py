"""Similar users by an inverted file: against a search through all users in float64, and at its edges."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from tripletune.retrieve import inverted_file
from tripletune.retrieve.inverted_file import InvertedFile


def vectors(num: int, seed: int = 0, tastes: int = 30) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    centres_TD = torch.randn(tastes, 16, generator=random)
    taste_U = torch.randint(0, tastes, (num,), generator=random)
    return normalize(centres_TD[taste_U] + 0.3 * torch.randn(num, 16, generator=random), dim=1)


def by_full_sort(query_UD: torch.Tensor, users_VD: torch.Tensor, k: int) -> np.ndarray:
    products_UV = query_UD.double().numpy() @ users_VD.double().numpy().T
    return np.argsort(-products_UV, axis=1, kind="stable")[:, :k]


@pytest.fixture
def small_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inverted_file, "SCANNED", 1024)
    monkeypatch.setattr(inverted_file, "LIST_USERS", 50)


def test_a_search_of_all_lists_is_exact() -> None:
    users_VD, query_UD = vectors(3000), vectors(150, seed=1)
    place_UK, product_UK = InvertedFile.build(users_VD).nearest(query_UD, 20)
    np.testing.assert_array_equal(place_UK, by_full_sort(query_UD, users_VD, 20))
    want_UK = (query_UD[:, None].double() * users_VD[place_UK].double()).sum(dim=2)
    np.testing.assert_allclose(product_UK, want_UK, atol=1e-6)  # 16 products in float32


def test_most_neighbours_are_found_in_a_tenth_of_the_users(small_budget: None) -> None:
    users_VD, query_UD = vectors(10_000), vectors(300, seed=1)
    place_UK, product_UK = InvertedFile.build(users_VD).nearest(query_UD, 20)
    exact_UK = by_full_sort(query_UD, users_VD, 20)
    found = np.mean([len(set(got) & set(want)) for got, want in zip(place_UK, exact_UK, strict=True)]) / 20
    assert 0.9 < found < 1  # by chance a tenth; below 1, as the search is not exact
    assert (np.diff(product_UK, axis=1) <= 0).all()
    assert all(len(set(row)) == 20 for row in place_UK)


def test_centres_lie_closer_to_users_than_drawn_users_do(small_budget: None) -> None:
    users_VD = vectors(5000)
    centres_CD = InvertedFile.build(users_VD).centres_CD
    distances = [
        float(torch.cdist(users_VD, one_CD).min(dim=1).values.mean()) for one_CD in (centres_CD, users_VD[:100])
    ]
    assert distances[0] < 0.85 * distances[1]


def test_a_query_does_not_depend_on_the_others(small_budget: None, monkeypatch: pytest.MonkeyPatch) -> None:
    index, query_UD = InvertedFile.build(vectors(5000)), vectors(400, seed=1)
    place_UK, product_UK = index.nearest(query_UD, 10)
    for some_S in ([7], [399, 3], list(range(0, 400, 3))):
        alone_SK, product_SK = index.nearest(query_UD[some_S], 10)
        np.testing.assert_array_equal(alone_SK, place_UK[some_S])
        np.testing.assert_array_equal(product_SK, product_UK[some_S])
    monkeypatch.setattr(inverted_file, "QUERIES_AT_ONCE", 33)
    np.testing.assert_array_equal(index.nearest(query_UD, 10)[1], product_UK)


def test_the_number_of_threads_changes_no_bit(small_budget: None) -> None:
    users_VD, query_UD, found = vectors(20_000), vectors(200, seed=1), []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            index = InvertedFile.build(users_VD)
            found.append((index.centres_CD.numpy().tobytes(), *(part.tobytes() for part in index.nearest(query_UD, 9))))
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1] == found[2]


def test_a_crowd_with_one_vector_is_scanned_in_part(small_budget: None) -> None:
    """Its list would not fit into what is scanned."""
    users_VD = torch.cat([vectors(1, seed=3).expand(4000, -1), vectors(500)])
    place_UK, product_UK = InvertedFile.build(users_VD).nearest(users_VD[:1], 5)
    assert place_UK[0].tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(product_UK, 1, atol=1e-6)


def test_there_may_be_fewer_users_than_are_wanted() -> None:
    users_VD = vectors(3)
    place_UK, product_UK = InvertedFile.build(users_VD).nearest(vectors(2, seed=1), 5)
    assert (place_UK[:, 3:] == -1).all()
    assert (product_UK[:, 3:] == -np.inf).all()
    assert [sorted(row) for row in place_UK[:, :3]] == [[0, 1, 2]] * 2
    assert InvertedFile.build(users_VD).nearest(vectors(2)[:0], 5)[0].shape == (0, 5)


def test_each_user_lies_in_one_list_of_bounded_length(small_budget: None) -> None:
    index = InvertedFile.build(torch.cat([vectors(1, seed=3).expand(3000, -1), vectors(2000)]))
    assert sorted(index.place_N[index.place_N >= 0]) == list(range(5000))
    assert 0 < index.length_C.min() <= index.length_C.max() <= inverted_file.LONGEST
    assert len(index.centres_CD) == len(index.length_C) == len(index.first_C) - 1
