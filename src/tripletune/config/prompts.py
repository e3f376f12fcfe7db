"""Settings of retrieve, generate and quality."""

from __future__ import annotations

import difflib
from pathlib import PurePath
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, field_validator, model_validator

from tripletune.config.base import NameOrText, Positive, PositiveFloat, Section, Share, Weight, is_path
from tripletune.config.models import RETRIEVERS, SHIPPED_RETRIEVERS

if TYPE_CHECKING:
    RetrieverName = str
else:
    RetrieverName = Literal[(*RETRIEVERS, "fused")]  # pydantic names them all where another is given
LISTED_FILMS = 20
"""Films of a first-stage list that are kept and measured."""


class RetrieveConfig(Section):
    """Candidates and hints."""

    retriever: RetrieverName = "fused"
    """Where the candidates come from; hint 1 puts them in LightGCN's order in any case. sasrec adds a stage that trains
    it; fused joins the lists below by reciprocal rank."""
    fused_lightgcn: Weight = 0.0
    """Weight of LightGCN's list in the fused one; 0 drops it."""
    fused_ease: Weight = 1.0
    """Weight of EASE's list in the fused one; 0 drops it."""
    fused_sasrec: Weight = 1.0
    """Weight of SASRec's list in the fused one; 0 drops it."""
    fused_more: dict[str, Weight] = Field(default={})
    """Weights of further retrievers' lists in the fused one, by name; a retriever that is not named has no part."""
    fused_k: Annotated[float, Field(gt=0.0, le=1e6)] = 20.0
    """A film at place r (from 1) of a list of weight w counts w / (this + r)."""
    fused_films: Annotated[int, Field(ge=20)] = 100
    """Films taken of each list, or as many as are shown where that is more."""
    ease_lambda: PositiveFloat = 500.0
    """Ridge of EASE: how many likes a weight is worth before it is believed."""
    ease_history_age: Annotated[float, Field(ge=0.0)] = 5.0
    """A like of age t (in likes, the newest 0) counts exp(-t / this) in the history EASE reads; 0 counts all alike."""
    ease_max_films: Annotated[int, Field(ge=20)] = 10_000
    """EASE knows so many films, the most liked ones; its memory grows with the square. Where more films are liked, it
    is left out of the comparison, unless it is the retriever."""
    train_cutoffs: Positive = 1
    """Training examples of a viewer, each asked at another moment: the ``target`` likes are cut into so many windows of
    like length (no more than there are likes), and each is the answer of what the viewer did before it began, with the
    likes after it. More than one wants a longer split.max_target."""
    candidates: Literal["retrieved", "kerag"] = "retrieved"
    """retrieved: the retriever's top films; kerag: the published recipe of 3 + 2 rated and 5 unrated films."""
    num_candidates: Annotated[int, Field(ge=5, le=100)] = 20
    """Films shown in ``retrieved`` prompts; ``kerag`` always shows ten."""
    hint_films: Positive = 10
    """Length of hint 1: the first of the candidates in LightGCN's order."""
    similar_viewers: Positive = 20
    """Users, nearest by LightGCN's vectors, whose likes make the second part of hint 1."""
    similar_films: Annotated[int, Field(ge=0)] = 5
    """Films in hint 1 that the similar viewers liked."""
    triple_choice: Literal["personal", "published", "most-shared", "random", "none"] = "personal"
    """How hint 2 chooses a film's triples. personal: R-GAT's posterior for the user; published: attention times dot
    product, without relation or user; most-shared: the entity most of the user's likes have in common; random; none."""
    triples_per_film: Annotated[int, Field(ge=0, le=5)] = 1
    """Triples chosen for a film in hint 2; 0 chooses none."""
    purposes: Annotated[tuple[Literal["train", "valid", "test"], ...], Field(min_length=1)] = ("train", "valid", "test")
    """What examples are made for."""
    ranked_viewers: Annotated[int, Field(ge=0)] = 10_000
    """Viewers for whom every retriever ranks the whole catalogue, to compare them (the first by hash of user); the
    standard error of ndcg is then .004 at most. 0 takes all."""

    @property
    def fused_weights(self) -> dict[str, float]:
        """Weight of each retriever whose list has a part in the fused one."""
        weights = {name: getattr(self, f"fused_{name}") for name in SHIPPED_RETRIEVERS} | self.fused_more
        return {name: weight for name, weight in weights.items() if weight}

    @property
    def lists(self) -> tuple[str, ...]:
        """The retrievers whose lists make the candidates."""
        return tuple(self.fused_weights) if self.retriever == "fused" else (self.retriever,)

    @property
    def depth(self) -> int:
        """Films ranked for each viewer by each retriever."""
        return max(LISTED_FILMS, self.num_candidates, self.fused_films if self.retriever == "fused" else 0)

    @field_validator("fused_more")
    @classmethod
    def _names_further_retrievers(cls, weights: dict[str, float]) -> dict[str, float]:
        further = [name for name in RETRIEVERS if name not in SHIPPED_RETRIEVERS]
        for name in weights:
            if name in SHIPPED_RETRIEVERS:
                raise ValueError(f"{name} has a key of its own; set retrieve.fused_{name} instead")
            if name not in further:
                nearest = difflib.get_close_matches(name, further, n=3, cutoff=0.0)
                there = f"did you mean {', '.join(nearest)}?" if nearest else "config/models.py registers none"
                raise ValueError(f"{name!r} is no further retriever; {there}")
        return weights

    @model_validator(mode="after")
    def _fuses_something(self) -> RetrieveConfig:
        if self.retriever == "fused" and len(self.fused_weights) < 2:
            raise ValueError("retriever = 'fused' needs two lists at least; give two of fused_* a weight above 0")
        return self


class SampleConfig(Section):
    """Which warm viewers training questions are asked of; valid and test are asked of everybody."""

    method: Literal["all", "uniform", "importance", "clusters", "recranker"] = "all"
    """importance: with weight ln(likes); clusters: the same number from each cluster of viewers' vectors; recranker:
    half of the draws by importance, then half by clusters."""
    viewers: Annotated[int, Field(ge=0)] = 0
    """How often a viewer is drawn; 0 for ``all``."""
    clusters: Annotated[int, Field(ge=2, le=1000)] = 10
    """clusters, recranker: groups that k-means makes."""
    penalty: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """A viewer drawn n times already is drawn again with its weight times this to the n; 0 draws nobody twice. A viewer
    drawn n times is asked at the n newest of its ``retrieve.train_cutoffs``, or at as many as it has."""

    @model_validator(mode="after")
    def _says_how_many(self) -> SampleConfig:
        if (self.method == "all") == (self.viewers > 0):
            raise ValueError(
                f"viewers = {self.viewers} does not go with method = {self.method!r}; give 0 with 'all', and how many "
                "are drawn with any other"
            )
        return self


class PromptConfig(Section):
    """How evidence becomes text."""

    template: NameOrText = "hints-first"
    """Name of a file in ``prompts/templates/``, without ``.txt``, or the path of a file anywhere, with it; a relative
    path starts at the working directory or at the preset's folder."""
    triple_form: Literal["arrow", "sentence"] = "arrow"
    """How a triple reads: ``film - relation - entity``, or a sentence."""
    max_liked: Positive = 15
    """Liked films in the prompt, the newest ones."""
    max_disliked: Annotated[int, Field(ge=0)] = 5
    """Disliked films in the prompt, the newest ones."""
    triples_for_liked: Annotated[int, Field(ge=0)] = 5
    """Newest liked films whose chosen triples stand in hint 2, beside those of the candidates."""
    max_tokens: Annotated[int, Field(ge=0)] = 0
    """Tokens of prompt and completion, counted with the model's own tokenizer and chat template; 0 sets no limit. A
    longer example loses its oldest likes, then dislikes, then similar viewers' films."""

    @property
    def template_id(self) -> str:
        """The template's id, wherever its file lies."""
        return PurePath(self.template).stem if is_path(self.template) else self.template


class QualityConfig(Section):
    """How far tonight's shards may move from the last night's before the run stops."""

    max_psi: Annotated[float, Field(ge=0.0)] = 0.0
    """The run stops before finetune when the population stability index of a measure is above this; below .1 is called
    no shift, .1 to .25 a moderate one, more a major one. 0 only reports."""
    max_ks: Share = 0.0
    """The same for the Kolmogorov-Smirnov distance, the largest gap between two cumulative shares. 0 only reports."""
    min_examples: Positive = 200
    """Where either night has fewer examples nothing stops: few examples move by chance."""


class WorkersConfig(Section):
    """Who writes the prompt shards in a flow; their bytes are the same whoever does. No fingerprint covers it."""

    kind: Literal["threads", "processes", "dask", "ray"] = "threads"
    """dask and ray need the extra of that name."""
    count: Positive = 2
    """Shards written at once."""
    address: str = ""
    """Scheduler of a Dask cluster, or head of a Ray cluster, that is there and sees the same disk under the same paths;
    empty: workers of this machine, for as long as the shards take."""

    @model_validator(mode="after")
    def _address_of_a_cluster(self) -> WorkersConfig:
        if self.address and self.kind not in ("dask", "ray"):
            raise ValueError(f"address is for kind = 'dask' or 'ray'; kind is {self.kind!r}: remove it")
        return self
