"""Train one of RecTools' sequence models in its own environment, and rank for our queries with its scores.

    RECTOOLS_PYTHON benchmarks/rectools_side.py JOB OUT --model eSASRec --settings '{"lr": 0.001}' --cap-seconds 3600

JOB and OUT as in ``recbole_side.py``. RecTools builds the model, its batches and its loss, and trains by its own
Lightning trainer; after each epoch its scores are masked and ranked as ours are, and training ends when valid
ndcg_at_10 has not improved for ``PATIENCE`` epochs; RecTools has no rule of its own.

Models: ``SASRec``; ``eSASRec`` (arXiv 2508.06450: SASRec with LiGR blocks and sampled softmax); ``HSTU`` with biases by
position; ``HSTU-time`` by time as well, which is given the time of the request, the answer's own.

It imports nothing of tripletune; ``rectools-requirements.txt`` lists what is installed there.
"""

# Shape letters in this file: V queries of a block, L places of a sequence, M films in the order in which ties fall,
# I RecTools' item numbers
from __future__ import annotations

import argparse
import json
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytorch_lightning
import rectools
import torch
from outside_ranking import CapReached, Judge, Questions, Recorder
from pytorch_lightning.callbacks import Callback
from rectools.dataset import Dataset
from rectools.models import HSTUModel, SASRecModel
from rectools.models.nn.transformers.ligr import LiGRLayers

PATIENCE = 10
"""Epochs, as RecBole's ``stopping_step``."""
FIXED: dict[str, dict[str, Any]] = {
    "SASRec": {"loss": "softmax"},
    "eSASRec": {"transformer_layers_type": LiGRLayers, "loss": "sampled_softmax", "n_negatives": 64},
    "HSTU": {"relative_time_attention": False, "loss": "softmax"},
    "HSTU-time": {"relative_time_attention": True, "loss": "softmax"},
}
SHARED = {"n_blocks": 2, "n_heads": 2, "session_max_len": 100, "batch_size": 32}
"""Two blocks and heads as RecBole's SASRec; the length is RecTools' default (older rows of a user are cut off); small
batches, as there are few users."""
LOGITS_T = 0.05
"""HSTU's scores are cosines; RecTools leaves their temperature to the caller (the paper has .05)."""


class Scores:
    """RecTools' scores of all films, in the order of the catalogue."""

    def __init__(self, model: Any, film_ids_M: Any, *, request_time: bool) -> None:
        self._model, self._film_ids_M, self._request_time = model, film_ids_M, request_time
        self._item_of: dict[int, int] = {}

    @torch.no_grad()
    def __call__(self, asked: Questions, start: int, stop: int) -> Any:
        """``Score`` of ``outside_ranking.py``."""
        net, length = self._model.torch_model.eval(), self._model.session_max_len
        if not self._item_of:
            external = self._model.data_preparator.item_id_map.external_ids
            self._item_of = {film: item for item, film in enumerate(external) if not isinstance(film, str)}
        items_VL = np.zeros((stop - start, length), dtype=np.int64)
        times_VL = np.zeros((stop - start, length + 1), dtype=np.int64)
        for row in range(stop - start):
            told = zip(asked.histories[start + row].tolist(), asked.times[start + row].tolist(), strict=True)
            known = [(self._item_of[film], time) for film, time in told if film in self._item_of][-length:]
            if known:
                items_VL[row, -len(known) :] = [item for item, _ in known]
                times_VL[row, -len(known) - 1 : -1] = [time for _, time in known]
                times_VL[row, : length - len(known)] = known[0][1]
                times_VL[row, -1] = asked.request_time_U[start + row] if self._request_time else known[-1][1]
        batch = {"x": torch.from_numpy(items_VL), "unix_ts": torch.from_numpy(times_VL)}
        vectors_I = net.item_model.get_all_embeddings()
        session_V = net.encode_sessions(batch, vectors_I)[:, -1:, :]
        scores_VI = net.similarity_module(session_V, vectors_I)[:, 0].double().numpy()
        net.train()
        item_M = np.array([self._item_of.get(film, -1) for film in self._film_ids_M.tolist()])
        return np.where(item_M >= 0, scores_VI[:, item_M], -np.inf)


class Epochs(Callback):
    """Time each epoch, evaluate after it, and stop."""

    recorder: Recorder
    """Set when the model exists, whose constructor asks for its trainer."""

    def __init__(self) -> None:
        self.ended = "last epoch"

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Lightning's hook."""
        self.recorder.start()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Lightning's hook; its epochs count from 0."""
        recorder, epoch = self.recorder, trainer.current_epoch + 1
        recorder.stop()
        try:
            recorder.record(epoch)
        except CapReached:
            self.ended, trainer.should_stop = "capped", True
        if epoch - recorder.best_epoch >= PATIENCE:
            self.ended, trainer.should_stop = "early stopping", True

    def __deepcopy__(self, memo: dict[int, Any]) -> Epochs:
        """RecTools trains with a deep copy of its trainer; there is one record of it."""
        return self


def interactions(job: Path) -> pd.DataFrame:
    """The training rows, each user's oldest first; RecTools sorts by time and leaves equal times in this order."""
    stored = np.load(job / "questions.npz")
    columns = {"user_id": stored["train_user"], "item_id": stored["train_movie"], "weight": 1.0}
    return pd.DataFrame({**columns, "datetime": pd.to_datetime(stored["train_time"], unit="s")})


def build(model: str, settings: dict[str, Any], callback: Callback, epochs: int) -> Any:
    """RecTools' model; ``settings`` are arguments of its class."""

    def trainer() -> Any:
        told = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
        return pytorch_lightning.Trainer(
            max_epochs=epochs, accelerator="cpu", devices=1, logger=False, callbacks=[callback], **told
        )

    kind = HSTUModel if model.startswith("HSTU") else SASRecModel
    lightning = {"lightning_module_kwargs": {"logits_t": LOGITS_T}} if kind is HSTUModel else {}
    return kind(**{**SHARED, **FIXED[model], **lightning, **settings}, get_trainer_func=trainer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", required=True, choices=list(FIXED))
    parser.add_argument("--settings", default="{}", help="arguments of RecTools' class in JSON")
    parser.add_argument(
        "--cap-seconds", type=float, default=3600.0, help="CPU seconds of training and evaluation, then it stops"
    )
    parser.add_argument("--epochs", type=int, default=500, help="at most")
    parser.add_argument("--seed", type=int, default=7)
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)

    pytorch_lightning.seed_everything(asked.seed)
    settings = json.loads(asked.settings)
    judge = Judge(asked.job)
    epochs = Epochs()
    model = build(asked.model, settings, epochs, asked.epochs)
    scores = Scores(model, judge.film_ids_M, request_time=asked.model == "HSTU-time")
    epochs.recorder = Recorder(judge, scores, asked.out, asked.cap_seconds)
    told = {"model": asked.model, "settings": settings, "seed": asked.seed, "ended": "cut off"}
    told |= {"threads": torch.get_num_threads()}
    told["versions"] = {"rectools": rectools.__version__, "torch": torch.__version__, "numpy": np.__version__}
    done = asked.out / "done.json"
    done.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    model.fit(Dataset.construct(interactions(asked.job)))
    told["ended"] = epochs.ended
    done.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
