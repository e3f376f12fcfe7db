"""What prompts are made with, beside the data: tells whether two processes would write the same."""

from __future__ import annotations

from pathlib import Path

from tripletune.store.fingerprint import TOKENIZER_FILES, library_versions, sha256_file, sha256_json
from tripletune.store.sources import close_over

_SOURCE = sha256_json(close_over(["prompts.shards"]).hashes)
"""As this process loaded it: a worker that stays does not see the files change."""


def digest_code(tokenizer: tuple[str, str] | None) -> str:
    """Hex SHA-256 over the code, the libraries and the tokenizer's files of this process.

    Args:
        tokenizer: model and revision; of a local folder, its files count. None: tokens are not counted.
    """
    versions = library_versions(("polars", "transformers", "tokenizers"))
    folder = Path(tokenizer[0]) if tokenizer else Path()
    files = {name: sha256_file(folder / name) for name in sorted(TOKENIZER_FILES) if (folder / name).is_file()}
    return sha256_json({"source": _SOURCE, "versions": versions, "tokenizer": files if tokenizer else {}})
