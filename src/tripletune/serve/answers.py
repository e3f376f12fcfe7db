"""Answers of a registered version to prompts: the code of the rank stage, on rows that come from anywhere.

A row is one of the shards', or as many of its columns as ranking reads. Prompts are checked against the adapter's
contract as far as they can be: their template's fixed text, the number of candidates and the hash of the template where
a row states it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from tripletune.contract import AdapterContract
from tripletune.errors import ContractError, InputError
from tripletune.prompts.template import Template, load_template
from tripletune.rank.served import add_retriever
from tripletune.schemas.rank import SERVED
from tripletune.serve.layout import require_same_template, require_whole, template_file

if TYPE_CHECKING:
    from tripletune.rank.answerer import Answerer

REQUIRED = ("prompt", "candidates")
"""``prompt``: messages of ``role`` and ``content``; ``candidates``: ids of the films in the order shown."""
OPTIONAL = ("candidate_titles", "retrieved", "template_sha256")
"""``candidate_titles``: needed where answers are titles; ``retrieved``: the candidates in the retriever's order,
without which the model's own order is returned; ``template_sha256``: of the prompt's template, compared with the
adapter's."""
ANSWERS = ("answers", "names", "scores", "system")
"""``answers``: the candidates, best first; ``names``: their labels or titles; ``scores``: of each, where the model
gives one; ``system``: ``tuned+retriever`` or ``tuned``, as the rank stage's predictions have it."""

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A loaded version; make it with ``load``."""

    answerer: Answerer
    template: Template
    batch_size: int

    @classmethod
    def load(cls, adapter: Path, prompts: Path, films: Path | None, *, batch_size: int) -> ServedModel:
        """Load the folders of a version.

        Args:
            adapter: a finetuned folder with its manifest.
            prompts: with the template and the settings of its prompts.
            films: files of the film vectors; needed where the adapter reads behaviour tokens.
            batch_size: prompts answered together.

        Raises:
            MissingArtifactError, InputError: a file is gone or damaged.
            ContractError: template or base model are no longer those that the adapter was trained with.
            NonFiniteError: a weight of the adapter is NaN or infinite.
        """
        from tripletune.rank.answerer import Answerer  # imports torch and transformers

        require_whole(adapter)
        require_same_template(prompts, adapter)
        folder_of = (lambda _stage: films) if films else None
        return cls(Answerer.load(adapter, folder_of), load_template(str(template_file(prompts))), batch_size)

    @property
    def contract(self) -> AdapterContract:
        """Of the adapter."""
        return self.answerer.contract

    def answer(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """Order the candidates of each row; ``ANSWERS`` by name.

        Args:
            rows: ``REQUIRED``, and of ``OPTIONAL`` what there is; for behaviour tokens the contract's columns too.

        Raises:
            ContractError: a prompt is none of those that the adapter was trained on; the message names row and reason.
            NonFiniteError: a logit is NaN or infinite.
        """
        checked = [self._checked(number, row) for number, row in enumerate(rows)]
        if not checked:
            return []
        examples = pl.DataFrame(checked, infer_schema_length=None)
        with_retriever = [bool(self.contract.residual) and row["retrieved"] is not None for row in checked]
        found = self.answerer.answer(examples, constrained=True, batch_size=self.batch_size)
        if any(with_retriever) and self.contract.residual:
            is_summed = pl.Series(with_retriever)
            summed = add_retriever(
                found.filter(is_summed), examples.filter(is_summed)["retrieved"], self.contract.residual
            )
            found = pl.concat([summed, found.filter(~is_summed)]).sort("user_id")
        return [
            self._named(row, answered, is_served)
            for row, answered, is_served in zip(checked, found.iter_rows(named=True), with_retriever, strict=True)
        ]

    def _named(self, row: Row, answered: Row, is_served: bool) -> dict[str, Any]:
        names = dict(zip(row["candidates"], row["candidate_letters"] or row["candidate_titles"], strict=True))
        scores = answered["scores"]
        return {
            "answers": answered["answers"],
            "names": [names[film] for film in answered["answers"]],
            "scores": [] if scores is None else scores,
            "system": SERVED if is_served else "tuned",
        }

    def _checked(self, number: int, row: Row) -> dict[str, Any]:
        """The row as the answerer reads it; ``user_id`` is its number.

        Raises:
            ContractError, InputError: it does not fit the contract.
        """
        where = f"row {number}"
        prompt = self._prompt(row["prompt"], where)
        stated = row.get("template_sha256")
        if stated and stated != self.template.sha256:
            raise ContractError(
                f"{where}: template_sha256 is {str(stated)[:12]}, and the adapter was trained on prompts of the "
                f"template {self.template.id!r}, {self.template.sha256[:12]}; write the prompt with that template"
            )
        candidates = _ids(row, "candidates", where)
        most = int(self.contract.prompt["num_candidates"])
        if not 1 <= len(set(candidates)) == len(candidates) <= most:
            raise ContractError(
                f"{where}: candidates are {len(candidates)}, {len(set(candidates))} of them distinct; the adapter was "
                f"trained on {most}"
            )
        retrieved = _ids(row, "retrieved", where) if _is_given(row, "retrieved") else None
        if retrieved is not None and sorted(retrieved) != sorted(candidates):
            raise ContractError(f"{where}: retrieved must list the films of candidates, each once, best first")
        behaviour = self.answerer.behaviour
        films = {name: _ids(row, name, where) for name in (behaviour.columns if behaviour else ())}
        return {
            "user_id": number,
            "example_id": where,
            "prompt": prompt,
            **films,
            "candidates": candidates,
            "retrieved": retrieved,
            **self._names(row, len(candidates), where),
        }

    def _names(self, row: Row, count: int, where: str) -> dict[str, Any]:
        style = self.answerer.style
        titles = [str(title) for title in row["candidate_titles"]] if _is_given(row, "candidate_titles") else None
        if not style.is_labelled and (titles is None or len(titles) != count):
            raise ContractError(
                f"{where}: the adapter answers with titles, so candidate_titles must name each of the {count} films"
            )
        return {
            "candidate_titles": titles or [""] * count,
            "candidate_letters": style.labels(count) if style.labels else None,
        }

    def _prompt(self, given: Any, where: str) -> list[dict[str, str]]:
        """The messages, as plain data; their fixed text is the template's."""
        try:
            chat = [{"role": str(message["role"]), "content": str(message["content"])} for message in given]
        except (TypeError, KeyError):
            raise InputError(f"{where}: prompt must be a list of messages with 'role' and 'content'") from None
        if [message["role"] for message in chat] != ["system", "user"]:
            raise InputError(f"{where}: prompt must have two messages, of the system and of the user")
        name = f"the template {self.template.id!r}, which the adapter was trained on"
        if chat[0]["content"] != self.template.system:
            raise ContractError(f"{where}: the system message is not that of {name}; write the prompt with it")
        position = 0
        for line in "\n".join(self.template.texts).split("\n"):
            found = chat[1]["content"].find(line, position)
            if found < 0:
                raise ContractError(f"{where}: the prompt lacks {line!r} of {name}; write the prompt with it")
            position = found + len(line)
        return chat


def _is_given(row: Row, name: str) -> bool:
    return row.get(name) is not None


def _ids(row: Row, name: str, where: str) -> list[int]:
    try:
        return [int(film) for film in row[name]]
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{where}: {name} must be a list of film ids") from None
