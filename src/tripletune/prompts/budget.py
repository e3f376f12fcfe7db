"""Token budget: shorten the prompts that exceed it.

Films are dropped one by one, in this order, until prompt and completion fit: the oldest likes, down to the newest five;
the oldest dislikes; the last lines of the hints that may be shortened (films of similar users, topics), in the order
of ``HINTS``; the older ones of the five newest likes, but for the newest. A dropped like loses its facts of hint 2 as
well. Candidates, facts about them, inline hints, the other hints (hint 1's ranking), worked examples and the template's
text are never shortened: a prompt that is too long with these alone is an error that names the example.
"""
# Shape letters in this file: E examples, K films of a section at most

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import numpy as np
import numpy.typing as npt
import polars as pl

from tripletune.errors import InputError
from tripletune.prompts.render import Lines
from tripletune.prompts.tokens import TokenCounter, Tokens
from tripletune.schemas.generate import EXAMPLE_ID, EXAMPLES, SHORTENED
from tripletune.schemas.hint import EVIDENCE
from tripletune.schemas.hints import RETRIEVED_HINTS

_HINTS = tuple(hint.name for hint in RETRIEVED_HINTS if hint.shortened)
DROPPABLE = (*EVIDENCE, *_HINTS)
_NEWEST = 5

Kept = dict[str, npt.NDArray[np.int64]]
"""Films kept in each droppable section, counted from the first; shape (E,) each."""


Draw = Callable[[pl.DataFrame], dict[str, Lines]]
"""The lines of some examples."""


def shorten(
    examples: pl.DataFrame,
    lines: Mapping[str, Lines],
    counter: TokenCounter,
    tokens: Tokens,
    max_tokens: int,
    draw: Draw,
    inline: Collection[str] = (),
) -> pl.DataFrame:
    """Drop films until every example fits, and no more than needed.

    Args:
        examples: the columns ``QUERY_KEY``, the lists of films, ``triples`` with those of likes before those of
            candidates.
        lines: lines of these examples, for all slots of the template.
        counter: token counter of the template.
        tokens: tokens of the examples before shortening; shape (E,).
        max_tokens: limit for prompt and completion together.
        draw: draws the lines of shorter examples; used where counts are no sums over lines.
        inline: columns that the lines of candidates show; they have no lines of their own to drop.

    Returns:
        The same rows with shorter lists.

    Raises:
        InputError: an example is too long with nothing more to drop.
    """
    if not counter.sums_lines:
        return _shorten_whole(examples, counter, tokens, max_tokens, draw, inline)
    sections = {slot: _by_kept(lines[slot], slot, counter) for slot in DROPPABLE if slot in lines}
    facts = _facts_of_likes(examples) if "triples" in lines else _NO_FACTS
    facts_EK = _facts_by_kept(examples, lines, facts, counter)
    sizes = _sizes(examples, inline)

    def saved(kept: Kept) -> Tokens:
        row = np.arange(len(examples))
        total: Tokens = facts_EK[row, sizes["liked"]] - facts_EK[row, kept["liked"]]
        for slot, table in sections.items():
            total = total + table[row, sizes[slot]] - table[row, kept[slot]]
        return total

    chosen = {slot: size.copy() for slot, size in sizes.items()}
    waiting = tokens > max_tokens
    for step in range(1, int(sum(size.max(initial=0) for size in sizes.values())) + 1):
        if not waiting.any():
            break
        kept = _after(step, sizes)
        now = tokens - saved(kept)
        for slot in sizes:
            chosen[slot][waiting] = kept[slot][waiting]
        waiting &= now > max_tokens
    if waiting.any():
        _refuse(examples, tokens - saved(chosen), waiting, max_tokens)
    return _cut(examples, chosen, facts)


def _shorten_whole(
    examples: pl.DataFrame,
    counter: TokenCounter,
    tokens: Tokens,
    max_tokens: int,
    draw: Draw,
    inline: Collection[str],
) -> pl.DataFrame:
    """``shorten`` by counting whole conversations: the fewest dropped films of each example by bisection."""
    facts = _facts_of_likes(examples) if {"triples"} & {*examples.columns} - {*inline} else _NO_FACTS
    sizes = _sizes(examples, inline)
    fits = tokens <= max_tokens
    too_few, enough = np.where(fits, -1, 0), np.where(fits, 0, sum(sizes.values()))

    def counted(steps: Tokens) -> Tokens:
        """Tokens of the examples after so many films are dropped."""
        cut = _cut(examples, _after(steps, sizes), facts)
        return counter.count(draw(cut), len(cut))

    shortest = counted(enough)
    if (waiting := shortest > max_tokens).any():
        _refuse(examples, shortest, waiting, max_tokens)
    while (enough - too_few > 1).any():
        middle = (too_few + enough + 1) // 2
        short = counted(middle) <= max_tokens
        too_few, enough = np.where(short, too_few, middle), np.where(short, middle, enough)
    return _cut(examples, _after(enough, sizes), facts)


def _sizes(examples: pl.DataFrame, inline: Collection[str]) -> Kept:
    """Films in each section that may be shortened."""
    slots = (slot for slot in DROPPABLE if slot not in inline)
    return {slot: examples[slot].list.len().to_numpy().astype(np.int64) for slot in slots}


def _after(step: int | npt.NDArray[np.int64], sizes: Kept) -> Kept:
    """Films kept per section after ``step`` films are dropped, as many everywhere or shape (E,)."""
    left = np.broadcast_to(step, sizes["liked"].shape)
    gone: dict[str, npt.NDArray[np.int64]] = {}
    hints = [slot for slot in sizes if slot in _HINTS]
    room = {
        "old": np.maximum(sizes["liked"] - _NEWEST, 0),
        "disliked": sizes["disliked"],
        **{hint: sizes[hint] for hint in hints},
        "new": np.maximum(np.minimum(sizes["liked"], _NEWEST) - 1, 0),
    }
    for name, most in room.items():
        gone[name] = np.minimum(left, most)
        left = left - gone[name]
    return {
        "liked": sizes["liked"] - gone["old"] - gone["new"],
        "disliked": sizes["disliked"] - gone["disliked"],
        **{hint: sizes[hint] - gone[hint] for hint in hints},
    }


def _by_kept(section: Lines, slot: str, counter: TokenCounter) -> Tokens:
    """Tokens of the section when only its first k lines are kept; shape (E, K + 1), k = 0..K."""
    inner, last = counter.inner(section), counter.last(section, slot)
    lengths = np.diff(section.starts)
    width = int(lengths.max(initial=0))
    table = np.full((len(lengths), width + 1), counter.empty(slot), dtype=np.int64)
    before = np.concatenate([[0], inner.cumsum()])
    row = np.repeat(np.arange(len(lengths)), lengths)
    place = np.arange(len(inner)) - section.starts[:-1][row]
    table[row, place + 1] = before[:-1] - before[section.starts[:-1][row]] + last
    return table


_NO_FACTS = pl.DataFrame(schema={"row": pl.UInt32, "place": pl.Int64, "like": pl.Int64})


def _facts_of_likes(examples: pl.DataFrame) -> pl.DataFrame:
    """For each fact ``row``, ``place`` in its list and ``like``, the place of its like (null: a fact about a candidate,
    always kept)."""
    numbered = examples.with_row_index("row")
    facts = numbered.select(
        "row",
        place=pl.int_ranges(pl.col("triples").list.len()),
        movie_id=pl.col("triples").list.eval(pl.element().struct.field("movie_id")),
    ).explode("place", "movie_id", empty_as_null=False)
    likes = numbered.select("row", movie_id="liked", like=pl.int_ranges(pl.col("liked").list.len()))
    shown = numbered.select("row", movie_id="candidates").explode("movie_id", empty_as_null=False)
    likes = likes.explode("movie_id", "like", empty_as_null=False).join(shown, on=["row", "movie_id"], how="anti")
    return facts.join(likes, on=["row", "movie_id"], how="left", maintain_order="left").select("row", "place", "like")


def _facts_by_kept(
    examples: pl.DataFrame, lines: Mapping[str, Lines], facts: pl.DataFrame, counter: TokenCounter
) -> Tokens:
    """Tokens of hint 2 when only the facts of the first k likes are kept, shape (E, K + 1)."""
    width = int(examples["liked"].list.len().max() or 0)  # type: ignore[arg-type]
    if "triples" not in lines:
        return np.zeros((len(examples), width + 1), dtype=np.int64)
    section = lines["triples"]
    inner, last = counter.inner(section), counter.last(section, "triples")
    row = facts["row"].to_numpy()
    # a fact about the like at place p is present for every k > p, one about a candidate for every k
    from_k = facts["like"].fill_null(-1).to_numpy() + 1
    table = np.zeros((len(examples), width + 1), dtype=np.int64)
    final = np.full((len(examples), width + 1), -1, dtype=np.int64)
    np.add.at(table, (row, from_k), inner)
    np.maximum.at(final, (row, from_k), np.arange(len(inner)))
    table, final = table.cumsum(axis=1), np.maximum.accumulate(final, axis=1)
    closing = np.append(last - inner, counter.empty("triples"))  # index -1: no fact at all
    total: Tokens = table + closing[final]
    return total


def _cut(examples: pl.DataFrame, kept: Kept, facts: pl.DataFrame) -> pl.DataFrame:
    limits = pl.DataFrame({f"keep_{slot}": limit for slot, limit in kept.items()})
    cut = pl.concat([examples, limits], how="horizontal").with_columns(
        pl.col(slot).list.head(pl.col(f"keep_{slot}")) for slot in kept
    )
    if facts.height:
        stays = facts.join(cut.select(pl.row_index("row"), "keep_liked"), on="row", how="left", maintain_order="left")
        places = (
            stays.filter(pl.col("like").is_null() | (pl.col("like") < pl.col("keep_liked")))
            .group_by("row", maintain_order=True)
            .agg("place")
        )
        cut = cut.with_row_index("row").join(places, on="row", how="left", maintain_order="left")
        nothing = pl.lit([], dtype=pl.List(pl.Int64))
        kept_triples = pl.col("triples").list.gather(pl.col("place").fill_null(nothing))
        cut = cut.with_columns(triples=kept_triples.cast(EXAMPLES["triples"])).drop("row", "place")
    return cut.drop(limits.columns)


def _refuse(examples: pl.DataFrame, tokens: Tokens, waiting: npt.NDArray[np.bool_], max_tokens: int) -> None:
    longest = int(np.where(waiting, tokens, 0).argmax())
    name = examples.select(EXAMPLE_ID).item(longest, 0)
    raise InputError(
        f"prompt.max_tokens = {max_tokens}: {int(waiting.sum())} examples are longer with all dropped that may be, "
        f"the longest, {name}, has {tokens[longest]}; set it to {tokens[longest]} or more, or show less "
        "(retrieve.num_candidates, retrieve.triples_per_film, retrieve.hint_films, prompt.worked_examples)"
    )


def count_left_out(before: pl.DataFrame, after: pl.DataFrame) -> pl.Series:
    """Films and facts dropped per section: structs of ``EXAMPLES['shortened']``."""
    columns = {
        slot: before[slot].list.len().cast(pl.Int16) - after[slot].list.len().cast(pl.Int16)
        for slot in SHORTENED.to_schema()
    }
    return pl.DataFrame(columns).to_struct("shortened")
