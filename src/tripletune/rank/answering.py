"""Answer the pieces of a job: in this process, in several, or with vLLM."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from tripletune.processes.supervise import end_noted
from tripletune.progress import Progress
from tripletune.rank.pieces import Answered, Piece, answer_pieces
from tripletune.rank.workers.job import RankJob
from tripletune.rank.workers.launch import answer_in_processes


def answer_job(job: RankJob, pieces: Sequence[Piece], scratch: Path) -> Answered:
    """Answer the pieces that are not done; on return every piece is.

    Args:
        job: says with which library, and in how many processes.
        pieces: of the job.
        scratch: folder for what must survive a kill.

    Returns:
        Seconds of the process that answered longest, loading not counted, and the tokens of all.

    Raises:
        ConfigError: ``rank.backend`` can't answer them, see ``vllm_backend.require_answerable``.
    """
    return _with_vllm(job, pieces, scratch) if job.settings.backend == "vllm" else _answer_all(job, pieces, scratch)


def _with_vllm(job: RankJob, pieces: Sequence[Piece], scratch: Path) -> Answered:
    """As ``_answer_all``, with the tuned model's weights in a folder meanwhile; a run that is killed keeps them."""
    from tripletune.rank.vllm_backend import require_answerable, write_merged  # imports torch and transformers

    require_answerable(job.finetuned)
    if any(piece.way.tuned and not piece.is_done for piece in pieces):
        write_merged(job.finetuned, job.merged)
    took = _answer_all(job, pieces, scratch)
    shutil.rmtree(job.merged, ignore_errors=True)
    return took


def _answer_all(job: RankJob, pieces: Sequence[Piece], scratch: Path) -> Answered:
    """Answer the pieces that are not done, in this process or in several; one line of progress for all.

    Returns:
        Seconds of the process that answered longest, loading not counted, and the tokens of all.
    """
    note = scratch / "launcher.json"
    end_noted(note)  # of a killed run: it would hold pieces that this one waits for
    done = [piece for piece in pieces if piece.is_done]
    seconds, tokens = 0.0, 0
    with Progress("answers", len(pieces), done=len(done), unit="pieces") as progress:
        if len(done) == len(pieces):
            return Answered(0.0, 0)
        if len(job.environments) > 1:
            return answer_in_processes(job, scratch, note, progress.advance)

        def add(answered: Answered) -> None:
            nonlocal seconds, tokens
            seconds, tokens = seconds + answered.seconds, tokens + answered.tokens
            progress.advance()

        answer_pieces(pieces, job.load, job.settings.batch_size, add)
    return Answered(seconds, tokens)
