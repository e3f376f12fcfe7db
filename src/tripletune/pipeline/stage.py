"""Declaration of a stage: its function, parents, the settings it reads, and its fingerprint's ingredients."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from tripletune.config import RunConfig, Section
from tripletune.store.fingerprint import Ingredients, library_versions
from tripletune.store.sources import Closure, close_over

Names: TypeAlias = tuple[str, ...] | Callable[[RunConfig], tuple[str, ...]]
"""Names, or a function that gives them for a config."""

SHAPE_NO_BYTE = (
    *("timeout_minutes", "ddp_timeout_minutes", "checkpoint_minutes", "workers", "accelerate_config", "frozen"),
    *("template", "teacher", "teacher_is_a_folder", "start", "fresh_every", "from_run"),
)
"""Settings that no fingerprint covers; the accelerate config, the frozen queries, the template and the teacher count by
content, not by path, the start of a training by the champion's fingerprint (``pipeline.warm``) and the selector's log
by that of its probe (``pipeline.feedback``)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A stage, declared once: command line, Prefect tasks, ``plan``, ``show`` and fingerprints are made from it."""

    name: str
    run: Callable[..., Any]
    """``run(paths, config)`` gives the finished folder; its docstring is the command's help. Fingerprints follow the
    imports of this function."""
    parents: Names = ()
    fields: Names = ()
    """Settings by dotted name, or a section; of a section only the settings that the stage's code mentions count."""
    libraries: Names = ()
    """Installed packages whose versions shape bytes."""
    outside: Names = ()
    """Inputs from outside the store, such as ``movielens``; see ``resolve.outside_inputs``."""
    also: Names = ()
    """Further source by name: modules that run in a subprocess, or are loaded because the config names them."""
    without: Names = ()
    """Source that the function imports and this config does not run."""
    needed: Callable[[RunConfig], bool] = lambda config: True
    headline: tuple[str, ...] = ()
    """Facts that stand for the stage in one line."""
    part: Literal["shards", "finetune", "rank"]
    """The flow that runs it; the nightly flow runs all parts."""
    at_once: Callable[[RunConfig], bool] = lambda config: False
    """Whether it may run at the same time as its neighbours in the registry, none of which reads the other's output."""
    never_reused: str = ""
    """Why the stage runs every time and has no fingerprint; empty for a stage whose output is reused."""
    task: Mapping[str, Any] = field(default_factory=dict)
    """Options of its Prefect task, where they differ from the usual ones."""

    @property
    def help(self) -> str:
        """Help text of the stage, from its function's docstring."""
        return (_function(self.run).__doc__ or "").format(name=self.name)

    def parents_of(self, config: RunConfig) -> tuple[str, ...]:
        """The stages whose outputs it reads under this config."""
        return _for(self.parents, config)

    def outside_of(self, config: RunConfig) -> tuple[str, ...]:
        """The inputs from outside that it reads under this config."""
        return _for(self.outside, config)

    def sources(self, config: RunConfig) -> Closure:
        """Modules and functions that can shape its output under this config."""
        function = _function(self.run)
        root = f"{function.__module__.removeprefix('tripletune.')}:{function.__name__}"
        return close_over([root, *_for(self.also, config)], without=_for(self.without, config))

    def ingredients(self, config: RunConfig, parents: Mapping[str, str], inputs: Mapping[str, str]) -> Ingredients:
        """Everything that the fingerprint is computed from.

        Args:
            config: of the run.
            parents: fingerprints of the stages so far.
            inputs: checksums of inputs from outside the store.
        """
        closure = self.sources(config)
        return {
            "source": closure.hashes,
            "libraries": library_versions(_for(self.libraries, config)),
            "fields": read_settings(config, _for(self.fields, config), closure.names),
            "parents": {name: parents[name] for name in self.parents_of(config)},
            "inputs": dict(inputs),
        }


def _function(run: Callable[..., Any]) -> Callable[..., Any]:
    return run.func if isinstance(run, functools.partial) else run


def _for(value: Names, config: RunConfig) -> tuple[str, ...]:
    return value(config) if callable(value) else value


def read_settings(config: RunConfig, fields: Iterable[str], mentioned: frozenset[str]) -> dict[str, Any]:
    """Values of settings, as plain JSON data, by dotted name.

    A section stands for those of its settings and computed properties that the code mentions: a setting that no stage
    reads counts for none. A computed property (``retrieve.depth``) counts by value, because its code is no source of
    the stage.
    """
    found: dict[str, Any] = {}
    for name in fields:
        section = _section(config, name)
        found |= {name: config.field(name)} if section is None else _of_section(name, section, mentioned)
    return found


def _of_section(name: str, section: Section, mentioned: frozenset[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in sorted((section.model_dump(mode="json") | _computed(section)).items()):
        if key in mentioned and key not in SHAPE_NO_BYTE:
            inner = getattr(section, key)
            dotted = f"{name}.{key}"
            found |= _of_section(dotted, inner, mentioned) if isinstance(inner, Section) else {dotted: value}
    return found


def _section(config: RunConfig, dotted: str) -> Section | None:
    value: Any = config
    for part in dotted.split("."):
        value = getattr(value, part, None)  # None below a table of free keys, such as models
    return value if isinstance(value, Section) else None


def _computed(section: Section) -> dict[str, Any]:
    """Values of the section's own properties."""
    classes = [one for one in type(section).__mro__ if issubclass(one, Section)]
    names = {name for one in classes for name, value in vars(one).items() if isinstance(value, property)}
    values = {name: getattr(section, name) for name in names if not name.startswith("_")}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
