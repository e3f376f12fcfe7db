"""A training that is killed, and goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


class Killed(BaseException):
    """What no except clause catches."""


def check_resumes(
    train: Callable[[Path], dict[str, Any]],
    trainer: type,
    max_steps: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Kill a training at many steps, let it go on, and compare every file with those of one that was not killed.

    Args:
        train: trains both fits into a folder, with a checkpoint after every step; returns the stage's facts.
        trainer: its class.
        max_steps: that fit b takes, at least 6.
    """
    (tmp_path / "whole").mkdir()
    last = max_steps + train(tmp_path / "whole")["steps"]
    taken, plain_step = 0, trainer.step

    def step(self: Any) -> float:
        nonlocal taken
        taken += 1
        if taken in kills:
            raise Killed
        return plain_step(self)

    monkeypatch.setattr(trainer, "step", step)
    # in the first step, between evaluations, in the first step of fit a, in its last; and several times on the way
    for kills in ({1}, {5}, {max_steps + 1}, {last}, {2, 4, max_steps + 1, last}):
        out, taken = tmp_path / f"killed {kills}", 0
        out.mkdir()
        for _ in kills:
            with pytest.raises(Killed):
                train(out)
        train(out)
        assert taken == last + len(kills)  # only the steps it was killed in were begun twice
        for path in (tmp_path / "whole").iterdir():
            assert path.read_bytes() == (out / path.name).read_bytes(), path.name
        assert len(list(out.iterdir())) == len(list((tmp_path / "whole").iterdir()))  # no checkpoint is left
