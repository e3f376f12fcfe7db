"""GGUF by llama.cpp's own converter, which this project neither contains nor replaces."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from tripletune.errors import InputError, MissingArtifactError

SCRIPT = "convert_hf_to_gguf.py"
_INSTALL = "git clone https://github.com/ggml-org/llama.cpp && pip install sentencepiece, then --converter llama.cpp"
OUTTYPES = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
"""The converter's name of each number format: weights are written as they are, not quantised."""


def file_name(dataset: str, dtype: str) -> str:
    """Name of the file, after the number format of its weights."""
    return f"{dataset}-{OUTTYPES[dtype]}.gguf"


def find_converter(given: str) -> Path:
    """llama.cpp's converter script.

    Args:
        given: the script or a checkout of llama.cpp; empty: the script is looked for on PATH.

    Raises:
        InputError: there is none where ``given`` says. MissingArtifactError: there is none on PATH.
    """
    if not given:
        found = shutil.which(SCRIPT)
        if found is None:
            raise MissingArtifactError(
                f"--format gguf needs llama.cpp's {SCRIPT}, which is not on PATH; install it with: {_INSTALL}"
            )
        return Path(found).resolve()
    path = Path(given)
    script = path / SCRIPT if path.is_dir() else path
    if not script.is_file():
        raise InputError(
            f"--converter {given!r} is neither a file nor a folder with {SCRIPT}; get llama.cpp's with: {_INSTALL}"
        )
    return script.resolve()


def convert(script: Path, model: Path, out: Path, dtype: str) -> None:
    """Convert a folder in Hugging Face's layout to one GGUF file.

    Args:
        script: of ``find_converter``; runs in this Python, which has torch and transformers.
        model: the merged model.
        out: the file.
        dtype: of the weights, a key of ``OUTTYPES``.

    Raises:
        InputError: the converter failed or wrote nothing; the message ends with its last line.
    """
    command = [sys.executable, str(script), str(model), "--outfile", str(out), "--outtype", OUTTYPES[dtype]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0 and out.is_file():
        return
    lines = (done.stderr or done.stdout).strip().splitlines()
    raise InputError(
        f"{script} ended with exit code {done.returncode} and {'a' if out.is_file() else 'no'} file; its last line: "
        f"{lines[-1] if lines else '(it printed nothing)'}"
    )
