"""Two training processes on the CPU, with whole copies of the weights (DDP) and sharing them (FSDP2): both learn what
one process learns from batches of twice the size, and go on after a kill to the same bytes."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from tests.film_vectors import write_lightgcn
from tests.finetune_shards import LETTERS_CONTRACT, write_shards
from tests.flows.test_finetune import SETTINGS as LAUNCHED
from tests.flows.test_finetune import published
from tripletune.config import FinetuneConfig
from tripletune.finetune.launch import finetune_adapter
from tripletune.finetune.prepare import FilmSource

SETTINGS = LAUNCHED.model_copy(
    update={
        "objective": "listwise",
        "behaviour_tokens": "lightgcn",
        "curriculum": 0.5,  # the first batches are text alone: no gradient of a film must hang a process
        "learning_rate": 0.01,
        "global_batch": 8,
        "num_train_epochs": 4,
        "save_steps": 4,
        "eval_steps": 4,
        "keep": "best",
        "logging_steps": 1,
        "timeout_minutes": 8,
    }
)
ACCELERATE = Path(__file__).parents[2] / "configs" / "accelerate"
COLUMNS = ("liked", "candidates")
STEPS = 12  # 24 examples in batches of 8, four times
KINDS = ("cpu-2.yaml", "cpu-2-fsdp.yaml")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompts with letters, and the film vectors of one run."""
    folder = tmp_path_factory.mktemp("sharded")
    write_shards(folder / "shards", train=24, valid=9, test=1, long=False, letters=True, files=1)
    for path in (folder / "shards").glob("*/*.parquet"):
        pl.read_parquet(path).with_columns(pl.col("liked").list.head(3)).write_parquet(path)
    (folder / "films").mkdir()
    write_lightgcn(folder / "films", fits={"a": 0, "b": 0}, num_films=150, width=8, noise={"b": 0.2}, turned={"b": 3})
    return folder


def settings_of(kind: str) -> FinetuneConfig:
    batch = 8 if kind == "single.yaml" else 4
    changes = {"accelerate_config": str(ACCELERATE / kind), "per_device_train_batch_size": batch}
    return SETTINGS.model_copy(update=changes)


def tuned(world: Path, out: Path, kind: str) -> dict[str, Any]:
    out.mkdir(exist_ok=True)
    source = FilmSource("lightgcn", world / "films", COLUMNS)
    return finetune_adapter(world / "shards", out, settings_of(kind), LETTERS_CONTRACT, {}, 0, behaviour=source)


@pytest.fixture(scope="module")
def trained(world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, dict[str, Any]]]:
    """The folder and the facts of each kind of training."""
    found = {}
    for kind in ("single.yaml", "cpu-2.yaml", "cpu-2-fsdp.yaml"):
        out = tmp_path_factory.mktemp(kind)
        found[kind] = (out, tuned(world, out, kind))
    return found


def test_shared_weights_are_held_once(trained: dict[str, tuple[Path, dict[str, Any]]]) -> None:
    held = {kind: facts["held_share"] for kind, (_, facts) in trained.items()}
    assert held["single.yaml"] == held["cpu-2.yaml"] == 1
    assert held["cpu-2-fsdp.yaml"] == pytest.approx(0.5, abs=0.02)
    assert [facts["world_size"] for _, facts in trained.values()] == [1, 2, 2]


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_have_the_losses_of_one(trained: dict[str, tuple[Path, dict[str, Any]]], kind: str) -> None:
    one, two = (pl.read_parquet(trained[name][0] / "curve.parquet") for name in ("single.yaml", kind))
    both = one.join(two, on=["step", "metric"], validate="1:1").filter(pl.col("metric").is_in(["loss", "eval_loss"]))
    assert len(both) == STEPS + 4
    assert trained[kind][1]["published_step"] == trained["single.yaml"][1]["published_step"]
    assert (both["value"] - both["value_right"]).abs().max() < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_write_the_adapter_of_one(trained: dict[str, tuple[Path, dict[str, Any]]], kind: str) -> None:
    (one_out, one), (two_out, two) = trained["single.yaml"], trained[kind]
    assert two["trainable_parameters"] == one["trainable_parameters"]
    weights = load_file(two_out / "adapter" / "adapter_model.safetensors")
    wanted = load_file(one_out / "adapter" / "adapter_model.safetensors")
    assert weights.keys() == wanted.keys()
    assert any("film_projector" in name for name in weights)
    for name, tensor in wanted.items():
        # Adam divides by the gradient's size, so sums in another order show most where a gradient is near 0
        torch.testing.assert_close(weights[name], tensor, rtol=1e-4, atol=1e-4)
    config = (two_out / "adapter" / "adapter_config.json").read_bytes()
    assert config == (one_out / "adapter" / "adapter_config.json").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_killed_and_run_again_end_with_the_same_bytes(
    world: Path, trained: dict[str, tuple[Path, dict[str, Any]]], tmp_path: Path, kind: str
) -> None:
    script = textwrap.dedent(
        f"""
        import os, signal
        from pathlib import Path
        from tests.flows import test_sharded
        from tripletune.finetune.launch import finetune_adapter
        from tripletune.finetune.prepare import FilmSource

        def on_log(step, metrics):
            if step >= 8:
                os.kill(os.getpid(), signal.SIGKILL)

        source = FilmSource("lightgcn", Path({str(world / "films")!r}), {COLUMNS!r})
        finetune_adapter(Path({str(world / "shards")!r}), Path({str(tmp_path)!r}),
                         test_sharded.settings_of({kind!r}), {LETTERS_CONTRACT!r}, {{}}, 0, on_log, behaviour=source)
        """
    )
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "adapter").exists()
    facts = tuned(world, tmp_path, kind)
    assert facts["resumed_from_step"] in (4, 8)  # within an epoch of three steps that is not the first
    assert facts["steps"] == STEPS
    assert published(tmp_path) == published(trained[kind][0])
