"""Embedding of short texts on a CPU: static token vectors, or a sentence-transformers model in a local folder."""

# Shape letters in this file: N texts, T tokens, X columns
from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from tripletune.errors import ConfigError, InputError
from tripletune.threads import one_thread

STATIC = "wordllama"
"""Package whose wheel holds a tokenizer and a table of token vectors. Its files are read without importing it: the
import would configure the log of the whole process."""
STATIC_TOKENIZER = Path("tokenizers", "l2_supercat_tokenizer_config.json")
STATIC_TABLE = Path("weights", "l2_supercat_256.safetensors")
AT_ONCE = 64
"""Texts in a call of a sentence-transformers model."""

Embed = Callable[[list[str]], Tensor]
"""From N texts to their vectors (N, X), float32, with the same bytes for any number of threads."""


def load_embedder(model: str) -> Embed:
    """The embedding of a ``text.model``.

    Args:
        model: ``wordllama``, or a folder that sentence-transformers saved.

    Raises:
        InputError: the folder holds no such model. ConfigError: the package that reads it is not installed.
    """
    return _static() if model == STATIC else _sentence_transformer(Path(model))


def _static() -> Embed:
    found = importlib.util.find_spec(STATIC)
    if found is None or not found.submodule_search_locations:
        raise ConfigError(f"text.model = '{STATIC}' needs the package {STATIC}; install it, or name a folder")
    package = Path(found.submodule_search_locations[0])
    try:
        (table_TX,) = load_file(package / STATIC_TABLE).values()
        tokenizer = Tokenizer.from_file(str(package / STATIC_TOKENIZER))
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(f"{package} does not hold the files of {STATIC} ({error}); install it again") from None
    table_TX = table_TX.float()
    tokenizer.no_padding()
    tokenizer.no_truncation()

    def embed(texts: list[str]) -> Tensor:
        encoded_N = tokenizer.encode_batch(texts, add_special_tokens=False)
        tokens_N = [torch.tensor(one.ids, dtype=torch.int64) for one in encoded_N]
        count_N = torch.tensor([len(tokens) for tokens in tokens_N])
        with one_thread():
            # the mean over tokens: neither the length of a text nor the order of its words counts
            return functional.embedding_bag(torch.cat(tokens_N), table_TX, count_N.cumsum(0) - count_N, mode="mean")

    return embed


def _sentence_transformer(folder: Path) -> Embed:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise ConfigError(
            f"text.model = '{folder}' is read by sentence-transformers, which is not installed; "
            "pip install 'tripletune[sentence-transformers]'"
        ) from None
    try:
        model = SentenceTransformer(
            str(folder),
            device="cpu",
            trust_remote_code=False,
            local_files_only=True,
            model_kwargs={"use_safetensors": True},
        )
    except (OSError, ValueError, KeyError) as error:
        first = str(error).splitlines()[0]
        raise InputError(f"{folder} cannot be read by sentence-transformers ({first}); give another") from None

    def embed(texts: list[str]) -> Tensor:
        with one_thread():
            vectors_NX: Tensor = model.encode(
                texts, batch_size=AT_ONCE, convert_to_tensor=True, show_progress_bar=False
            )
        return vectors_NX.float()

    return embed
