"""Speed of fine-tuning Llama 3.1 8B's shape on a GPU: the product next to TRL's defaults, and what limits it.

    python benchmarks/gpu/finetune_speed.py measure --out gpu-results/finetune_speed.json    # ends by a deadline
    python benchmarks/gpu/finetune_speed.py report gpu-results/finetune_speed.json           # writes finetune_speed.md
    python benchmarks/gpu/finetune_speed.py measure --tiny --device cpu --out FILE.json      # seconds: does it run?

The weights are random and drawn on the device (``speed_kit.py``), the examples random tokens: 1,500 each, or 1,000 to
1,500 where lengths are mixed. The VARIANTS run in their order until the deadline; one that fails, because its memory or
a library is not there, is recorded with the line of its error. ``speed_training.py`` says what the paths are. Each has
LoRA on all linear layers with the settings of ``configs/ml-32m.toml``, and AdamW; a step is one batch.

Tokens are those of the examples, without padding. MFU counts model FLOPs as ``tripletune.estimate.model_size`` does
(gradients of frozen weights and what is computed twice are none) over the data sheet's peak; HFU adds what gradient
checkpointing computes twice; the last share is that of the bfloat16 product of this card. ``peak`` is what tensors took
at most, ``used`` what the card had given away by the end, the context included; ``estimated`` is the total of
``tripletune estimate`` for the same batch, where the product does the same. Parts of a step: ``speed_parts.py``.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from report_command import add_report
from rich.console import Console
from session import DEFAULT_MINUTES, MAX_MINUTES, Session, spread
from speed_kit import LLAMA_8B, TINY, config_of, head_lines, memory_gib, peak_flops, record_each, share, tail_lines
from speed_parts import time_parts
from speed_training import COMPLETION, LORA_R, Setup, Timed, Variant, time_variant
from transformers.utils import logging

from tripletune.estimate.memory import GIB, Batch, Holding, training_memory
from tripletune.estimate.model_size import ModelSize, Work, size_of

REPORT = Path(__file__).with_name("finetune_speed.md")
LENGTH, TINY_LENGTH, TINY_BATCH = 1500, 48, 2
STOCK, PARTS = "TRL's defaults", "parts of a step"
MAIN = "sft, 4 examples"
VARIANTS: dict[str, Variant] = {
    MAIN: Variant(batch=4),
    STOCK: Variant(path="trl", checkpointing=True),
    "listwise, 4 examples": Variant(objective="listwise", batch=4),
    "sft, 8 examples": Variant(),
    "listwise, 8 examples": Variant(objective="listwise"),
    "sft, 8 examples, checkpointing": Variant(checkpointing=True),
    PARTS: Variant(batch=4),
    "full logits, checkpointing": Variant(path="full", checkpointing=True),
    "sft, own trainer": Variant(path="trainer", batch=4),
    "listwise, own trainer": Variant(path="trainer", objective="listwise", batch=4),
    "listwise, own trainer, as in ml-32m.toml": Variant(
        path="trainer", objective="listwise", batch=2, checkpointing=True, mixed=True
    ),
    "mixed lengths, TRL's defaults": Variant(path="trl", checkpointing=True, mixed=True),
    "mixed lengths, sft, own trainer": Variant(path="trainer", batch=4, mixed=True),
    "listwise, 32 examples, checkpointing": Variant(objective="listwise", batch=32, checkpointing=True),
    "sft, 2 examples": Variant(batch=2),
    "without dropout": Variant(batch=4, dropout=0.0),
    "adapter in bfloat16": Variant(batch=4, adapter="bfloat16"),
    "adapter in bfloat16, without dropout": Variant(batch=4, dropout=0.0, adapter="bfloat16"),
    "FlashAttention 3": Variant(batch=4, attention="flash_attention_3"),
    "FlashAttention 2": Variant(batch=4, attention="flash_attention_2"),
    "eager attention": Variant(batch=4, attention="eager", checkpointing=True),
    "compiled": Variant(batch=4, compiled=True),
    "compiled, without dropout, adapter in bfloat16": Variant(batch=4, dropout=0.0, adapter="bfloat16", compiled=True),
    "compiled, 8 examples, checkpointing": Variant(compiled=True, checkpointing=True),
    "FlexAttention, compiled": Variant(batch=4, attention="flex_attention", compiled=True),
    "float8, compiled": Variant(batch=4, weights="float8", compiled=True),
    "NF4, own trainer": Variant(path="trainer", batch=4, weights="nf4"),
    "Liger": Variant(batch=4, liger=True),
}
"""The most valuable first; Liger last, as it changes transformers for the rest of the process."""
TINY_NAMES = (
    MAIN,
    STOCK,
    "listwise, 8 examples",
    "sft, 8 examples, checkpointing",
    PARTS,
    "full logits, checkpointing",
)
TINY_NAMES += ("mixed lengths, sft, own trainer", "listwise, own trainer, as in ml-32m.toml", "FlashAttention 2")


def measure_variant(variant: Variant, setup: Setup) -> dict[str, Any]:
    """Time a variant; counts are totals of the timed steps."""
    timed = time_variant(variant, setup)
    size = size_of(config_of(setup.shape).to_dict())
    work = work_of(variant, timed)
    padded = sum(len(lengths) * max(lengths) for lengths in timed.lengths)
    return {
        "variant": asdict(variant),
        "attention": timed.attention,
        "seconds_per_step": spread(timed.seconds),
        "seconds": sum(timed.seconds),
        "tokens": work.tokens,
        "padding": 1 - work.tokens / padded,
        "model_flops": size.training_flops(work, LORA_R),
        "recomputed_flops": size.recomputed_flops(work, LORA_R) if variant.checkpointing else 0.0,
        **memory_gib(setup.device),
        "estimated_gib": estimated_gib(variant, setup, size),
    }


def work_of(variant: Variant, timed: Timed) -> Work:
    """What the timed steps computed, as FLOPs depend on it."""
    lengths = [length for step in timed.lengths for length in step]
    return Work(sum(lengths), sum(length**2 for length in lengths), len(lengths) * variant.predicted)


def estimated_gib(variant: Variant, setup: Setup, size: ModelSize) -> float | None:
    """The estimate's total for the variant's largest batch; None for what the product does not do."""
    other = variant.compiled or variant.liger or variant.weights == "float8" or variant.attention == "eager"
    if other or variant.adapter != "float32" or variant.path not in ("ours", "trainer"):
        return None
    memory = training_memory(
        size,
        Batch(variant.batch, setup.length, variant.predicted, tiled=variant.objective == "sft"),
        rank=LORA_R,
        dropout=variant.dropout,
        dtype="bfloat16" if setup.device.type == "cuda" else "float32",
        checkpointing=variant.checkpointing,
        device="cuda" if setup.device.type == "cuda" else "cpu",
        holding=Holding("nf4" if variant.weights == "nf4" else "none"),
    )
    return memory.total / GIB


def format_report(page: Mapping[str, Any]) -> str:
    """The Markdown page of a JSON file, also of one that was cut."""
    found = page["results"]
    product = found["bf16_product"]["tflop_per_s"]["median"] * 1e12 if "bf16_product" in found else None
    peak = found.get("setup", {}).get("peak_flops")
    measured = {name: one for name, one in found.items() if isinstance(one, dict) and "model_flops" in one}
    lines = head_lines("Fine-tuning speed on a GPU", "finetune_speed.py", page)
    if "setup" in found:
        setup = found["setup"]
        lines.append(f"Shape {setup['shape']}, {setup['length']:,} tokens an example, {setup['steps']} steps timed.")
    lines += ["", *_answers(measured, peak)]
    lines += ["", "| variant | path | examples | s/step (range) | tokens/s | padding | MFU | HFU | of the product |"]
    lines[-1] += " peak GiB | used GiB | estimated GiB |"
    lines.append("|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
    lines += [_row(name, one, peak, product) for name, one in measured.items()]
    lines += _parts(found.get(PARTS, {}))
    return "\n".join([*lines, *tail_lines(found), ""])


def _answers(measured: Mapping[str, Any], peak: float | None) -> list[str]:
    """What the entry asks, where it was measured: MFU, and tokens a second next to TRL's defaults."""
    own = {name: one for name, one in measured.items() if one["variant"]["path"] in ("ours", "trainer")}
    lines = []
    for objective in ("sft", "listwise"):
        rates = {name: _rate(one) for name, one in own.items() if one["variant"]["objective"] == objective}
        if not rates:
            continue
        best = max(rates, key=lambda name: rates[name])
        line = f"- Fastest {objective}: {best}, {rates[best]:,.0f} tokens/s"
        if peak:
            line += f", MFU {share(own[best]['model_flops'], own[best]['seconds'], peak)}"
        if STOCK in measured:
            line += f"; {rates[best] / _rate(measured[STOCK]):.2f} times {STOCK}"
        lines.append(line + ".")
    return lines


def _rate(one: Mapping[str, Any]) -> float:
    return float(one["tokens"] / one["seconds"])


def _row(name: str, one: Mapping[str, Any], peak: float | None, product: float | None) -> str:
    step, flops, seconds = one["seconds_per_step"], one["model_flops"], one["seconds"]
    cells = [name, one["variant"]["path"], str(one["variant"]["batch"])]
    cells += [f"{step['median']:.4f} ({step['min']:.4f} to {step['max']:.4f})", f"{_rate(one):,.0f}"]
    cells += [f"{one['padding']:.1%}", share(flops, seconds, peak)]
    cells += [share(flops + one["recomputed_flops"], seconds, peak), share(flops, seconds, product)]
    cells += ["" if one[key] is None else f"{one[key]:.1f}" for key in ("peak_gib", "used_gib", "estimated_gib")]
    return f"| {' | '.join(cells)} |"


def _parts(found: Mapping[str, float]) -> list[str]:
    if "products" not in found:
        return []
    step = found["forward"] + found["backward"] + found["optimizer"]
    parts = {name: found[name] for name in ("products", "lora", "attention", "head", "optimizer")}
    parts["rest"] = step - sum(parts.values())
    lines = ["", f"Parts of a step ({MAIN}): forward {found['forward']:.4f} s, backward {found['backward']:.4f} s."]
    lines += ["", "| part, alone | s | of the step |", "|---|--:|--:|"]
    return lines + [f"| {name} | {seconds:.4f} | {seconds / step:.1%} |" for name, seconds in parts.items()]


HELP = "\n\n".join(f"\b\n{paragraph}" for paragraph in str(__doc__).split("\n\n"))
"""Typer keeps the lines of a paragraph that starts with a \\b."""
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, help=HELP)


@app.command()
def measure(
    out: Annotated[Path, typer.Option(help="Results, as JSON.")],
    device: Annotated[str, typer.Option(help="cuda or cpu.")] = "cuda",
    only: Annotated[
        list[str] | None, typer.Option(help="Name of a variant; may be repeated. All, if not given.")
    ] = None,
    length: Annotated[int, typer.Option(help="Tokens of the longest example.")] = LENGTH,
    steps: Annotated[int, typer.Option(help="Steps that are timed.")] = 4,
    minutes: Annotated[float, typer.Option(help=f"Ends by then, at most {MAX_MINUTES:g} on a GPU.")] = DEFAULT_MINUTES,
    tiny: Annotated[bool, typer.Option("--tiny", help="A tiny model and some of the variants: does it run?")] = False,
) -> None:
    """Train some steps of each variant on the device, and write the results."""
    if device == "cuda" and not torch.cuda.is_available():
        print("finetune_speed: torch sees no GPU here, so nothing was measured")
        return
    names = only or (list(TINY_NAMES) if tiny else list(VARIANTS))
    if unknown := set(names) - set(VARIANTS):
        raise SystemExit(f"finetune_speed: no variant {min(unknown)!r}; there are: {'; '.join(VARIANTS)}")
    logging.set_verbosity_error()
    place = torch.device(device)
    with Session("finetune_speed", place, out, minutes, tiny) as session, tempfile.TemporaryDirectory() as scratch:
        session.measure_ceilings()
        shape, longest = (TINY, TINY_LENGTH) if tiny else (LLAMA_8B, length)
        setup = Setup(shape, longest, steps, place, Path(scratch))
        facts = {"shape": shape, "length": longest, "steps": steps, "completion": COMPLETION}
        session.record("setup", facts | {"peak_flops": peak_flops(place)})
        chosen = {name: VARIANTS[name] for name in names}
        if tiny:
            chosen = {name: replace(one, batch=min(one.batch, TINY_BATCH)) for name, one in chosen.items()}
        work = {
            name: functools.partial(time_parts if name == PARTS else measure_variant, one, setup)
            for name, one in chosen.items()
        }
        record_each(session, work)
    Console().print(format_report(session.page), markup=False, soft_wrap=True)


report = add_report(app, format_report, REPORT)

if __name__ == "__main__":
    app()
