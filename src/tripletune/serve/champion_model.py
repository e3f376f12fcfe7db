"""The champion as MLflow loads it: ``mlflow.pyfunc.load_model("models:/tripletune-<dataset>@champion")``.

MLflow runs this file when a version is registered and when it is loaded ("models from code"); the package's own code
lies next to it in the version. Nothing is pickled, and no code comes from elsewhere.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd  # type: ignore[import-untyped]
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

if TYPE_CHECKING:
    from tripletune.serve.answers import ServedModel


class ChampionModel(PythonModel):  # type: ignore[misc]
    """Orders the candidates of prompts as the rank stage does."""

    served: ServedModel

    def load_context(self, context: Any) -> None:
        """Load the adapter over its base model, on the GPU where there is one."""
        from tripletune.serve.answers import ServedModel
        from tripletune.serve.layout import ADAPTER, FILMS, PROMPTS

        folders = {name: Path(folder) for name, folder in context.artifacts.items()}
        self.served = ServedModel.load(
            folders[ADAPTER], folders[PROMPTS], folders.get(FILMS), batch_size=int(context.model_config["batch_size"])
        )

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """A frame of ``serve.answers.ANSWERS`` for one of rows."""
        from tripletune.serve.answers import ANSWERS

        return pd.DataFrame(self.served.answer(model_input.to_dict("records")), columns=list(ANSWERS))


set_model(ChampionModel())
