"""The finetune stage: prompt shards in, LoRA adapter with its contract and loss curve out.

Training runs in processes of its own, started by ``accelerate launch``: the stage may live in a thread of an
orchestrator, and several GPUs need several processes anyway.
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from tripletune.behaviour.space import SPACE, align, load_vectors, read_vectors, save_vectors
from tripletune.behaviour.tables import FILMS, write_film_tables
from tripletune.chat import DATE
from tripletune.config import FinetuneConfig
from tripletune.contract import (
    TINY,
    AdapterContract,
    BaseIdentity,
    BehaviourSpace,
    Ensemble,
    Residual,
    identify_base,
    write_contract,
)
from tripletune.errors import ConfigError, ContractError, InputError, TrainingCrash, TrainingDiverged, TrainingError
from tripletune.finetune.checkpoints import last_whole
from tripletune.finetune.job import TrainingJob, columns_read
from tripletune.finetune.live_log import LiveLog, OnLog
from tripletune.finetune.ranks import accumulated_batches, read_ranks, write_launch_config
from tripletune.finetune.token_files import write_token_files
from tripletune.finetune.trainer_settings import check_trainer_settings
from tripletune.finetune.warm import Champion, require_same_base, reuse_champion, select_new, write_trained_examples
from tripletune.judges import judges
from tripletune.processes.messages import receive
from tripletune.processes.supervise import ProcessFailed, clean_environment, end_noted, run_supervised
from tripletune.quantization import check_quantization
from tripletune.residual import calibrate_prior
from tripletune.schemas.generate import EXAMPLES
from tripletune.stable_hash import mix
from tripletune.store.files import write_json
from tripletune.store.parquet import write_parquet
from tripletune.store.paths import MANIFEST, SCRATCH, Facts
from tripletune.store.shards import shard_files

PATIENCE_SECONDS = 120.0
"""How long a finished training waits for points of its live curve that the tracking server has not taken."""
_SHORT_PATIENCE_SECONDS = 5.0
"""The same for a training that failed or was stopped."""
ADAPTER_CURVE = pl.Schema({"step": pl.Int32, "metric": pl.String, "value": pl.Float64})

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FilmSource:
    """Where the film vectors of behaviour tokens come from."""

    stage: str
    folder: Path
    columns: tuple[str, ...]
    """Columns that list the films of the template's sections, in the template's order."""


@dataclass(frozen=True, slots=True)
class FurtherForms:
    """Training examples of the short forms, and how all forms become one order."""

    folder: Path
    """Of the forms stage."""
    ensemble: Ensemble

    @property
    def files(self) -> list[Path]:
        """Files with an example at least."""
        files = shard_files(self.folder / "train")
        return [path for path in files if pl.scan_parquet(path).select(pl.len()).collect().item()]


def finetune_adapter(
    shards: Path,
    out: Path,
    settings: FinetuneConfig,
    prompt_contract: Mapping[str, Any],
    lineage: Mapping[str, str],
    seed: int,
    on_log: OnLog | None = None,
    *,
    base: Path | None = None,
    behaviour: FilmSource | None = None,
    machine: int = 0,
    teacher: Path | None = None,
    champion: Champion | None = None,
    forms: FurtherForms | None = None,
) -> Facts:
    """Train an adapter, or go on from the last whole checkpoint that a killed run left in ``out``.

    Args:
        shards: the generate stage's folder, with ``train/`` and ``valid/``.
        out: work folder. Filled with ``adapter/``, ``contract.json``, ``curve.parquet``, ``trained_examples.parquet``
            and ``base/``, unless the base model lies elsewhere.
        settings: the ``[finetune]`` section.
        prompt_contract: what the adapter's prompts must have in common; plain data, stored as it is.
        lineage: fingerprints of the stages behind the shards.
        seed: of initial weights, adapter and order of examples.
        on_log: called with (step, metrics) as the training logs them, in order, from another thread; a resumed run
            repeats no step it kept. When it raises, the training goes on and it is called with the same point again.
        base: folder of the stage ``base``, where the base model is the shipped one.
        behaviour: the film vectors of behaviour tokens, with ``settings.behaviour_tokens``.
        machine: number of this machine, where the accelerate file has several. Each makes base model and token files by
            itself; but for machine 0 it then only lends its processes, and ``out`` gets no adapter.
        teacher: folder of the stage ``teach``, with ``settings.teacher``.
        champion: the adapter to go on from, with what is new to it; its output is taken over where nothing is. None: a
            fresh adapter is trained on all examples.
        forms: short forms of the examples, which are trained on too; evaluations are of the list's prompts alone.

    Returns:
        No facts but on machine 0. There, those of ``warm.select_new`` and ``best.evaluation_facts``, steps,
        seconds, tokens, examples, eval_examples, trainable_parameters, world_size, dtype, held_share
        (``sharding.held_share`` of the first process), attention (transformers' name), resumed_from_step (0
        when it started over); of the steps since then tokens_trained, tokens_per_second, peak_memory_gib,
        loader_wait_share, and on a known GPU mfu (``meter``); with an objective over labels, where valid has
        users who select, also weight, select_examples, select_loss and select_loss_retriever
        (``training._weigh``).

    Raises:
        InputError, ConfigError: nothing to train on, nothing to evaluate on where that decides, no such model or
            accelerate file, a wrong ``settings.trainer``, or a ``global_batch`` that the processes cannot share.
        TrainingError: an example does not fit; the training failed or overran ``timeout_minutes``; a next run resumes.
        TrainingDiverged: a loss or a weight is NaN or infinite; the checkpoints are removed, and nothing is published.
        ConfigError: base model or film vectors are not those of the champion.
    """
    check_trainer_settings(settings.trainer)
    accumulated_batches(settings, read_ranks(Path(settings.accelerate_config)).number)
    check_quantization(settings.quantization)
    train = _train_shards(shards)
    evaluation = _valid_examples(shards, settings.max_eval_examples, settings, seed)
    weighs = settings.scores_labels and forms is None  # an ensemble has its own weights
    selecting = _valid_examples(shards, settings.max_select_examples if weighs else 0, settings, seed)
    _require_evaluation(shards, evaluation, settings)
    scratch = out / SCRATCH
    scratch.mkdir(parents=True, exist_ok=True)
    end_noted(scratch / "launcher.json")
    chosen, start_facts = select_new(train, champion, scratch / "new")
    if champion and not chosen:
        return reuse_champion(champion, out)
    if champion and settings.model == TINY:
        base = champion.folder / "base"  # it was built from the prompts of the chain's first run
    further = forms.files if forms else []
    # the short forms first: the tokenizer of a tiny model learns their labels from them
    identity, base_name = _prepare_base([*further, *train], out, settings, seed, base)
    if champion:
        require_same_base(champion, identity)
    space, film_facts = _prepare_films(behaviour, out, champion) if behaviour else (None, Facts())
    job = TrainingJob(
        out=out,
        train=(*chosen, *further),
        evaluation=scratch / "evaluation.parquet" if len(evaluation) else None,
        select=scratch / "select.parquet" if len(selecting) else None,
        prior=_prior(train, int(prompt_contract["num_candidates"])) if settings.scores_labels else (),
        films=scratch / FILMS if space else None,
        film_columns=space.columns if space else (),
        teacher=teacher / "train" if teacher else None,
        answer_style=str(prompt_contract["answer_style"]),
        base=identity.source,
        hub_revision=identity.hub_revision,
        base_name=base_name,
        start=champion.adapter if champion else None,
        settings=settings,
        seed=seed,
    )
    _take_over(job)
    for path, examples in ((job.evaluation, evaluation), (job.select, selecting)):
        if path:
            write_parquet(path, examples)
    if not (job.result.is_file() and job.adapter.is_dir()):
        write_token_files(job)
        _launch(job, on_log, machine)
    if machine:
        return Facts()
    result = json.loads(job.result.read_text(encoding="utf-8"))
    write_parquet(out / "curve.parquet", _curve(result["history"]))
    write_trained_examples(out, chosen, champion)
    facts: Facts = result["facts"] | film_facts | start_facts
    if facts.get("best_beats_start") is False:
        log.warning("finetune: no evaluated step is better than the model before training; see curve.parquet")
    residual = _residual(job, facts)
    contract = _contract(settings, identity, prompt_contract, lineage, facts["dtype"], residual, space)
    write_contract(out, contract.model_copy(update={"ensemble": forms.ensemble}) if forms else contract)
    return facts


def _prepare_films(source: FilmSource, out: Path, champion: Champion | None) -> tuple[BehaviourSpace, Facts]:
    """Write the film vectors: those whose space the projector is trained in, which ranking needs again, and for the
    training those of fit a and, for examples of valid, of fit b in that space. It is fit a's own, or the champion's.

    Returns:
        What the contract says of them; facts behaviour_films and behaviour_cosine.
    """
    first = read_vectors(source.folder, source.stage, "a")
    reference = first
    if champion:
        reference = load_vectors(champion.folder / SPACE)
        try:
            first = align(first, reference).vectors
        except ContractError as error:
            raise ConfigError(f"finetune.start = 'champion': {error}, with finetune.start = 'base'") from None
    second = align(read_vectors(source.folder, source.stage, "b"), reference)
    save_vectors(out / SPACE, reference)
    write_film_tables(out / SCRATCH / FILMS, first, second.vectors)
    log.info(
        "finetune: film vectors of %s, fit b turned into the adapter's space: mean cosine %.2f of %s films",
        source.stage,
        second.cosine,
        f"{second.shared:,}",
    )
    space = BehaviourSpace(source=source.stage, space=reference.space, columns=source.columns)
    return space, {"behaviour_films": second.shared, "behaviour_cosine": round(second.cosine, 4)}


def _residual(job: TrainingJob, facts: Facts) -> Residual | None:
    """How the retriever's scores are added to the model's: with the weight found on valid examples, or where no valid
    example selects one, as in the training, whose loss is over the plain sum."""
    trained_as_sum = job.settings.scores_labels and job.settings.residual
    weight = facts.get("weight", job.settings.residual_weight if trained_as_sum else None)
    return None if weight is None else Residual(prior=job.prior, weight=weight)


def _contract(
    settings: FinetuneConfig,
    base: BaseIdentity,
    prompt_contract: Mapping[str, Any],
    lineage: Mapping[str, str],
    dtype: str,
    residual: Residual | None,
    behaviour: BehaviourSpace | None,
) -> AdapterContract:
    return AdapterContract(
        prompt=dict(prompt_contract),
        tokenizer_sha256=base.tokenizer_sha256,
        base_model=settings.model,
        base_revision=base.revision,
        date_string=DATE,
        dtype=dtype,
        quantization=settings.quantization,
        objective=settings.objective,
        residual=residual,
        behaviour=behaviour,
        lineage=dict(lineage),
    )


def _train_shards(shards: Path) -> list[Path]:
    train = shard_files(shards / "train")
    if not train or not pl.scan_parquet(train).select(pl.len()).collect().item():
        raise InputError(
            f"{shards / 'train'}: no training examples; more users, a larger retrieve.num_candidates "
            "or a smaller split.min_graph would give some"
        )
    return train


def _valid_examples(shards: Path, limit: int, settings: FinetuneConfig, seed: int) -> pl.DataFrame:
    """Valid examples that can be answered (the like is a candidate) of users who select: the first by hash of user, and
    of a user by cutoff."""
    columns = columns_read(settings)
    valid = shard_files(shards / "valid")
    if not valid or not limit:
        return pl.DataFrame(schema={name: EXAMPLES[name] for name in columns})
    answerable = pl.scan_parquet(valid).filter(pl.col("candidates").list.contains(pl.col("answers").list.first()))
    queries = answerable.select("user_id", "cutoff").collect()
    queries = queries.filter(~judges(queries["user_id"], seed))
    order = pl.Series("order", mix(queries["user_id"].to_numpy(), seed))
    chosen = queries.with_columns(order).sort("order", "user_id", "cutoff").head(limit)
    rows = answerable.join(chosen.lazy(), on=["user_id", "cutoff"], how="inner").sort("order", "user_id", "cutoff")
    return rows.select(columns).collect()


def _require_evaluation(shards: Path, evaluation: pl.DataFrame, settings: FinetuneConfig) -> None:
    """Refuse to choose a step by evaluations where there is no example to evaluate on."""
    if len(evaluation) or (settings.keep == "last" and not settings.patience):
        return
    raise InputError(
        f"{shards / 'valid'}: no example to evaluate on, which finetune.keep = {settings.keep!r} with "
        f"finetune.patience = {settings.patience} needs; set keep to 'last' and patience to 0, or take more users"
    )


def _prior(train: list[Path], num_candidates: int) -> tuple[float, ...]:
    """The retriever's log-score by place, calibrated on the training examples."""
    rows = pl.scan_parquet(train).select("answers", "retrieved").with_row_index("row")
    places = (
        rows.with_columns(place=pl.int_ranges(pl.col("retrieved").list.len()))
        .explode("retrieved", "place")
        .filter(pl.col("retrieved").is_in(pl.col("answers")))
        .group_by("row", maintain_order=True)
        .agg("place")
        .collect()
    )
    return tuple(round(float(value), 6) for value in calibrate_prior(places["place"].to_list(), num_candidates))


def _prepare_base(
    train: list[Path], out: Path, settings: FinetuneConfig, seed: int, base: Path | None
) -> tuple[BaseIdentity, str]:
    """The base model's identity and a name for it that does not depend on where the work folder is."""
    if base is not None:
        _link(base, out / "base")
        return identify_base(str(out / "base"), ""), settings.model
    if settings.model == TINY:
        from tripletune.finetune.tiny import write_tiny_llama  # transformers takes seconds to import

        write_tiny_llama(train, out / "base", settings.tiny, seed)
        return identify_base(str(out / "base"), ""), TINY
    if not Path(settings.model).is_dir() and not settings.revision:
        raise ConfigError(
            f"finetune.model = {settings.model!r} is no local folder, and a Hugging Face id needs finetune.revision"
        )
    return identify_base(settings.model, settings.revision), settings.model


def _link(folder: Path, to: Path) -> None:
    """The files of a model folder under another name, so that an adapter's folder holds all that it needs."""
    shutil.rmtree(to, ignore_errors=True)
    to.mkdir()
    for file in folder.iterdir():
        if file.is_file() and file.name != MANIFEST:
            try:
                (to / file.name).hardlink_to(file)
            except OSError:  # a file system without links
                shutil.copyfile(file, to / file.name)


def _take_over(job: TrainingJob) -> None:
    """Keep a killed run's checkpoints when it had the same job; otherwise start over. Write the job's file."""
    path = job.scratch / "job.json"
    plain = job.model_dump(mode="json")
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        # allowing more time must not start over; and what training starts from is job.start
        for limit in ("timeout_minutes", "ddp_timeout_minutes", "start", "fresh_every"):
            before["settings"][limit] = getattr(job.settings, limit)
        same = before == plain
    except (OSError, ValueError, KeyError, TypeError):
        same = False
    if not same:
        for folder in (job.checkpoints, job.best, job.adapter):
            shutil.rmtree(folder, ignore_errors=True)
        job.result.unlink(missing_ok=True)
    write_json(path, plain)
    last_whole(job.checkpoints)


def _launch(job: TrainingJob, on_log: OnLog | None, machine: int = 0) -> None:
    named, config_file = Path(job.settings.accelerate_config), job.scratch / "accelerate.yaml"
    ranks = read_ranks(named)
    write_launch_config(named, ranks, config_file, machine)
    messages: list[dict[str, Any]] = []

    def take(line: str) -> bool:
        message = receive(line)
        if message is None:
            return False
        if message["kind"] == "log" and live is not None:
            live.put(int(message["step"]), message["metrics"])
        elif message["kind"] in ("error", "crash"):
            messages.append(message)
        return True

    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config_file)]
    if ranks.machines > 1:  # which by torchrun's own limit wait ten minutes for each other
        launcher += ["--rdzv_conf", f"timeout={round(60 * job.settings.ddp_timeout_minutes)}"]
    try:
        with _live_log(on_log) as live:
            run_supervised(
                [*launcher, "-m", "tripletune.finetune.train", str(job.scratch / "job.json")],
                environment=clean_environment(ranks.here, ranks.use_cpu),
                note=job.scratch / "launcher.json",
                deadline_seconds=60 * job.settings.timeout_minutes,
                on_line=take,
            )
    except ProcessFailed as failure:
        error = _explain(failure, messages, job.settings)
        if isinstance(error, TrainingDiverged):
            # their weights or moments may hold the cause: another try must not go on from them
            shutil.rmtree(job.checkpoints, ignore_errors=True)
        raise error from None


@contextmanager
def _live_log(on_log: OnLog | None) -> Iterator[LiveLog | None]:
    """A live log on ``on_log``, if there is one; at the end, time for what it has not delivered."""
    live = LiveLog(on_log) if on_log is not None else None
    patience = _SHORT_PATIENCE_SECONDS
    try:
        yield live
        patience = PATIENCE_SECONDS
    finally:
        if live is not None:
            live.close(patience)


def _explain(failure: ProcessFailed, messages: list[dict[str, Any]], settings: FinetuneConfig) -> TrainingError:
    """One line that says what to do where that is known, else what happened with the last lines of output."""
    for message in messages:
        if message["kind"] == "error":
            kind = TrainingDiverged if message.get("diverged") else TrainingError
            return kind(message["message"])
    if failure.overran:
        return TrainingError(
            f"training was ended after finetune.timeout_minutes = {settings.timeout_minutes:g}; run again to go on "
            "from the last checkpoint, or allow more"
        )
    reason = messages[0]["message"] if messages else str(failure)
    tail = "\n  ".join(failure.tail)
    return TrainingCrash(f"training failed: {reason}; its last lines were:\n  {tail}")


_CURVE_METRICS = ("loss", "grad_norm", "learning_rate", "mean_token_accuracy", "entropy", "epoch", "ndcg")
"""What repeats exactly; times, rates and counters that start over after a resume stay out of the file."""


def _curve(history: list[dict[str, float]]) -> pl.DataFrame:
    """The Trainer's log as (step, metric, value), each metric of a step once, sorted."""
    wanted = {*_CURVE_METRICS, *(f"eval_{name}" for name in _CURVE_METRICS)}
    rows = [
        {"step": entry["step"], "metric": metric, "value": value}
        for entry in history
        for metric, value in entry.items()
        if metric in wanted
    ]
    return pl.DataFrame(rows, schema=ADAPTER_CURVE).unique(["step", "metric"], keep="last").sort("step", "metric")
