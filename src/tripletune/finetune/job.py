"""Job file for the training processes.

The stage and the ranks are different processes. The job is a JSON file; live messages come back by
``processes.messages``, and the result is a file that the first rank writes last.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from tripletune.config import FinetuneConfig
from tripletune.store.paths import SCRATCH

_OF_BEHAVIOUR = ["liked", "disliked"]
_OF_CHATS = ["example_id", "prompt", "completion"]
_OF_LABELS = ["example_id", "prompt", "candidates", "candidate_titles", "candidate_letters", "answers", "retrieved"]
_OF_WEIGHTS = ["answer_ratings"]


class TrainingJob(BaseModel):
    """One training run; equal jobs may resume each other's checkpoints."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    out: Path
    train: tuple[Path, ...]
    """Shards with ``prompt`` and ``completion``, in order."""
    evaluation: Path | None
    """Parquet with the examples to evaluate on; None when there are none."""
    select: Path | None = None
    """Parquet with the examples that set the weight of the model's scores next to the retriever's; None: that of the
    training, ``finetune.residual_weight``."""
    prior: tuple[float, ...] = ()
    """``residual.calibrate_prior`` of the training examples, where the loss is taken over labels."""
    films: Path | None = None
    """File of film vectors for behaviour tokens; None without them."""
    film_columns: tuple[str, ...] = ()
    """Columns that list the films with such tokens, in the prompt's order."""
    teacher: Path | None = None
    """Folder with a teacher's scores, a file of ``schemas.teach.TAUGHT`` for each training shard; None: no teacher."""
    answer_style: str = "titles"
    """Style of the answers, a key of ``ANSWER_STYLES``."""
    base: str
    """Folder or id for ``from_pretrained``."""
    hub_revision: str | None
    base_name: str
    """Name of the base model in the adapter's config: valid on every machine."""
    start: Path | None = None
    """Folder of the adapter that training starts from; None: fresh LoRA matrices."""
    settings: FinetuneConfig
    seed: int

    @property
    def columns(self) -> list[str]:
        """Columns of the examples that training reads."""
        return columns_read(self.settings)

    @property
    def scratch(self) -> Path:
        """Folder of what is not published."""
        return self.out / SCRATCH

    @property
    def tokens(self) -> Path:
        """Folder of ``token_files``."""
        return self.scratch / "tokens"

    @property
    def checkpoints(self) -> Path:
        """Folder of the Trainer's checkpoints."""
        return self.scratch / "checkpoints"

    @property
    def best(self) -> Path:
        """Folder of ``best.BestKeeper``."""
        return self.scratch / "best"

    @property
    def adapter(self) -> Path:
        """Folder of the adapter; there when it is whole."""
        return self.out / "adapter"

    @property
    def result(self) -> Path:
        """Written last: ``{"facts": ..., "history": ...}``."""
        return self.scratch / "result.json"


def columns_read(settings: FinetuneConfig) -> list[str]:
    """Columns of the shards that an objective reads."""
    if not settings.scores_labels:
        return _OF_CHATS
    weighted = _OF_WEIGHTS if settings.targets == "rating" else []
    return _OF_LABELS + weighted + (_OF_BEHAVIOUR if settings.has_behaviour else [])
