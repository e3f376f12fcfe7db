"""Exact token counts of whole conversations, summed from counts of their pieces.

A tokenizer that cuts text after every run of line breaks gives a line the same tokens in every context; one that also
cuts before every single space, as Llama 3's, does so for a title within a line. Prompts share most of their pieces:
each distinct piece is tokenised once, and an example costs a sum. The cuts are tested when the tokenizer is loaded, and
for some examples of every shard the sum is compared with the tokens of the whole. Training with TRL and ranking apply
the same chat template to the same messages.
"""
# Shape letters in this file: E examples, L lines of one section in all examples

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from tripletune.errors import ConfigError, InputError
from tripletune.prompts.render import COMPLETION, Lines
from tripletune.prompts.sanitise import clean_text
from tripletune.prompts.template import Template

Tokens = npt.NDArray[np.int64]

_OPEN, _CLOSE = "\ue000", "\ue001"
"""Marks around a slot's name while the chat template is applied; private use characters, which neither the template nor
a title contains."""
_SLOT = re.compile(f"{_OPEN}([a-z]+){_CLOSE}")
_GAP = re.compile(r"[^\n]*\n+|[^\n]+")
_BREAKS = re.compile(r"\n+")
_LINE_STARTS = ("- x", "- (x)", "1. x", "10. x", "A. x", "AB. x", "A", "QX")
_LINE_ENDS = (
    *(
        "a",
        "Z",
        "é",
        "9",
        "99",
        "999",
        "½",
        "²",
        "１",
        ")",
        "(x)",
        "]",
        "'",
        "'s",
        '"',
        ".",
        "...",
        "!",
        "?!",
        "…",
        "‹",
    ),
    *("|", "|›", "–", "_", "\\", "/", "-", "- ", ":", "々", "ー", "ん", "漢字", "한", "ا", "א", "ก", "कि", "e\u0301"),
    *("🎬", "👍🏽", "©", "°", "€", "+", "=", "~", "^", "`", "#", "*", "&", "%", "$", "@", ";", ","),
)
_WORD_STARTS = (
    *(
        "x",
        "X",
        "é",
        "9",
        "(x",
        "[x",
        '"x',
        "'s",
        "'x",
        "…",
        "‹",
        "|",
        "–",
        "- x",
        "-x",
        "_x",
        "¿",
        "々",
        "漢字",
        "の",
        "한",
    ),
    *("א", "ก", "\u0301", "🎬", "©", "€", "+", "#", "*", "&", "$", "@", ".", ",", "!"),
)
"""Line ends and word starts of every class of characters that a pre-tokeniser distinguishes."""
_CHECKED = 4


class TokenCounter:
    """Count tokens of examples of one template with one tokenizer.

    Args:
        tokenizer: a fast Hugging Face tokenizer with a chat template.
        template: template of the examples.
        source: name of the tokenizer in errors.

    Raises:
        ConfigError: the chat template or the tokenizer does not allow counting by lines, or one of its control tokens
            could stand in a title.
    """

    def __init__(self, tokenizer: Any, template: Template, source: str) -> None:
        self._tokenizer, self._template, self._source = tokenizer, template, source
        self._known: dict[str, int] = {}
        self._refuse_open_tokens()
        fixed, self._gaps = self._skeleton()
        self._require_cuts(fixed)
        self.cuts_at_spaces = self._cuts_before_spaces()
        self._fixed = sum(self._encode(fixed))

    def count(self, lines: Mapping[str, Lines], num_examples: int) -> Tokens:
        """Tokens of each conversation, prompt and completion under the chat template; shape (E,).

        Args:
            lines: lines of the template's slots and of the completion, as ``render.draw_lines`` returns them.
            num_examples: E.
        """
        total = np.full(num_examples, self._fixed, dtype=np.int64)
        for slot, section in lines.items():
            inner_L = self.inner(section)
            before_L1 = np.concatenate([[0], inner_L.cumsum()])
            ends = section.starts[1:]
            filled = ends > section.starts[:-1]
            final = ends[filled] - 1
            total += np.where(filled, before_L1[ends] - before_L1[section.starts[:-1]], self.empty(slot))
            total[filled] += self._tokens(section, self._gaps[slot], final) - inner_L[final]
        return total

    def inner(self, section: Lines) -> Tokens:
        """Tokens of each line and its line break, when another line of the section follows; shape (L,)."""
        return self._tokens(section, "\n")

    def last(self, section: Lines, slot: str) -> Tokens:
        """Tokens of each line and the gap after it, when it is the last of its section; shape (L,)."""
        return self._tokens(section, self._gaps[slot])

    def empty(self, slot: str) -> int:
        """Tokens of a section without data."""
        (count,) = self._encode([self._template.wording.nothing + self._gaps[slot]])
        return count

    def check(self, examples: pl.DataFrame, counted: pl.Series) -> None:
        """Compare some counts with the tokens of the whole conversation.

        Args:
            examples: ``prompt`` and ``completion``.
            counted: result of ``count`` for them.

        Raises:
            InputError: a count is wrong.
        """
        rows = sorted({len(examples) * place // _CHECKED for place in range(_CHECKED)} if len(examples) else ())
        sample = examples[rows]
        chats = [row["prompt"] + row["completion"] for row in sample.iter_rows(named=True)]
        wholes = self._encode([self._tokenizer.apply_chat_template(chat, tokenize=False) for chat in chats])
        if wholes != counted.gather(rows).to_list():
            raise InputError(
                f"the tokenizer of {self._source} counts {wholes} tokens where the lines sum up to "
                f"{counted.gather(rows).to_list()}; report a bug with the name of the model"
            )

    def _tokens(self, section: Lines, ending: str, wanted: Tokens | None = None) -> Tokens:
        """Tokens of the wanted lines (all, when None), each followed by the ending."""
        pieces = section.pieces if self.cuts_at_spaces else (section.texts,)
        num_lines = len(section.texts) if wanted is None else len(wanted)
        total = np.zeros(num_lines, dtype=np.int64)
        for place, piece in enumerate(pieces):
            several = piece if wanted is None or len(piece) == 1 else piece.gather(wanted)
            before, after = " " if place else "", ending if place == len(pieces) - 1 else ""
            total += self._tokens_of(several, before, after)
        return total

    def _tokens_of(self, texts: pl.Series, before: str, after: str) -> Tokens:
        """Tokens of ``before + text + after`` for each text; cached for the lifetime of the counter."""
        coded = texts.to_arrow(compat_level=pl.CompatLevel.oldest()).dictionary_encode()
        distinct = [f"{before}{text}{after}" for text in coded.dictionary.to_pylist()]
        missing = [text for text in distinct if text not in self._known]
        self._known.update(zip(missing, self._encode(missing), strict=True))
        counts = np.fromiter((self._known[text] for text in distinct), dtype=np.int64, count=len(distinct))
        return counts[coded.indices.to_numpy(zero_copy_only=False)] if len(counts) else counts

    def _encode(self, texts: Iterable[str]) -> list[int]:
        encodings = self._tokenizer.backend_tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [len(encoding) for encoding in encodings]

    def _skeleton(self) -> tuple[list[str], dict[str, str]]:
        """Fixed texts of the conversation, and the text after each slot up to the next line."""
        user = self._template.user
        for slot in self._template.slots:
            user = user.replace(f"{{{slot}}}", f"{_OPEN}{slot}{_CLOSE}")
        chat = [
            {"role": "system", "content": self._template.system},
            {"role": "user", "content": user},
            {"role": "assistant", "content": f"{_OPEN}{COMPLETION}{_CLOSE}"},
        ]
        try:
            whole: str = self._tokenizer.apply_chat_template(chat, tokenize=False)
        except Exception as error:  # jinja's errors, and any that a model's template raises
            raise ConfigError(
                f"{self._source} has no chat template that takes system, user and assistant messages: "
                f"{str(error).splitlines()[0] if str(error) else type(error).__name__}; use an instruction-tuned model"
            ) from None
        first, *rest = _SLOT.split(whole)
        slots, texts = rest[::2], rest[1::2]
        told = self._template.system in first and all(text in whole for text in self._template.texts)
        if (
            slots != [*self._template.slots, COMPLETION]
            or not told
            or not all(text.endswith("\n") for text in (first, *texts[:-1]))
        ):
            raise ConfigError(
                f"the chat template of {self._source} changes messages, or begins an answer in the middle of a line; "
                "tokens are counted, and answers decoded, by line: use a model with a Llama-3-like template"
            )
        gaps, fixed = {}, [first]
        for slot, text in zip(slots, texts, strict=True):
            gap = _BREAKS.match(text) or _GAP.match(text)
            gaps[slot] = gap[0] if gap else ""
            fixed.append(text[len(gaps[slot]) :])
        return [text for text in fixed if text], gaps

    def _require_cuts(self, fixed: list[str]) -> None:
        """Check that the tokenizer cuts between every kind of line end and line start, with one and two breaks.

        Raises:
            ConfigError: it joins a pair.
        """
        starts = [*_LINE_STARTS, self._template.wording.nothing, *(text.split("\n")[0] for text in fixed[1:])]
        ends = [end + "\n" * breaks for end in _LINE_ENDS for breaks in (1, 2)]
        pairs = [(end, start) for end in ends for start in starts]
        wholes = self._ids([end + start for end, start in pairs])
        alone = dict(zip([*ends, *starts], self._ids([*ends, *starts]), strict=True))
        for (end, start), whole in zip(pairs, wholes, strict=True):
            if whole != alone[end] + alone[start]:
                raise ConfigError(
                    f"the tokenizer of {self._source} joins {end!r} and {start!r} across the line break; tokens are "
                    "counted, and answers decoded, by line: use a model whose tokenizer cuts there, as Llama 3's"
                )

    def _cuts_before_spaces(self) -> bool:
        """Whether no token spans the border before a single space, for every kind of text on both sides."""
        cutter = self._tokenizer.backend_tokenizer.pre_tokenizer
        if cutter is None or self._tokenizer.backend_tokenizer.normalizer is not None:
            return False
        for end in (text for text in (*_LINE_ENDS, "A.", "10.", "の監督は") if not text.endswith(" ")):
            for start in _WORD_STARTS:
                borders = {first for _, (first, _) in cutter.pre_tokenize_str(f"{end} {start}")}
                if len(end) not in borders:
                    return False
        return True

    def _ids(self, texts: list[str]) -> list[list[int]]:
        encodings = self._tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def _refuse_open_tokens(self) -> None:
        """Refuse a tokenizer with control tokens that survive cleaning, as a title could contain one.

        Raises:
            ConfigError: there is such a token.
        """
        special = [str(token) for token in self._tokenizer.added_tokens_decoder.values() if token.special]
        cleaned = pl.DataFrame({"token": special}, schema={"token": pl.String}).with_columns(
            clean=clean_text(pl.col("token"))
        )
        is_open = pl.col("clean").str.contains(pl.col("token").str.strip_chars(), literal=True)
        if found := cleaned.filter(is_open)["token"].to_list():
            raise ConfigError(
                f"the tokenizer of {self._source} reads {found[0]!r} as a control token, and a title or tag could hold "
                f"it ({len(found)} such tokens); use another model, or add them to prompts/sanitise.py"
            )


def load_counter(model: str, revision: str, template: Template) -> TokenCounter:
    """Read the tokenizer of a local folder or a Hugging Face id.

    Raises:
        InputError: there is none, or it is not cached and not reachable.
        ConfigError: it is unsuitable; see ``TokenCounter``.
    """
    from transformers import AutoTokenizer  # takes seconds to import

    try:
        tokenizer = AutoTokenizer.from_pretrained(model, revision=revision or None, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise InputError(
            f"finetune.model = {model!r}: its tokenizer cannot be read: {str(error).strip().splitlines()[0]}; name a "
            "local folder that has it, or fill the Hugging Face cache on a machine with network"
        ) from None
    if not tokenizer.is_fast:
        raise ConfigError(f"finetune.model = {model!r} has no fast tokenizer (tokenizer.json); use a model that has")
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    return TokenCounter(tokenizer, template, model)
