"""The trainings that the retrieval benchmarks compare: points of RecBole's grid, and LightGCN as we train it.

Ours are trained by the trainer's own steps, apart from the stage, so that every step can be timed and evaluated.
"""

# Shape letters in this file: U users, M films
from __future__ import annotations

import json
import time
from itertools import product
from pathlib import Path

import numpy as np
import polars as pl
import torch
from recbole_export import Asked, read_only_users, training_likes
from retrieval_runs import LENGTH, Ints

from tripletune.config import LightGCNConfig
from tripletune.models.lightgcn.fit import LightGCNTrainer
from tripletune.models.lightgcn.model import POOL_POWER
from tripletune.models.lightgcn.serve import LightGCNFit
from tripletune.models.serving.catalogue import Catalogue, Likes
from tripletune.models.serving.topk import Ragged, product_blocks, top_columns
from tripletune.models.training.interactions import read_interactions
from tripletune.models.training.loop import judge

RECOMMENDED = {"learning_rate": 0.002, "n_layers": 3, "reg_weight": 1e-4, "train_batch_size": 4096}
"""RecBole's own result of tuning LightGCN on ML-1M (results/general/ml-1m.md of RecBole-GNN)."""
GRID = [
    RECOMMENDED | {"n_layers": layers, "learning_rate": rate} for layers, rate in product((3, 2), (0.002, 0.005, 0.001))
]
"""The layers and learning rates that it was tuned over."""
OURS = {
    "BPR": LightGCNConfig(
        loss="bpr", recency_half_life=0, temperature=1.0, learning_rate=0.1, weight_decay=0, max_steps=400
    ),
    "softmax": LightGCNConfig(recency_half_life=0),
    "softmax, recency": LightGCNConfig(),
}
"""The published loss has no temperature; its learning rate and decay were chosen on valid, see the report."""


def train_ours(split: Path, out: Path, variant: str, seed: int) -> None:
    """Train fit B by the trainer's own steps and rules; evaluate after every step, so that the curve is fine.

    The best step is still chosen among the trainer's own evaluations, one in ``eval_every``.
    """
    settings = OURS[variant]
    interactions = read_interactions(split)
    started = time.perf_counter()
    trainer = LightGCNTrainer(interactions.fits["b"], interactions.num_movies, settings, 2 * seed + 1)
    setup, wall, cpu, best, worse, curve = time.perf_counter() - started, 0.0, 0.0, -1.0, 0, []
    for step in range(1, settings.max_steps + 1):
        started, started_cpu = time.perf_counter(), time.process_time()
        trainer.step()
        wall, cpu = wall + time.perf_counter() - started, cpu + time.process_time() - started_cpu
        ndcg = judge(trainer, interactions.valid)
        curve.append({"step": step, "train_seconds": wall, "train_cpu_seconds": cpu, "valid_ndcg_at_10": ndcg})
        if step % settings.eval_every:
            continue
        if ndcg > best:
            best, worse, tensors = ndcg, 0, trainer.export()
        else:
            worse += 1
        if worse == settings.patience:
            break
    catalogue = Catalogue(interactions.movie_ids_M, seed)
    in_order = {name: tensor[torch.from_numpy(catalogue.order_M)] for name, tensor in tensors.items()}
    fit = LightGCNFit(
        catalogue=catalogue,
        pool_vectors_MD=in_order["pool_vectors"],
        bias_M=in_order["movie_bias"],
        movie_vectors_MD=in_order["movie_vectors"],
        half_life=settings.recency_half_life,
        power=POOL_POWER,
    )
    asked, valid = read_only_users(split, "test"), read_only_users(split, "valid")
    trained = training_likes(interactions).with_columns(age=pl.int_range(pl.len(), 0, -1).over("user_id") - 1)
    trained = trained.join(asked.users, on="user_id")
    out.mkdir(parents=True, exist_ok=True)
    np.save(out / "top_valid.npy", rank(fit, valid, valid.history))
    np.save(out / "top_test.npy", rank(fit, asked, asked.history))
    np.save(out / "top_test_trained_rows.npy", rank(fit, asked, trained))
    pl.DataFrame(curve).write_ndjson(out / "curve.jsonl")
    done = {"settings": settings.model_dump(mode="json"), "seed": seed, "setup_seconds": setup}
    (out / "done.json").write_text(json.dumps(done | {"threads": torch.get_num_threads()}) + "\n", encoding="utf-8")


def rank(fit: LightGCNFit, asked: Asked, history: pl.DataFrame) -> Ints:
    """Film ids (U, 20) for users with these likes (``row, movie_id, age``), under the one mask."""
    num_viewers = len(asked.users)
    history = history.sort("row", "age")
    likes = Likes(*(history[column].to_numpy().astype(np.int64) for column in ("row", "movie_id", "age")))
    columns = fit.catalogue.columns(asked.seen["movie_id"].to_numpy())
    masked = Ragged.from_pairs(asked.seen["row"].to_numpy().astype(np.int64), columns, num_viewers)
    blocks = product_blocks(fit.pool(likes, num_viewers), fit.movie_vectors_MD, fit.bias_M)
    return fit.catalogue.movie_ids(top_columns(blocks, num_viewers, masked, LENGTH)[0])
