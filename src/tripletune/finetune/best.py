"""The evaluated step that ranks best: which one it is, its weights, and when to stop waiting for a better one.

Everything is decided from the Trainer's log, which all ranks have and which lies in each checkpoint, so that ranks
agree and a resumed training decides as one that was never killed. The step before the first is the base model: it is
evaluated for comparison, and is never the best.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import PartialState
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME

from tripletune.finetune.checkpoints import last_whole
from tripletune.finetune.job import TrainingJob
from tripletune.finetune.sharding import give_weights, trained_weights
from tripletune.store.files import write_atomically

History = Sequence[Mapping[str, Any]]
"""``log_history`` of the Trainer."""


@dataclass(frozen=True, slots=True)
class Best:
    """The best evaluation of a training so far."""

    step: int
    loss: float
    ndcg: float | None
    """None: the objective ranks nothing while it trains, and the loss decides."""
    waited: int
    """Evaluations since then."""

    @property
    def label(self) -> dict[str, str]:
        """What a file of its weights says of itself."""
        return {"step": str(self.step), "eval_loss": repr(self.loss), "eval_ndcg": repr(self.ndcg)}


def best_of(history: History) -> Best | None:
    """The best evaluation after a step: of the highest ``eval_ndcg``, of equals of the lowest ``eval_loss``, of these
    the first; by the loss alone where no nDCG is logged. None: there is none yet."""
    evaluations = [entry for entry in history if "eval_loss" in entry and entry["step"] > 0]
    if not evaluations:
        return None
    best = min(evaluations, key=lambda entry: (-entry.get("eval_ndcg", 0.0), entry["eval_loss"], entry["step"]))
    waited = sum(entry["step"] > best["step"] for entry in evaluations)
    return Best(int(best["step"]), best["eval_loss"], best.get("eval_ndcg"), waited)


class BestKeeper(TrainerCallback):  # type: ignore[misc]  # the library has no types
    """Keeps the weights of the best step, and ends a training that waits too long for a better one.

    A file holds the trained weights of one step, with its scores. That of the best step at the newest checkpoint stays
    until a newer checkpoint is written, as a resumed training knows no later one.

    Args:
        job: ``settings.keep`` says whether weights are kept, ``settings.patience`` when to stop.
    """

    def __init__(self, job: TrainingJob) -> None:
        self._folder, self._keeps, self._patience = job.best, job.settings.keep == "best", job.settings.patience
        self._at_checkpoint: Best | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Take the best step of the log that a resumed training begins with."""
        self._at_checkpoint = best_of(state.log_history)

    def on_evaluate(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Keep the weights of a step that is the best, and stop after ``patience`` evaluations without one."""
        best = best_of(state.log_history)
        if best is None:
            return
        if self._keeps and best.step == state.global_step:
            weights = trained_weights(model)  # of every rank, each of which may hold but a part
            if state.is_local_process_zero:  # of each machine, on whose disk the others read nothing
                _save(self._folder, best, weights)
                self._remove_all_but(best, self._at_checkpoint)
            PartialState().wait_for_everyone()  # a rank that trained on could read the file before it is whole
        if self._patience and best.waited >= self._patience and state.global_step < state.max_steps:
            control.should_training_stop = True
            # no checkpoint is past the decision: a resumed training would take one more step from it
            control.should_save = False

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Remove all but the best step at this checkpoint."""
        self._at_checkpoint = best_of(state.log_history)
        if self._keeps and state.is_local_process_zero:
            self._remove_all_but(self._at_checkpoint)

    def _remove_all_but(self, *kept: Best | None) -> None:
        names = {_file(self._folder, best).name for best in kept if best is not None}
        for file in self._folder.glob("*"):
            if file.name not in names:
                file.unlink()


def resumable(job: TrainingJob) -> Path | None:
    """The newest whole checkpoint; None where there is none, or the weights of its best step are missing."""
    newest = last_whole(job.checkpoints)
    if newest is None or job.settings.keep != "best":
        return newest
    history = json.loads((newest / TRAINER_STATE_NAME).read_text(encoding="utf-8"))["log_history"]
    best = best_of(history)
    return newest if best is None or _holds(_file(job.best, best), best) else None


def restore_published(job: TrainingJob, trainer: Any) -> int:
    """Give the model of every rank, each of which must call it, the weights that are published.

    Returns:
        Their step.
    """
    best = best_of(trainer.state.log_history)
    if job.settings.keep == "last" or best is None:
        return int(trainer.state.global_step)
    give_weights(trainer.model, load_file(_file(job.best, best)))
    return best.step


def evaluation_facts(state: Any, published: int) -> dict[str, float | bool | None]:
    """Facts for the manifest: train_loss (the last logged one), eval_loss and eval_ndcg before the first step and of
    the published one, published_step, stopped_early; where a step was evaluated best_step and best_ndcg, whether or not
    that is the published one, and best_beats_start, whether it is better than the base model.

    Args:
        state: of the Trainer, at the end.
        published: the step whose weights are published.
    """
    losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
    evaluations = [entry for entry in state.log_history if "eval_loss" in entry]
    after = [entry for entry in evaluations if entry["step"] == published]
    facts: dict[str, float | bool | None] = {
        "train_loss": losses[-1] if losses else None,
        "eval_loss_before": evaluations[0]["eval_loss"] if evaluations else None,
        "eval_loss": after[-1]["eval_loss"] if after else None,
        "published_step": published,
        "stopped_early": state.global_step < state.max_steps,
    }
    best = best_of(state.log_history)
    if best is None:
        return facts
    facts |= {"best_step": best.step, "best_beats_start": _beats(best, evaluations[0])}
    if best.ndcg is not None:
        facts |= {"eval_ndcg_before": evaluations[0]["eval_ndcg"], "eval_ndcg": after[-1]["eval_ndcg"]}
        facts["best_ndcg"] = best.ndcg
    return facts


def _beats(best: Best, start: Mapping[str, Any]) -> bool:
    """Whether a step is better than the base model, which is evaluated before the first one."""
    return (-(best.ndcg or 0.0), best.loss) < (-start.get("eval_ndcg", 0.0), start["eval_loss"])


def _save(folder: Path, best: Best, weights: Mapping[str, Tensor]) -> None:
    tensors = {name: weight.cpu().contiguous() for name, weight in weights.items()}
    folder.mkdir(exist_ok=True)
    write_atomically(_file(folder, best), partial(save_file, tensors, metadata=best.label))


def _file(folder: Path, best: Best) -> Path:
    return folder / f"step-{best.step}.safetensors"


def _holds(file: Path, best: Best) -> bool:
    """Whether a file is whole and of this evaluation."""
    try:
        with safe_open(file, framework="pt") as opened:
            return bool(opened.metadata() == best.label)
    except (OSError, SafetensorError):
        return False
