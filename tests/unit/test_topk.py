"""Exact top-k: against a full sort in numpy, with as many ties as possible."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tripletune.models.serving.topk import BLOCK, Ragged, product_blocks, top_columns
from tripletune.retrieve.rankings import as_lists

NOTHING_MASKED = Ragged(np.zeros(1000, dtype=np.int64), np.empty(0, dtype=np.int64))


def blocks_of(scores_UC):
    return lambda start, stop: scores_UC[start:stop].clone()


def by_full_sort(scores_UC, masked, k):
    want = []
    for row, scores in enumerate(scores_UC.numpy()):
        seen = set(masked.values[masked.offsets[row] : masked.offsets[row + 1]].tolist())
        order = np.lexsort((np.arange(len(scores)), -scores))
        kept = [c for c in order if c not in seen and scores[c] > -np.inf][:k]
        want.append(kept + [-1] * (k - len(kept)))
    return np.array(want)


@pytest.mark.parametrize("levels", [1, 2, 5, 1000])
@pytest.mark.parametrize("k", [1, 7, 30])
def test_ties_always_fall_to_the_lower_column(levels, k):
    rng = np.random.default_rng(levels)
    scores_UC = torch.from_numpy(rng.integers(0, levels, (BLOCK + 13, 30)).astype(np.float32))
    row_E, column_E = np.nonzero(rng.random(scores_UC.shape) < 0.4)
    masked = Ragged.from_pairs(row_E, column_E, len(scores_UC))
    got_UK, score_UK = top_columns(blocks_of(scores_UC), len(scores_UC), masked, k)
    want_UK = by_full_sort(scores_UC, masked, k)
    np.testing.assert_array_equal(got_UK, want_UK)
    scores = np.take_along_axis(scores_UC.numpy(), np.maximum(want_UK, 0), axis=1)
    np.testing.assert_array_equal(score_UK, np.where(want_UK >= 0, scores, -np.inf))


@pytest.mark.parametrize("levels", [1, 3, 40, 10**6])
@pytest.mark.parametrize("columns", [997, 1003, 1024])
def test_wide_rows_are_searched_in_groups_with_the_same_result(levels, columns):
    rng = np.random.default_rng(levels + columns)
    scores_UC = torch.from_numpy(rng.integers(0, levels, (BLOCK + 5, columns)).astype(np.float32))
    scores_UC[3] = torch.arange(columns) // 2  # the best stand side by side
    scores_UC[4, 5:] = -torch.inf  # fewer than are wanted
    row_E, column_E = np.nonzero(rng.random(scores_UC.shape) < 0.3)
    masked = Ragged.from_pairs(row_E, column_E, len(scores_UC))
    got_UK, _ = top_columns(blocks_of(scores_UC), len(scores_UC), masked, 11)
    np.testing.assert_array_equal(got_UK, by_full_sort(scores_UC, masked, 11))


def test_negative_zero_ties_with_zero():
    scores_UC = torch.tensor([[0.0, -0.0, 0.0, -0.0]])
    got_UK, _ = top_columns(blocks_of(scores_UC), 1, NOTHING_MASKED, 2)
    assert got_UK.tolist() == [[0, 1]]


def test_more_places_than_columns_are_padded():
    got_UK, score_UK = top_columns(blocks_of(torch.tensor([[1.0, 3.0]])), 1, NOTHING_MASKED, 4)
    assert got_UK.tolist() == [[1, 0, -1, -1]]
    assert score_UK[0, 2:].tolist() == [-np.inf, -np.inf]


@pytest.mark.bytes
def test_a_row_scores_the_same_alone_and_in_a_crowd():
    random = torch.Generator().manual_seed(0)
    rows_UD, columns_CD = torch.randn(150, 33, generator=random), torch.randn(700, 33, generator=random)
    _, crowd_UK = top_columns(product_blocks(rows_UD, columns_CD), 150, NOTHING_MASKED, 5)
    for row in (0, 70, 149):
        _, alone_UK = top_columns(product_blocks(rows_UD[row : row + 1], columns_CD), 1, NOTHING_MASKED, 5)
        assert alone_UK.tobytes() == crowd_UK[row : row + 1].tobytes()


@pytest.mark.bytes
@pytest.mark.parametrize(("columns", "width"), [(17, 64), (101, 33), (700, 64)])
def test_scores_do_not_depend_on_the_number_of_threads(columns, width):
    random = torch.Generator().manual_seed(0)
    rows_UD, columns_CD = torch.randn(150, width, generator=random), torch.randn(columns, width, generator=random)
    before, found = torch.get_num_threads(), []
    for threads in (1, 2, 3, 4):
        torch.set_num_threads(threads)
        found.append(top_columns(product_blocks(rows_UD, columns_CD), 150, NOTHING_MASKED, 5)[1].tobytes())
    torch.set_num_threads(before)
    assert len(set(found)) == 1


def test_padding_is_left_out_of_lists():
    ids_UK = np.array([[5, 3, -1], [-1, -1, -1], [9, 8, 7]])
    assert as_lists(ids_UK).to_list() == [[5, 3], [], [9, 8, 7]]
