"""Number format of a language model's weights: bfloat16 where the hardware computes in it, else float32.

Decided by what the hardware says of itself, never by timing: a training must not depend on how busy a machine was. In
bfloat16 a processor without such instructions is several times slower than in float32; one with them, faster.
"""

from __future__ import annotations

import re
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""Of x86 (AVX-512, AMX) and of Arm."""


def has_bfloat16() -> bool:
    """Whether the processor has instructions for bfloat16; no, where it can't be read (another system than Linux)."""
    try:
        text = _CPUINFO.read_text(encoding="utf-8")
    except OSError:
        return False
    first = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return bool(first and _FLAGS & set(first[1].split()))


def choose_dtype(model: str) -> str:
    """``bfloat16`` or ``float32``.

    Args:
        model: ``finetune.model``. The tiny one stays in float32 on any processor: it is too small to gain, and its
            bytes are the same everywhere.
    """
    import torch  # plan asks for the processor alone

    if torch.cuda.is_available():
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    return "bfloat16" if model != "tiny" and has_bfloat16() else "float32"
