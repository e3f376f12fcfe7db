"""Every setting, in frozen pydantic models.

One section per stage, so that a stage's fingerprint can name the fields it reads, and so that Prefect can show
the whole as a form. Frozen: a config that was logged cannot change afterwards. Checks sit where a value is defined.
"""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0.0)]
Weight = Annotated[float, Field(ge=0.0, le=1000.0)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)]
RetrieverName = Literal["lightgcn", "ease", "sasrec"]
LISTED_FILMS = 20
"""Films of a first-stage list that are kept and measured."""
Credit = Literal["director", "writer", "actor", "cinematographer", "composer", "producer", "editor"]


class Section(BaseModel):
    """A frozen group of settings that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class FeedColumns(Section):
    """What the columns of the feed are called."""

    user_id: str = "userId"
    movie_id: str = "movieId"
    rating: str = "rating"
    timestamp: str = "timestamp"

    @model_validator(mode="after")
    def _four_columns(self) -> FeedColumns:
        names = list(self.model_dump().values())
        if len(set(names)) < len(names):
            raise ValueError(f"two columns have one name ({', '.join(names)}); name four different ones")
        return self


class FeedConfig(Section):
    """Ratings that arrive as files of their own."""

    ratings: tuple[str, ...] = ()
    """CSV (with a header) or Parquet files, local or ``s3://``; ``*`` stands for any name. They take the place of the
    release's ratings; movies, tags and links still come from ``source.movielens``."""
    columns: FeedColumns = FeedColumns()


class SourceConfig(Section):
    """Where ratings and facts come from."""

    movielens: str = ""
    """A MovieLens release: a zip or a folder. Empty: the synthetic generator makes one."""
    feed: FeedConfig = FeedConfig()
    imdb: str = ""
    """Folder with IMDb's title.crew, title.principals and name.basics (.tsv.gz). Empty: no credits."""
    extra_triples: tuple[str, ...] = ()
    """Further ``head relation tail`` TSV files; head is a MovieLens movie id."""

    @model_validator(mode="after")
    def _feed_has_films(self) -> SourceConfig:
        if self.feed.ratings and not self.movielens:
            raise ValueError("feed.ratings needs movielens, the release that names the films; give both")
        return self


class SyntheticConfig(Section):
    """Size and signal of the generated release."""

    viewers: Positive = 500
    movies: Annotated[int, Field(ge=50)] = 400
    mean_ratings: Annotated[int, Field(ge=20)] = 60
    """Mean ratings per viewer; nobody has fewer than 20, as in the real releases."""
    preference_strength: PositiveFloat = 2.5
    """Log-odds a planted preference adds to liking a film that carries the preferred entity, and for the average viewer
    to watching it; at most three in ten viewings come of it."""


class IngestConfig(Section):
    """What counts as a rating."""

    rating_min: float = 0.5
    rating_max: float = 5.0
    earliest: date = date(1995, 1, 1)
    """A rating before this day (UTC) is refused; MovieLens began in that year."""
    latest: date = date(2100, 1, 1)
    """A rating on or after this day is refused: a clock in milliseconds, most often."""
    max_reject_share: Share = 0.05
    """The stage stops when a larger share of a table's rows is rejected; 0 stops at the first."""

    @model_validator(mode="after")
    def _ranges(self) -> IngestConfig:
        if not self.rating_min < self.rating_max:
            raise ValueError(f"rating_min = {self.rating_min} must be below rating_max = {self.rating_max}")
        if not self.earliest < self.latest:
            raise ValueError(f"earliest = {self.earliest} must be before latest = {self.latest}")
        return self


class SplitConfig(Section):
    """What is learned from, what is asked, and who is kept out."""

    protocol: Literal["leave_one_out", "global_time", "ratio"] = "leave_one_out"
    """leave_one_out: each viewer's newest like is asked; global_time: what comes after a date is the future for
    everyone; ratio: a share of each viewer's likes, for retrieval benchmarks alone."""
    tie_order: Literal["hash", "movie_id"] = "hash"
    """Order of a viewer's ratings of one second. ``movie_id`` leaks part of the answer to sequence models and exists
    only to reproduce published numbers."""
    valid_from: date | None = None
    """global_time: likes from this day (UTC) on are not learned from."""
    test_from: date | None = None
    """global_time: likes from this day (UTC) on are asked for test."""
    ratio_order: Literal["random", "chronological"] = "random"
    """ratio: whether the likes that are kept back are drawn, or the newest."""
    valid_share: Annotated[float, Field(gt=0.0, lt=0.5)] = 0.1
    """ratio: share of a viewer's likes for valid."""
    test_share: Annotated[float, Field(gt=0.0, lt=0.5)] = 0.1
    """ratio: share of a viewer's likes for test."""
    like: float = 4.0
    """A rating of this or more is a like."""
    dislike: float = 3.0
    """A rating below this is a dislike."""
    min_graph: Positive = 3
    """Likes that stay in ``graph`` before any becomes ``target``."""
    max_target: Positive = 5
    """Latest likes before valid and test that become answers of training examples."""
    unseen_share: Annotated[float, Field(ge=0.0, le=0.5)] = 0.05
    """Share of viewers kept out of both fits and of all training examples."""
    shards: Annotated[int, Field(ge=1, le=999)] = 8
    frozen: str = ""
    """File that ``tripletune freeze`` wrote: its valid and test questions are asked, with the same cutoffs, and no
    others, so that nightly metrics are of the same questions. Empty: everybody is asked, up to tonight."""

    @model_validator(mode="after")
    def _like_above_dislike(self) -> SplitConfig:
        if self.dislike > self.like:
            raise ValueError(f"dislike = {self.dislike} must not exceed like = {self.like}")
        return self

    @model_validator(mode="after")
    def _dates_in_order(self) -> SplitConfig:
        if self.protocol == "global_time" and not (
            self.valid_from and self.test_from and self.valid_from < self.test_from
        ):
            raise ValueError("protocol = 'global_time' needs valid_from and test_from, the first before the second")
        if self.protocol == "ratio" and self.frozen:
            raise ValueError("frozen needs protocol = 'leave_one_out' or 'global_time', not 'ratio'")
        if self.protocol != "global_time" and (self.valid_from or self.test_from):
            raise ValueError(f"valid_from and test_from need protocol = 'global_time', not {self.protocol!r}")
        return self


class KnowledgeConfig(Section):
    """Which facts become triples."""

    credits: tuple[Credit, ...] = get_args(Credit)
    """Which credits of the films are used."""
    max_year_gap: Annotated[int, Field(ge=0)] = 1
    """Years by which the release and IMDb's title.basics may differ on a film; festival and cinema are often a year
    apart. Links that differ by more are counted."""
    drop_year_disagreements: bool = False
    """Whether the credits of films whose years differ by more are left out. They stay by default: a wrong year does not
    prove that the link is wrong."""
    hub_films: Positive = 1000
    """An entity of more films than this is counted as a hub. Hubs stay in the graph."""
    tag_min_viewers: Positive = 3
    """A tag counts for a film when at least this many different viewers gave it."""
    max_actors: Positive = 5
    """Top-billed actors per film."""
    max_credits: Positive = 3
    """Directors, writers, cinematographers, composers, producers and editors per film, each."""


class RgatConfig(Section):
    """Relational graph attention."""

    dim: Positive = 64
    heads: Positive = 4
    layers: Positive = 1
    message_passing: Literal["auto", "dgl", "torch"] = "auto"
    """Back end: auto takes DGL on a CPU and torch on a GPU. They differ in the last bits."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where it trains: auto takes a GPU where torch sees one. Draws are made on the CPU, the same everywhere."""
    bases: Annotated[int, Field(ge=0)] = 0
    """Basis matrices shared by the relations; 0 gives each relation a matrix of its own."""
    learning_rate: PositiveFloat = 0.005
    weight_decay: Annotated[float, Field(ge=0.0)] = 1e-5
    max_steps: Positive = 150
    eval_every: Positive = 10
    patience: Positive = 4
    """Evaluations of fit B without a better valid ndcg_at_10 before it stops."""
    batch_viewers: Positive = 512
    negatives: Positive = 512
    """Films sampled per step (by popularity) that the held-out likes are ranked against."""
    holdout_share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.3
    """Share of a viewer's likes hidden from the pooled vector in a step, and ranked by it."""
    link_weight: Annotated[float, Field(ge=0.0)] = 1.0
    """Weight of the auxiliary link prediction loss."""
    link_margin: PositiveFloat = 1.0

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
    layers: Annotated[int, Field(ge=1, le=4)] = 2
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
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    max_steps: Positive = 150
    eval_every: Positive = 10
    patience: Positive = 5
    """Evaluations of fit B without a better valid ndcg_at_10 before it stops."""
    batch_viewers: Positive = 1024
    temperature: PositiveFloat = 0.05
    """Scores are divided by it; the published model has none (1.0)."""
    recency_half_life: Annotated[float, Field(ge=0.0)] = 3.0
    """Age, in likes, at which a like counts half in targets and in a viewer's vector; 0 counts all alike."""
    checkpoint_minutes: Annotated[float, Field(ge=0.0)] = 2.0
    """Least time between two checkpoints, from which a killed training goes on; 0 writes one after every step."""


class SasrecConfig(Section):
    """Next-like prediction with a causal transformer."""

    dim: Positive = 64
    layers: Positive = 2
    heads: Positive = 2
    """Attention heads; they begin with memories of two likes, eight, thirty-two, and so on."""
    max_length: Annotated[int, Field(ge=2)] = 50
    """Newest likes that a viewer's vector is made of."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.2
    learning_rate: PositiveFloat = 0.003
    warmup_steps: Positive = 20
    """Steps over which the learning rate rises to its value."""
    max_steps: Positive = 600
    eval_every: Positive = 40
    patience: Positive = 4
    """Evaluations of fit B without a better valid ndcg_at_10 before it stops."""
    batch_viewers: Positive = 128
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


class RetrieveConfig(Section):
    """Candidates and hints."""

    retriever: RetrieverName | Literal["fused"] = "fused"
    """Where the candidates come from; hint 1 puts them in LightGCN's order in any case. sasrec adds a stage that trains
    it; fused joins the lists below by reciprocal rank."""
    fused_lightgcn: Weight = 0.0
    fused_ease: Weight = 1.0
    fused_sasrec: Weight = 1.0
    """What a list counts in the fused one; 0 leaves it out."""
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
    similar_films: Annotated[int, Field(ge=0)] = 5
    """Films in hint 1 that the similar viewers liked."""
    triple_choice: Literal["personal", "published", "most-shared", "random", "none"] = "personal"
    triples_per_film: Annotated[int, Field(ge=0, le=5)] = 1
    purposes: Annotated[tuple[Literal["train", "valid", "test"], ...], Field(min_length=1)] = ("train", "valid", "test")
    """What examples are made for."""
    ranked_viewers: Annotated[int, Field(ge=0)] = 10_000
    """Viewers for whom every retriever ranks the whole catalogue, to compare them (the first by hash of user); the
    standard error of ndcg is then .004 at most. 0 takes all."""

    @property
    def fused_weights(self) -> dict[RetrieverName, float]:
        """Weight of each list that has a part in the fused one."""
        weights: dict[RetrieverName, float] = {
            "lightgcn": self.fused_lightgcn,
            "ease": self.fused_ease,
            "sasrec": self.fused_sasrec,
        }
        return {name: weight for name, weight in weights.items() if weight}

    @property
    def lists(self) -> tuple[RetrieverName, ...]:
        """The retrievers whose lists make the candidates."""
        return tuple(self.fused_weights) if self.retriever == "fused" else (self.retriever,)

    @property
    def depth(self) -> int:
        """Films ranked for each viewer by each retriever."""
        return max(LISTED_FILMS, self.num_candidates, self.fused_films if self.retriever == "fused" else 0)

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

    template: Name = "hints-first"
    triple_form: Literal["arrow", "sentence"] = "arrow"
    max_liked: Positive = 15
    max_disliked: Annotated[int, Field(ge=0)] = 5
    triples_for_liked: Annotated[int, Field(ge=0)] = 5
    """Newest liked films whose chosen triples stand in hint 2, beside those of the candidates."""
    max_tokens: Annotated[int, Field(ge=0)] = 0
    """Tokens of prompt and completion, counted with the model's own tokenizer and chat template; 0 sets no limit. A
    longer example loses its oldest likes, then dislikes, then similar viewers' films."""


class QualityConfig(Section):
    """How far tonight's shards may move from the last night's before the run stops."""

    max_psi: Annotated[float, Field(ge=0.0)] = 0.0
    """The run stops before finetune when the population stability index of a measure is above this; below .1 is called
    no shift, .1 to .25 a moderate one, more a major one. 0 only reports."""
    max_ks: Share = 0.0
    """The same for the Kolmogorov-Smirnov distance, the largest gap between two cumulative shares. 0 only reports."""
    min_examples: Positive = 200
    """Where either night has fewer examples nothing stops: few examples move by chance."""


class TinyLlamaConfig(Section):
    """Shape of the local Llama that ``model = "tiny"`` builds and initialises."""

    vocab_size: Annotated[int, Field(ge=300)] = 2000
    hidden_size: Positive = 96
    intermediate_size: Positive = 192
    num_layers: Positive = 2
    num_heads: Positive = 4
    num_kv_heads: Positive = 2


class FinetuneConfig(Section):
    """The language model and its LoRA training."""

    model: str = "tiny"
    """``tiny``, a Hugging Face id, or a local folder."""
    revision: str = ""
    """Commit of the model on the hub; required for a Hugging Face id."""
    tiny: TinyLlamaConfig = TinyLlamaConfig()
    accelerate_config: str = "configs/accelerate/single.yaml"
    """File for ``accelerate launch``; says how many processes run."""
    lora_r: Positive = 16
    lora_alpha: Positive = 32
    lora_dropout: Share = 0.0
    learning_rate: PositiveFloat = 5e-3
    warmup_ratio: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.05
    num_train_epochs: PositiveFloat = 3.0
    per_device_train_batch_size: Positive = 8
    gradient_accumulation_steps: Positive = 1
    gradient_checkpointing: bool = False
    max_length: Positive = 2048
    save_steps: Positive = 20
    eval_steps: Positive = 40
    logging_steps: Positive = 5
    max_eval_examples: Positive = 64
    timeout_minutes: PositiveFloat = 600.0
    trainer: dict[str, JsonValue] = {}
    """Further settings of the trainer, as a table: any field of TRL's ``SFTConfig`` with a value of its type, such as
    ``weight_decay`` or ``lr_scheduler_type``. Refused are names that SFTConfig does not have, settings that have a name
    of their own above, and those that the project fixes (seeds, output, precision, truncation, checkpoints)."""

    @model_validator(mode="after")
    def _resumes_between_logs(self) -> FinetuneConfig:
        if self.save_steps % self.logging_steps:
            raise ValueError(
                f"save_steps = {self.save_steps} must be a multiple of logging_steps = {self.logging_steps}, so that a "
                "resumed run logs the same losses"
            )
        return self

    @property
    def names_a_folder(self) -> bool:
        """Whether ``model`` is a local folder and not a Hugging Face id."""
        return self.model.startswith((".", "/")) or Path(self.model).is_dir()

    @model_validator(mode="after")
    def _pinned(self) -> FinetuneConfig:
        if self.model == "tiny" or self.names_a_folder or self.revision:
            return self
        raise ValueError(f"revision must pin a commit of {self.model}, so that a night can be repeated")


class RankConfig(Section):
    """Answering the prompts."""

    batch_size: Positive = 32
    max_viewers: Annotated[int, Field(ge=0)] = 0
    """Viewers ranked per purpose (the first by hash of user); 0 ranks all."""
    unconstrained_viewers: Annotated[int, Field(ge=0)] = 100
    """Test viewers also answered without constrained decoding, to measure the share of valid answers."""


class EvaluateConfig(Section):
    """Metrics and their intervals."""

    retrieval_cutoffs: tuple[Annotated[int, Field(ge=1, le=LISTED_FILMS)], ...] = (3, 5, 10)
    """At most 20, the length of the first stage's lists."""
    rerank_cutoffs: tuple[Annotated[int, Field(ge=1, le=5)], ...] = (3, 5)
    """At most 5, the films of an answer."""
    bootstrap_resamples: Positive = 2000
    confidence: Annotated[float, Field(gt=0.5, lt=1.0)] = 0.95


class PromoteConfig(Section):
    """When tonight's adapter takes the champion's place."""

    registered_model: Name | Literal[""] = ""
    """Name in the MLflow registry. Empty: ``tripletune-<dataset>``; adapters of two datasets never compete."""
    margin: Annotated[float, Field(ge=0.0)] = 0.01
    """How much worse than the champion tonight's ndcg_at_5 may be, at the one-sided bound."""
    confidence: Annotated[float, Field(gt=0.5, lt=1.0)] = 0.95


class TrackingConfig(Section):
    """Where runs are logged."""

    uri: str = ""
    """MLflow tracking store. Empty: what ``MLFLOW_TRACKING_URI`` names, else ``sqlite:///<artifacts>/mlflow.db``."""
    experiment: Name = "tripletune"

    @model_validator(mode="after")
    def _no_password(self) -> TrackingConfig:
        if urlsplit(self.uri).password:
            raise ValueError("uri holds a password, and settings are logged; name the store in MLFLOW_TRACKING_URI")
        return self


class SpecialistsConfig(Section):
    """Keeping the specialists of an earlier run."""

    pin: str = ""
    """Name of an earlier run whose specialists tonight keeps (weekly training, nightly shards)."""


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


class RunConfig(Section):
    """All settings of a run."""

    dataset: Name
    """Folder under the artifact root; runs of one dataset share stage outputs."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    source: SourceConfig = SourceConfig()
    synthetic: SyntheticConfig = SyntheticConfig()
    ingest: IngestConfig = IngestConfig()
    split: SplitConfig = SplitConfig()
    knowledge: KnowledgeConfig = KnowledgeConfig()
    rgat: RgatConfig = RgatConfig()
    lightgcn: LightGCNConfig = LightGCNConfig()
    sasrec: SasrecConfig = SasrecConfig()
    retrieve: RetrieveConfig = RetrieveConfig()
    sample: SampleConfig = SampleConfig()
    prompt: PromptConfig = PromptConfig()
    quality: QualityConfig = QualityConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    rank: RankConfig = RankConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    promote: PromoteConfig = PromoteConfig()
    tracking: TrackingConfig = TrackingConfig()
    specialists: SpecialistsConfig = SpecialistsConfig()
    workers: WorkersConfig = WorkersConfig()

    @model_validator(mode="after")
    def _budget_can_be_kept(self) -> RunConfig:
        budget, longest = self.prompt.max_tokens, self.finetune.max_length
        if budget and self.counted_with is None:
            raise ValueError(
                f"prompt.max_tokens = {budget} needs a tokenizer before the prompts, and that of finetune.model = "
                "'tiny' is trained on them; set it to 0, or finetune.model to a local folder or a Hugging Face id"
            )
        if budget > longest:
            raise ValueError(f"prompt.max_tokens = {budget} must not exceed finetune.max_length = {longest}")
        return self

    @property
    def counted_with(self) -> tuple[str, str] | None:
        """Model and revision whose tokenizer counts the prompts' tokens; None for the tiny one, made of the prompts."""
        return None if self.finetune.model == "tiny" else (self.finetune.model, self.finetune.revision)

    @property
    def trained_stages(self) -> tuple[str, ...]:
        """The stages that learn from likes: both specialists, SASRec where the candidates need it, and EASE."""
        return ("rgat", "lightgcn", *(("sasrec",) if "sasrec" in self.retrieve.lists else ()), "ease")

    def field(self, dotted: str) -> Any:
        """The value under a dotted name such as ``split.like``, as plain JSON data."""
        value: Any = self.model_dump(mode="json")
        for part in dotted.split("."):
            value = value[part]
        return value

    def flat(self) -> dict[str, Any]:
        """Every setting under its dotted name; what MLflow shows as parameters."""

        def walk(prefix: str, value: Any) -> dict[str, Any]:
            if not isinstance(value, dict):
                return {prefix: value}
            rows: dict[str, Any] = {}
            for key, inner in value.items():
                rows |= walk(f"{prefix}.{key}" if prefix else key, inner)
            return rows

        return walk("", self.model_dump(mode="json"))
