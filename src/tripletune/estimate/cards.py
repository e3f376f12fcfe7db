"""Known GPUs: memory and peak rate, from the vendor's data sheets."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tripletune.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Card:
    """A GPU model."""

    name: str
    """As ``--gpu`` takes it."""
    pattern: str
    """Regular expression that finds it in the name that its driver gives."""
    memory_gib: float
    """As the driver reports it, which is less than the number on the box."""
    tflops: float
    """Dense peak, 1e12 operations a second, in bfloat16 with sums in float32; of a card without bfloat16 in float32, as
    that is what it trains in."""
    bfloat16: bool = True


CARDS = (
    Card("H200", r"\bH200\b(?! NVL)", 139.8, 989.0),
    Card("H100-PCIe", r"\bH100 PCIe\b", 79.2, 756.0),
    Card("H100-80GB", r"\bH100\b(?! NVL| PCIe)", 79.2, 989.0),
    Card("A100-80GB", r"\bA100\b.*80GB", 79.2, 312.0),
    Card("A100-40GB", r"\bA100\b.*40GB", 39.4, 312.0),
    Card("L40S", r"\bL40S\b", 44.4, 362.0),
    Card("L4", r"\bL4\b", 22.0, 121.0),
    Card("A10G", r"\bA10G\b", 22.0, 70.0),
    Card("RTX-4090", r"\bRTX 4090\b(?! D| Laptop)", 23.5, 165.2),
    Card("RTX-3090", r"\bRTX 3090\b(?! Ti)", 23.6, 71.0),
    Card("T4", r"\bT4\b", 14.6, 8.1, bfloat16=False),
)


def card_of(device: str) -> Card | None:
    """The card of a driver's device name, such as ``NVIDIA H100 80GB HBM3``; None: not in the table."""
    return next((card for card in CARDS if re.search(card.pattern, device, re.IGNORECASE)), None)


def find_card(name: str) -> Card:
    """The card that a user names, with or without hyphens and the vendor.

    Raises:
        ConfigError: it is not in the table; the message lists those that are.
    """
    wanted = _plain(name)
    found = next((card for card in CARDS if _plain(card.name) == wanted), None) or card_of(name)
    if found is None:
        raise ConfigError(
            f"--gpu {name!r} is not known; there are {', '.join(card.name for card in CARDS)}; of another one give "
            "--memory-gib and --tflops (dense bfloat16)"
        )
    return found


def _plain(name: str) -> str:
    return re.sub(r"nvidia|geforce|tesla|[\s_-]", "", name.lower())
