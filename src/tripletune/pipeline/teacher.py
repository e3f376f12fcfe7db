"""The folder of ``finetune.teacher``: that of a run's adapter, or one by its path."""

from __future__ import annotations

from pathlib import Path

from tripletune.config import RunConfig
from tripletune.store.runs import read_run

TEACHER_FILES = ("contract.json", "adapter/adapter_config.json", "adapter/adapter_model.safetensors")
"""What a teacher's scores depend on; the contract has the hashes of its base model."""


def teacher_folder(config: RunConfig, artifacts: Path) -> Path | None:
    """The finetuned folder to learn from; None where a run has no teacher.

    Args:
        config: of the run.
        artifacts: the artifact root, in which a run is looked for by name.

    Raises:
        MissingArtifactError: there is no such run, or its adapter is gone.
        ContractError: the teacher can't answer the run's prompts, see ``rank.teach.require_teacher``.
    """
    if not config.finetune.has_teacher:
        return None
    from tripletune.prompts.engine import prompt_contract
    from tripletune.rank.teach import require_teacher

    teacher = config.finetune.teacher
    if config.finetune.teacher_is_a_folder:
        folder = Path(teacher)
    else:
        folder = read_run(artifacts, teacher, store=config.store).paths(artifacts).require("finetune")
    require_teacher(folder, prompt_contract(config.prompt, config.retrieve))
    return folder
