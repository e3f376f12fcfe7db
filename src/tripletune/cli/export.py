"""The command that takes a tuned model out of the project: ``export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tripletune.cli.app import ARTIFACTS, ArtifactsOption, RunOption, app, say
from tripletune.errors import UserError
from tripletune.store.runs import read_run


@app.command(rich_help_panel="Serve")
def export(
    out: Annotated[Path, typer.Option("--out", help="A new folder; appears when everything in it is written.")],
    form: Annotated[str, typer.Option("--format", help="merged, adapter or gguf.")] = "merged",
    text_only: Annotated[
        bool,
        typer.Option(
            "--text-only", help="Without behaviour tokens and the retriever's scores, where the run has them."
        ),
    ] = False,
    converter: Annotated[
        str,
        typer.Option(
            "--converter", help="gguf: llama.cpp's checkout or its convert_hf_to_gguf.py; empty: the one on PATH."
        ),
    ] = "",
    run: RunOption = "",
    artifacts: ArtifactsOption = ARTIFACTS,
) -> None:
    """Write a run's tuned model for other programs, with a model card (README.md) that says how to prompt it.

    merged: the adapter in the base model's weights, for transformers and vLLM. adapter: for PEFT, with the base model
    next to it unless it is on the hub. gguf: one file for llama.cpp, by its own converter. All three are safetensors or
    GGUF, never pickle, and need no code of tripletune.

    They answer as the row "tuned" of the run's tables. What is served may be more: behaviour tokens, or the sum with
    the retriever's scores ("tuned+retriever"). No format carries these, so such a run is refused unless --text-only
    says that the language model alone is wanted; the model card then lists what is lost.

    For example: [bold]tripletune export --out served[/], then [bold]vllm serve served[/].
    """
    from tripletune.export.export import FORMATS, export_run

    if form not in FORMATS:
        raise UserError(f"--format {form!r}: there are {', '.join(FORMATS)}")
    if converter and form != "gguf":
        raise UserError(f"--converter is for --format gguf, not for {form}")
    record = read_run(artifacts, run, needs="finetune")
    done = export_run(record, artifacts, out, form, text_only=text_only, converter=converter)
    say(f"{done.folder}: {form} of {record.name}, {done.num_bytes / 2**20:,.1f} MiB; it serves text prompts")
    for sentence in done.lost:
        say(f"not in it: {sentence}")
    say(f"how to prompt and serve it: {done.folder / 'README.md'}, docs/guides/serve.md")
