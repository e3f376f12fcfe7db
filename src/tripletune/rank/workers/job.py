"""Job file of the ranking processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from tripletune.config import RankConfig


class RankJob(BaseModel):
    """What each process needs to cut the same pieces as the stage, and to load the same model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shards: Path
    finetuned: Path
    pieces: Path
    """Folder of the pieces' files."""
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
