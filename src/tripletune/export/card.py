"""Model card of an export: README.md with what it is, was trained on and measured, how it is prompted and run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl
from huggingface_hub import ModelCardData

from tripletune.config import SHIPPED, RunConfig, SourceConfig
from tripletune.contract import TINY, AdapterContract, BaseIdentity
from tripletune.errors import UserError
from tripletune.evaluate.tables import ranked_systems
from tripletune.export.carried import not_carried
from tripletune.export.usage import usage
from tripletune.prompts.template import load_template
from tripletune.schemas.inline import INLINE_MARK
from tripletune.store.paths import read_manifest
from tripletune.store.read import read_parquet
from tripletune.store.runs import RunRecord

LABELS = "label_tokens.json"
_SHIPPED_ON_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
_WHAT = {
    "merged": "the adapter is in the weights, so it loads as any model of transformers, vLLM included",
    "adapter": "a LoRA adapter of PEFT, which loads together with its base model",
    "gguf": "one file for llama.cpp, not quantised",
}
_LIBRARY = {"merged": "transformers", "adapter": "peft", "gguf": "llama.cpp"}


@dataclass(frozen=True, slots=True)
class Card:
    """What a model card is written from."""

    record: RunRecord
    root: Path
    contract: AdapterContract
    base: BaseIdentity
    form: str
    labels: tuple[str, ...]
    """Labels of one token each, in the order shown; empty: answers are written out."""

    @property
    def base_name(self) -> str:
        """Name of the base model, without the machine's folders."""
        model = self.contract.base_model
        return model if self.base.hub_revision else Path(model).name


def write_card(folder: Path, card: Card) -> None:
    """Write README.md with the hub's front matter."""
    record, contract, settings = card.record, card.contract, card.record.settings()
    parts = [
        f"---\n{_front_matter(card)}\n---",
        f"# Candidates of {record.dataset}, ordered by {card.base_name}",
        f"Exported by tripletune from the run `{record.name}`, format `{card.form}`: {_WHAT[card.form]}. A prompt has "
        "what a user liked, hints of recommenders and a list of candidate films; the model says which of them the user "
        "will like.",
        "## What it serves and what it does not",
        *_limits(contract, card.form),
        "## Training",
        *_training(card, settings),
        "## Results",
        _results(card),
        "## Prompts",
        *_prompts(card, settings),
        "## Use",
        *usage(card.form, record.dataset, contract, card.base, labelled=bool(card.labels)),
        "## Licences",
        *_licences(card.base_name, settings.source),
    ]
    (folder / "README.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _front_matter(card: Card) -> str:
    shipped = _SHIPPED_ON_HUB if card.contract.base_model == SHIPPED else None
    data = ModelCardData(
        base_model=card.base.source if card.base.hub_revision else shipped,
        library_name=_LIBRARY[card.form],
        pipeline_tag="text-generation",
        license="other",
        license_name="see-licences-below",
        license_link="README.md",
        tags=["recommender-system", "lora", "tripletune"],
    )
    return str(data.to_yaml()).strip()


def _limits(contract: AdapterContract, form: str) -> Iterator[str]:
    yield "It serves text: a chat in, the language model's own scores or answer out."
    if contract.quantization == "nf4" and form == "adapter":
        yield (
            "The adapter was trained on the base model in 4 bits (NF4, double quantisation). Load the base that way: "
            "on full weights it is another model, for which nothing was measured."
        )
    lost = not_carried(contract)
    if lost:
        yield "The run serves more than that:"
        yield "\n".join(f"- {sentence}" for sentence in lost)
    if contract.residual:
        yield (
            "Who has the retriever's order can make the sum: a candidate's score is `weight` times (logit of its label "
            "minus the mean of the candidates' logits) plus `prior` of its place in that order; both numbers are in "
            "`contract.json` under `residual`."
        )
    yield (
        "Nothing here keeps a written answer to the candidates, as the run's ranking does; read the labels' scores, or "
        "constrain the answer, where the server can."
    )


def _training(card: Card, settings: RunConfig) -> Iterator[str]:
    contract, finetune = card.contract, settings.finetune
    manifest = read_manifest(card.record.paths(card.root).folder("finetune"))
    facts = manifest["facts"] if manifest else {}
    rows = {
        "base model": f"{card.base_name}, revision {contract.base_revision}",
        "objective": contract.objective,
        "LoRA": f"rank {finetune.lora_r}, alpha {finetune.lora_alpha}, all linear layers",
        "examples": facts.get("examples"),
        "steps": facts.get("steps"),
        "tokens": facts.get("tokens"),
        "published step": facts.get("published_step"),
        "evaluation loss before": _rounded(facts.get("eval_loss_before")),
        "evaluation loss after": _rounded(facts.get("eval_loss")),
        "number format": contract.dtype,
        "base model's weights in training": "4 bits (NF4)" if contract.quantization == "nf4" else None,
        "ratings": _release(settings.source),
        "run": card.record.name,
        "tripletune": manifest["tripletune"] if manifest else None,
    }
    shown = [f"| {name} | {value} |" for name, value in rows.items() if value is not None]
    yield "\n".join(["| | |", "|---|---|", *shown])
    yield "`contract.json` has the prompts' settings, the base model's hashes and the fingerprints behind the data."


def _rounded(loss: float | None) -> str | None:
    return None if loss is None else f"{loss:.4f}"


def _release(source: SourceConfig) -> str:
    """Name of the release's file, without the machine's folders."""
    return Path(source.movielens).name if source.movielens else "synthetic"


def _results(card: Card) -> str:
    """Re-ranking of the same candidates for test users, from the run's evaluate stage."""
    folder = card.record.paths(card.root).folder("evaluate") if "evaluate" in card.record.fingerprints else None
    if folder is None or read_manifest(folder) is None:
        return "The run has not evaluated this adapter."
    frame = read_parquet(folder / "metrics.parquet").filter(pl.col("group") == "all")
    systems = ranked_systems(frame["row"])
    mine = frame.filter(pl.col("row").is_in(systems), ~pl.col("metric").str.starts_with("valid_"))
    names = mine.filter(pl.col("row") == "tuned")["metric"].unique(maintain_order=True).to_list()
    cells = {(row["row"], row["metric"]): row for row in mine.iter_rows(named=True)}

    def cell(system: str, name: str) -> str:
        found = cells.get((system, name))
        if found is None:
            return "-"
        spread = "" if found["low"] is None else f" ({found['low']:.3f} to {found['high']:.3f})"
        return f"{found['value']:.3f}{spread}"

    users = mine["num_viewers"].max()
    fewer = {row["row"]: f" ({row['num_viewers']} users)" for row in cells.values() if row["num_viewers"] != users}
    lines = [
        f"| {' | '.join((system + fewer.get(system, ''), *(cell(system, name) for name in names)))} |"
        for system in systems
    ]
    head = [f"| {' | '.join(('', *names))} |", "|---" * (len(names) + 1) + "|"]
    note = f"The same candidates of {users!s} test users, ordered by each system; `tuned` is this model's own order."
    return "\n".join([note, "", *head, *lines])


def _prompts(card: Card, settings: RunConfig) -> Iterator[str]:
    prompt = card.contract.prompt
    yield (
        "A chat of a system and a user message, written by the chat template with the answer opened "
        "(`add_generation_prompt`); add no special tokens, the template writes them. The model knows no other prompts "
        f"than those of the template `{prompt.get('template')}`."
    )
    try:
        template = load_template(settings.prompt.template)
    except UserError:
        template = None
    if template is not None and template.sha256 == prompt.get("template_sha256"):
        yield f"The system message:\n\n```text\n{template.system}\n```"
        yield f"The user message, with a slot for each list, one entry to a line:\n\n```text\n{template.user}\n```"
        if template.inline:
            shown = "\n".join(f"{INLINE_MARK} {words}" for _, words in template.inline)
            yield f"After a candidate's title stand, where they apply:\n\n```text\n{shown}\n```"
    if card.labels:
        yield (
            f"Candidates have the labels {card.labels[0]} to {card.labels[-1]}, as in `A. Heat (1995)`, in the order "
            f"shown; `{LABELS}` has the token of each. The logits of these tokens after the prompt are the scores."
        )
    else:
        yield "The answer names five candidates, best first, each on a line of its own."


def _licences(name: str, source: SourceConfig) -> Iterator[str]:
    yield {
        TINY: "The base model was built by tripletune from random weights.",
        SHIPPED: f"The base model is {_SHIPPED_ON_HUB}, Apache-2.0, read from a file of 4 bits a weight.",
    }.get(name, f"The base model's licence is that of {name}.")
    if not source.movielens:
        yield "The ratings are synthetic, made by tripletune, and carry no terms."
        return
    yield (
        f"The ratings are of `{_release(source)}`. The README in each MovieLens release has GroupLens's terms: as a "
        "rule no commercial use and no redistribution of the data without permission, and a citation of Harper and "
        "Konstan 2015 (https://doi.org/10.1145/2827872). They say nothing of models trained on it; read them, or ask, "
        "before this one is published or sold."
    )
    if source.feed.ratings:
        yield "Ratings come from a feed as well, under its owner's terms."
    if source.imdb:
        yield (
            "Credits are of IMDb's data sets, for personal and non-commercial use: "
            "https://developer.imdb.com/non-commercial-datasets/."
        )
