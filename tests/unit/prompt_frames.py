"""Made-up inputs of ``build_examples``: users with any number of likes, dislikes, hints and facts."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import polars as pl

from tripletune.config import PromptConfig
from tripletune.finetune.tiny import train_tokenizer
from tripletune.prompts.engine import Frame, build_examples
from tripletune.prompts.render import draw_lines, join_prompts
from tripletune.prompts.sanitise import display_titles
from tripletune.prompts.template import Template, load_template, shipped
from tripletune.prompts.tokens import TokenCounter
from tripletune.schemas.base import conform
from tripletune.schemas.generate import EXAMPLES
from tripletune.schemas.knowledge import RELATION_NAMES
from tripletune.schemas.query import QUERY_KEY
from tripletune.schemas.retrieve import CHOICES, RETRIEVED

NUM_FILMS = 120
NUM_VIEWERS = 30
RELATIONS = [*RELATION_NAMES, "shot_in"]
_WORDS = (
    "Night",
    "Ruë",
    "of",
    "the",
    "7",
    "Samurai,",
    "Amélie:",
    "W.",
    "千と千尋",
    "Don't",
    "II",
    "(aka",
    "X)",
    "-",
)


def plain_titles() -> list[str]:
    rng = np.random.default_rng(5)
    texts = [" ".join(rng.choice(_WORDS, int(rng.integers(1, 6)))) for _ in range(NUM_FILMS)]
    return [f"{text} ({1930 + place})" if place % 4 else text for place, text in enumerate(texts)]


def plain_names() -> list[str]:
    return [f"{_WORDS[place % len(_WORDS)]} Person {place}" for place in range(40)]


def movies(titles: list[str]) -> pl.DataFrame:
    return pl.DataFrame(
        {"movie_id": range(1, len(titles) + 1), "title": titles}, schema={"movie_id": pl.Int32, "title": pl.String}
    )


def frames(
    names: list[str],
    relations: list[str],
    num_candidates: int = 20,
    num_films: int = NUM_FILMS,
    num_viewers: int = NUM_VIEWERS,
) -> tuple[pl.DataFrame, ...]:
    """``retrieved, choices, evidence, answers`` of test queries. Every third user has no dislikes, every fifth no
    films of similar users, every seventh no facts; the number of likes goes from 0 to 15."""
    rng = np.random.default_rng(3)
    rows, facts = [], []
    for user in range(1, num_viewers + 1):
        films = [int(film) for film in rng.permutation(num_films)[: num_candidates + 25] + 1]
        shown, liked = films[:num_candidates], films[num_candidates : num_candidates + user % 16]
        disliked, similar = films[num_candidates + 15 : num_candidates + 20], films[num_candidates + 20 :]
        similar[user % 5] = shown[user % 11]
        rows.append(
            {
                "user_id": user,
                "purpose": "test",
                "unseen": False,
                "cutoff": 50,
                "candidates": shown,
                "ranking": shown[9::-1],
                "similar": similar if user % 5 else [],
                "topics": [
                    {
                        "relation": relation,
                        "entity": f"e:{place}",
                        "entity_name": name,
                        "films": 9 - place,
                        "recent": place,
                    }
                    for place, (relation, name) in enumerate(zip(relations, names[: user % 6], strict=False))
                ],
                "liked": liked,
                "disliked": disliked if user % 3 else [],
                "answer": shown[user % 7],
            }
        )
        for film in [*liked[:5], *shown[: user % 13]] if user % 7 else []:
            for rank in range(int(rng.integers(0, 3))):
                facts.append((user, "test", 50, film, rank, *_fact(rng, names, relations), 0.0, 1.0))
    told = pl.DataFrame(rows, schema_overrides=EXAMPLES.to_frame().select(QUERY_KEY).schema)
    key = QUERY_KEY
    lists = told.select(*key, pl.col("liked", "disliked").cast(pl.List(pl.Int32)))
    answers = told.select(*key, movie_id=pl.col("answer").cast(pl.Int32), rating=pl.lit(4.5, pl.Float32))
    return (
        conform(told, RETRIEVED),
        pl.DataFrame(facts, schema=CHOICES, orient="row"),
        lists,
        answers,
    )


def _fact(rng: np.random.Generator, names: list[str], relations: list[str]) -> tuple[str, str, str]:
    place = int(rng.integers(len(names)))
    return relations[int(rng.integers(len(relations)))], f"other:{place}", names[place]


def build(
    template: str = "hints-first",
    *,
    form: str = "arrow",
    titles: list[str] | None = None,
    names: list[str] | None = None,
    relations: list[str] | None = None,
    tokenizer: Any = None,
    max_tokens: int = 0,
    num_candidates: int = 20,
    num_viewers: int = NUM_VIEWERS,
) -> pl.DataFrame:
    """Examples of these users."""
    loaded, titles = load_template(template), titles or plain_titles()
    frame = Frame(
        template=loaded,
        titles=display_titles(movies(titles)),
        settings=PromptConfig(template=template, triple_form=form, max_tokens=max_tokens),
        specialists={"lightgcn": "l", "rgat": "r"},
        seed=7,
        counter=TokenCounter(tokenizer, loaded, "the model") if tokenizer else None,
    )
    made = frames(names or plain_names(), relations or RELATIONS, num_candidates, len(titles), num_viewers)
    return build_examples(*made, frame)


@functools.cache
def llama_like_tokenizer() -> Any:
    """A tokenizer with the cuts and the chat template of Llama 3; its vocabulary is learnt from the prompts."""
    texts = [message["content"] for name in shipped() for prompt in build(name)["prompt"] for message in prompt]
    return train_tokenizer(iter(texts), 3000)


def ids_of_whole(tokenizer: Any, example: dict[str, Any]) -> list[int]:
    """As TRL tokenises an example: the whole conversation under the chat template."""
    chat = [*example["prompt"], *example["completion"]]
    return list(tokenizer.apply_chat_template(chat, tokenize=True, return_dict=True)["input_ids"])


def render_prompts(examples: pl.DataFrame, template: Template, form: Any, titles: pl.DataFrame) -> pl.DataFrame:
    """Prompts and completions of examples that fit any budget."""
    return join_prompts(examples, draw_lines(examples, template, form, titles), template, titles)
