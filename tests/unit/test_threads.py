"""Blocks of work on one torch thread each, in the order of their numbers."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from tripletune.threads import map_blocks, one_thread


@pytest.fixture(params=[1, 2, 5])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_results_come_in_the_order_of_the_blocks_whichever_is_ready_first(threads):
    def slow_at_first(block: int) -> int:
        time.sleep(0.02 if block < 3 else 0)
        return block

    assert list(map_blocks(slow_at_first, 12)) == list(range(12))
    assert list(map_blocks(slow_at_first, 0)) == []


def test_each_block_has_one_thread_and_records_no_gradients(threads):
    seen = list(map_blocks(lambda block: (torch.get_num_threads(), torch.is_grad_enabled(), threading.get_ident()), 9))
    assert {(number, grad) for number, grad, _ in seen} == {(1, False)}
    assert (threading.get_ident() in {ident for *_, ident in seen}) == (threads == 1)
    assert torch.is_grad_enabled()
    assert list(map_blocks(lambda block: torch.get_num_threads(), 1)) == [1]


def test_the_number_of_threads_is_afterwards_what_it_was_for_threads_that_start_later_too(threads):
    for _ in map_blocks(lambda block: block, 9):
        assert torch.get_num_threads() == threads
    assert torch.get_num_threads() == threads
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == threads


def test_inside_one_thread_no_other_is_started(threads):
    with one_thread():
        idents = set(map_blocks(lambda block: threading.get_ident(), 9))
    assert idents == {threading.get_ident()}


def test_the_first_error_reaches_the_caller(threads):
    def fail_at_four(block: int) -> int:
        if block == 4:
            raise ValueError("four")
        return block

    results = map_blocks(fail_at_four, 9)
    assert [next(results) for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="four"):
        next(results)
    assert torch.get_num_threads() == threads


def test_no_more_than_two_results_a_thread_wait(threads):
    started = []
    for result in map_blocks(lambda block: started.append(block) or block, 40):
        assert max(started) <= result + max(1, 2 * threads)
