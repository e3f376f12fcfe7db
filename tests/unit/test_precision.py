"""The number format of weights is what the hardware says of itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tripletune import precision
from tripletune.config import RunConfig
from tripletune.pipeline import resolve as resolving

CPUS = {
    "flags\t\t: fpu sse2 avx2 avx512f avx512_bf16 sha_ni\n": True,
    "flags\t\t: fpu amx_tile amx_bf16\n": True,
    "Features\t: fp asimd i8mm bf16 dgh\n": True,
    "flags\t\t: fpu sse2 avx2 avx512f\nvmx flags\t: avx512_bf16\n": False,
    "Features\t: fp asimd\n": False,
    "": False,
}


@pytest.fixture(params=CPUS.items(), ids=lambda case: case[0].split(":")[-1].strip() or "nothing")
def processor(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bool:
    """A processor, and whether it computes in bfloat16."""
    text, has_it = request.param
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{text}")
    monkeypatch.setattr(precision, "_CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return bool(has_it)


def test_a_processor_is_read_by_its_flags(processor: bool) -> None:
    assert precision.has_bfloat16() is processor
    assert precision.choose_dtype("some/model") == ("bfloat16" if processor else "float32")
    assert precision.choose_dtype("tiny") == "float32"


def test_elsewhere_than_on_linux_it_is_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_CPUINFO", tmp_path / "none")
    assert not precision.has_bfloat16()


@pytest.mark.parametrize("supported", [True, False])
def test_a_gpu_decides_for_every_model(supported: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: supported)
    assert precision.choose_dtype("tiny") == ("bfloat16" if supported else "float32")


def test_another_format_is_another_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same config on two processors gives two fingerprints where, and only where, the weights differ."""

    def adapter(model: str, has_it: bool) -> str:
        monkeypatch.setattr(resolving, "has_bfloat16", lambda: has_it)
        config = RunConfig.model_validate({"dataset": "toy", "finetune": {"model": model, "revision": "abc"}})
        return resolving.resolve(config, tmp_path).fingerprints["finetune"]

    assert adapter("some/model", True) != adapter("some/model", False)
    assert adapter("tiny", True) == adapter("tiny", False)
