"""What a run's prompts are built from, opened again from its outputs.

``retrieve`` and ``generate`` make the prompts of a run. Whatever builds one later (the probe, a recommendation, a
version of another contract that is compared) opens retriever and frame here, so that the stages that a prompt depends
on are listed once.
"""

from __future__ import annotations

from dataclasses import dataclass

from tripletune.config import RunConfig
from tripletune.prompts.engine import Frame
from tripletune.prompts.worked import read_worked
from tripletune.retrieve.retriever import Retriever
from tripletune.schemas.hints import SPECIALISTS
from tripletune.schemas.worked import WorkedExamples
from tripletune.store.paths import RunPaths


@dataclass(frozen=True, slots=True)
class RunPrompts:
    """Outputs of a run, and the settings with which prompts are built from them."""

    paths: RunPaths
    config: RunConfig
    """Of which ``retrieve``, ``prompt`` and ``seed`` count; the run's, or those of an adapter trained with others."""

    @property
    def stages(self) -> tuple[str, ...]:
        """Stages whose outputs are read; the split gives the users' rows."""
        worked = ("generate",) if self.config.prompt.worked_examples else ()
        retrieving = ("knowledge", *self._trained, *self.config.retrieve.optional_stages)
        return tuple(dict.fromkeys(("ingest", "split", *retrieving, *worked)))

    def require(self) -> None:
        """Refuse a run that lacks the output of one of ``stages``.

        Raises:
            MissingArtifactError: names the first that is gone, and the command that produces it.
        """
        for stage in self.stages:
            self.paths.require(stage)

    def retriever(self, fits: tuple[str, ...]) -> Retriever:
        """The retriever, with the fits of these names; raises as ``require`` and ``Retriever.load``."""
        require, retrieve = self.paths.require, self.config.retrieve
        return Retriever.load(
            require("knowledge"),
            {stage: require(stage) for stage in self._trained},
            retrieve,
            num_liked_triples=self.config.prompt.triples_for_liked,
            seed=self.config.seed,
            fits=fits,
            **{stage: require(stage) for stage in retrieve.optional_stages},
        )

    def frame(self, tokenizer: tuple[str, str] | None = None) -> Frame:
        """What all prompts share.

        Args:
            tokenizer: model and revision of the tokenizer that counts tokens; None: they are not counted.

        Raises:
            UserError: as ``require`` and ``Frame.load``.
        """
        specialists = {one.stage: self.paths.fingerprints[one.stage] for one in SPECIALISTS}
        ingest, config = self.paths.require("ingest"), self.config
        return Frame.load(ingest, config.prompt, specialists, config.seed, tokenizer, self.worked())

    def worked(self) -> WorkedExamples | None:
        """The worked examples that every prompt shows; None: the settings have none. Raises as ``require``."""
        return read_worked(self.paths.require("generate")) if self.config.prompt.worked_examples else None

    @property
    def _trained(self) -> tuple[str, ...]:
        """Stages of the models that candidates and hints come from; the baselines make neither."""
        return tuple(dict.fromkeys(("lightgcn", "rgat", *self.config.retrieve.lists)))
