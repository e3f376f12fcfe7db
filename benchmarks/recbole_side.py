"""Train one of RecBole's models in its own environment, and rank for our queries with its scores.

    RECBOLE_PYTHON benchmarks/recbole_side.py JOB OUT --model LightGCN --settings '{"n_layers": 3}' --cap-seconds 3600

JOB is a folder that ``recbole_export.py`` wrote: RecBole's files, and ``questions.npz``. RecBole trains and stops early
by its own rules. After each of its epochs its scores are masked and ranked as ours are, and OUT gets

- ``curve.jsonl``: a line per epoch with the wall and CPU seconds of training so far (without evaluation) and the
  valid ndcg_at_10 under our mask; a run that is cut off keeps what it had,
- ``top_valid.npy`` and ``top_test.npy``: film ids (U, 20) at the best epoch by that, -1 at the end of a short row,
- ``done.json``: the arguments, why it stopped, and the versions.

It imports nothing of tripletune, which is not installed there; ``recbole-requirements.txt`` lists what is.
"""

# Shape letters in this file: U queries, V queries of a block, M films in the order in which ties fall, I RecBole's
# item numbers, S rated rows, K places of a list
from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.data.interaction import Interaction
from recbole.utils import get_model, get_trainer, init_logger, init_seed

LENGTH = 20
TOP = 10
BLOCK = 256
SEQUENTIAL = ("SASRec",)


@dataclass(frozen=True)
class Questions:
    """Queries to rank films for: films as columns of ``film_ids_M``."""

    users: Any
    answer_U: Any
    seen_row_S: Any
    seen_column_S: Any
    histories: list[Any]


def read_questions(path: Path, purpose: str, film_ids_M: Any) -> Questions:
    """Queries of one purpose, sorted by user."""
    stored = np.load(path)
    order = np.argsort(film_ids_M)

    def columns(movies: Any) -> Any:
        return order[np.searchsorted(film_ids_M, movies, sorter=order)]

    ends = np.cumsum(np.bincount(stored[f"{purpose}_history_row"], minlength=len(stored[f"{purpose}_user"])))
    return Questions(
        stored[f"{purpose}_user"],
        columns(stored[f"{purpose}_answer"]),
        stored[f"{purpose}_seen_row"],
        columns(stored[f"{purpose}_seen_movie"]),
        np.split(stored[f"{purpose}_history_movie"], ends[:-1]),
    )


class Judge:
    """Masks and ranks a model's scores as tripletune does."""

    def __init__(self, job: Path, dataset: Any, config: Any) -> None:
        self._film_ids_M = np.load(job / "questions.npz")["film_ids"]
        self._dataset, self._config = dataset, config
        tokens = dataset.field2token_id[dataset.iid_field]
        self._item_M = np.array([tokens.get(str(film), -1) for film in self._film_ids_M])
        self._questions = {
            purpose: read_questions(job / "questions.npz", purpose, self._film_ids_M) for purpose in ("valid", "test")
        }

    def ndcg(self, model: Any) -> float:
        """Mean valid ndcg_at_10; a tie counts as lost."""
        asked = self._questions["valid"]
        gains = []
        for start, scores_VM in self._scores(model, asked):
            answer_V = asked.answer_U[start : start + len(scores_VM)]
            wanted_V1 = np.take_along_axis(scores_VM, answer_V[:, None], axis=1)
            rank_V = (self._mask(scores_VM, asked, start) >= wanted_V1).sum(axis=1)
            # a film that is not in RecBole's files has no rank at all
            gains.append(
                np.where((rank_V <= TOP) & (wanted_V1[:, 0] > -np.inf), 1 / np.log2(np.maximum(rank_V, 1) + 1.0), 0.0)
            )
        return float(np.concatenate(gains).mean())

    def top(self, model: Any, purpose: str) -> Any:
        """Film ids (U, 20), best first; of equal scores the lower column wins."""
        asked = self._questions[purpose]
        lists = []
        for start, scores_VM in self._scores(model, asked):
            self._mask(scores_VM, asked, start)
            top_VK = np.argsort(-scores_VM, axis=1, kind="stable")[:, :LENGTH]
            known_VK = np.take_along_axis(scores_VM, top_VK, axis=1) > -np.inf
            lists.append(np.where(known_VK, self._film_ids_M[top_VK], -1))
        return np.concatenate(lists)

    def _mask(self, scores_VM: Any, asked: Questions, start: int) -> Any:
        first, last = np.searchsorted(asked.seen_row_S, [start, start + len(scores_VM)])
        scores_VM[asked.seen_row_S[first:last] - start, asked.seen_column_S[first:last]] = -np.inf
        return scores_VM

    @torch.no_grad()
    def _scores(self, model: Any, asked: Questions) -> Iterator[tuple[int, Any]]:
        model.eval()
        for start in range(0, len(asked.users), BLOCK):
            users = asked.users[start : start + BLOCK]
            batch = self._interaction(users, asked.histories[start : start + BLOCK])
            scores_VI = model.full_sort_predict(batch).view(len(users), -1).double().numpy()
            yield start, np.where(self._item_M >= 0, scores_VI[:, self._item_M], -np.inf)

    def _interaction(self, users: Any, histories: list[Any]) -> Any:
        dataset, config = self._dataset, self._config
        batch = {dataset.uid_field: torch.tensor([dataset.token2id(dataset.uid_field, str(user)) for user in users])}
        if config["model"] in SEQUENTIAL:
            longest = config["MAX_ITEM_LIST_LENGTH"]
            items = torch.zeros(len(users), longest, dtype=torch.long)
            lengths = torch.zeros(len(users), dtype=torch.long)
            for row, history in enumerate(histories):
                known = [dataset.token2id(dataset.iid_field, str(film)) for film in history[-longest:]]
                items[row, : len(known)] = torch.tensor(known)
                lengths[row] = len(known)
            batch[config["ITEM_ID_FIELD"] + config["LIST_SUFFIX"]] = items
            batch[config["ITEM_LIST_LENGTH_FIELD"]] = lengths
        return Interaction(batch)


class CapReached(Exception):
    """The run has trained for as long as it may."""


class Recorder:
    """Times training epochs from outside, and keeps the curve and the best lists on disk as they come."""

    def __init__(self, trainer: Any, judge: Judge, out: Path, cap_seconds: float) -> None:
        self._model, self._judge, self._out, self._cap = trainer.model, judge, out, cap_seconds
        self._seconds = self._cpu = 0.0
        self._best = -1.0
        self._started = time.perf_counter()
        (out / "curve.jsonl").unlink(missing_ok=True)
        trainer._train_epoch = self._timed(trainer._train_epoch)

    def _timed(self, train_epoch: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            wall, cpu = time.perf_counter(), time.process_time()
            loss = train_epoch(*args, **kwargs)
            self._seconds += time.perf_counter() - wall
            self._cpu += time.process_time() - cpu
            return loss

        return timed

    def after_epoch(self, epoch: int, own_score: float) -> None:
        """RecBole calls this after each of its evaluations, epochs counted from 0.

        Raises:
            CapReached: training and evaluation have taken the seconds they may.
        """
        ndcg = self._judge.ndcg(self._model)
        line = {
            "epoch": epoch + 1,
            "train_seconds": round(self._seconds, 3),
            "train_cpu_seconds": round(self._cpu, 3),
            "valid_ndcg_at_10": ndcg,
            "recbole_valid_ndcg_at_10": float(own_score),
            "seconds_with_evaluation": round(time.perf_counter() - self._started, 3),
        }
        with (self._out / "curve.jsonl").open("a", encoding="utf-8") as curve:
            curve.write(json.dumps(line) + "\n")
        if ndcg > self._best:
            self._best = ndcg
            for purpose in ("valid", "test"):
                np.save(self._out / f"top_{purpose}.npy", self._judge.top(self._model, purpose))
        if time.perf_counter() - self._started > self._cap:
            raise CapReached


def settings_for(job: Path, out: Path, model: str, seed: int, further: dict[str, Any]) -> dict[str, Any]:
    """RecBole's configuration: files that are split already, its full ranking, CPU."""
    fixed: dict[str, Any] = {
        "data_path": str(job),
        "benchmark_filename": ["train", "valid", "test"],
        "USER_ID_FIELD": "user_id",
        "ITEM_ID_FIELD": "item_id",
        "load_col": {"inter": ["user_id", "item_id"]},
        "eval_args": {"split": {"LS": "valid_and_test"}, "group_by": "user", "order": "TO", "mode": "full"},
        "metrics": ["NDCG"],
        "topk": [TOP],
        "valid_metric": f"NDCG@{TOP}",
        "metric_decimal_place": 10,
        "eval_batch_size": 1 << 20,
        "stopping_step": 10,
        "epochs": 500,
        "use_gpu": False,
        "show_progress": False,
        "seed": seed,
        "checkpoint_dir": str(out / "checkpoints"),
    }
    if model in SEQUENTIAL:
        fixed["load_col"]["inter"].append("item_id_list")
        fixed |= {"alias_of_item_id": ["item_id_list"], "train_neg_sample_args": None}
    return fixed | further


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--settings", default="{}", help="RecBole settings in JSON")
    parser.add_argument("--cap-seconds", type=float, default=3600.0, help="of training and evaluation, then it stops")
    parser.add_argument("--seed", type=int, default=7)
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)

    folder = "sequences" if asked.model in SEQUENTIAL else "likes"
    settings = settings_for(asked.job, asked.out, asked.model, asked.seed, json.loads(asked.settings))
    config = Config(model=asked.model, dataset=folder, config_dict=settings)
    init_seed(config["seed"], config["reproducibility"])
    init_logger(config)
    dataset = create_dataset(config)
    train_data, valid_data, _ = data_preparation(config, dataset)
    init_seed(config["seed"], config["reproducibility"])
    started = time.perf_counter()
    # models in closed form do their work here
    model = get_model(config["model"])(config, train_data._dataset).to(config["device"])
    setup_seconds = time.perf_counter() - started
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    recorder = Recorder(trainer, Judge(asked.job, dataset, config), asked.out, asked.cap_seconds)
    told = {"model": asked.model, "settings": json.loads(asked.settings), "seed": asked.seed, "ended": "cut off"}
    told |= {"setup_seconds": round(setup_seconds, 3), "threads": torch.get_num_threads()}
    told["versions"] = {"torch": torch.__version__, "numpy": np.__version__, "scipy": scipy.__version__}
    done = asked.out / "done.json"
    done.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    try:
        trainer.fit(train_data, valid_data, saved=False, verbose=True, callback_fn=recorder.after_epoch)
        told["ended"] = "early stopping" if len(trainer.train_loss_dict) < trainer.epochs else "last epoch"
    except CapReached:
        told["ended"] = f"capped at {asked.cap_seconds:.0f} s"
    done.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
