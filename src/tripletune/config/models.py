"""Settings of the trained models."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tripletune.config.base import Positive, PositiveFloat, Section

SHIPPED_RETRIEVERS = ("lightgcn", "ease", "sasrec")
"""Retrievers with settings of their own: ``[lightgcn]``, ``[sasrec]``, ``retrieve.ease_*``, ``retrieve.fused_*``."""
RETRIEVERS = (*SHIPPED_RETRIEVERS,)
"""Folders below ``models/`` whose ``serve.py`` declares a retriever. The name of a further one is added here; its
settings are ``[models.<name>]``, its weight in the fused list is ``retrieve.fused_more.<name>``."""
BASELINES = ("ease",)
"""Retrievers that every run fits, for the comparison."""


class RgatConfig(Section):
    """Relational graph attention."""

    dim: Positive = 64
    """Width of entity and user vectors; a multiple of ``heads``."""
    heads: Positive = 4
    """Attention heads."""
    layers: Positive = 1
    """Attention layers: over so many edges of the graph a fact reaches a film."""
    message_passing: Literal["auto", "dgl", "torch"] = "auto"
    """Back end: auto takes DGL on a CPU and torch on a GPU. They differ in the last bits."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where it trains: auto takes a GPU where torch sees one. Draws are made on the CPU, the same everywhere."""
    bases: Annotated[int, Field(ge=0)] = 0
    """Basis matrices shared by the relations; 0 gives each relation a matrix of its own."""
    learning_rate: PositiveFloat = 0.005
    """Step size of Adam."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 1e-5
    """L2 penalty on all weights."""
    max_steps: Positive = 150
    """Steps of fit B at most; fit A runs as many as fit B needed."""
    eval_every: Positive = 10
    """Steps between two evaluations of fit B on valid."""
    patience: Positive = 4
    """Evaluations of fit B without a better valid ndcg_at_10 before it stops."""
    batch_viewers: Positive = 512
    """Users in a step."""
    negatives: Positive = 512
    """Films sampled per step (by popularity) that the held-out likes are ranked against."""
    holdout_share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.3
    """Share of a viewer's likes hidden from the pooled vector in a step, and ranked by it."""
    link_weight: Annotated[float, Field(ge=0.0)] = 1.0
    """Weight of the auxiliary link prediction loss."""
    link_margin: PositiveFloat = 1.0
    """Margin by which a true triple is to score above a false one in the link prediction loss."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> RgatConfig:
        if self.dim % self.heads:
            raise ValueError(f"dim = {self.dim} must be a multiple of heads = {self.heads}")
        return self

    recency_half_life: Annotated[float, Field(ge=0.0)] = 0.0
    """Age, in likes, at which a like counts half in a viewer's vector; 0 counts all alike, as a lasting preference
    does. What a viewer is after today is LightGCN's to say."""
    checkpoint_minutes: Annotated[float, Field(ge=0.0)] = 2.0
    """Least time between two checkpoints, from which a killed training goes on; 0 writes one after every step."""


class LightGCNConfig(Section):
    """Collaborative filtering on the graph of likes."""

    dim: Positive = 64
    """Width of film and user vectors."""
    layers: Annotated[int, Field(ge=1, le=4)] = 2
    """Propagation steps; the result is the mean over 0 to this many."""
    message_passing: Literal["auto", "dgl", "torch"] = "auto"
    """Back end of the sums over the graph: auto is torch, on a CPU too, where DGL's plain sums are many times slower.
    They differ in the last bits."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where it trains: auto takes a GPU where torch sees one. Draws are made on the CPU, the same everywhere."""
    loss: Literal["softmax", "bpr"] = "softmax"
    """softmax: one softmax over films for all of a viewer's likes after a random moment; bpr: as published."""
    sampled_films: Annotated[int, Field(ge=0)] = 0
    """softmax: films drawn in a step beside the batch's targets, to stand for the rest; a smaller catalogue is taken
    whole. 0 takes it whole always."""
    edge_half_life: Annotated[float, Field(ge=0.0)] = 0.0
    """Age, in likes of the viewer, at which an edge of the graph counts half; 0 counts all alike."""
    learning_rate: PositiveFloat = 0.02
    """Step size of Adam."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    """L2 penalty on the film vectors."""
    max_steps: Positive = 150
    """Steps of fit B at most; fit A runs as many as fit B needed."""
    eval_every: Positive = 10
    """Steps between two evaluations of fit B on valid."""
    patience: Positive = 5
    """Evaluations of fit B without a better valid ndcg_at_10 before it stops."""
    batch_viewers: Positive = 1024
    """Users in a step."""
    temperature: PositiveFloat = 0.05
    """Scores are divided by it; the published model has none (1.0)."""
    recency_half_life: Annotated[float, Field(ge=0.0)] = 3.0
    """Age, in likes, at which a like counts half in targets and in a viewer's vector; 0 counts all alike."""
    checkpoint_minutes: Annotated[float, Field(ge=0.0)] = 2.0
    """Least time between two checkpoints, from which a killed training goes on; 0 writes one after every step."""


class SasrecConfig(Section):
    """Next-like prediction with a causal transformer."""

    dim: Positive = 64
    """Width of film and user vectors; a multiple of ``heads``."""
    layers: Positive = 2
    """Transformer blocks."""
    heads: Positive = 2
    """Attention heads; they begin with memories of two likes, eight, thirty-two, and so on."""
    max_length: Annotated[int, Field(ge=2)] = 50
    """Newest likes that a viewer's vector is made of."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.2
    """Share of values set to zero in training."""
    learning_rate: PositiveFloat = 0.003
    """Step size of Adam, after the warm-up."""
    warmup_steps: Positive = 20
    """Steps over which the learning rate rises to its value."""
    max_steps: Positive = 600
    """Steps of fit B at most; fit A runs as many as fit B needed."""
    eval_every: Positive = 40
    """Steps between two evaluations of fit B on valid."""
    patience: Positive = 4
    """Evaluations of fit B without a better valid ndcg_at_10 before it stops."""
    batch_viewers: Positive = 128
    """Users in a step."""
    sampled_films: Annotated[int, Field(ge=0)] = 512
    """Films drawn in a step beside the batch's targets, to stand for the rest in the softmax; a smaller catalogue is
    taken whole. 0 takes it whole always."""
    checkpoint_minutes: Annotated[float, Field(ge=0.0)] = 2.0
    """Least time between two checkpoints, from which a killed training goes on; 0 writes one after every step."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> SasrecConfig:
        if self.dim % self.heads:
            raise ValueError(f"dim = {self.dim} must be a multiple of heads = {self.heads}")
        return self


class SpecialistsConfig(Section):
    """Keeping the specialists of an earlier run."""

    pin: str = ""
    """Name of an earlier run whose specialists tonight keeps (weekly training, nightly shards)."""
