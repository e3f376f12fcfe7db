"""Job file of the ranking processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from tripletune.config import RankConfig

if TYPE_CHECKING:
    from tripletune.rank.answerer import Answerer


class RankJob(BaseModel):
    """What each process needs to cut the same pieces as the stage, and to load the same model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shards: Path
    finetuned: Path
    pieces: Path
    """Folder of the pieces' files."""
    merged: Path
    """Folder with the tuned model's merged weights; there is one for ``rank.backend = "vllm"`` alone."""
    settings: RankConfig
    seed: int
    folders: dict[str, Path]
    """Folders of the stages whose film vectors the adapter reads, by stage."""
    environments: tuple[dict[str, str], ...]
    """Environment variables of each process, in addition to the launcher's."""

    @property
    def folder_of(self) -> Callable[[str], Path] | None:
        """The folder of a stage; None where the adapter reads no film vectors."""
        return self.folders.__getitem__ if self.folders else None

    def load(self, tuned: bool) -> Answerer:
        """The model that answers, tuned or not."""
        # both import torch and transformers, which takes seconds
        if self.settings.backend == "vllm":
            from tripletune.rank.vllm_backend import VllmAnswerer

            return VllmAnswerer.open(self.finetuned, self.merged, tuned=tuned)
        from tripletune.rank.answerer import Answerer

        return Answerer.load(self.finetuned, self.folder_of, tuned=tuned)
