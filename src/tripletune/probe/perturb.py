"""Changes of a prompt that should not change its answer much: another spelling, order or wording, or one like less."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import replace

import polars as pl

from tripletune.probe.inputs import NO_FILMS, Inputs
from tripletune.probe.paraphrase import paraphrase
from tripletune.prompts.sanitise import display_titles
from tripletune.schemas.query import QUERY_KEY
from tripletune.stable_hash import pair_hash_expr

LIKE_REMOVED, HISTORY_SHUFFLED = "like-removed", "history-shuffled"
RESHUFFLED, ARTICLES_MOVED, YEARS_MISSING = "candidates-reshuffled", "articles-moved", "years-missing"
PARAPHRASED = "instruction-paraphrased"
_REMOVED, _ORDER, _RESHUFFLE = 22 << 40, 23 << 40, 24 << 40
"""Added to the run's seed for the like that goes, the order of a shuffled history, and another order of candidates."""
_ARTICLES = "The|A|An|Le|La|Les|Il|El|Los|Das|Der|Die"
_BEHIND = rf"^([^(]+), ({_ARTICLES})( \(.*\))?$"
_BEFORE = re.compile(rf"^({_ARTICLES}) ([^(]+?)( \(.*\))?$")
_YEAR = r" \((?:19|20)\d\d\)$"

Perturb = Callable[[Inputs], Inputs]


def perturbations_of(names: Iterable[str], inputs: Inputs) -> dict[str, Perturb]:
    """How each perturbation changes the inputs, by its name, of those that the run's prompts can have.

    Left out are: another order of the candidates where they are shown in the retriever's, and a paraphrase where the
    template has no line that one is known for.
    """
    known: dict[str, Perturb] = {
        LIKE_REMOVED: _remove_like,
        HISTORY_SHUFFLED: _shuffle_history,
        ARTICLES_MOVED: lambda given: _respell(given, _moved),
        YEARS_MISSING: lambda given: _respell(given, lambda title: re.sub(_YEAR, "", title)),
    }
    if inputs.frame.settings.candidate_order == "shuffled":
        known[RESHUFFLED] = _reshuffle
    other = paraphrase(inputs.frame.template)
    if other is not None:
        known[PARAPHRASED] = lambda given: given.with_changed(frame=replace(given.frame, template=other))
    return {name: known[name] for name in names if name in known}


def _remove_like(inputs: Inputs) -> Inputs:
    """Without one like of each example, by a hash; candidates and hints stay, but for facts about that like."""
    ordered = _exploded(inputs.evidence, "liked", inputs.frame.seed + _REMOVED)
    is_drawn = pl.col("hashed") == pl.col("hashed").max().over(QUERY_KEY)
    return inputs.with_changed(evidence=_put_back(inputs.evidence, "liked", ordered.filter(~is_drawn)))


def _shuffle_history(inputs: Inputs) -> Inputs:
    """Likes and dislikes in an order by a hash, which is not that of time."""
    evidence = inputs.evidence
    for column in ("liked", "disliked"):
        ordered = _exploded(evidence, column, inputs.frame.seed + _ORDER)
        evidence = _put_back(evidence, column, ordered.sort(*QUERY_KEY, "hashed", "movie_id"))
    return inputs.with_changed(evidence=evidence)


def _exploded(evidence: pl.DataFrame, column: str, seed: int) -> pl.DataFrame:
    """``QUERY_KEY, movie_id, hashed`` of a list's films, in its order."""
    films = evidence.select(*QUERY_KEY, movie_id=column).explode("movie_id", empty_as_null=False)
    return films.with_columns(hashed=pair_hash_expr("user_id", "movie_id", seed))


def _put_back(evidence: pl.DataFrame, column: str, films: pl.DataFrame) -> pl.DataFrame:
    lists = films.group_by(QUERY_KEY, maintain_order=True).agg(pl.col("movie_id").alias(column))
    joined = evidence.drop(column).join(lists, on=QUERY_KEY, how="left", maintain_order="left")
    return joined.with_columns(pl.col(column).fill_null(NO_FILMS)).select(evidence.columns)


def _reshuffle(inputs: Inputs) -> Inputs:
    """The candidates in the order of another seed."""
    return inputs.with_changed(frame=replace(inputs.frame, seed=inputs.frame.seed + _RESHUFFLE))


def _respell(inputs: Inputs, respell: Callable[[str], str]) -> Inputs:
    """Every title of the catalogue in another spelling; titles that become the same get their film's id."""
    titles, template = inputs.frame.titles, inputs.frame.template
    spelt = titles.select("movie_id", title=pl.Series([respell(title) for title in titles["display"]]))
    return inputs.with_changed(frame=replace(inputs.frame, titles=display_titles(spelt, template.lines)))


def _moved(title: str) -> str:
    """``Matrix, The (1999)`` as ``The Matrix (1999)``, and the other way round."""
    moved = re.sub(_BEHIND, r"\2 \1\3", title)
    return moved if moved != title else _BEFORE.sub(r"\2, \1\3", title)
