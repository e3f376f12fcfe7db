"""Job file of the ranking processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from tripletune.config import RankConfig

if TYPE_CHECKING:
    from tripletune.rank.answerer import Answerer
    from tripletune.rank.pieces import Pass, Piece


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
    prompts: Path | None = None
    """Folder of prompts that the tuned model answers in place of the held-out ones; see ``cut_prompts``."""
    scored: bool = False
    """With ``prompts``: every candidate gets a score."""
    folders: dict[str, Path]
    """Folders of the stages whose film vectors the adapter reads, by stage."""
    environments: tuple[dict[str, str], ...]
    """Environment variables of each process, in addition to the launcher's."""

    @property
    def folder_of(self) -> Callable[[str], Path] | None:
        """The folder of a stage; None where the adapter reads no film vectors."""
        return self.folders.__getitem__ if self.folders else None

    def cut(self) -> list[Piece]:
        """The job's pieces."""
        from tripletune.rank.pieces import choose_users, cut_pieces, cut_prompts

        if self.prompts:
            return cut_prompts(self.prompts, self.pieces, scored=self.scored)
        return cut_pieces(self.shards, choose_users(self.shards, self.settings, self.seed), self.settings, self.pieces)

    def load(self, way: Pass) -> Answerer:
        """The model that answers in a pass."""
        # both import torch and transformers, which takes seconds
        if self.settings.backend == "vllm":
            from tripletune.rank.vllm_backend import VllmAnswerer

            return VllmAnswerer.open(self.finetuned, self.merged, tuned=way.tuned)
        from tripletune.rank.answerer import Answerer

        return Answerer.load(self.finetuned, self.folder_of, tuned=way.tuned, quantization=way.quantization)
