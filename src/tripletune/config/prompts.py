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
CandidateOrder = Literal["shuffled", "retrieved"]
LISTED_FILMS = 20
"""Films of a first-stage list that are kept and evaluated."""


class RetrieveConfig(Section):
    """Candidates and hints."""

    retriever: RetrieverName = "fused"
    """Retriever of the candidates; hint 1 always has them in LightGCN's order. One that is neither lightgcn nor ease
    adds a stage that trains it; fused merges the lists below by reciprocal rank."""
    fusion: Literal["learned", "fixed"] = "learned"
    """Weights of the fused list. learned: found on ``target`` and checked on ``valid`` likes, among the lists with a
    weight below, whose size then does not matter; fixed: the weights below."""
    fused_lightgcn: Weight = 0.0
    """Weight of LightGCN's list in the fused one; 0 drops it."""
    fused_ease: Weight = 0.0
    """Weight of EASE's list in the fused one; 0 drops it."""
    fused_slist: Weight = 1.0
    """Weight of SLIST's list in the fused one; 0 drops it."""
    fused_sasrec: Weight = 0.0
    """Weight of SASRec's list in the fused one; 0 drops it."""
    fused_sequence: Weight = 1.0
    """Weight of the sequence model's list in the fused one; 0 drops it."""
    fused_text: Weight = 0.0
    """Weight of the text retriever's list in the fused one; 0 drops it."""
    fused_more: dict[str, Weight] = Field(default={})
    """Weights of further retrievers' lists in the fused one, by name; a retriever that is not named has no part."""
    fused_k: Annotated[float, Field(gt=0.0, le=1e6)] = 20.0
    """A film at rank r (from 1) of a list with weight w scores w / (this + r)."""
    fused_films: Annotated[int, Field(ge=20)] = 100
    """Films taken from each list, or ``num_candidates`` where that is more."""
    ease_lambda: PositiveFloat = 500.0
    """L2 penalty (ridge) of EASE, in likes."""
    ease_history_age: Annotated[float, Field(ge=0.0)] = 5.0
    """A like of age t (in likes, newest 0) has weight exp(-t / this) in the history for EASE; 0 weights all equally."""
    ease_max_films: Annotated[int, Field(ge=20)] = 10_000
    """Films in EASE, the most liked ones; its memory grows with the square. Where more films are liked, EASE is dropped
    from the comparison, unless it is the retriever."""
    train_cutoffs: Positive = 1
    """Training examples per user, each with its own cutoff: the ``target`` likes are cut into this many windows of
    about equal length (at most one per like). A window's start is a cutoff; the ``target`` likes from there on are the
    answers. More than one needs a longer split.max_target."""
    candidates: Literal["retrieved", "kerag"] = "retrieved"
    """retrieved: the retriever's top films; kerag: the published recipe of 3 + 2 rated and 5 unrated films."""
    num_candidates: Annotated[int, Field(ge=5, le=100)] = 20
    """Films shown in ``retrieved`` prompts; ``kerag`` always shows ten."""
    hint_films: Positive = 10
    """Length of hint 1: the first candidates in LightGCN's order."""
    similar_viewers: Positive = 20
    """Nearest users by LightGCN's vectors; their likes are the second part of hint 1."""
    similar_films: Annotated[int, Field(ge=0)] = 5
    """Films in hint 1 that the similar users liked."""
    similar_exact_users: Positive = 50_000
    """Users of a fit up to whom similar ones are searched exactly; of more, each user is compared with some 8,000 of
    the nearest clusters."""
    similar_people: Share = 0.0
    """Weight of the agreement in age group, gender and occupation (0 to 1) that is added to the cosine of LightGCN's
    vectors when similar users are searched. 0 ignores these attributes; a release without them refuses any other."""
    triple_choice: Literal["personal", "published", "most-shared", "random", "none", "learned"] = "personal"
    """Choice of a film's triples for hint 2. personal: R-GAT's posterior for the user; published: attention times dot
    product, without relation or user; most-shared: the entity most of the user's likes have in common; random; none;
    learned: by what the answers of an earlier run gained from each fact (``[selector]``), personal where there is no
    such log."""
    explore_triples: Share = 0.0
    """Share of the films of training prompts whose triples are drawn at random, so that a later run can learn from them
    which facts help; valid and test prompts are never explored."""
    triples_per_film: Annotated[int, Field(ge=0, le=5)] = 1
    """Triples chosen for a film in hint 2; 0 chooses none."""
    num_topics: Annotated[int, Field(ge=0, le=20)] = 0
    """Topics (facts that many of the user's likes share) found for a template that shows them, such as ``topics``; 0
    looks for none."""
    purposes: Annotated[tuple[Literal["train", "valid", "test"], ...], Field(min_length=1)] = ("train", "valid", "test")
    """Purposes for which examples are made."""
    ranked_viewers: Annotated[int, Field(ge=0)] = 10_000
    """Users for whom every retriever ranks the whole catalogue, to compare them (the first by hash of user); with the
    default, the standard error of ndcg is .004 at most. 0 takes all."""

    @property
    def fused_weights(self) -> dict[str, float]:
        """Weight of each list in the fused one, zero weights dropped."""
        weights = {name: getattr(self, f"fused_{name}") for name in SHIPPED_RETRIEVERS} | self.fused_more
        return {name: weight for name, weight in weights.items() if weight}

    @property
    def learns_weights(self) -> bool:
        """Whether the run has a stage ``fusion``."""
        return self.retriever == "fused" and self.fusion == "learned"

    @property
    def learns_triples(self) -> bool:
        """Whether the run has a stage ``selector``."""
        return self.triple_choice == "learned"

    @property
    def optional_stages(self) -> tuple[str, ...]:
        """Stages that the retriever reads under these settings alone; ``Retriever.load`` takes each under its name."""
        wanted = {"fusion": self.learns_weights, "ingest": bool(self.similar_people), "selector": self.learns_triples}
        return tuple(stage for stage, is_read in wanted.items() if is_read)

    @property
    def lists(self) -> tuple[str, ...]:
        """Retrievers whose lists supply the candidates."""
        return tuple(self.fused_weights) if self.retriever == "fused" else (self.retriever,)

    @property
    def depth(self) -> int:
        """Films ranked for each user by each retriever."""
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
    """Sampling of warm users for training examples; valid and test cover all users."""

    method: Literal["all", "uniform", "importance", "clusters", "recranker"] = "all"
    """importance: with weight ln(likes); clusters: the same number from each cluster of users' vectors; recranker:
    half of the draws by importance, then half by clusters."""
    viewers: Annotated[int, Field(ge=0)] = 0
    """Number of draws; 0 for ``all``."""
    clusters: Annotated[int, Field(ge=2, le=1000)] = 10
    """clusters, recranker: number of k-means clusters."""
    penalty: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """The weight of a user drawn n times is multiplied by this to the power n; 0 draws no user twice. A user drawn n
    times gets examples at the n newest of its ``retrieve.train_cutoffs``, or at all it has."""

    @model_validator(mode="after")
    def _says_how_many(self) -> SampleConfig:
        if (self.method == "all") == (self.viewers > 0):
            raise ValueError(
                f"viewers = {self.viewers} does not go with method = {self.method!r}; give 0 with 'all', and the "
                "number of draws with any other"
            )
        return self


class PromptConfig(Section):
    """Rendering of the prompts."""

    template: NameOrText = "hints-first"
    """Name of a file in ``prompts/templates/``, without ``.txt``, or the path of a file anywhere, with it; a relative
    path starts at the working directory or at the preset's folder."""
    triple_form: Literal["arrow", "sentence"] = "arrow"
    """Form of a triple: ``film - relation - entity``, or a sentence."""
    candidate_order: CandidateOrder = "shuffled"
    """Order in which candidates are shown. shuffled: a stable shuffle per user, which says nothing of the ranks;
    retrieved: the retriever's order, best first, so that the place alone tells its rank."""
    max_liked: Positive = 15
    """Liked films in the prompt, the newest ones."""
    max_disliked: Annotated[int, Field(ge=0)] = 5
    """Disliked films in the prompt, the newest ones."""
    triples_for_liked: Annotated[int, Field(ge=0)] = 5
    """Newest liked films whose chosen triples are in hint 2, in addition to those of the candidates."""
    worked_examples: Annotated[int, Field(ge=0, le=20)] = 0
    """Training examples shown with their answers in every prompt (few-shot), at the template's section ``worked``: of
    the first so many training users by hash, who then have no training example besides. 0: none."""
    max_tokens: Annotated[int, Field(ge=0)] = 0
    """Tokens of prompt and completion, counted with the model's own tokenizer and chat template; 0 sets no limit. A
    longer example loses its oldest likes, then dislikes, then similar users' films."""

    @property
    def template_id(self) -> str:
        """The template's id, wherever its file lies."""
        return PurePath(self.template).stem if is_path(self.template) else self.template


class QualityConfig(Section):
    """Drift limits: how far the prompt shards may differ from the last run's before the run stops."""

    max_psi: Annotated[float, Field(ge=0.0)] = 0.0
    """The run stops before finetune when the population stability index of a measure is above this; below .1 is called
    no shift, .1 to .25 a moderate one, more a major one. 0 only reports."""
    max_ks: Share = 0.0
    """The same for the Kolmogorov-Smirnov distance, the largest gap between two cumulative shares. 0 only reports."""
    min_examples: Positive = 200
    """With fewer examples in either run, drift never stops the run: few examples differ by chance."""


class WorkersConfig(Section):
    """Workers that write the prompt shards in a flow; the bytes do not depend on them. Not part of any fingerprint."""

    kind: Literal["threads", "processes", "dask", "ray"] = "threads"
    """dask and ray need the extra of that name."""
    count: Positive = 2
    """Shards written in parallel."""
    address: str = ""
    """Address of a running Dask scheduler or Ray head that has the same disk under the same paths; empty: workers on
    this machine, for the duration of the stage."""

    @model_validator(mode="after")
    def _address_of_a_cluster(self) -> WorkersConfig:
        if self.address and self.kind not in ("dask", "ray"):
            raise ValueError(f"address is for kind = 'dask' or 'ray'; kind is {self.kind!r}: remove it")
        return self
