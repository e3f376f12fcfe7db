"""The order of examples in an epoch that a resumed training enters in its middle."""

from __future__ import annotations

import pytest
from accelerate import skip_first_batches
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader

from tripletune.finetune.length_batches import LengthBatches
from tripletune.finetune.trainers import show_sampler

pytestmark = pytest.mark.unit

LENGTHS = [5 + place % 7 for place in range(24)]


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("epoch", [0, 3])
def test_each_process_goes_on_in_the_order_of_its_epoch(processes: int, epoch: int) -> None:
    per_process = 8 // processes
    whole = LengthBatches(LENGTHS, 8, seed=1)
    whole.set_epoch(epoch)
    order = list(whole)
    for process in range(processes):
        plain = DataLoader(range(24), batch_size=per_process, sampler=LengthBatches(LENGTHS, 8, seed=1))
        named = {"num_processes": processes, "process_index": process, "put_on_device": False}
        loader = show_sampler(prepare_data_loader(plain, **named))
        resumed = skip_first_batches(loader, 1)
        resumed.set_epoch(epoch)
        found = [example for batch in resumed for example in batch.tolist()]
        parts = [order[start : start + per_process] for start in range(8 + process * per_process, 24, 8)]
        assert found == [example for part in parts for example in part]
