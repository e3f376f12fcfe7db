"""Prompt templates: shipped files in ``templates/`` or files anywhere, identified by an id and a SHA-256 hash.

A file has front matter and parts. The front matter names the template, its language, its answer style and the order of
its sections; each part ``[section]`` holds that section's text. A section of data has its slot once, alone on a line,
in place of the lines of data. The part ``[inline]`` names the columns that candidates' lines show instead, the part
``[topic]`` holds the words of a topic. A file with
``base`` inherits everything it does not define from the shipped template of that name, so a variant holds only the
differences. Braces that hold no slot's name are refused, so that a misspelt slot can't reach a model as text.

The section ``worked`` says where worked examples stand; a run without them has prompts without it. The parts
``[pointwise]`` and ``[pairwise]`` are questions about one and two candidates (``tripletune.forms``), each with the slot
of the candidates; a template with them ends with the sections candidates and answer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tripletune.config.base import is_path
from tripletune.errors import ConfigError
from tripletune.forms import SLOT, FormTexts
from tripletune.prompts.wording import TripleForm, Wording, check_topic, parse_inline, parse_wording
from tripletune.schemas.answers import ANSWER_STYLES, LETTERS, AnswerStyle
from tripletune.schemas.hint import EVIDENCE
from tripletune.schemas.hints import HINTS, TOPIC_HINTS
from tripletune.schemas.inline import Inline, Words
from tripletune.store.fingerprint import sha256_json

FOLDER = Path(__file__).parent / "templates"
SLOTS = (*EVIDENCE, *(hint.name for hint in HINTS), "candidates")

WORKED = "worked"
"""Section of the worked examples, which are the same in all prompts of a run."""
_ANSWERED, _TOPIC = "answered", "topic"
if {WORKED, _ANSWERED, _TOPIC} & {*SLOTS}:  # here and not in schemas.hint, whose code retrieve is made with
    raise ValueError(
        f"a hint is named {WORKED!r}, {_ANSWERED!r} or {_TOPIC!r}, as parts of templates are; name it otherwise"
    )
_SECTIONS = (WORKED, *SLOTS, "answer")
_NEEDED = ("candidates", "answer")
_FIELDS = ("language", "answers", "sections")
_FORMS = ("pointwise", "pairwise")
_PARTS = ("system", *_SECTIONS, _ANSWERED, "inline", _TOPIC, *_FORMS, "words")
_LAYOUT = re.compile(r"---\n(?P<front>.*?)\n---\n(?P<parts>\[.*)", re.DOTALL)
_PART = re.compile(r"^\[([a-z]+)\]\n", re.MULTILINE)
_SLOT = re.compile(r"\{([^{}\n]*)\}")
_LANGUAGE = re.compile(r"[a-z]{2,3}")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
DATA_MARK = re.compile(r"- |\d+[.)] |[A-Z]{1,2}\. ")
"""Start of a line of data; no line of a template may match it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shots:
    """How a template shows worked examples."""

    texts: tuple[str, ...]
    """The user message's with the section, in which ``{worked}`` stands for the examples."""
    example_texts: tuple[str, ...]
    example_slots: tuple[str, ...]
    """The user message of one example: that of a query without this section and without the answer's instruction."""
    answered: str
    """Line between an example and its answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """A prompt's fixed text. ``user`` = ``texts[0] + slots[0] + texts[1] + ... + texts[-1]``."""

    id: str
    sha256: str
    """Hash of everything that shapes prompts: templates with the same content have the same hash."""
    language: str
    answers: AnswerStyle
    system: str
    texts: tuple[str, ...]
    slots: tuple[str, ...]
    wording: Wording
    inline: Words = ()
    """Columns that the lines of candidates show after the title, and their words, in this order."""
    topic: str = ""
    """Words of a topic's line; empty where the template has no section of topics."""
    shots: Shots | None = None
    """None: it has no section for worked examples."""
    forms: FormTexts | None = None
    """None: it asks for the list alone."""

    def further_forms(self) -> FormTexts:
        """Its questions about one and two candidates.

        Raises:
            ConfigError: it has none.
        """
        if self.forms is None:
            raise ConfigError(
                f"ensemble.forms needs a template with the parts [pointwise] and [pairwise], such as recranker, and "
                f"{self.id!r} has none; name another template, or set forms to []"
            )
        return self.forms

    def of_example(self) -> Template:
        """The template of a worked example.

        Raises:
            ConfigError: it shows none.
        """
        shots = self._shots()
        return replace(self, texts=shots.example_texts, slots=shots.example_slots)

    def with_worked(self, examples: str) -> Template:
        """The template with worked examples as fixed text; its hash covers how they are shown, and not which they are.

        Raises:
            ConfigError: it shows none.
        """
        shots = self._shots()
        said = {"template": self.sha256, "texts": shots.texts, "answered": shots.answered}
        texts = tuple(text.replace(f"{{{WORKED}}}", examples) for text in shots.texts)
        return replace(self, texts=texts, sha256=sha256_json(said))

    def _shots(self) -> Shots:
        if self.shots is None:
            raise ConfigError(
                f"prompt.worked_examples needs a template with the section {WORKED!r}, and {self.id!r} has none; add "
                "it to its 'sections:', or set worked_examples to 0"
            )
        return self.shots

    @property
    def answer_style(self) -> str:
        """Name of the answer style."""
        return self.answers.name

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of films and triples that its prompts show, in a section or inline."""
        return (*self.slots, *(column for column, _ in self.inline))

    def inline_in(self, form: TripleForm) -> Inline:
        """The inline hints in a form of triples, for the audit."""
        return Inline(words=self.inline, facts=self.wording.inline_facts(form))

    @property
    def user(self) -> str:
        """User message with its slots."""
        slots = (*(f"{{{slot}}}" for slot in self.slots), "")
        return "".join(text + slot for text, slot in zip(self.texts, slots, strict=True))

    @property
    def lines(self) -> frozenset[str]:
        """Lines of prompts that are not data."""
        shots = (*self.shots.texts, self.shots.answered) if self.shots else ()
        forms = (self.forms.pointwise, self.forms.pairwise) if self.forms else ()
        texts = "\n".join((self.system, "".join(self.texts), *shots, *forms))
        return frozenset({*texts.split("\n"), self.wording.nothing})


@dataclass(frozen=True, slots=True)
class _File:
    """Content of one file, unchecked."""

    front: Mapping[str, str]
    parts: Mapping[str, str]

    def over(self, base: _File) -> _File:
        return _File({**base.front, **self.front}, {**base.parts, **self.parts})


def shipped() -> list[str]:
    """Names of the templates that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.txt"))


def load_template(name: str) -> Template:
    """Read a shipped template or a template file from any path.

    Args:
        name: name of a shipped template, or the path of a file, which ends in ``.txt``.

    Raises:
        ConfigError: there is none, or its file is not a valid template.
    """
    path = _find(name)
    where = path.name if path.parent == FOLDER else name
    template = parse_template(_bytes_of(path, name), where)
    if template.id != path.stem:
        raise ConfigError(f"template {where} says id: {template.id}; the id must be the file's name, {path.stem}")
    if not _ID.fullmatch(template.id):
        raise ConfigError(
            f"template {where}: the file's name, without .txt, is the template's id: 64 letters, digits and . _ - at "
            "most, a letter or digit first; rename it, and change its line 'id:'"
        )
    return template


def _find(name: str) -> Path:
    known = f"the shipped templates are: {', '.join(shipped())}"
    if is_path(name):
        if not Path(name).is_file():
            raise ConfigError(f"prompt.template = {name!r}: no such file; give a path that exists, or a name; {known}")
        return Path(name)
    if name not in shipped():
        raise ConfigError(
            f"prompt.template = {name!r} is not there; {known}; one of your own is given by its path, ending in .txt"
        )
    return FOLDER / f"{name}.txt"


def _bytes_of(path: Path, name: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ConfigError(f"prompt.template = {name!r} cannot be read ({reason}); make it readable") from None


def parse_template(content: bytes, where: str) -> Template:
    """Parse a template's bytes; ``where`` names it in errors.

    Raises:
        ConfigError: the layout is wrong, or a field, section or slot is unknown, missing, repeated or misplaced.
    """
    file = _read(content, where)
    base = file.front.get("base")
    if base is not None:
        if base not in shipped():
            raise ConfigError(f"template {where} has base: {base}, which is none of {', '.join(shipped())}")
        below = _read((FOLDER / f"{base}.txt").read_bytes(), f"{base}.txt")
        if "base" in below.front:
            raise ConfigError(f"template {where} has base: {base}, which has a base itself; take that one")
        file = file.over(below)
    if missing := [field for field in _FIELDS if field not in file.front]:
        raise ConfigError(f"template {where} has no '{missing[0]}:' between its two lines '---'{_hint()}")
    return _assemble(file, where)


def _read(content: bytes, where: str) -> _File:
    try:
        match = _LAYOUT.fullmatch(content.decode("utf-8"))
    except UnicodeDecodeError:
        match = None
    if match is None:
        raise ConfigError(
            f"template {where} must be UTF-8 text: '---', lines 'field: value' and '---', then [system], then the "
            f"other parts{_hint()}"
        )
    front: dict[str, str] = {}
    for line in match["front"].split("\n"):
        field, colon, value = line.partition(":")
        if not colon or field in front or field not in ("id", "base", *_FIELDS):
            raise ConfigError(
                f"template {where}: the line {line!r} must be 'field: value', with each of id, base, "
                f"{', '.join(_FIELDS)} at most once{_hint()}"
            )
        front[field] = value.strip()
    if "id" not in front:
        raise ConfigError(f"template {where} has no 'id:' between its two lines '---'{_hint()}")
    pieces = _PART.split(match["parts"])
    names, texts = pieces[1::2], pieces[2::2]
    for name in names:
        if name not in _PARTS or names.count(name) > 1:
            raise ConfigError(
                f"template {where}: the part [{name}] is unknown or there twice; the parts are "
                f"{', '.join(f'[{part}]' for part in _PARTS)}{_hint()}"
            )
    return _File(front, {name: text.strip("\n") for name, text in zip(names, texts, strict=True)})


def _assemble(file: _File, where: str) -> Template:
    sections = [name.strip() for name in file.front["sections"].split(",")]
    for name in sections:
        if name not in _SECTIONS or sections.count(name) > 1:
            raise ConfigError(
                f"template {where} has the section {name!r} {sections.count(name)} times in 'sections:'; each of "
                f"{', '.join(_SECTIONS)} may stand there once{_hint()}"
            )
    if absent := [name for name in _NEEDED if name not in sections]:
        raise ConfigError(f"template {where} has no {absent[0]} in 'sections:'; every prompt needs it{_hint()}")
    if absent := [name for name in ("system", *sections, "words") if name not in file.parts]:
        raise ConfigError(f"template {where} has no part [{absent[0]}]{_hint()}")
    style, language = file.front["answers"], file.front["language"]
    if style not in ANSWER_STYLES:
        raise ConfigError(f"template {where} says answers: {style}; write one of {', '.join(ANSWER_STYLES)}")
    if not _LANGUAGE.fullmatch(language):
        raise ConfigError(f"template {where} says language: {language}; write an ISO 639 code such as en or ja")
    for name in sections:
        _check_slots(name, file.parts[name], where)
    words = file.parts["words"]
    texts, slots = _cut([file.parts[name] for name in sections if name != WORKED])
    wording = parse_wording(words, where)
    _check_text([file.parts["system"], *texts, wording.nothing], where)
    inline = parse_inline(file.parts.get("inline", ""), sections, words, where)
    said: dict[str, object] = {
        "language": language,
        "answers": style,
        "system": file.parts["system"],
        "texts": texts,
        "slots": slots,
    }
    if inline:  # a template without inline hints keeps its hash, and adapters their contract
        said["inline"] = inline
    topic = _topic(file, slots, where)
    if topic:  # likewise
        said["topic"] = topic
    forms = _forms(file, sections, where)
    if forms:  # likewise
        said["forms"] = forms.model_dump()
    return Template(
        id=file.front["id"],
        sha256=sha256_json({**said, "words": sorted(words.split("\n"))}),
        language=language,
        answers=ANSWER_STYLES[style],
        system=file.parts["system"],
        texts=texts,
        slots=slots,
        wording=wording,
        inline=inline,
        topic=topic,
        shots=_shots(file, sections, where) if WORKED in sections else None,
        forms=forms,
    )


def _topic(file: _File, slots: tuple[str, ...], where: str) -> str:
    """The words of a topic, if the template shows topics."""
    if not any(hint.name in slots for hint in TOPIC_HINTS):
        return ""
    if "topic" not in file.parts:
        raise ConfigError(f"template {where} has a section of topics and no part [topic]{_hint()}")
    check_topic(file.parts["topic"], where)
    return file.parts["topic"]


def _forms(file: _File, sections: list[str], where: str) -> FormTexts | None:
    """The questions about one and two candidates, if there are some."""
    if not any(name in file.parts for name in _FORMS):
        return None
    if absent := [name for name in _FORMS if name not in file.parts]:
        raise ConfigError(f"template {where} has no part [{absent[0]}]; further forms are written both{_hint()}")
    if sections[-2:] != ["candidates", "answer"] or len(sections) < 3 or file.front["answers"] != LETTERS.name:
        raise ConfigError(
            f"template {where} has further forms, so 'sections:' must end with candidates, answer after some section "
            f"of the user's data, and its answers must be letters{_hint()}"
        )
    for name in _FORMS:
        lines = file.parts[name].split("\n")
        if lines.count(SLOT) != 1:
            raise ConfigError(f"template {where}: [{name}] must have {SLOT} once, alone on its line{_hint()}")
        _check_text([file.parts[name].replace(SLOT, "")], where)
    before, after = file.parts["candidates"].split(SLOT)
    return FormTexts(
        before=f"\n\n{before}",
        after=f"{after}\n\n{file.parts['answer']}",
        pointwise=file.parts["pointwise"],
        pairwise=file.parts["pairwise"],
    )


def _shots(file: _File, sections: list[str], where: str) -> Shots:
    if not file.parts.get("answered"):
        raise ConfigError(f"template {where} has the section {WORKED} and no part [answered], a line{_hint()}")
    texts, _ = _cut([file.parts[name] for name in sections])
    _check_text([text.replace(f"{{{WORKED}}}", "") for text in texts] + [file.parts["answered"]], where)
    example_texts, example_slots = _cut([file.parts[name] for name in sections if name not in (WORKED, "answer")])
    return Shots(texts=texts, example_texts=example_texts, example_slots=example_slots, answered=file.parts["answered"])


def _cut(parts: list[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Fixed texts and the slots between them; worked examples are a text."""
    pieces = _SLOT.split("\n\n".join(parts))
    texts, slots = pieces[:1], []
    for slot, text in zip(pieces[1::2], pieces[2::2], strict=True):
        if slot == WORKED:
            texts[-1] += f"{{{slot}}}{text}"
        else:
            texts.append(text)
            slots.append(slot)
    return tuple(texts), tuple(slots)


def _check_slots(section: str, text: str, where: str) -> None:
    known_slots = (WORKED, *SLOTS)
    wanted = [section] if section in known_slots else []
    for slot in _SLOT.findall(text):
        if slot not in known_slots:
            known = ", ".join(f"{{{name}}}" for name in known_slots)
            raise ConfigError(f"template {where} has the unknown slot {{{slot}}}; the slots are {known}{_hint()}")
        if slot not in wanted:
            raise ConfigError(
                f"template {where} has the slot {{{slot}}} in [{section}]; it belongs in [{slot}]{_hint()}"
            )
    lines = text.split("\n")
    for slot in wanted:
        if (times := text.count(f"{{{slot}}}")) != 1:
            raise ConfigError(
                f"template {where} has the slot {{{slot}}} {times} times in [{section}]; write it once{_hint()}"
            )
        if f"{{{slot}}}" not in lines:
            raise ConfigError(f"template {where}: the slot {{{slot}}} must stand alone on its line{_hint()}")


def _check_text(texts: list[str], where: str) -> None:
    """Refuse fixed text with braces, and lines that look like data or begin or end with a space."""
    for text in texts:
        if set(text) & set("{}"):
            raise ConfigError(f"template {where} has braces outside the slots; remove them{_hint()}")
        for line in text.split("\n"):
            if DATA_MARK.match(line) or line != line.strip():
                raise ConfigError(
                    f"template {where}: the line {line!r} starts like a line of data ('- ', '1. ' or 'A. '), or with a "
                    f"space, or ends with one; change it{_hint()}"
                )


def _hint() -> str:
    return f"; compare with a shipped template: {', '.join(shipped())}"
