"""How much is left for a re-ranker: what a conditional logit adds to the retriever's order from a prompt's evidence.

    python benchmarks/headroom.py --name ml-100k --shards GENERATE --films sequence=SEQUENCE --split SPLIT

GENERATE, SEQUENCE and SPLIT are folders of finished stages. A candidate's score is the retriever's calibrated log-score
times a factor, plus a weighted sum of what the prompt shows of it: its place by LightGCN, whether similar users liked
it, its facts; its cosines with the liked films' vectors, which behaviour tokens carry; and, with SPLIT, the sequence
model's own score, which a token with the user's vector would bring. The weights are fitted to the training examples (a
convex problem), and read on valid and test. A language model that reads the same should reach as
much; where the gain lies within its interval, so many users can't tell whether it did. The detectable gain is the one
that 80 of 100 such samples of users would show at the 5 % level.
"""

# Shape letters in this file: E examples with a hit, C candidates, F features, U users
from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
import typer
from scipy.optimize import minimize
from scipy.special import log_softmax

from tripletune.behaviour.space import FilmVectors, read_vectors
from tripletune.compare.paired import detectable_difference
from tripletune.evaluate.significance import mean_interval
from tripletune.models.sequence.serve import SequenceFit, load_sequence
from tripletune.models.serving.catalogue import Likes, RatingEvents
from tripletune.models.serving.retriever import Histories
from tripletune.models.serving.topk import Ragged
from tripletune.residual import calibrate_prior
from tripletune.retrieve.histories import find_seen, read_rows
from tripletune.schemas.query import FIT_OF, QUERY_KEY
from tripletune.store.shards import split_files

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
REPORT = Path(__file__).with_name("headroom.md")
PURPOSES = ("train", "valid", "test")
GROUPS = {
    "LightGCN's place": ("listed", "place"),
    "similar users": ("similar",),
    "facts": ("facts",),
    "film vectors": ("nearest", "mean", "newest"),
    "user vector": ("own",),
}
"""What is added, one at a time and then all: features of a candidate."""
FEATURES = tuple(name for names in GROUPS.values() for name in names)
CUTOFF, SEED, RESAMPLES, CONFIDENCE = 10, 7, 2000, 0.95
PENALTY = 1e-3
"""Of the squared weights of standardised features."""
POWER = 0.8
"""Share of samples of users that show the detectable gain, at the 5 % level."""


@dataclass(frozen=True, slots=True)
class Examples:
    """Of one purpose; those with a hit, and the number of all."""

    prior_EC: Floats
    feature_ECF: Floats
    target_EC: Floats
    user_E: Ints
    """Each example's user, from 0."""
    count_U: Ints
    """Examples of each user; without a hit nothing that a re-ranker does changes one."""

    @property
    def num_users(self) -> int:
        return len(self.count_U)

    def loss(self, weights_F: Floats, factor: float) -> float:
        """Mean cross-entropy in nats."""
        return float(-(self.target_EC * log_softmax(self.scores(weights_F, factor), axis=1)).sum(axis=1).mean())

    def scores(self, weights_F: Floats, factor: float) -> Floats:
        """Shape (E, C)."""
        scores_EC: Floats = factor * self.prior_EC + self.feature_ECF @ weights_F
        return scores_EC

    def gain(self, weights_F: Floats, factor: float) -> Floats:
        """Difference of ndcg_at_10 to the retriever's order, mean over the examples of every user (U,)."""
        before_E, after_E = (self._ndcg(one) for one in (self.prior_EC, self.scores(weights_F, factor)))
        gain_U: Floats = np.bincount(self.user_E, after_E - before_E, self.num_users) / self.count_U
        return gain_U

    def _ndcg(self, scores_EC: Floats) -> Floats:
        order_EC = np.argsort(-scores_EC, axis=1, kind="stable")[:, :CUTOFF]
        hit_EC = np.take_along_axis(self.target_EC > 0, order_EC, axis=1)
        ndcg_E: Floats = (hit_EC / np.log2(np.arange(2, hit_EC.shape[1] + 2))).sum(axis=1)
        return ndcg_E


def read_shards(folder: Path, purpose: str) -> pl.DataFrame:
    """What is read of the examples; all have the same number of candidates."""
    films = ("candidates", "retrieved", "ranking", "similar", "liked", "answers")
    columns = [*QUERY_KEY, "triples", *films]
    frame = pl.read_parquet(sorted((folder / purpose).glob("shard-*.parquet")), columns=columns)
    return frame.with_columns(hit=pl.col("candidates").list.set_intersection("answers").list.len() > 0)


def own_scores(frame: pl.DataFrame, split: Path, model: SequenceFit) -> list[dict[int, float]]:
    """The sequence model's score of each candidate, by example."""
    queries = frame.select(*QUERY_KEY).sort(QUERY_KEY)
    rows = read_rows(list(split_files(split).values())).filter(pl.col("user_id").is_in(queries["user_id"].implode()))
    numbered = queries.with_row_index("number")
    seen = find_seen(rows.collect(), queries).join(numbered, on=QUERY_KEY, maintain_order="left")
    seen = seen.sort("number", maintain_order=True)
    of_events = ("number", "movie_id", "timestamp")
    user_E, movie_E, time_E = (seen[name].to_numpy().astype(np.int64) for name in of_events)
    events = RatingEvents(user_E, movie_E, seen["rating"].to_numpy(), time_E, seen["like"].to_numpy())
    nothing = Likes(*(np.zeros(0, dtype=np.int64),) * 3)
    unmasked = Ragged.from_pairs(nothing.user_E, nothing.movie_E, len(queries))
    unused_UD = torch.zeros(len(queries), 0)
    users_UD = model.users(Histories(likes=nothing, events=events, seen=unmasked, lightgcn_UD=unused_UD))
    number = {key: row for row, key in enumerate(queries.iter_rows())}
    found = []
    for *key, shown in frame.select(*QUERY_KEY, "candidates").iter_rows():
        column_C = torch.from_numpy(model.catalogue.columns(np.array(shown)))
        score_C = model.movie_vectors_MD[column_C] @ users_UD[number[tuple(key)]] + model.model.bias_M[column_C]
        found.append(dict(zip(shown, score_C.tolist(), strict=True)))
    return found


def measure(
    frame: pl.DataFrame, vectors: FilmVectors, prior: Floats, own: list[dict[int, float]] | None = None
) -> Examples:
    """Features of the examples with a hit; without ``own`` that one is 0."""
    frame = frame.with_columns(own=pl.Series(range(len(frame)), dtype=pl.Int32))
    row_of = {film: row for row, film in enumerate(vectors.movie_ids_M.tolist())}
    vectors_MD = vectors.vectors_MD.numpy()
    hits = frame.filter("hit")
    rows = list(hits.iter_rows(named=True))
    users = pl.concat([hits["user_id"], frame["user_id"]]).unique(maintain_order=True)
    row_of_user = {user: row for row, user in enumerate(users.to_list())}
    user_E, of_all_E = ([row_of_user[user] for user in part["user_id"].to_list()] for part in (hits, frame))
    return Examples(
        prior_EC=np.array([[prior[row["retrieved"].index(film)] for film in row["candidates"]] for row in rows]),
        feature_ECF=np.stack([_features(row, row_of, vectors_MD, own[row["own"]] if own else {}) for row in rows]),
        target_EC=np.array([_targets(row) for row in rows]),
        user_E=np.array(user_E),
        count_U=np.bincount(of_all_E),
    )


def _features(
    row: dict[str, Any], row_of: dict[int, int], vectors_MD: npt.NDArray[np.float32], own: dict[int, float]
) -> Floats:
    shown, place = row["candidates"], {film: number for number, film in enumerate(row["ranking"])}
    facts = [sum(fact["movie_id"] == film for fact in row["triples"]) for film in shown]
    liked = [row_of[film] for film in row["liked"] if film in row_of]
    cosine = np.zeros((len(shown), 1))
    if liked:
        cosine = np.stack(
            [
                vectors_MD[row_of[film]] @ vectors_MD[liked].T if film in row_of else np.zeros(len(liked))
                for film in shown
            ]
        )
    columns = {
        "listed": [film in place for film in shown],
        "place": [1 / (1 + place[film]) if film in place else 0.0 for film in shown],
        "similar": [film in row["similar"] for film in shown],
        "facts": facts,
        "nearest": cosine.max(axis=1),
        "mean": cosine.mean(axis=1),
        "newest": cosine[:, 0],
        "own": [own.get(film, 0.0) for film in shown],
    }
    return np.stack([np.asarray(columns[name], dtype=np.float64) for name in FEATURES], axis=1)


def _targets(row: dict[str, Any]) -> list[float]:
    hits = set(row["answers"]) & set(row["candidates"])
    return [(film in hits) / len(hits) for film in row["candidates"]]


def fit(train: Examples, used: tuple[str, ...]) -> tuple[Floats, float]:
    """Weights of all features, 0 for those that are not used, and the factor of the prior."""
    kept = np.array([name in used for name in FEATURES])
    kept_ECF = train.feature_ECF[:, :, kept]

    def loss(given: Floats) -> tuple[float, Floats]:
        """With its gradient: the features' sums under the model minus those of the answers."""
        log_EC = log_softmax(given[0] * train.prior_EC + kept_ECF @ given[1:], axis=1)
        excess_EC = (np.exp(log_EC) - train.target_EC) / len(log_EC)
        slope = np.concatenate([[(excess_EC * train.prior_EC).sum()], np.einsum("ec,ecf->f", excess_EC, kept_ECF)])
        slope[1:] += 2 * PENALTY * given[1:]
        return -(train.target_EC * log_EC).sum(axis=1).mean() + PENALTY * (given[1:] ** 2).sum(), slope

    found = minimize(loss, np.concatenate([[1.0], np.zeros(kept.sum())]), jac=True, method="L-BFGS-B").x
    weights_F = np.zeros(len(FEATURES))
    weights_F[kept] = found[1:]
    return weights_F, float(found[0])


def standardise(parts: dict[str, Examples]) -> dict[str, Examples]:
    """Features by mean and standard deviation of the training's."""
    train_F = parts["train"].feature_ECF.reshape(-1, len(FEATURES))
    mean_F, deviation_F = train_F.mean(axis=0), train_F.std(axis=0) + 1e-12
    return {name: replace(part, feature_ECF=(part.feature_ECF - mean_F) / deviation_F) for name, part in parts.items()}


def report(name: str, parts: dict[str, Examples], command: str) -> str:
    """The section of a dataset."""
    counts = ", ".join(f"{purpose} {len(part.prior_EC):,}" for purpose, part in parts.items())
    lines = [
        f"## {name}",
        "",
        f"Examples with a hit: {counts}; {parts['test'].num_users:,} test users. `{command}`",
        "",
    ]
    columns = ("added to the retriever's log-score", *PURPOSES, "gain in ndcg_at_10, valid", "test", "detectable, test")
    lines += [f"| {' | '.join(columns)} |"]
    lines += ["|---|--:|--:|--:|---|---|--:|"]
    varies_F = parts["train"].feature_ECF.any(axis=(0, 1))
    groups = {name: used for name, used in GROUPS.items() if varies_F[[FEATURES.index(one) for one in used]].any()}
    settings = {"nothing": (), "a factor": (), **groups, "all": FEATURES}
    for added, used in settings.items():
        weights_F, factor = (np.zeros(len(FEATURES)), 1.0) if added == "nothing" else fit(parts["train"], used)
        losses = [f"{part.loss(weights_F, factor):.4f}" for part in parts.values()]
        gains = {purpose: parts[purpose].gain(weights_F, factor) for purpose in ("valid", "test")}
        told = [_interval(gain_U) if used else "" for gain_U in gains.values()]
        detectable = detectable_difference(gains["test"], confidence=CONFIDENCE, power=POWER)
        lines.append(f"| {' | '.join([added, *losses, *told, f'{detectable:.4f}' if used and detectable else ''])} |")
    return "\n".join([*lines, ""])


def _interval(gain_U: Floats) -> str:
    found = mean_interval(gain_U, confidence=CONFIDENCE, resamples=RESAMPLES, seed=SEED)
    return f"{found.value:+.4f} [{found.low:+.4f}, {found.high:+.4f}]"


HEAD = """# Headroom of a re-ranker

What is measured: the head of `headroom.py`. Cross-entropies in nats, of examples whose answer is a candidate; gains
over all users, 95 % bootstrap over them.

"""
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command(help=str(__doc__))
def main(
    name: Annotated[str, typer.Option(help="Of the data, in the page.")],
    shards: Annotated[Path, typer.Option(help="Folder of a finished stage generate.")],
    films: Annotated[str, typer.Option(help="SOURCE=FOLDER of the stage whose film vectors are compared.")],
    split: Annotated[Path | None, typer.Option(help="Folder of a finished stage split; FOLDER is sequence's.")] = None,
    out: Annotated[Path, typer.Option(help="Markdown page; its section of this name is replaced.")] = REPORT,
) -> None:
    """Fit, read and write the section."""
    source, _, folder = films.partition("=")
    frames = {purpose: read_shards(shards, purpose) for purpose in PURPOSES}
    hits = frames["train"].filter("hit")
    places = [
        [place for place, film in enumerate(retrieved) if film in answers]
        for retrieved, answers in hits.select("retrieved", "answers").iter_rows()
    ]
    prior = np.asarray(calibrate_prior(places, len(hits["candidates"][0])))
    vectors = {fit_name: read_vectors(Path(folder), source, fit_name) for fit_name in ("a", "b")}
    models = load_sequence(Path(folder), SEED) if split else {}
    parts = {}
    for purpose, frame in frames.items():
        own = own_scores(frame, split, models[FIT_OF[purpose]]) if split else None
        parts[purpose] = measure(frame, vectors[FIT_OF[purpose]], prior, own)
    command = f"python benchmarks/headroom.py --name {shlex.quote(name)} --shards GENERATE --films {source}=FOLDER"
    command += " --split SPLIT" if split else ""
    section = report(name, standardise(parts), command)
    kept = out.read_text(encoding="utf-8").split("\n## ")[1:] if out.exists() else []
    sections = {text.split("\n", 1)[0]: f"## {text}" for text in kept} | {name: section}
    out.write_text(HEAD + "\n".join(text.rstrip("\n") + "\n" for text in sections.values()), encoding="utf-8")


if __name__ == "__main__":
    app()
