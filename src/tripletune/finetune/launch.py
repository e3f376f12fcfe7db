"""The finetune stage: prompt shards in, LoRA adapter with its contract and loss curve out.

Training runs in processes of its own, started by ``accelerate launch``: the stage may live in a thread of an
orchestrator, and several GPUs need several processes anyway.
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl

from tripletune.behaviour.tables import FILMS
from tripletune.chat import DATE
from tripletune.config import FinetuneConfig
from tripletune.contract import AdapterContract, Residual, write_contract
from tripletune.errors import TrainingCrash, TrainingDiverged, TrainingError
from tripletune.finetune.checkpoints import last_whole
from tripletune.finetune.job import TrainingJob
from tripletune.finetune.live_log import LiveLog, OnLog
from tripletune.finetune.prepare import FilmSource, Prepared, prepare
from tripletune.finetune.ranks import accumulated_batches, read_ranks, write_launch_config
from tripletune.finetune.shards import Examples, FurtherForms, prior_of, read_examples
from tripletune.finetune.token_files import write_token_files
from tripletune.finetune.trainer_settings import check_trainer_settings
from tripletune.finetune.warm import Champion, reuse_champion, select_new, write_trained_examples
from tripletune.processes.messages import receive
from tripletune.processes.supervise import ProcessFailed, clean_environment, end_noted, run_supervised
from tripletune.progress import Progress
from tripletune.quantization import check_quantization
from tripletune.store.files import write_json
from tripletune.store.parquet import write_parquet
from tripletune.store.paths import SCRATCH, Facts

PATIENCE_SECONDS = 120.0
"""How long a finished training waits for points of its live curve that the tracking server has not taken."""
_SHORT_PATIENCE_SECONDS = 5.0
"""The same for a training that failed or was stopped."""
ADAPTER_CURVE = pl.Schema({"step": pl.Int32, "metric": pl.String, "value": pl.Float64})

log = logging.getLogger(__name__)


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
        Facts of ``warm.select_new`` and ``training.train``, and with behaviour tokens behaviour_films and
        behaviour_cosine; none but on machine 0.

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
    examples = read_examples(shards, settings, seed, weighs=forms is None)  # an ensemble has its own weights
    scratch = out / SCRATCH
    scratch.mkdir(parents=True, exist_ok=True)
    end_noted(scratch / "launcher.json")
    chosen, start_facts = select_new(examples.train, champion, scratch / "new")
    if champion and not chosen:
        return reuse_champion(champion, out)
    further = forms.files if forms else []
    # the short forms first: the tokenizer of a tiny model learns their labels from them
    words = [*further, *examples.train]
    prepared = prepare(words, out, settings, seed, base=base, behaviour=behaviour, champion=champion)
    to_train = [*chosen, *further]
    job = _job(out, to_train, examples, prepared, prompt_contract, settings, seed, teacher=teacher, champion=champion)
    _take_over(job)
    for path, rows in ((job.evaluation, examples.evaluation), (job.select, examples.select)):
        if path:
            write_parquet(path, rows)
    if not (job.result.is_file() and job.adapter.is_dir()):
        write_token_files(job)
        _launch(job, on_log, machine)
    if machine:
        return Facts()
    result = json.loads(job.result.read_text(encoding="utf-8"))
    write_parquet(out / "curve.parquet", _curve(result["history"]))
    write_trained_examples(out, chosen, champion)
    facts: Facts = result["facts"] | prepared.facts | start_facts
    if facts.get("best_beats_start") is False:
        log.warning("finetune: no evaluated step is better than the model before training; see curve.parquet")
    residual = _residual(job, facts)
    contract = _contract(settings, prepared, prompt_contract, lineage, facts["dtype"], residual)
    write_contract(out, contract.model_copy(update={"ensemble": forms.ensemble}) if forms else contract)
    return facts


def _job(
    out: Path,
    chosen: Sequence[Path],
    examples: Examples,
    prepared: Prepared,
    prompt_contract: Mapping[str, Any],
    settings: FinetuneConfig,
    seed: int,
    *,
    teacher: Path | None,
    champion: Champion | None,
) -> TrainingJob:
    """The job of the training processes; ``chosen`` are the shards to train on."""
    scratch, space = out / SCRATCH, prepared.space
    num_candidates = int(prompt_contract["num_candidates"])
    return TrainingJob(
        out=out,
        train=tuple(chosen),
        evaluation=scratch / "evaluation.parquet" if len(examples.evaluation) else None,
        select=scratch / "select.parquet" if len(examples.select) else None,
        prior=prior_of(examples.train, num_candidates) if settings.scores_labels else (),
        films=scratch / FILMS if space else None,
        film_columns=space.columns if space else (),
        teacher=teacher / "train" if teacher else None,
        answer_style=str(prompt_contract["answer_style"]),
        base=prepared.identity.source,
        hub_revision=prepared.identity.hub_revision,
        base_name=prepared.base_name,
        start=champion.adapter if champion else None,
        settings=settings,
        seed=seed,
    )


def _residual(job: TrainingJob, facts: Facts) -> Residual | None:
    """How the retriever's scores are added to the model's: with the weight found on valid examples, or where no valid
    example selects one, as in the training, whose loss is over the plain sum."""
    trained_as_sum = job.settings.scores_labels and job.settings.residual
    weight = facts.get("weight", job.settings.residual_weight if trained_as_sum else None)
    return None if weight is None else Residual(prior=job.prior, weight=weight)


def _contract(
    settings: FinetuneConfig,
    prepared: Prepared,
    prompt_contract: Mapping[str, Any],
    lineage: Mapping[str, str],
    dtype: str,
    residual: Residual | None,
) -> AdapterContract:
    base = prepared.identity
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
        behaviour=prepared.space,
        lineage=dict(lineage),
    )


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
        if message["kind"] == "begin":
            progress.begin(int(message["step"]), int(message["of"]))
        elif message["kind"] == "log":
            progress.reach(int(message["step"]), _note(message["metrics"]))
            if live is not None:
                live.put(int(message["step"]), message["metrics"])
        elif message["kind"] in ("error", "crash"):
            messages.append(message)
        return True

    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config_file)]
    if ranks.machines > 1:  # which by torchrun's own limit wait ten minutes for each other
        launcher += ["--rdzv_conf", f"timeout={round(60 * job.settings.ddp_timeout_minutes)}"]
    try:
        with _live_log(on_log) as live, Progress("finetune", 0, at_most=bool(job.settings.patience)) as progress:
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


_NOTED = {"loss": "loss {:.4g}", "eval_loss": "evaluation loss {:.4g}", "tokens_per_second": "{:,.0f} tokens/s"}
"""Logged figures that a line of progress shows, and how."""


def _note(metrics: Mapping[str, float]) -> str:
    return ", ".join(form.format(metrics[name]) for name, form in _NOTED.items() if name in metrics)


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
