"""A training whose numbers are no longer finite stops, leaves nothing to resume from and is not tried again."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from tasks.session import worth_a_retry
from tests.unit.test_decoding import MICRO, tokenizer
from tripletune.config import FinetuneConfig
from tripletune.errors import TrainingCrash, TrainingDiverged
from tripletune.finetune import launch
from tripletune.finetune.checkpoints import SEAL
from tripletune.finetune.job import TrainingJob
from tripletune.finetune.launch import _explain
from tripletune.finetune.tiny import build_model
from tripletune.finetune.training import _evaluated, _Messenger, _own_arguments, _publish_adapter, _weigh
from tripletune.processes.supervise import ProcessFailed


def job(folder: Path) -> TrainingJob:
    return TrainingJob(
        out=folder,
        train=(),
        evaluation=None,
        base="base",
        hub_revision=None,
        base_name="tiny",
        settings=FinetuneConfig(),
        seed=0,
    )


def model(*, broken: float | None = None, frozen: bool = False) -> torch.nn.Module:
    """Two layers; one value of the second one may be set."""
    layers = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    if broken is not None:
        with torch.no_grad():
            layers[1].weight[1, 2] = broken
    layers[1].requires_grad_(not frozen)
    return layers


def state(step: int) -> Any:
    return SimpleNamespace(global_step=step, max_steps=40, is_world_process_zero=True, is_local_process_zero=True)


@pytest.mark.parametrize("name", ["loss", "grad_norm", "train_loss", "eval_loss"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_logged_figure_that_is_not_finite_stops_the_training(tmp_path: Path, name: str, value: float) -> None:
    messenger = _Messenger(job(tmp_path))
    with pytest.raises(TrainingDiverged, match=rf"is {value} at step 5; lower finetune\.learning_rate") as caught:
        messenger.on_log(None, state(5), None, logs={"loss": 1.5, "learning_rate": 0.1, name: value})
    assert "\n" not in str(caught.value)


def test_finite_logs_are_sent_on_and_a_time_of_zero_is_no_fault(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logs = {"loss": 1e30, "grad_norm": 0.0, "runtime": math.inf}
    _Messenger(job(tmp_path)).on_log(None, state(5), None, logs=logs)
    assert '"step": 5' in capsys.readouterr().out


def test_only_the_first_rank_sends_logs_and_none_without_a_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    messenger = _Messenger(job(tmp_path))
    second = SimpleNamespace(global_step=5, is_world_process_zero=False, is_local_process_zero=False)
    messenger.on_log(None, second, None, logs={"loss": 1.5})
    messenger.on_log(None, state(5), None, logs={"epoch": "one"})
    messenger.on_log(None, state(5), None, logs=None)
    assert capsys.readouterr().out == ""


def test_the_last_step_is_evaluated_once_more_unless_it_just_was() -> None:
    def at(step: int, *history: dict[str, float]) -> Any:
        return SimpleNamespace(global_step=step, log_history=list(history))

    assert _evaluated(at(4, {"step": 2, "loss": 1.0}, {"step": 4, "eval_loss": 0.5}))
    assert not _evaluated(at(4, {"step": 2, "eval_loss": 0.5}, {"step": 4, "loss": 1.0}))
    assert not _evaluated(at(4, {"step": 6, "eval_loss": 0.5}))  # resumed from an older checkpoint
    assert not _evaluated(at(0))


@pytest.mark.parametrize(("step", "name"), [(0, "eval_loss"), (1, "loss"), (1, "grad_norm"), (1, "train_loss")])
def test_what_fails_before_the_first_step_is_over_blames_the_base_model(tmp_path: Path, step: int, name: str) -> None:
    with pytest.raises(TrainingDiverged, match=r"before the first step; check the weights of finetune\.model = 'tiny'"):
        _Messenger(job(tmp_path)).on_log(None, state(step), None, logs={name: math.nan})
    with pytest.raises(TrainingDiverged, match=r"the evaluation loss is nan at step 1; lower finetune\.learning_rate"):
        _Messenger(job(tmp_path)).on_log(None, state(1), None, logs={"eval_loss": math.nan})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_checkpoint_with_broken_weights_is_never_sealed(tmp_path: Path, value: float) -> None:
    arguments = SimpleNamespace(output_dir=str(tmp_path))
    folder = tmp_path / "checkpoint-7"
    folder.mkdir()
    with pytest.raises(TrainingDiverged, match=r"the weight 1\.weight is NaN or infinite after step 7; lower"):
        _Messenger(job(tmp_path)).on_save(arguments, state(7), None, model=model(broken=value))
    assert not (folder / SEAL).exists()
    _Messenger(job(tmp_path)).on_save(arguments, state(7), None, model=model())
    assert (folder / SEAL).exists()


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_an_adapter_with_broken_weights_is_not_written(tmp_path: Path, value: float | None) -> None:
    wanted = job(tmp_path)
    wanted.scratch.mkdir()
    llama = build_model(tokenizer(), MICRO, seed=3)
    adapted = get_peft_model(llama, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    if value is None:
        _publish_adapter(wanted, adapted)
        assert (wanted.adapter / "adapter_model.safetensors").is_file()
        return
    trained = [weight for weight in adapted.parameters() if weight.requires_grad]
    with torch.no_grad():
        trained[-1][0, 1] = value
    with pytest.raises(TrainingDiverged, match=r"lora_B.* is NaN or infinite after the last step; lower"):
        _publish_adapter(wanted, adapted)
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_label_without_a_finite_score_has_no_weight(value: float) -> None:
    """Of examples that no evaluation has seen; a place where no candidate is shown may hold anything."""
    logits, shown = np.zeros((2, 3)), np.array([[True, True, True], [True, True, False]])
    prior, targets = np.log([[0.5, 0.3, 0.2]] * 2), np.array([[1.0, 0.0, 0.0]] * 2)
    trainer: Any = SimpleNamespace(label_logits=lambda _: (logits, prior, targets, shown))
    logits[1, 2] = value
    assert _weigh(trainer, [0, 1])["select_examples"] == 2  # type: ignore[arg-type]
    logits[0, 1] = value
    with pytest.raises(TrainingDiverged, match=r"a label's logit of a valid example is NaN or infinite .*; lower"):
        _weigh(trainer, [0, 1])  # type: ignore[arg-type]


def test_a_gradient_that_is_not_finite_counts_like_a_weight(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-7").mkdir()
    layers = model()
    layers[0].bias.grad = torch.tensor([0.0, math.inf, 0.0, 0.0])
    with pytest.raises(TrainingDiverged, match=r"the gradient of the weight 0\.bias"):
        _Messenger(job(tmp_path)).on_save(SimpleNamespace(output_dir=str(tmp_path)), state(7), None, model=layers)


def test_only_trained_weights_are_looked_at(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-7").mkdir()
    arguments = SimpleNamespace(output_dir=str(tmp_path))
    _Messenger(job(tmp_path)).on_save(arguments, state(7), None, model=model(broken=math.nan, frozen=True))


def test_a_resumed_checkpoint_with_broken_weights_is_refused_and_a_new_training_is_not(tmp_path: Path) -> None:
    messenger = _Messenger(job(tmp_path))
    with pytest.raises(TrainingDiverged, match=r"in the checkpoint of step 20; it was removed: run again"):
        messenger.on_train_begin(None, state(20), None, model=model(broken=math.nan))
    messenger.on_train_begin(None, state(20), None, model=model())


def test_the_trainer_shows_a_loss_that_is_not_finite(tmp_path: Path) -> None:
    assert _own_arguments(job(tmp_path), True, evaluate=True, from_start=True)["logging_nan_inf_filter"] is False


def test_a_diverged_training_leaves_no_checkpoint_to_go_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, wanted = {}, TrainingDiverged

    def fail(command: Any, *, on_line: Any, **_: Any) -> None:
        on_line(
            f'@tripletune {{"kind": "error", "message": "x", "diverged": {str(wanted is TrainingDiverged).lower()}}}'
        )
        raise ProcessFailed("exit code 1", [])

    monkeypatch.setattr(launch, "run_supervised", fail)
    settings = FinetuneConfig(accelerate_config=str(Path(__file__).parents[2] / "configs/accelerate/single.yaml"))
    for wanted in (TrainingDiverged, launch.TrainingError):
        one = job(tmp_path / wanted.__name__).model_copy(update={"settings": settings})
        (one.checkpoints / "checkpoint-5").mkdir(parents=True)
        with pytest.raises(wanted):
            launch._launch(one, None)
        kept[wanted] = one.checkpoints.exists()
    assert kept == {TrainingDiverged: False, launch.TrainingError: True}


def test_a_diverged_training_is_not_retried_but_a_crash_is() -> None:
    def raised(error: Exception) -> Any:
        def result() -> None:
            raise error

        return SimpleNamespace(result=result)

    failure = ProcessFailed("exit code 1", [])
    diverged = _explain(failure, [{"kind": "error", "message": "x", "diverged": True}], FinetuneConfig())
    assert not worth_a_retry(None, None, raised(diverged))
    crash = _explain(failure, [{"kind": "crash", "message": "x"}], FinetuneConfig())
    assert isinstance(crash, TrainingCrash)
    assert worth_a_retry(None, None, raised(crash))
