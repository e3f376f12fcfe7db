"""Ranks of a training: how many processes, and how an optimiser step's examples are shared between them.

``finetune.accelerate_config`` names a file for ``accelerate launch``. ``num_processes: auto`` in it stands for all GPUs
in sight; the launcher gets a copy with the number. The number shapes no output, as ``finetune.global_batch`` fixes the
examples of a step, so no fingerprint covers it, nor where the processes run.

With ``num_machines`` above 1 the processes are spread evenly over that many machines, which meet at
``main_process_ip`` and ``main_process_port`` of machine 0. That one runs the stage and publishes; each of the others
runs ``tripletune join``.
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
_MACHINES = "num_machines"
_WHERE = frozenset(
    {_NUMBER, _MACHINES, "machine_rank", "main_process_ip", "main_process_port", "same_network", "rdzv_backend"}
)
"""Settings that say how many processes there are and where they meet."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """The processes of a training."""

    number: int
    """On all machines together."""
    use_cpu: bool
    """Whether they are kept on the CPU, where there may be more of them than GPUs."""
    share_weights: bool = False
    """Whether each holds a part of the weights (FSDP)."""
    machines: int = 1

    @property
    def here(self) -> int:
        """How many of them run on each machine."""
        return self.number // self.machines


def read_ranks(path: Path) -> Ranks:
    """Number of processes in an accelerate file; ``auto``: one for each GPU in sight, or one, on each machine.

    ``CUDA_VISIBLE_DEVICES`` says which GPUs are in sight. They are counted without opening one; other machines count
    as having as many.

    Raises:
        ConfigError: there is no such file, it is not an accelerate config, or it asks for more GPUs than there are.
    """
    config = _read(path)
    asked = _asked(config)
    gpus = 0 if asked.use_cpu else _count_gpus(str(config.get("gpu_ids") or "all"))
    if config[_NUMBER] == AUTO:
        return replace(asked, number=max(gpus, 1) * asked.machines)
    if not asked.use_cpu and asked.here > max(gpus, 1):
        on_each = f" on {asked.machines} machines" if asked.machines > 1 else ""
        raise ConfigError(
            f"{path}: {_NUMBER} = {asked.number}{on_each}, and {_say(gpus, 'GPU')} in sight; set it to {AUTO} or to "
            f"{max(gpus, 1) * asked.machines} at most, or use_cpu to true"
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
    """What an accelerate file asks for, whatever this machine has; one process for ``auto``, on each machine.

    Raises:
        ConfigError: there is no such file, or it is not an accelerate config.
    """
    return _asked(_read(path))


def _asked(config: dict[str, Any]) -> Ranks:
    machines = config[_MACHINES]
    number = machines if config[_NUMBER] == AUTO else config[_NUMBER]
    return Ranks(number, bool(config.get("use_cpu", False)), config.get("distributed_type") == "FSDP", machines)


def write_launch_config(path: Path, ranks: Ranks, out: Path, machine: int = 0) -> None:
    """Copy an accelerate file with the number in place of ``auto``, and the number of this machine.

    One process is no distributed training: accelerate would open a process group for it.
    """
    config = _read(path) | {_NUMBER: ranks.number, "machine_rank": machine}
    if ranks.number == 1 and config.get("distributed_type") in ("MULTI_GPU", "FSDP"):
        config["distributed_type"] = "NO"
    write_atomically(out, lambda part: part.write_text(yaml.safe_dump(config), encoding="utf-8"))


def settings_sha256(path: Path) -> str:
    """Hash of an accelerate file's settings but the number of processes and where they run."""
    return sha256_json({key: value for key, value in _read(path).items() if key not in _WHERE})


def _read(path: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = dict(yaml.safe_load(path.read_text(encoding="utf-8")))
        if config[_NUMBER] != AUTO:
            config[_NUMBER] = int(config[_NUMBER])
            if config[_NUMBER] < 1:
                raise ValueError(f"{_NUMBER} is {config[_NUMBER]}")
        config[_MACHINES] = int(config.get(_MACHINES) or 1)
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
    if config[_MACHINES] > 1:
        _require_meeting(path, config)
    return config


def _require_meeting(path: Path, config: dict[str, Any]) -> None:
    """Refuse a file with which several machines would not find each other, or not agree on who publishes."""
    machines = config[_MACHINES]
    shares = config[_NUMBER] == AUTO or config[_NUMBER] % machines == 0
    fsdp = "checkpoints of FSDP lie in parts on all machines, and none could be resumed"
    for key, fits, advice in (
        ("distributed_type", config.get("distributed_type") == "MULTI_GPU", f"MULTI_GPU: {fsdp}"),
        ("main_process_ip", config.get("main_process_ip"), "an address of machine 0 that all machines reach"),
        ("main_process_port", config.get("main_process_port"), "a free port of machine 0, such as 29500"),
        ("rdzv_backend", config.get("rdzv_backend", "static") == "static", "static, so that machine 0 publishes"),
        (_NUMBER, shares, f"{AUTO}, or a multiple of {machines}, counting the processes of all machines"),
    ):
        if not fits:
            raise ConfigError(f"{path}: {key} = {config.get(key)} for {_say(machines, 'machine')}; set it to {advice}")


def require_machine(settings: FinetuneConfig, machine: int) -> None:
    """Refuse a machine that the accelerate file does not count, or machine 0, which runs the stage.

    Raises:
        ConfigError: as described, or as ``asked_ranks``.
    """
    machines = asked_ranks(Path(settings.accelerate_config)).machines
    if not 1 <= machine < machines:
        others = f"1 to {machines - 1}" if machines > 1 else "none"
        raise ConfigError(
            f"machine {machine} cannot join: {settings.accelerate_config} has {_say(machines, 'machine')}, of which "
            f"{others} join and 0 runs the stage finetune; see configs/accelerate/machines.yaml"
        )


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
