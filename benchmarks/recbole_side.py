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

# Shape letters in this file: V queries of a block, M films in the order in which ties fall, I RecBole's item numbers
from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import torch
from outside_ranking import TOP, CapReached, Judge, Questions, Recorder
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.data.interaction import Interaction
from recbole.utils import get_model, get_trainer, init_logger, init_seed

SEQUENTIAL = {"SASRec": "sequences", "BERT4Rec": "windows"}
"""Models that read likes in order, and the folder of their rows."""
KNOWLEDGE = ("KGAT", "CKE")


class Scores:
    """RecBole's scores of all films, in the order of the catalogue."""

    def __init__(self, model: Any, film_ids_M: Any, dataset: Any, config: Any) -> None:
        self._model, self._dataset, self._config = model, dataset, config
        tokens = dataset.field2token_id[dataset.iid_field]
        self._item_M = np.array([tokens.get(str(film), -1) for film in film_ids_M])

    @torch.no_grad()
    def __call__(self, asked: Questions, start: int, stop: int) -> Any:
        """``Score`` of ``outside_ranking.py``."""
        self._model.eval()
        users = asked.users[start:stop]
        batch = self._interaction(users, asked.histories[start:stop])
        scores_VI = self._model.full_sort_predict(batch).view(len(users), -1).double().numpy()
        return np.where(self._item_M >= 0, scores_VI[:, self._item_M], -np.inf)

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
    if model in KNOWLEDGE:
        fixed["load_col"] |= {"kg": ["head_id", "relation_id", "tail_id"], "link": ["item_id", "entity_id"]}
    if model in SEQUENTIAL:
        fixed["load_col"]["inter"].append("item_id_list")
        fixed |= {"alias_of_item_id": ["item_id_list"], "train_neg_sample_args": None}
    return fixed | further


def counts(dataset: Any, model: Any) -> dict[str, int]:
    """What RecBole really trains on: rows, triples (without reverse ones) and entities, and the model's size."""
    told = {"rows": len(dataset), "parameters": sum(weights.numel() for weights in model.parameters())}
    if hasattr(dataset, "kg_feat"):
        both = 2 if dataset.kg_reverse_r else 1
        told |= {"triples": len(dataset.kg_feat) // both, "linked": len(dataset.item2entity)}
    return told


def speak_as_older_dgl() -> None:
    """RecBole's KGAT calls two functions of DGL with arguments that DGL 1 has renamed."""
    import dgl

    cut = dgl.edge_subgraph
    dgl.edge_subgraph = lambda graph, edges, preserve_nodes: cut(graph, edges, relabel_nodes=not preserve_nodes)
    dgl.DGLGraph.adjacency_matrix = dgl.DGLGraph.adj_external


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--settings", default="{}", help="RecBole settings in JSON")
    parser.add_argument(
        "--cap-seconds", type=float, default=3600.0, help="CPU seconds of training and evaluation, then it stops"
    )
    parser.add_argument("--seed", type=int, default=7)
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)

    folder = SEQUENTIAL.get(asked.model, "likes")
    settings = settings_for(asked.job, asked.out, asked.model, asked.seed, json.loads(asked.settings))
    config = Config(model=asked.model, dataset=folder, config_dict=settings)
    init_seed(config["seed"], config["reproducibility"])
    init_logger(config)
    dataset = create_dataset(config)
    train_data, valid_data, _ = data_preparation(config, dataset)
    if asked.model == "KGAT":
        speak_as_older_dgl()
    init_seed(config["seed"], config["reproducibility"])
    started = time.perf_counter()
    # models in closed form do their work here
    model = get_model(config["model"])(config, train_data._dataset).to(config["device"])
    setup_seconds = time.perf_counter() - started
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    judge = Judge(asked.job)
    recorder = Recorder(judge, Scores(model, judge.film_ids_M, dataset, config), asked.out, asked.cap_seconds)
    train_epoch = trainer._train_epoch

    def timed(*args: Any, **kwargs: Any) -> Any:
        recorder.start()
        loss = train_epoch(*args, **kwargs)
        recorder.stop()
        return loss

    def after_epoch(epoch: int, own_score: float) -> None:
        """RecBole calls it after each of its evaluations, epochs counted from 0."""
        recorder.record(epoch + 1, recbole_valid_ndcg_at_10=float(own_score))

    told = {"model": asked.model, "settings": json.loads(asked.settings), "seed": asked.seed, "ended": "cut off"}
    told |= {"setup_seconds": round(setup_seconds, 3), "threads": torch.get_num_threads()}
    told |= counts(train_data._dataset, model)
    told["versions"] = {"torch": torch.__version__, "numpy": np.__version__, "scipy": scipy.__version__}
    trainer._train_epoch = timed
    done = asked.out / "done.json"
    done.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    try:
        trainer.fit(train_data, valid_data, saved=False, verbose=True, callback_fn=after_epoch)
        told["ended"] = "early stopping" if len(trainer.train_loss_dict) < trainer.epochs else "last epoch"
    except CapReached:
        told["ended"] = f"capped at {asked.cap_seconds:.0f} CPU s"
    done.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
