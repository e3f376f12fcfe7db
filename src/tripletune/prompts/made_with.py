"""Digest of the code, libraries and tokenizer that make prompts: equal digests mean that two processes write the same
bytes from the same data."""

from __future__ import annotations

from pathlib import Path

from tripletune.store.fingerprint import TOKENIZER_FILES, library_versions, sha256_file, sha256_json
from tripletune.store.sources import close_over

_SOURCE = sha256_json(close_over(["prompts.shards"]).hashes)
"""Hash of the source as this process loaded it: a long-lived worker does not see later changes of the files."""


def digest_code(tokenizer: tuple[str, str] | None) -> str:
    """Hex SHA-256 over the code, the libraries and the tokenizer's files of this process.

    Args:
        tokenizer: model and revision; for a local folder, its files are hashed. None: tokens are not counted.
    """
    versions = library_versions(("polars", "transformers", "tokenizers"))
    folder = Path(tokenizer[0]) if tokenizer else Path()
    files = {name: sha256_file(folder / name) for name in sorted(TOKENIZER_FILES) if (folder / name).is_file()}
    return sha256_json({"source": _SOURCE, "versions": versions, "tokenizer": files if tokenizer else {}})
