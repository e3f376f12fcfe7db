"""A ranking process: ``python -m tripletune.rank.workers.worker <job.json> <number>``, started by ``crew``.

The first thing it does is to tie its life to the stage that started it; the libraries take seconds to import.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

from tripletune.errors import UserError
from tripletune.noise import silence
from tripletune.processes import lifeline
from tripletune.processes.messages import send
from tripletune.rank.workers.job import RankJob


def main(argv: list[str]) -> int:
    """Answer pieces of the job in the file ``argv[0]``; exit code 2 after an error that the user can repair."""
    lifeline.hold()
    silence()
    job, number = RankJob.model_validate_json(Path(argv[0]).read_bytes()), int(argv[1])

    from tripletune.rank.pieces import answer_pieces

    try:
        answer_pieces(
            job.cut(),
            job.load,
            job.settings.batch_size,
            lambda answered: send("piece", {"worker": number, **asdict(answered)}),
        )
    except UserError as error:
        send("error", {"type": type(error).__name__, "message": str(error)})
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
