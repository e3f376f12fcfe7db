"""Data generation engine: build examples (prompt and answers) from the outputs of the earlier stages.

``build_examples`` is the only function that makes prompts: for training, for ranking and for an ad-hoc user.
``prompts.shards`` calls it for one bucket of users after the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from tripletune.config import PromptConfig, RetrieveConfig
from tripletune.config.prompts import CandidateOrder
from tripletune.prompts.budget import count_left_out, shorten
from tripletune.prompts.render import Lines, draw_lines, join_prompts
from tripletune.prompts.sanitise import clean_names, display_titles
from tripletune.prompts.template import SLOTS, Template, load_template
from tripletune.prompts.tokens import TokenCounter, load_counter
from tripletune.schemas.answers import NUM_ANSWERS
from tripletune.schemas.base import conform
from tripletune.schemas.generate import EXAMPLE_ID, EXAMPLES
from tripletune.schemas.hint import TOPIC, TOPICS
from tripletune.schemas.hints import FILM_HINTS, HINTS, SPECIALISTS, TOPIC_HINTS
from tripletune.schemas.query import QUERY_KEY
from tripletune.schemas.worked import WorkedExamples
from tripletune.stable_hash import pair_hash_expr
from tripletune.store.read import read_parquet

DISPLAY = 3 << 40
"""Added to the run's seed for the order in which candidates are shown. The split orders equal times by the plain seed;
with the same hash, an answer's place in the list would reveal that it came late."""

_NO_FILMS = pl.lit([], dtype=pl.List(pl.Int32))
_NO_RATINGS = pl.lit([], dtype=pl.List(pl.Float32))
_KERAG_FILMS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """Template, titles, settings and token counter that all prompts of a run share."""

    template: Template
    titles: pl.DataFrame
    """``movie_id, display``."""
    settings: PromptConfig
    specialists: Mapping[str, str]
    """Fingerprint of each stage of ``SPECIALISTS``."""
    seed: int
    counter: TokenCounter | None = None
    """None: tokens are not counted."""
    worked: tuple[str, ...] = ()
    """Ids of the worked examples in the template's text."""

    @classmethod
    def load(
        cls,
        ingest: Path,
        settings: PromptConfig,
        specialists: Mapping[str, str],
        seed: int,
        tokenizer: tuple[str, str] | None = None,
        worked: WorkedExamples | None = None,
    ) -> Frame:
        """Read the template, the catalogue's titles and the tokenizer.

        Args:
            ingest, settings, specialists, seed: as in the run.
            tokenizer: model and revision of the tokenizer to count with; None: tokens are not counted.
            worked: worked examples that every prompt shows; None: none.

        Raises:
            ConfigError: the template is missing or invalid, or the tokenizer does not suit.
            InputError: there is no such tokenizer.
        """
        movies = read_parquet(ingest / "movies.parquet", columns=["movie_id", "title"])
        plain = load_template(settings.template)
        template = plain.with_worked(worked.text) if worked else plain
        return cls(
            template=template,
            titles=display_titles(movies, plain.lines),
            settings=settings,
            specialists=specialists,
            seed=seed,
            counter=load_counter(*tokenizer, template) if tokenizer else None,
            worked=worked.ids if worked else (),
        )


def build_examples(
    retrieved: pl.DataFrame, choices: pl.DataFrame, evidence: pl.DataFrame, answers: pl.DataFrame, frame: Frame
) -> pl.DataFrame:
    """Build one example per retrieved query.

    Args:
        retrieved, choices: ``RETRIEVED`` and ``CHOICES``; from shards or from a ``Retriever``.
        evidence: ``user_id, purpose, cutoff, liked, disliked``, newest first and already cut to length.
        answers: ``user_id, purpose, cutoff, movie_id, rating``; empty for an ad-hoc user.
        frame: shared by all prompts of the run.

    Returns:
        ``EXAMPLES``, sorted by user, purpose and cutoff. Training examples whose candidates hold no answer, or fewer
        films than an answer has lines, are dropped.
    """
    asked = retrieved.sort(QUERY_KEY).join(evidence, on=QUERY_KEY, how="left", maintain_order="left")
    asked = asked.with_columns(pl.col("liked", "disliked").fill_null(_NO_FILMS))
    asked = _with_answers(asked.rename({"candidates": "retrieved"}), answers)
    asked = _with_shown(asked, frame.settings.candidate_order, frame.seed)
    absent = [slot for slot in SLOTS if slot not in frame.template.columns]
    asked = asked.with_columns(pl.lit([], dtype=EXAMPLES[slot]).alias(slot) for slot in absent)
    if "triples" not in absent:
        in_section = "triples" in frame.template.slots
        asked = _with_triples(asked, choices, frame.settings.triples_for_liked if in_section else 0)
    for hint in FILM_HINTS:
        if hint.name in frame.template.columns and hint.name not in frame.template.slots:
            asked = _with_candidates_alone(asked, hint.name)
    for hint in TOPIC_HINTS:
        if hint.name not in absent:
            asked = _with_clean_topics(asked, hint.name)
    asked, lines, counts = _within_budget(_with_completion(asked, frame.template), frame)
    rendered = join_prompts(asked, lines, frame.template, frame.titles)
    if frame.counter:
        frame.counter.check(rendered, counts["num_tokens"])
    examples = pl.concat([asked.drop("completion"), rendered, counts], how="horizontal").with_columns(
        EXAMPLE_ID,
        template_id=pl.lit(frame.template.id),
        template_sha256=pl.lit(frame.template.sha256),
        worked=pl.lit(list(frame.worked), dtype=EXAMPLES["worked"]),
        **{one.stage: pl.lit(frame.specialists[one.stage]) for one in SPECIALISTS},
    )
    return conform(examples, EXAMPLES)


def _within_budget(asked: pl.DataFrame, frame: Frame) -> tuple[pl.DataFrame, dict[str, Lines], pl.DataFrame]:
    """The examples shortened to the token budget, their lines, and ``num_tokens, shortened``."""
    counter = frame.counter

    def draw(examples: pl.DataFrame) -> dict[str, Lines]:
        """The lines of these examples."""
        return draw_lines(examples, frame.template, frame.settings.triple_form, frame.titles)

    lines = draw(asked)
    fitting, tokens = asked, None
    if counter:
        tokens = counter.count(lines, len(asked))
        max_tokens = frame.settings.max_tokens
        if max_tokens and (tokens > max_tokens).any():
            inline = [column for column, _ in frame.template.inline]
            fitting = shorten(asked, lines, counter, tokens, max_tokens, draw, inline)
            lines = draw(fitting)
            tokens = counter.count(lines, len(asked))
    num_tokens = pl.Series("num_tokens", [None] * len(asked) if tokens is None else tokens, dtype=pl.Int32)
    return fitting, lines, pl.DataFrame([num_tokens, count_left_out(asked, fitting)])


def _with_answers(asked: pl.DataFrame, answers: pl.DataFrame) -> pl.DataFrame:
    """Add ``answers``, ``answer_ratings`` and ``hits``, the answers that are candidates; drop training examples without
    hits, or with fewer films than an answer has lines."""
    is_train, is_answer = pl.col("purpose") == "train", pl.col("rating").is_not_null()
    shown = (
        asked.select(*QUERY_KEY, movie_id="retrieved")
        .with_columns(place=pl.int_ranges(pl.col("movie_id").list.len()))
        .explode("movie_id", "place")
        .join(answers, on=[*QUERY_KEY, "movie_id"], how="left")
        .sort(*QUERY_KEY, "rating", "place", descending=[False] * len(QUERY_KEY) + [True, False], nulls_last=True)
        .group_by(QUERY_KEY, maintain_order=True)
        .agg(
            hits=pl.col("movie_id").filter(is_answer).head(NUM_ANSWERS),
            hit_ratings=pl.col("rating").filter(is_answer).head(NUM_ANSWERS),
        )
    )
    held_out = answers.group_by(QUERY_KEY, maintain_order=True).agg(held_out="movie_id", held_out_ratings="rating")
    joined = asked.join(shown, on=QUERY_KEY, how="left", maintain_order="left").join(
        held_out, on=QUERY_KEY, how="left", maintain_order="left"
    )
    joined = joined.with_columns(
        pl.col("hits", "held_out").fill_null(_NO_FILMS),
        pl.col("hit_ratings", "held_out_ratings").fill_null(_NO_RATINGS),
    )
    complete = (pl.col("hits").list.len() > 0) & (pl.col("retrieved").list.len() >= NUM_ANSWERS)
    return (
        joined.filter(~is_train | complete)
        .with_columns(
            answers=pl.when(is_train).then("hits").otherwise("held_out"),
            answer_ratings=pl.when(is_train).then("hit_ratings").otherwise("held_out_ratings"),
        )
        .drop("hit_ratings", "held_out", "held_out_ratings")
    )


def _with_shown(asked: pl.DataFrame, order: CandidateOrder, seed: int) -> pl.DataFrame:
    """Add ``candidates``: the retrieved films in the order shown, a stable shuffle keyed by user and film only, or the
    retriever's own order."""
    if order == "retrieved":
        return asked.with_columns(candidates=pl.col("retrieved").fill_null(_NO_FILMS))
    shown = (
        asked.select(*QUERY_KEY, movie_id="retrieved")
        .explode("movie_id")
        .with_columns(order=pair_hash_expr("user_id", "movie_id", seed + DISPLAY))
        .sort(*QUERY_KEY, "order", "movie_id")
        .group_by(QUERY_KEY, maintain_order=True)
        .agg(candidates="movie_id")
    )
    joined = asked.join(shown, on=QUERY_KEY, how="left", maintain_order="left")
    return joined.with_columns(pl.col("candidates").fill_null(_NO_FILMS))


def _with_candidates_alone(asked: pl.DataFrame, column: str) -> pl.DataFrame:
    """The column without films that are no candidates: inline, they have no line."""
    numbered = asked.with_row_index("row")
    shown = numbered.select("row", movie_id="candidates").explode("movie_id", empty_as_null=False)
    kept = (
        numbered.select("row", movie_id=column)
        .explode("movie_id", empty_as_null=False)
        .join(shown, on=["row", "movie_id"], how="semi", maintain_order="left")
        .group_by("row", maintain_order=True)
        .agg(pl.col("movie_id").alias(column))
    )
    joined = numbered.drop(column).join(kept, on="row", how="left", maintain_order="left").drop("row")
    return joined.with_columns(pl.col(column).fill_null(_NO_FILMS))


def _with_clean_topics(asked: pl.DataFrame, column: str) -> pl.DataFrame:
    """The column with names that can stand in a prompt."""
    numbered = asked.with_row_index("row")
    topics = numbered.select("row", topic=column).explode("topic", empty_as_null=False).unnest("topic")
    clean = topics.join(
        clean_names(topics["entity_name"]), left_on="entity_name", right_on="name", maintain_order="left"
    ).with_columns(entity_name="clean")
    lists = clean.group_by("row", maintain_order=True).agg(pl.struct(*TOPIC.to_schema()).alias(column))
    joined = numbered.drop(column).join(lists, on="row", how="left", maintain_order="left").drop("row")
    return joined.with_columns(pl.col(column).fill_null(pl.lit([], dtype=TOPICS)))


def _with_completion(asked: pl.DataFrame, template: Template) -> pl.DataFrame:
    """Replace ``hits`` by ``completion``, the films to answer with: the hits, then candidates in an order that can be
    read from the prompt. That is the retriever's where candidates' lines show their place in it, else that of
    ``ranking`` where the template shows it, then the order of the candidates."""
    is_placed = any(column == "retrieved" for column, _ in template.inline)
    films = pl.concat_list("hits", "retrieved" if is_placed else "ranking", "candidates")
    completion = films.list.unique(maintain_order=True).list.head(NUM_ANSWERS)
    return asked.with_columns(completion=completion).drop("hits")


def _with_triples(asked: pl.DataFrame, choices: pl.DataFrame, num_liked: int) -> pl.DataFrame:
    """Add ``triples``: those of the newest liked films, then those of the candidates, in the order shown."""
    films = pl.concat_list(pl.col("liked").list.head(num_liked), "candidates")
    films_shown = asked.select(*QUERY_KEY, movie_id=films)
    films_shown = films_shown.with_columns(place=pl.int_ranges(pl.col("movie_id").list.len())).explode(
        "movie_id", "place"
    )
    names = clean_names(choices["entity_name"])
    named = choices.join(names, left_on="entity_name", right_on="name").drop("entity_name")
    named = named.rename({"clean": "entity_name"})
    lists = (
        films_shown.join(named, on=[*QUERY_KEY, "movie_id"])
        .sort(*QUERY_KEY, "place", "rank")
        .group_by(QUERY_KEY, maintain_order=True)
        .agg(triples=pl.struct("movie_id", "relation", "entity", "entity_name"))
    )
    joined = asked.join(lists, on=QUERY_KEY, how="left", maintain_order="left")
    return joined.with_columns(pl.col("triples").fill_null(pl.lit([], dtype=EXAMPLES["triples"])))


def prompt_contract(prompt: PromptConfig, retrieve: RetrieveConfig) -> dict[str, Any]:
    """Contract: the settings in which prompts and adapter must agree; ``rank`` refuses an adapter with another one.

    Raises:
        ConfigError: the template is missing or invalid.
    """
    template = load_template(prompt.template)
    if prompt.worked_examples:
        template = template.with_worked("")
    kerag = retrieve.candidates == "kerag"
    return {
        "template": template.id,
        "template_sha256": template.sha256,
        "answer_style": template.answer_style,
        "num_answers": NUM_ANSWERS,
        "triple_form": prompt.triple_form,
        "candidates": retrieve.candidates,
        "num_candidates": _KERAG_FILMS if kerag else retrieve.num_candidates,
        "retriever": retrieve.retriever,
        "retriever_settings": _retriever_settings(retrieve),
        **{name: getattr(retrieve, name) for hint in HINTS for name in hint.settings if name != "num_topics"},
        "triples_for_liked": prompt.triples_for_liked,
        "max_liked": prompt.max_liked,
        "max_disliked": prompt.max_disliked,
        "max_tokens": prompt.max_tokens,
        **_apart_from_defaults(prompt, retrieve),
    }


def _apart_from_defaults(prompt: PromptConfig, retrieve: RetrieveConfig) -> dict[str, Any]:
    """Settings that contracts of adapters of older versions do not have, where they are not what those had: candidates
    shuffled, no worked examples and no topics."""
    found = {
        "candidate_order": prompt.candidate_order,
        "worked_examples": prompt.worked_examples,
        "num_topics": retrieve.num_topics,
    }
    return {name: value for name, value in found.items() if value not in ("shuffled", 0)}


def _retriever_settings(retrieve: RetrieveConfig) -> dict[str, Any]:
    """Settings of the lists that the candidates are drawn from: their names begin with the list's.

    An empty ``fused_more`` is dropped: contracts of adapters without further retrievers do not have it.
    """
    lists = {retrieve.retriever, *retrieve.lists}
    settings = retrieve.model_dump(mode="json").items()
    return {name: value for name, value in settings if name.split("_")[0] in lists and value != {}}
