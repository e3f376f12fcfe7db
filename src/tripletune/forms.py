"""Forms of a query's prompt: the list of candidates, a question about one of them, and a choice between two.

The two short forms are cut from the list's prompt: the same system message and the same sections before the candidates,
then the question, with the candidates' lines as the list has them. So they show nothing that the list's prompt does not
show, and whoever has a list's prompt can ask them, in training, in ranking and in serving.

The forms, and how their answers become one order, are RecRanker's (Luo et al., https://arxiv.org/abs/2312.16018).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from tripletune.errors import ContractError
from tripletune.schemas.answers import YES_NO, candidate_letters

Message = Mapping[str, str]
SLOT = "{candidates}"


class FormTexts(BaseModel):
    """A template's fixed text around the candidates, and its two short questions."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    before: str
    """Text of the list's prompt between the sections of the user's data and the candidates' lines."""
    after: str
    """Its text behind the candidates' lines."""
    pointwise: str
    """Question about one film, with ``SLOT`` alone on a line."""
    pairwise: str
    """Choice between two films, likewise."""


@dataclass(frozen=True, slots=True)
class ListPrompt:
    """A list's prompt, cut into what the forms share and the candidates' lines."""

    system: Message
    evidence: str
    """User message up to the question."""
    films: tuple[str, ...]
    """Candidates' lines in the order shown, without their labels."""
    texts: FormTexts

    @classmethod
    def cut(cls, prompt: Sequence[Message], letters: Sequence[str], texts: FormTexts, where: str) -> ListPrompt:
        """Cut a prompt.

        Args:
            prompt: of the list: a message of the system and one of the user.
            letters: labels of its candidates, in the order shown.
            texts: of the template that it was rendered with.
            where: names the prompt in errors.

        Raises:
            ContractError: it was not rendered with that template, or does not show these labels.
        """
        system, user = prompt
        evidence, found, rest = user["content"].rpartition(texts.before)
        lines = rest.removesuffix(texts.after).split("\n") if rest.endswith(texts.after) else []
        marks = [f"{letter}. " for letter in letters]
        if not found or len(lines) != len(marks) or not all(map(str.startswith, lines, marks)):
            raise ContractError(
                f"{where}: the prompt does not end with {len(letters)} candidates as the template of the adapter shows "
                "them, so its further forms can't be asked; write the prompt with that template"
            )
        films = (line.removeprefix(mark) for line, mark in zip(lines, marks, strict=True))
        return cls(system, evidence, tuple(films), texts)

    def pointwise(self, place: int) -> list[Message]:
        """The prompt that asks whether the user will like the candidate shown at ``place`` (from 0)."""
        return self._asking(self.texts.pointwise, [f"- {self.films[place]}"])

    def pairwise(self, first: int, second: int) -> list[Message]:
        """The prompt that asks which of two candidates, by place, the user will like better."""
        marks = zip(PAIR_LABELS, (first, second), strict=True)
        return self._asking(self.texts.pairwise, [f"{mark}. {self.films[place]}" for mark, place in marks])

    def _asking(self, question: str, lines: Sequence[str]) -> list[Message]:
        text = question.replace(SLOT, "\n".join(lines))
        return [self.system, {"role": "user", "content": f"{self.evidence}\n\n{text}"}]


PAIR_LABELS = tuple(candidate_letters(2))
LABELS = {"pointwise": YES_NO, "pairwise": PAIR_LABELS}
"""What a short form is answered with."""


def pairs_of(num_candidates: int) -> list[tuple[int, int]]:
    """The pairs that are asked of a list, as (first shown, second shown), by place.

    Each candidate is compared twice, once as the first and once as the second, so that a taste for one place gains
    nobody anything. Of an even number each pair of opposite places is asked in both orders, as published.
    """
    half = num_candidates // 2
    return [(place, (place + half) % num_candidates) for place in range(num_candidates)] if half else []
