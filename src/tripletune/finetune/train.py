"""A training process: ``accelerate launch -m tripletune.finetune.train <job.json>``.

The first thing it does is to tie its life to the stage that started it; the libraries take seconds to import, and a
stage may die in them.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tripletune.errors import TrainingDiverged, UserError
from tripletune.finetune.job import TrainingJob
from tripletune.noise import silence
from tripletune.processes import lifeline
from tripletune.processes.messages import send


def main(argv: list[str]) -> int:
    """Train the job in the file ``argv[0]``; exit code 2 after an error that the user can repair."""
    lifeline.hold()
    silence()
    if "LOCAL_RANK" not in os.environ:
        # one process uses one GPU: with more in sight the Trainer would copy the model into threads
        os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    job = TrainingJob.model_validate_json(Path(argv[0]).read_bytes())

    from tripletune.finetune.training import train  # after the lifeline: imports torch, transformers, trl

    try:
        train(job)
    except UserError as error:
        send("error", {"message": str(error), "diverged": isinstance(error, TrainingDiverged)})
        return 2
    except Exception as error:
        # the launcher's own traceback follows ours and would be all that the stage's last lines show
        send(
            "crash", {"message": f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"}
        )
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
