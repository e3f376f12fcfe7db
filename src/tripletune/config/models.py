"""Settings of the trained models."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tripletune.config.base import Filled, Positive, PositiveFloat, Section

SHIPPED_RETRIEVERS = ("lightgcn", "ease", "slist", "sasrec", "sequence", "text")
"""Retrievers with settings of their own: the sections of their names, and ``retrieve.ease_*`` for EASE; their weights
in the fused list are ``retrieve.fused_*``."""
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
    """Attention layers: the number of graph edges over which a fact reaches a film."""
    message_passing: Literal["auto", "dgl", "torch"] = "auto"
    """Back end of attention: auto is DGL on a CPU, torch on a GPU. The last bits may differ."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the training: auto uses a GPU if torch sees one. Random draws are made on the CPU, the same on all."""
    bases: Annotated[int, Field(ge=0)] = 0
    """Basis matrices shared by the relations; 0 gives each relation its own matrix."""
    learning_rate: PositiveFloat = 0.005
    """Step size of Adam."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 1e-5
    """L2 penalty on all weights."""
    max_steps: Positive = 150
    """Steps of fit b at most; fit a runs as many as fit b needed."""
    eval_every: Positive = 10
    """Steps between two evaluations of fit b on valid."""
    patience: Positive = 4
    """Evaluations of fit b without a better valid ndcg_at_10 before it stops."""
    batch_viewers: Positive = 512
    """Users in a step."""
    negatives: Positive = 512
    """Films sampled per step (by popularity) that the held-out likes are ranked against."""
    holdout_share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.3
    """Share of a user's likes hidden from the pooled vector in a step, and ranked by it."""
    ranking_weight: Annotated[float, Field(ge=0.0)] = 1.0
    """Weight of the loss that ranks hidden likes. 0: link prediction alone, which knows no user, as KERAG_R trains its
    graph attention; for comparison."""
    link_weight: Annotated[float, Field(ge=0.0)] = 1.0
    """Weight of the auxiliary link prediction loss."""
    link_margin: PositiveFloat = 1.0
    """Margin between the scores of true and false triples in the link prediction loss."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> RgatConfig:
        if self.dim % self.heads:
            raise ValueError(f"dim = {self.dim} must be a multiple of heads = {self.heads}")
        return self

    @model_validator(mode="after")
    def _has_a_loss(self) -> RgatConfig:
        if not self.ranking_weight and not self.link_weight:
            raise ValueError("ranking_weight and link_weight are both 0; give one of them a value above 0")
        return self

    recency_half_life: Annotated[float, Field(ge=0.0)] = 0.0
    """Age, in likes, at which a like has half weight in a user's vector; 0 weights all equally, as a lasting preference
    does. Current interests are LightGCN's task."""
    checkpoint_minutes: Annotated[float, Field(ge=0.0)] = 2.0
    """Least time between two checkpoints, from which a killed training goes on; 0 writes one after every step."""


class LightGCNConfig(Section):
    """Collaborative filtering on the graph of likes."""

    dim: Positive = 64
    """Width of film and user vectors."""
    layers: Annotated[int, Field(ge=1, le=4)] = 2
    """Propagation steps; the result is the mean over 0 to this number of steps."""
    message_passing: Literal["auto", "dgl", "torch"] = "auto"
    """Back end of the sums over the graph: auto is DGL on a CPU up to 2^27 values (likes times ``dim``); torch above
    that, on a GPU, without AVX2 and with ``edge_half_life``. The last bits may differ."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the training: auto uses a GPU if torch sees one. Random draws are made on the CPU, the same on all."""
    loss: Literal["softmax", "bpr"] = "softmax"
    """softmax: one softmax over films for all of a user's likes after a random moment; bpr: as published."""
    sampled_films: Annotated[int, Field(ge=0)] = 0
    """softmax: films sampled per step in addition to the batch's targets, to represent the rest; a smaller catalogue is
    used whole. 0 always uses it whole."""
    edge_half_life: Annotated[float, Field(ge=0.0)] = 0.0
    """Age, in likes of the user, at which an edge of the graph has half weight; 0 weights all equally."""
    learning_rate: PositiveFloat = 0.02
    """Step size of Adam."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    """L2 penalty on the film vectors."""
    max_steps: Positive = 150
    """Steps of fit b at most; fit a runs as many as fit b needed."""
    eval_every: Positive = 10
    """Steps between two evaluations of fit b on valid."""
    patience: Positive = 5
    """Evaluations of fit b without a better valid ndcg_at_10 before it stops."""
    batch_viewers: Positive = 1024
    """Users in a step."""
    temperature: PositiveFloat = 0.05
    """Divisor of the scores; the published model has none (1.0)."""
    recency_half_life: Annotated[float, Field(ge=0.0)] = 3.0
    """Age, in likes, at which a like has half weight in targets and in a user's vector; 0 weights all equally."""
    checkpoint_minutes: Annotated[float, Field(ge=0.0)] = 2.0
    """Least time between two checkpoints, from which a killed training goes on; 0 writes one after every step."""


class SlistConfig(Section):
    """EASE, and a regression of the next film on those before it, in one closed form."""

    ridge: PositiveFloat = 1000.0
    """L2 penalty on the weights; EASE's ``ease_lambda``."""
    next_weight: Annotated[float, Field(ge=0.0)] = 3.0
    """Weight of the regression of the next film, next to 1 of EASE's; 0: EASE."""
    next_age: PositiveFloat = 5.0
    """In the regression of the next film the t-th like before it counts ``exp(-(t - 1) / next_age)``, t in likes."""
    popularity_power: Annotated[float, Field(ge=0.0, le=1.0)] = 0.2
    """A film's scores are divided by its number of likes to this power; 0: not at all."""
    history_age: Annotated[float, Field(ge=0.0)] = 8.0
    """A like of age t, counted in likes, weighs ``exp(-t / history_age)`` when a user is ranked for; 0: all alike."""
    max_films: Annotated[int, Field(ge=20)] = 10_000
    """Films of the model, the most liked; the matrix has the square of them."""


class SasrecConfig(Section):
    """Next-like prediction with a causal transformer."""

    dim: Positive = 64
    """Width of film and user vectors; a multiple of ``heads``."""
    layers: Positive = 2
    """Transformer blocks."""
    heads: Positive = 2
    """Attention heads, initialised with memories of 2, 8, 32, ... likes."""
    max_length: Annotated[int, Field(ge=2)] = 50
    """Newest likes used for a user's vector."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.2
    """Share of values set to zero in training."""
    learning_rate: PositiveFloat = 0.003
    """Step size of Adam, after the warm-up."""
    warmup_steps: Positive = 20
    """Steps over which the learning rate rises to its value."""
    max_steps: Positive = 600
    """Steps of fit b at most; fit a runs as many as fit b needed."""
    eval_every: Positive = 40
    """Steps between two evaluations of fit b on valid."""
    patience: Positive = 4
    """Evaluations of fit b without a better valid ndcg_at_10 before it stops."""
    batch_viewers: Positive = 128
    """Users in a step."""
    sampled_films: Annotated[int, Field(ge=0)] = 512
    """Films sampled per step in addition to the batch's targets, to represent the rest in the softmax; a smaller
    catalogue is used whole. 0 always uses it whole."""
    checkpoint_minutes: Annotated[float, Field(ge=0.0)] = 2.0
    """Least time between two checkpoints, from which a killed training goes on; 0 writes one after every step."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> SasrecConfig:
        if self.dim % self.heads:
            raise ValueError(f"dim = {self.dim} must be a multiple of heads = {self.heads}")
        return self


class TextConfig(Section):
    """Vectors of film texts: a retriever, and content for the sequence model."""

    model: Filled = "wordllama"
    """wordllama (static token vectors, part of the installation), or a folder that sentence-transformers saved."""
    relations: tuple[Filled, ...] = ("genre", "decade", "tag", "director", "writer", "actor")
    """Relations of the knowledge graph whose entities are named after the title, in this order."""

    @property
    def names_a_folder(self) -> bool:
        """Whether ``model`` is a local folder."""
        return self.model != "wordllama"


class SequenceConfig(Section):
    """Next-like prediction from a user's whole stream of ratings, with a causal transformer."""

    dim: Positive = 64
    """Width of film and user vectors; a multiple of ``heads``."""
    layers: Positive = 2
    """Blocks."""
    heads: Positive = 4
    """Attention heads, initialised with memories of 2, 8, 32, ... events."""
    max_length: Annotated[int, Field(ge=2)] = 100
    """Newest ratings used for a user's vector."""
    block: Literal["ligr", "hstu"] = "ligr"
    """Block of the transformer. ligr: softmax attention and SwiGLU, each behind a gate; hstu: gated SiLU attention."""
    events: Literal["ratings", "likes"] = "ratings"
    """What the model reads: all ratings, or likes alone."""
    stars: bool = True
    """Whether it reads the height of a rating."""
    time: bool = True
    """Whether it reads the time between ratings, in log buckets: of neighbours, and as an attention bias."""
    request_time: bool = False
    """Whether it also reads the time at which the next film is asked for. Only to compare with published tables: on
    MovieLens it tells that the answer stands on the page that was rated last; audit, log and report name it."""
    positions: bool = True
    """Whether attention has a bias by the number of ratings between two places."""
    tied: bool = True
    """Whether films are scored by the vectors by which they are read; else by a table of their own."""
    temperature: Annotated[float, Field(ge=0.0)] = 0.1
    """Divisor of the cosine between user and film; 0 scores by the plain product."""
    content: tuple[Literal["text", "graph"], ...] = ("text",)
    """What a film's vector gets besides its own: text: a projection of its text vector; graph: one of its R-GAT vector,
    for which the training waits for R-GAT's. Without both, a film that nobody has rated is no candidate."""
    other_weight: Annotated[float, Field(ge=0.0, le=1.0)] = 0.2
    """Weight in training of a next rating that is no like, next to 1 of a like."""
    content_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    """Share of the films whose own vector a step drops, so that the projection learns to rank new films."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.2
    """Share of values set to zero in training."""
    learning_rate: PositiveFloat = 0.003
    """Step size of AdamW, after the warm-up."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    """Decoupled weight decay of matrices."""
    warmup_steps: Positive = 20
    """Steps over which the learning rate rises to its value."""
    max_steps: Positive = 600
    """Steps of fit b at most; fit a runs as many as fit b needed."""
    eval_every: Positive = 20
    """Steps between two evaluations of fit b on valid."""
    patience: Positive = 4
    """Evaluations of fit b without a better valid ndcg_at_10 before it stops."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Numbers in which the blocks multiply in training. bfloat16 pays on a GPU or CPU that multiplies it, and in large
    steps; its last bits depend on the processor."""
    batch_viewers: Positive = 64
    """Users in a step."""
    sampled_films: Annotated[int, Field(ge=0)] = 512
    """Films sampled per step in addition to the batch's targets, to represent the rest in the softmax; a smaller
    catalogue is used whole. 0 always uses it whole."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the training: auto uses a GPU if torch sees one."""
    checkpoint_minutes: Annotated[float, Field(ge=0.0)] = 2.0
    """Least time between two checkpoints, from which a killed training goes on; 0 writes one after every step."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> SequenceConfig:
        if self.dim % self.heads:
            raise ValueError(f"dim = {self.dim} must be a multiple of heads = {self.heads}")
        return self

    @model_validator(mode="after")
    def _request_time_is_a_time(self) -> SequenceConfig:
        if self.request_time and not self.time:
            raise ValueError("request_time = true needs time = true")
        return self


class SpecialistsConfig(Section):
    """Reuse of the specialists of an earlier run."""

    pin: str = ""
    """Name of an earlier run whose specialists this run reuses."""
    every_days: Annotated[int, Field(ge=0)] = 0
    """Days for which trained specialists are kept while ratings change (7: weekly training, daily shards): those of the
    newest run of the dataset that trained them with these settings are pinned until they are so old. A run as of a day
    counts its days to that day, and takes none that was trained on later ratings. 0: they are trained whenever their
    input changes."""

    @model_validator(mode="after")
    def _pin_or_policy(self) -> SpecialistsConfig:
        if self.pin and self.every_days:
            raise ValueError(f"pin = {self.pin!r} names a run, and every_days = {self.every_days} chooses one; set one")
        return self
