"""Ground truth of a synthetic release: all that ``benchmarks/synthetic_oracle.py`` needs to invert the generator.

``truth.parquet``: user_id, kind (of ``KINDS``), key (as in the knowledge graph, such as ``person:nm0000012`` or
``genre:Crime``; null for kind none) and strength in log-odds. ``truth_movies.parquet``: movie_id, the log-odds
``watch`` and ``like`` of a user without a preference, and the epoch in which the film comes out.
``truth_entities.parquet``: kind, key, prior (with that of no preference they sum to one) and share, the share of
viewings through the entity. ``truth_channels.parquet``: channel (taste, epoch or entity), its number,
movie_id and count, the film's slots out of ``slots``; an entity's films are listed even with none.
``truth_model.json``: the numbers.
"""

# Shape letters in this file: C channels, M films, N planted entities
from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from tripletune.store.files import write_json
from tripletune.store.parquet import write_parquet
from tripletune.synthetic.channels import MOODS, STYLES, TASTES, Channels
from tripletune.synthetic.draw import STRAY, TREND
from tripletune.synthetic.ids import Ids
from tripletune.synthetic.sizes import Size
from tripletune.synthetic.users import GENEROSITIES, STEP, Viewers
from tripletune.synthetic.world import KIND_SHARES, KINDS, Catalogue


def write_truth(
    folder: Path, size: Size, catalogue: Catalogue, channels: Channels, viewers: Viewers, ids: Ids
) -> dict[str, int]:
    """Write the files; returns the number of users per preferred kind."""
    keys = pl.Series([*(ids.key(entity) for entity in channels.entities), None], dtype=pl.String)
    truth = pl.DataFrame(
        {
            "user_id": ids.user_U,
            "kind": pl.Series(KINDS).gather(viewers.kind_U),
            "key": keys.gather(np.where(viewers.entity_U < 0, len(keys) - 1, viewers.entity_U)),
            "strength": np.where(viewers.entity_U < 0, 0.0, size.strength),
        }
    )
    movies = pl.DataFrame(
        {
            "movie_id": ids.movie_M,
            "watch": catalogue.logit_M,
            "like": catalogue.quality_M,
            "epoch": catalogue.released_M,
        }
    )
    kinds = [entity.kind for entity in channels.entities]
    entities = pl.DataFrame(
        {
            "kind": kinds,
            "key": keys[:-1],
            "prior": [KIND_SHARES[KINDS.index(kind)] / kinds.count(kind) for kind in kinds],
            "share": channels.share_N,
        }
    )
    frames = {
        "truth": truth,
        "truth_movies": movies.sort("movie_id"),
        "truth_entities": entities,
        "truth_channels": _counts(channels, ids),
    }
    for name, frame in frames.items():
        write_parquet(folder / f"{name}.parquet", frame)
    write_json(
        folder / "truth_model.json",
        {
            "first_year": size.first_day.year,
            "epochs": channels.num_epochs,
            "moods": MOODS,
            "styles": STYLES,
            "slots": channels.table_CT.shape[1],
            "stray": STRAY,
            "trend": TREND,
            "step": STEP,
            "generosities": GENEROSITIES,
            "strength": size.strength,
        },
    )
    return dict(truth.group_by("kind").len().sort("kind").iter_rows())


def _counts(channels: Channels, ids: Ids) -> pl.DataFrame:
    names = [
        *(("taste", taste) for taste in range(TASTES)),
        *(("epoch", epoch) for epoch in range(channels.num_epochs)),
        *(("entity", entity) for entity in range(len(channels.entities))),
    ]
    parts = []
    for (channel, number), table_T in zip(names, channels.table_CT, strict=True):
        count_M = np.bincount(table_T, minlength=channels.num_movies)
        stands_M = count_M > 0 if channel != "entity" else channels.carries_NM[number]
        film = np.flatnonzero(stands_M)
        parts.append(
            pl.DataFrame(
                {
                    "channel": pl.repeat(channel, len(film), dtype=pl.Enum(["taste", "epoch", "entity"]), eager=True),
                    "number": np.full(len(film), number, dtype=np.int16),
                    "movie_id": ids.movie_M.gather(film),
                    "count": count_M[film].astype(np.int32),
                }
            )
        )
    return pl.concat(parts)
