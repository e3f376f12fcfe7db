"""Rows of the unified table: each user's metrics on test, and what the row cost.

Three sources: our first stage (a retrieve stage's ``rankings.parquet``), RecBole's models (lists that
``recbole_side.py`` wrote) and the language models of finished runs (``per_viewer.parquet`` of evaluate). All were asked
the same films: a row on another split, or with another held-out film, is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import polars as pl
from recbole_export import read_only_users
from retrieval_runs import METRICS, Trained
from safetensors import safe_open
from sequence_baselines import Run

from tripletune.config.presets import load_config
from tripletune.evaluate.metrics import mean_over_cutoffs, score_lists
from tripletune.flatten import flatten
from tripletune.store.runs import read_run

CUTOFFS = (5, 10)
OURS = {
    "popularity": "popularity",
    "ease-plain": "EASE",
    "ease": "EASE, recency-weighted history",
    "slist": "SLIST",
    "rgat": "R-GAT",
    "lightgcn": "LightGCN",
    "sasrec": "SASRec",
    "sequence": "sequence model",
    "text": "film texts",
    "fused": "fused",
}
"""Names in ``rankings.parquet`` and in the table."""
LANGUAGE_MODELS = {
    "random": "random order",
    "untuned": "untuned",
    "tuned": "tuned",
    "tuned+retriever": "tuned, with the retriever's scores",
    "tuned-listwise": "tuned, lists alone",
    "tuned-pointwise": "tuned, questions alone",
    "tuned-pairwise": "tuned, choices alone",
}
PRESET_DEPARTURES = {
    "llamarec": "First stage: our sequence model; SmolLM2 in place of Llama 2; several likes share the target.",
    "recranker": "First stage: our sequence model; SmolLM2 with LoRA in place of Llama 2; Yes or No in place of stars; "
    "negatives are candidates; the three utilities count the same, and the first stage's place does not.",
}
"""How the run of a published recipe departs from its paper; ``configs/<preset>.md`` says it in full."""
ROOT = Path(__file__).parents[1]
UNRELATED = ("source.", "dataset", "tracking.", "workers.", "store.")
"""Settings that say where a run lies, not what it computes."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a row took: as text where nothing was measured, empty."""

    seconds: str = ""
    parameters: int = 0
    tokens: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """One system: ``user_id`` and the metrics of test, one line a user."""

    name: str
    test: pl.DataFrame
    valid: pl.DataFrame
    """The same of valid."""
    cost: Cost
    command: str
    note: str = ""
    is_language_model: bool = False


def score_answers(lists: pl.DataFrame) -> pl.DataFrame:
    """``user_id`` and the metrics of lists with ``user_id, answer, top``, the mean of a user's questions, by user."""
    measured = score_lists(lists["top"], lists["answer"], CUTOFFS).select(METRICS)
    return mean_over_cutoffs(lists.select("user_id").hstack(measured), ["user_id"]).sort("user_id")


def rows_of_ours(run: Run) -> list[Row]:
    """Every list of the retrieve stage."""
    rankings = pl.read_parquet(run.rankings / "rankings.parquet")
    manifest = _manifest(run.rankings)
    knowledge = run.rankings.parents[1] / "knowledge" / manifest["parents"]["knowledge"]
    has_credits = any(name.startswith("imdb/") for name in _manifest(knowledge)["ingredients"]["inputs"])
    command = _command(manifest["dataset"], has_credits)
    rows = []
    for name in (name for name in OURS if name in set(rankings["retriever"])):
        mine = rankings.filter(pl.col("retriever") == name)
        test, valid = (score_answers(mine.filter(pl.col("purpose") == purpose)) for purpose in ("test", "valid"))
        cost = _cost_of_stages(run, name, manifest["parents"])
        rows.append(Row(OURS[name], test, valid, cost, command))
    return rows


def _cost_of_stages(run: Run, name: str, parents: dict[str, str]) -> Cost:
    """Wall seconds of the stages that a list needs, both fits included, and the numbers that fit b stores."""
    stages = [name.removesuffix("-plain")]
    if name == "fused":
        fusion = run.rankings.parents[1] / "fusion" / parents.get("fusion", "none") / "fusion.json"
        if not fusion.exists():
            return Cost()
        weights = json.loads(fusion.read_text(encoding="utf-8"))["weights"]
        stages = [*(part for part, weight in weights.items() if weight), "fusion"]
    seconds, parameters = 0.0, 0
    for stage in (stage for stage in stages if stage in parents):
        folder = run.rankings.parents[1] / stage / parents[stage]
        seconds += _manifest(folder)["seconds"]
        parameters += _stored_numbers(folder)
    return Cost(f"{seconds:.0f}" if seconds else "", parameters)


def _stored_numbers(folder: Path) -> int:
    told = _manifest(folder)["facts"].get("parameters")
    if told or not (folder / "fit_b.safetensors").exists():
        return int(told or 0)
    with safe_open(folder / "fit_b.safetensors", framework="np") as tensors:
        shapes = [tensors.get_slice(key).get_shape() for key in tensors.keys()]  # noqa: SIM118 (no mapping)
    return sum(int(pl.Series([1, *shape]).product()) for shape in shapes)


def row_of_recbole(run: Run, name: str, trained: list[Trained], counts: dict[str, int], command: str, note: str) -> Row:
    """The point with the best valid ndcg_at_10 of those that were trained.

    Raises:
        SystemExit: RecBole trained on other rows or triples than were exported, or was asked other films.
    """
    best = max(trained, key=lambda one: one.best()["valid_ndcg_at_10"])
    done, last = best.done(), best.curve().row(-1, named=True)
    for count, expected in counts.items():
        if done.get(count, expected) != expected:
            raise SystemExit(f"{best.folder}: RecBole has {done[count]} {count}, the export {expected}; train it again")
    settings = ", ".join(f"{key} {value}" for key, value in done["settings"].items())
    ended = f"{last['epoch']} epochs, {done['ended']}, best after {best.best()['epoch']}"
    if done["ended"].startswith(("cap", "cut")):
        name += ", cut short"
    note = f"{note} Best of {len(trained)} by valid: {settings}; {ended}."
    cost = Cost(f"{last['train_cpu_seconds']:.0f} CPU", done["parameters"])
    test, valid = (score_answers(answered(run, best, purpose)) for purpose in ("test", "valid"))
    return Row(name, test, valid, cost, command, note)


def answered(run: Run, trained: Trained, purpose: str) -> pl.DataFrame:
    """The lists of a training: ``user_id, answer, top``. They are in the order of the users that were exported.

    Raises:
        SystemExit: the exported questions are not those that our rankings answer.
    """
    lists = trained.lists(f"top_{purpose}")
    wide = read_only_users(run.split, purpose, unseen=True)
    asked = wide if len(wide.users) == len(lists) else read_only_users(run.split, purpose)
    if len(asked.users) != len(lists):
        raise SystemExit(f"{trained.folder} has {len(lists)} lists for {len(asked.users)} users; remove it")
    top = pl.Series("top", lists).arr.to_list().list.eval(pl.element().filter(pl.element() >= 0))
    mine = asked.answers.select("user_id", answer="movie_id").with_columns(top)
    ours = pl.read_parquet(run.rankings / "rankings.parquet", columns=["user_id", "purpose", "answer"])
    ours = ours.filter(pl.col("purpose") == purpose).select("user_id", "answer").unique()
    if mine.join(ours, on=["user_id", "answer"], how="anti").height or ours["user_id"].n_unique() != len(ours):
        raise SystemExit(f"{run.rankings} has other questions for {purpose}: one held-out film a user is needed")
    return mine


def rows_of_language_models(run: Run, root: Path, name: str) -> list[Row]:
    """The rows of a finished run on the same split.

    Raises:
        SystemExit: the run is on another split, or put the answers among the candidates.
    """
    record = read_run(root, name)
    if record.config["retrieve"]["candidates"] == "kerag":
        raise SystemExit(f"run {name} put the answers among its candidates (kerag): no other row may stand next to it")
    if record.fingerprints["split"] != run.split.name:
        raise SystemExit(f"run {name} is on another split than {run.rankings}; give both one release and [split]")
    paths = record.paths(root)
    finetune, generate, rank = (_manifest(paths.folder(stage)) for stage in ("finetune", "generate", "rank"))
    measured = pl.read_parquet(paths.folder("evaluate") / "per_viewer.parquet")
    preset = ROOT / "configs" / f"{record.dataset}.toml"
    changed = _changed(record.config, preset)
    command = _command(record.dataset, bool(record.config["source"]["imdb"]), changed)
    said = "; ".join(f"{key} = {value}" for key, value in changed.items())
    settings = f"{record.config['finetune']['model']}, {said}".removesuffix(", ")
    note = f"{PRESET_DEPARTURES.get(record.dataset, '')} {settings}".strip()
    trained = Cost(
        f"{finetune['seconds']:.0f} + {rank['seconds']:.0f}",
        finetune["facts"]["trainable_parameters"],
        f"{finetune['facts']['tokens']:,}; {generate['facts'].get('mean_tokens', 0):.0f} a prompt",
    )
    untuned = Cost("", 0, f"0; {generate['facts'].get('mean_tokens', 0):.0f} a prompt")
    rows = []
    most = measured.filter(pl.col("row") == "tuned", pl.col("purpose") == "test").height
    for system, label in LANGUAGE_MODELS.items():
        mine = measured.filter(pl.col("row") == system).sort("user_id")
        if mine.filter(pl.col("purpose") == "test").height < most:  # it ranked for some of the users, or was not asked
            continue
        test, valid = (mine.filter(pl.col("purpose") == one).select("user_id", *METRICS) for one in ("test", "valid"))
        cost = {"random": Cost(), "untuned": untuned}.get(system, trained)
        title = f"{record.dataset}, {record.config['finetune']['objective']}: {label}"
        rows.append(Row(title, test, valid, cost, command, note, is_language_model=True))
    return rows


def _command(dataset: str, has_credits: bool, changed: Mapping[str, Any] = MappingProxyType({})) -> str:
    """What makes a run of the preset that has the dataset's name, with settings that differ from it."""
    if not changed:
        return f"make run CONFIG=configs/{dataset}.toml" + " IMDB=imdb" * has_credits
    settings = " ".join(f"--set {key}={value}" for key, value in changed.items())
    return f".venv/bin/tripletune run --config configs/{dataset}.toml{' --imdb imdb' * has_credits} {settings}"


def _changed(config: dict[str, Any], preset: Path) -> dict[str, Any]:
    """Settings of a run that its preset does not have, by dotted name."""
    before, after = flatten(load_config(preset).model_dump(mode="json")), flatten(config)
    names = [key for key in after if after[key] != before.get(key, after[key]) and not key.startswith(UNRELATED)]
    return {key: after[key] for key in sorted(names)}


def _manifest(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "manifest.json").read_text(encoding="utf-8")))
