"""What a training needs besides examples: the base model and the film vectors, laid into the work folder."""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tripletune.behaviour.space import SPACE, align, load_vectors, read_vectors, save_vectors
from tripletune.behaviour.tables import FILMS, write_film_tables
from tripletune.config import FinetuneConfig
from tripletune.contract import TINY, BaseIdentity, BehaviourSpace, identify_base
from tripletune.errors import ConfigError, ContractError
from tripletune.finetune.warm import Champion, require_same_base
from tripletune.store.paths import MANIFEST, SCRATCH, Facts

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FilmSource:
    """Where the film vectors of behaviour tokens come from."""

    stage: str
    folder: Path
    columns: tuple[str, ...]
    """Columns that list the films of the template's sections, in the template's order."""


class Prepared(NamedTuple):
    """What ``prepare`` laid into the work folder."""

    identity: BaseIdentity
    base_name: str
    """Name of the base model that does not depend on where the work folder is."""
    space: BehaviourSpace | None
    """None without behaviour tokens."""
    facts: Facts


def prepare(
    train: list[Path],
    out: Path,
    settings: FinetuneConfig,
    seed: int,
    *,
    base: Path | None,
    behaviour: FilmSource | None,
    champion: Champion | None,
) -> Prepared:
    """Lay base model and film vectors into the work folder.

    Args:
        train: shards of the training examples, whose words the tiny model knows.
        out: work folder; ``base/`` in it is filled, unless the model lies elsewhere.
        settings, seed: of the training.
        base: folder of a base model that is there already.
        behaviour: the film vectors; None: the prompts have none.
        champion: the adapter to go on from; base model and vectors must be its own.

    Raises:
        ConfigError: no such model, a Hugging Face id without a revision, or not the champion's model or vectors.
    """
    if champion and settings.model == TINY:
        base = champion.folder / "base"  # it was built from the prompts of the chain's first run
    identity, base_name = _prepare_base(train, out, settings, seed, base)
    if champion:
        require_same_base(champion, identity)
    space, facts = _prepare_films(behaviour, out, champion) if behaviour else (None, Facts())
    return Prepared(identity, base_name, space, facts)


def _prepare_base(
    train: list[Path], out: Path, settings: FinetuneConfig, seed: int, base: Path | None
) -> tuple[BaseIdentity, str]:
    """The base model's identity and a name for it that does not depend on where the work folder is."""
    if base is not None:
        _link(base, out / "base")
        return identify_base(str(out / "base"), ""), settings.model
    if settings.model == TINY:
        from tripletune.finetune.tiny import write_tiny_llama  # transformers takes seconds to import

        write_tiny_llama(train, out / "base", settings.tiny, seed)
        return identify_base(str(out / "base"), ""), TINY
    if not Path(settings.model).is_dir() and not settings.revision:
        raise ConfigError(
            f"finetune.model = {settings.model!r} is no local folder, and a Hugging Face id needs finetune.revision"
        )
    return identify_base(settings.model, settings.revision), settings.model


def _link(folder: Path, to: Path) -> None:
    """The files of a model folder under another name, so that an adapter's folder holds all that it needs."""
    shutil.rmtree(to, ignore_errors=True)
    to.mkdir()
    for file in folder.iterdir():
        if file.is_file() and file.name != MANIFEST:
            try:
                (to / file.name).hardlink_to(file)
            except OSError:  # a file system without links
                shutil.copyfile(file, to / file.name)


def _prepare_films(source: FilmSource, out: Path, champion: Champion | None) -> tuple[BehaviourSpace, Facts]:
    """Write the film vectors: those whose space the projector is trained in, which ranking needs again, and for the
    training those of fit a and, for examples of valid, of fit b in that space. It is fit a's own, or the champion's.

    Returns:
        What the contract says of them; facts behaviour_films and behaviour_cosine.
    """
    first = read_vectors(source.folder, source.stage, "a")
    reference = first
    if champion:
        reference = load_vectors(champion.folder / SPACE)
        try:
            first = align(first, reference).vectors
        except ContractError as error:
            raise ConfigError(f"finetune.start = 'champion': {error}, with finetune.start = 'base'") from None
    second = align(read_vectors(source.folder, source.stage, "b"), reference)
    save_vectors(out / SPACE, reference)
    write_film_tables(out / SCRATCH / FILMS, first, second.vectors)
    log.info(
        "finetune: film vectors of %s, fit b turned into the adapter's space: mean cosine %.2f of %s films",
        source.stage,
        second.cosine,
        f"{second.shared:,}",
    )
    space = BehaviourSpace(source=source.stage, space=reference.space, columns=source.columns)
    return space, {"behaviour_films": second.shared, "behaviour_cosine": round(second.cosine, 4)}
