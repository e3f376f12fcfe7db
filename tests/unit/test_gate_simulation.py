"""The simulation of promotions: its rankers have the quality they should, and its rules are promotion's."""

from __future__ import annotations

import numpy as np
import pytest

from tests.benchmark_scripts import benchmark_script


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("quality", [0.045, 0.075])
def test_a_simulated_ranker_has_its_true_quality_over_many_users(quality: float, frozen: bool) -> None:
    with benchmark_script("gate") as gate:
        world = gate.World(gate.Case("new", "stays", frozen, users=200_000), 0)
        values = world.measure(world.ranker(quality))["ndcg_at_5"].to_numpy()
        error = values.std() / np.sqrt(len(values))
        assert values.mean() == pytest.approx(quality, abs=4 * error)
        assert set(np.unique(values)) == {0.0, *gate.GAIN_P}


def test_a_short_registry_has_fewer_moves_and_no_worse_champion_than_under_the_earlier_rule(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with benchmark_script("gate") as gate:
        monkeypatch.setattr(gate, "RUNS", 15)
        earlier, new = (gate.simulate(gate.Case(rule, "falls", users=1500), 1) for rule in ("earlier", "new"))
        assert 0 < new.moves <= earlier.moves
        assert new.lowest >= earlier.lowest
