"""Prompts of this run's queries as an earlier version was trained to read them, after the contract has changed.

Its template and settings, its base model's tokenizer; this run's ratings and trained models, as for every version. Each
side then ranks the candidates of its own prompts, and what is compared is what a user would have been shown.
"""

from __future__ import annotations

import polars as pl

from tripletune.config import RunConfig
from tripletune.contract import AdapterContract, require_same
from tripletune.errors import ContractError, MissingArtifactError
from tripletune.prompts.engine import prompt_contract
from tripletune.serve.layout import VersionFiles
from tripletune.serve.prompting import Prompter, rows_of, tokenizer_of_adapter
from tripletune.store.paths import RunPaths
from tripletune.store.runs import read_run
from tripletune.store.shards import split_files
from tripletune.versions import Version

_KEPT = ("user_id", "purpose", "cutoff", "unseen")


def own_examples(
    paths: RunPaths,
    config: RunConfig,
    examples: pl.DataFrame,
    version: Version,
    files: VersionFiles,
    contract: AdapterContract,
) -> pl.DataFrame:
    """The same queries as examples of a version's own contract.

    Args:
        paths, config: of the run whose queries they are.
        examples: this run's, whose users and cutoffs are asked again.
        version, files, contract: of the earlier version.

    Raises:
        UserError: the version's prompts can't be made any more; the message says why.
    """
    settings = _settings(paths, version, files).model_copy(update={"seed": config.seed})
    require_same(prompt_contract(settings.prompt, settings.retrieve), contract)
    if settings.retrieve.candidates != config.retrieve.candidates:
        raise ContractError(
            f"retrieve.candidates is {settings.retrieve.candidates!r} there and {config.retrieve.candidates!r} here, "
            "and one of them puts the answers among the candidates"
        )
    if settings.prompt.worked_examples:
        raise ContractError(
            f"its prompts show {settings.prompt.worked_examples} worked examples, and this run has none that are "
            "rendered as its contract says"
        )
    prompter = Prompter.load(paths, settings, tokenizer_of_adapter(files.adapter, contract))
    queries = examples.select(_KEPT)
    parts = []
    for path in split_files(paths.require("split")).values():  # bucket by bucket: the rows of all may not fit
        rows = rows_of([path], queries["user_id"])
        asked = queries.join(rows.select("user_id").unique(), on="user_id", how="semi")
        if asked.height:
            parts.append(prompter.prompts(rows, asked))
    return pl.concat(parts)


def _settings(paths: RunPaths, version: Version, files: VersionFiles) -> RunConfig:
    """Settings of the run that trained a version: those registered with it, or those in the run's record."""
    if files.prompts:
        return files.settings()
    if not version.run:
        raise MissingArtifactError("neither its settings nor the run that trained it are known")
    return read_run(paths.root, version.run).settings()
