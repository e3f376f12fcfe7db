"""Ranks of a training: how many processes, and how an optimiser step's examples are shared between them.

``finetune.accelerate_config`` names a file for ``accelerate launch``. ``num_processes: auto`` in it stands for all GPUs
in sight; the launcher gets a copy with the number. The number shapes no output, as ``finetune.global_batch`` fixes the
examples of a step, so no fingerprint covers it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from tripletune.config import FinetuneConfig
from tripletune.errors import ConfigError
from tripletune.store.files import write_atomically
from tripletune.store.fingerprint import sha256_json

AUTO = "auto"
_NUMBER = "num_processes"


@dataclass(frozen=True, slots=True)
class Ranks:
    """The processes of a training, all on this machine."""

    number: int
    use_cpu: bool
    """Whether they are kept on the CPU, where there may be more of them than GPUs."""
    share_weights: bool = False
    """Whether each holds a part of the weights (FSDP)."""


def read_ranks(path: Path) -> Ranks:
    """Number of processes in an accelerate file; ``auto``: one for each GPU in sight, or one.

    ``CUDA_VISIBLE_DEVICES`` says which GPUs are in sight. They are counted without opening one.

    Raises:
        ConfigError: there is no such file, it is not an accelerate config, or it asks for more GPUs than there are.
    """
    config = _read(path)
    asked = _asked(config)
    gpus = 0 if asked.use_cpu else _count_gpus(str(config.get("gpu_ids") or "all"))
    if config[_NUMBER] == AUTO:
        return replace(asked, number=max(gpus, 1))
    if not asked.use_cpu and asked.number > max(gpus, 1):
        raise ConfigError(
            f"{path}: {_NUMBER} = {asked.number}, and {_say(gpus, 'GPU')} in sight; set it to {AUTO} or to "
            f"{max(gpus, 1)} at most, or use_cpu to true"
        )
    return asked


def accumulated_batches(settings: FinetuneConfig, number: int) -> int:
    """Batches of a process in an optimiser step, for ``number`` processes.

    Raises:
        ConfigError: ``global_batch`` is no multiple of what all processes take at once.
    """
    batch = settings.per_device_train_batch_size
    at_once = number * batch
    if settings.global_batch % at_once == 0:
        return settings.global_batch // at_once
    below = settings.global_batch // at_once * at_once
    near = f"{below} or {below + at_once}" if below else str(at_once)
    fitting = _fitting_batch(settings.global_batch, number, batch)
    other = f", or finetune.per_device_train_batch_size to {fitting}" if fitting else ""
    raise ConfigError(
        f"finetune.global_batch = {settings.global_batch} is no multiple of {_say(number, 'process')} x "
        f"finetune.per_device_train_batch_size = {batch}: set finetune.global_batch to {near}{other}"
    )


def check_ranks(settings: FinetuneConfig) -> None:
    """Refuse, before anything runs, what no machine can train: asks for no GPU, which another machine may have.

    Raises:
        ConfigError: as ``read_ranks`` for the file, and as ``accumulated_batches`` where the file has a number; with
            ``auto`` for one process.
    """
    accumulated_batches(settings, asked_ranks(Path(settings.accelerate_config)).number)


def asked_ranks(path: Path) -> Ranks:
    """What an accelerate file asks for, whatever this machine has; one process for ``auto``.

    Raises:
        ConfigError: there is no such file, or it is not an accelerate config.
    """
    return _asked(_read(path))


def _asked(config: dict[str, Any]) -> Ranks:
    number = 1 if config[_NUMBER] == AUTO else config[_NUMBER]
    return Ranks(number, bool(config.get("use_cpu", False)), config.get("distributed_type") == "FSDP")


def write_launch_config(path: Path, ranks: Ranks, out: Path) -> None:
    """Copy an accelerate file with the number in place of ``auto``.

    One process is no distributed training: accelerate would open a process group for it.
    """
    config = _read(path) | {_NUMBER: ranks.number}
    if ranks.number == 1 and config.get("distributed_type") in ("MULTI_GPU", "FSDP"):
        config["distributed_type"] = "NO"
    write_atomically(out, lambda part: part.write_text(yaml.safe_dump(config), encoding="utf-8"))


def settings_sha256(path: Path) -> str:
    """Hash of an accelerate file's settings but the number of processes."""
    return sha256_json({key: value for key, value in _read(path).items() if key != _NUMBER})


def _read(path: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = dict(yaml.safe_load(path.read_text(encoding="utf-8")))
        if config[_NUMBER] != AUTO:
            config[_NUMBER] = int(config[_NUMBER])
            if config[_NUMBER] < 1:
                raise ValueError(f"{_NUMBER} is {config[_NUMBER]}")
    except FileNotFoundError:
        raise ConfigError(
            f"finetune.accelerate_config: no file {path} (looked from {Path.cwd()}); "
            "configs/accelerate/ holds single.yaml, ddp.yaml, fsdp.yaml and others"
        ) from None
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{path}: not an accelerate config with {_NUMBER} (a number from 1, or {AUTO}): "
            f"{str(error).splitlines()[0]}; start from configs/accelerate/single.yaml"
        ) from None
    return config


def _count_gpus(named: str) -> int:
    """GPUs in sight, of those that the file names by number."""
    import torch  # a plan needs none of it

    found = torch.cuda.device_count()
    return found if named == "all" else min(found, len(named.split(",")))


def _fitting_batch(global_batch: int, number: int, batch: int) -> int:
    """The largest batch of a process that is no larger than the given one and divides its share; 0: there is none."""
    share, rest = divmod(global_batch, number)
    return 0 if rest else max((size for size in range(1, min(batch, share) + 1) if share % size == 0), default=0)


def _say(number: int, what: str) -> str:
    plural = what + ("es" if what.endswith("s") else "s")
    return f"{number} {what if number == 1 else plural}"
