"""Exact token counts of whole conversations, where possible summed from counts of their pieces.

A tokenizer that cuts text at every run of line breaks gives a line the same tokens in every context: after the run, as
Llama 3's, or before its last break, as GPT-2's and SmolLM2's, which join the others to what stands before. One that
also cuts before every single space does so for a title or an inline hint within a line. Prompts share most of their
pieces: each distinct piece is tokenised once, and an example costs a sum. The cuts are tested when the tokenizer is
loaded, and for some examples of every shard the sum is compared with the tokens of the whole. With a tokenizer that
cuts in neither way, whole conversations are tokenised, which takes as long as training's own tokenisation. Training
with TRL and ranking apply the same chat template to the same messages.
"""
# Shape letters in this file: E examples, L lines of one section in all examples

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from tripletune.chat import load_tokenizer, require_one_format, write_chat
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
    *("|", "|›", "–", "_", "\\", "/", "-", ":", "々", "ー", "ん", "漢字", "한", "ا", "א", "ก", "कि", "e\u0301"),
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
        ">",
        "> x",
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
_AT_ONCE = 1000
"""Conversations tokenised at a time."""


class TokenCounter:
    """Count tokens of examples of one template with one tokenizer.

    Args:
        tokenizer: a fast Hugging Face tokenizer with a chat template.
        template: template of the examples.
        source: name of the tokenizer in errors.

    Raises:
        ConfigError: the chat template changes messages or differs from call to call or between asking and answering,
            lines of an answer are joined, or a control token could stand in a title.
    """

    def __init__(self, tokenizer: Any, template: Template, source: str) -> None:
        self._tokenizer, self._template, self._source = tokenizer, template, source
        self._known: dict[str, int] = {}
        self._refuse_open_tokens()
        self._slots, self._texts = self._skeleton()
        require_one_format(tokenizer, source)
        self._require_answer_lines()
        ways = [self._parts(late=late) for late in (False, True)]
        fits = [fixed_gaps for late, fixed_gaps in enumerate(ways) if self._cuts(fixed_gaps[0], late=bool(late))]
        self.sums_lines = bool(fits)
        """Whether counts are sums over lines; else whole conversations are tokenised."""
        fixed, self._gaps = fits[0] if fits else ([], {})
        self.cuts_at_spaces = self.sums_lines and self._cuts_before_spaces()
        self._fixed = sum(self._encode(fixed))

    def count(self, lines: Mapping[str, Lines], num_examples: int) -> Tokens:
        """Tokens of each conversation, prompt and completion under the chat template; shape (E,).

        Args:
            lines: lines of the template's slots and of the completion, as ``render.draw_lines`` returns them.
            num_examples: E.
        """
        if not self.sums_lines:
            return self._count_whole(lines, num_examples)
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

    def _count_whole(self, lines: Mapping[str, Lines], num_examples: int) -> Tokens:
        nothing = self._template.wording.nothing
        whole = pl.Series([self._texts[0]]).new_from_index(0, num_examples)
        for slot, text in zip(self._slots, self._texts[1:], strict=True):
            whole = whole + lines[slot].folded(nothing) + text
        starts = range(0, num_examples, _AT_ONCE)
        counts = [count for start in starts for count in self._encode(whole[start : start + _AT_ONCE].to_list())]
        return np.array(counts, dtype=np.int64)

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
        is_open = np.ones(num_lines, dtype=np.bool_)  # the line's last piece stands further to the left
        for place, piece in reversed(list(enumerate(pieces))):
            several = piece if wanted is None or len(piece) == 1 else piece.gather(wanted)
            before = " " if place else ""
            has_piece = np.broadcast_to(several.is_not_null().to_numpy(), num_lines)
            for lines, after in ((has_piece & is_open, ending), (has_piece & ~is_open, "")):
                if lines.all():
                    total += self._tokens_of(several, before, after)
                elif lines.any():
                    some = several if len(several) == 1 else several.filter(pl.Series(lines))
                    total[lines] += self._tokens_of(some, before, after)
            is_open &= ~has_piece
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

    def _skeleton(self) -> tuple[list[str], list[str]]:
        """The conversation's slots, and its fixed texts: before the first slot and after each."""
        user = self._template.user
        for slot in self._template.slots:
            user = user.replace(f"{{{slot}}}", f"{_OPEN}{slot}{_CLOSE}")
        chat = [
            {"role": "system", "content": self._template.system},
            {"role": "user", "content": user},
            {"role": "assistant", "content": f"{_OPEN}{COMPLETION}{_CLOSE}"},
        ]
        whole = write_chat(self._tokenizer, chat, self._source)
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
                "answers are decoded by line: use a model with a Llama-3-like template"
            )
        return slots, [first, *texts]

    def _parts(self, *, late: bool) -> tuple[list[str], dict[str, str]]:
        """Fixed texts that are tokenised alone, and the text after each slot that is tokenised with its last line.

        Args:
            late: the last of several line breaks belongs to what follows, not to what stands before.
        """
        fixed, gaps = [self._texts[0]], {}
        for slot, text in zip(self._slots, self._texts[1:], strict=True):
            match = _BREAKS.match(text) or _GAP.match(text)
            gap = match[0] if match else ""
            gaps[slot] = gap[:-1] if late and gap.endswith("\n\n") else gap
            fixed.append(text[len(gaps[slot]) :])
        return [text for text in fixed if text], gaps

    def _cuts(self, fixed: list[str], *, late: bool) -> bool:
        """Whether the tokenizer cuts between every kind of line end and line start, with one and two breaks.

        Args:
            fixed, late: of ``_parts``.
        """
        starts = [*_LINE_STARTS, self._template.wording.nothing]
        starts += [text.lstrip("\n").split("\n")[0] for text in fixed[1:]]
        single, double = ("\n", ""), ("\n", "\n") if late else ("\n\n", "")
        pairs = [
            (end + before, after + start)
            for end in _LINE_ENDS
            for before, after in (single, double)
            for start in starts
        ]
        # what stands before the first line of a section is not a line's end alone: a blank line may be between
        pairs += [(text[text.rstrip("\n").rfind("\n") + 1 :], start) for text in fixed[:-1] for start in starts]
        return self._joined(pairs) is None

    def _require_answer_lines(self) -> None:
        """Check that the lines of an answer are cut from each other; labels are ranked without writing lines.

        Raises:
            ConfigError: the tokenizer joins a pair.
        """
        if self._template.answers.is_labelled:
            return
        joined = self._joined([(end + "\n", start) for end in _LINE_ENDS for start in ("2. x", "5. 9")])
        if joined is not None:
            raise ConfigError(
                f"the tokenizer of {self._source} joins {joined[0]!r} and {joined[1]!r} across the line break, and "
                f"answers of the template {self._template.id} are decoded by line; use a template whose answers are "
                "letters, or a model whose tokenizer cuts there"
            )

    def _joined(self, pairs: list[tuple[str, str]]) -> tuple[str, str] | None:
        """The first pair of texts that has other tokens together than apart; None where all are cut."""
        distinct = list(dict.fromkeys(text for pair in pairs for text in pair))
        alone = dict(zip(distinct, self._ids(distinct), strict=True))
        wholes = self._ids([before + after for before, after in pairs])
        differ = (pair for pair, whole in zip(pairs, wholes, strict=True) if whole != alone[pair[0]] + alone[pair[1]])
        return next(differ, None)

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


def load_counter(model: str, revision: str, template: Template, *, cached: bool = False) -> TokenCounter:
    """Read the tokenizer of a local folder or a Hugging Face id.

    Raises:
        InputError: there is none, or it is not cached and not reachable.
        ConfigError: it is unsuitable; see ``TokenCounter``.
    """
    return TokenCounter(load_tokenizer(model, revision, cached=cached), template, model)
