"""A whole run under a root whose name has every character that an address or a pattern would take for its own."""

from __future__ import annotations

import json

import pytest

from tests.flows.conftest import call_tripletune
from tripletune.store.runs import read_run

pytestmark = pytest.mark.slow


def test_a_run_and_what_reads_it_take_a_root_with_any_name(micro_config, tmp_path):
    root = tmp_path / "what ?[1] #é%41*"

    def call(*words: str) -> str:
        done = call_tripletune(*words, "--artifacts", str(root), home=tmp_path / "prefect")
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-8000:]
        return done.stdout

    call("run", "--config", str(micro_config))
    assert set(read_run(root).stages.values()) == {"made"}
    assert json.loads(call("audit", "--json"))["leaks"] == []
    assert "tripletune-micro version 1, the champion" in call("recommend", "--user", "8")
    planned = json.loads(call("plan", "--json", "--config", str(micro_config)))["stages"]
    assert {line["stage"] for line in planned if line["what"] == "make"} == {"quality", "promote"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["prefect", root.name]
