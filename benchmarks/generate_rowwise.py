"""A straightforward generator, in the manner of published research code: example by example, film by film.

pandas look-ups and f-strings; it starts where ``prompts.render`` starts, from lists of film ids and chosen facts, and
must come to the same text.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from tripletune.prompts.template import Template


def render_by_row(
    examples: pd.DataFrame, movies: pd.DataFrame, relations: pd.DataFrame, template: Template
) -> list[tuple[str, str]]:
    """User message and completion of each example.

    Args:
        examples: a row per example; columns of film ids by slot, ``completion``, and ``triples``: dictionaries.
        movies: ``display`` by movie id.
        relations: ``between`` (the arrow's words) by relation.
        template: whose answers are titles.
    """
    return [_render(row, movies, relations, template) for _, row in examples.iterrows()]


def _render(row: pd.Series[Any], movies: pd.DataFrame, relations: pd.DataFrame, template: Template) -> tuple[str, str]:
    user = template.user
    for slot in template.slots:
        lines = []
        if slot == "triples":
            for triple in row["triples"]:
                title = movies.loc[triple["movie_id"], "display"]
                words = relations.loc[triple["relation"], "between"]
                lines.append(f"- {title}{words}{triple['entity_name']}")
        else:
            for number, movie_id in enumerate(row[slot], start=1):
                title = movies.loc[movie_id, "display"]
                lines.append(f"{number}. {title}" if slot == "ranking" else f"- {title}")
        user = user.replace(f"{{{slot}}}", "\n".join(lines) or template.wording.nothing)
    answer = [f"{number}. {movies.loc[film, 'display']}" for number, film in enumerate(row["completion"], start=1)]
    return user, "\n".join(answer)
