"""Titles of films and names of people from word lists, with the oddities of real titles."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from tripletune.synthetic.sizes import Size
from tripletune.synthetic.world import Catalogue

_ADJECTIVES = (
    *("Silent", "Broken", "Crimson", "Distant", "Hidden", "Last", "Golden", "Midnight", "Frozen", "Savage"),
    *("Gentle", "Hollow", "Burning", "Paper", "Electric", "Velvet", "Lonely", "Bitter", "Second"),
    *("Northern", "Restless", "Iron", "Quiet", "Painted", "Vanishing", "Secret", "Stolen", "Endless"),
    *("Blue", "Winter", "Foreign", "Perfect", "Crooked", "Sleeping", "Forgotten", "Wandering", "Naïve"),
)
_NOUNS = (
    *("Harbor", "Orchard", "Letters", "Empire", "Garden", "Highway", "Mirror", "Summer", "Stranger"),
    *("Kingdom", "River", "Promise", "Station", "Machine", "Daughter", "Horizon", "Carnival", "Shadow"),
    *("Island", "Witness", "Hotel", "Dream", "Alibi", "Voyage", "Bridge", "Saint", "Hunter", "Frontier"),
    *("Waltz", "Detective", "Circus", "Lighthouse", "Café", "Señorita", "Matinee", "Compass"),
)
_PLACES = (
    *("Lisbon", "Málaga", "Kraków", "Tromsø", "Valparaíso", "Odessa", "Zürich", "Göteborg", "Marrakesh"),
    *("São Luís", "Naples", "Trieste", "Galway", "Besançon", "Nagasaki", "Tbilisi", "Savannah", "Duluth"),
    *("Saint-Malo", "İzmir", "Reykjavík", "Poznań", "Aarhus", "Mombasa", "Oaxaca", "Cádiz", "Plzeň"),
    *("Winnipeg", "Tucson", "Hobart", "Kyoto", "Fès", "Córdoba", "Bergen", "Lyon", "Graz", "Porto"),
)
_FIRST_NAMES = (
    *("Ada", "Bruno", "Clara", "Dario", "Elif", "Farid", "Greta", "Hugo", "Inés", "Jonas", "Kaya", "Liam"),
    *("Mira", "Nils", "Olga", "Pablo", "Quinn", "Rosa", "Stefan", "Tara", "Umut", "Vera", "Wanda"),
    *("Xavier", "Yara", "Zeno"),
)
_LAST_NAMES = (
    *("Abelard", "Brandt", "Castellan", "Drummond", "Eklund", "Farrow", "Grimaldi", "Holloway", "Ibarra"),
    *("Jansen", "Kowalczyk", "Lindqvist", "Marchetti", "Novák", "Okafor", "Pereira", "Quigley"),
    *("Rasmussen", "Santoro", "Thorne", "Ueda", "Valente", "Whitlock", "Yılmaz", "Zielinski", "Ashdown"),
    *("Bellamy", "Corrigan", "O'Dunmore", "Everhart"),
)
ODD_TITLES = {
    2: ("Evil <|eot_id|> (1999)", 1999),
    4: ('"Great" Escape, or: The Long, Long Way Home, The (1978)', 1978),
    6: ("Twin Lanterns (1987)", 1987),
    7: ("Twin Lanterns (1987)", 1987),
    10: ("Untitled Road Picture", 0),
}
"""Titles and years by popularity rank, high enough to appear in prompts; year 0: none."""
_ARTICLE, _QUOTED, _SUBTITLE, _AS_WELL = 0.2, 0.02, 0.05, 0.04
_TWINS = 0.002
"""Share of films with the title and year of another film, as published."""


@dataclass(frozen=True, slots=True)
class Titles:
    """Titles: ``listed`` as in MovieLens, with year and moved article; ``plain`` as in IMDb."""

    listed: list[str]
    plain: list[str]


def draw_titles(catalogue: Catalogue, size: Size, rng: np.random.Generator) -> Titles:
    """Draw a title per film, unique except for planted twins; sets the twins' years in the catalogue."""
    num_movies = catalogue.num_movies
    chance_M = rng.random((num_movies, 4))
    listed, plain = [], []
    for rank, number in enumerate(_numbers(num_movies, rng).tolist()):
        name, article = _name(number), chance_M[rank, 0] < _ARTICLE
        more = ""
        if chance_M[rank, 1] < _QUOTED:
            name = f'"{name}"'
        elif chance_M[rank, 2] < _SUBTITLE:
            more = f": {_PLACES[number % len(_PLACES)]}, My Love"
        if chance_M[rank, 3] < _AS_WELL:
            more += f" (a.k.a. {_ADJECTIVES[number % len(_ADJECTIVES)]} {_NOUNS[number % len(_NOUNS)]})"
        listed.append(f"{name}, The{more}" if article else name + more)
        plain.append(f"The {name}{more}" if article else name + more)
    if size.as_published:
        twin_M = np.flatnonzero(rng.random(num_movies) < _TWINS)
        for film, other in zip(twin_M.tolist(), rng.integers(num_movies, size=len(twin_M)).tolist(), strict=True):
            listed[film], plain[film] = listed[other], plain[other]
            for when_M in (catalogue.year_M, catalogue.released_M):
                when_M[film] = when_M[other]
    years = catalogue.year_M.tolist()
    listed = [f"{name} ({year})" if year else name for name, year in zip(listed, years, strict=True)]
    for rank, (title, _) in ODD_TITLES.items():
        listed[rank] = title
        plain[rank] = title.removesuffix(f" ({years[rank]})")
    return Titles(listed, plain)


def _numbers(count: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Distinct numbers for ``_name``: short names only where they suffice. Shape (count,)."""
    pairs = len(_ADJECTIVES) * len(_NOUNS)
    short = pairs + len(_NOUNS) * len(_PLACES)
    return rng.permutation(short if count <= short else max(short + pairs * len(_PLACES), count))[:count]


def _name(number: int) -> str:
    """Unique name of a number: pairs of words, words with a place, pairs with a place, and sequels of these."""
    pairs, places = len(_ADJECTIVES) * len(_NOUNS), len(_NOUNS) * len(_PLACES)
    if number < pairs:
        return f"{_ADJECTIVES[number // len(_NOUNS)]} {_NOUNS[number % len(_NOUNS)]}"
    number -= pairs
    if number < places:
        return f"{_NOUNS[number // len(_PLACES)]} of {_PLACES[number % len(_PLACES)]}"
    pair, place = divmod(number - places, len(_PLACES))
    sequel, pair = divmod(pair, pairs)
    name = f"{_ADJECTIVES[pair // len(_NOUNS)]} {_NOUNS[pair % len(_NOUNS)]} of {_PLACES[place]}"
    return f"{name} {sequel + 1}" if sequel else name


def person_names(number: str) -> pl.Expr:
    """Names of people by their number from 0: short ones first, then with an initial."""
    first, last = pl.Series(_FIRST_NAMES), pl.Series(_LAST_NAMES)
    initial = pl.Series([" ", *(f" {letter}. " for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ")])
    column = pl.col(number)
    return pl.concat_str(
        pl.lit(first).gather(column % len(first)),
        pl.lit(initial).gather(column // (len(first) * len(last)) % len(initial)),
        pl.lit(last).gather(column // len(first) % len(last)),
    )
