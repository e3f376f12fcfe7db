"""Do the exports of a run order the candidates as the run itself does?

    python benchmarks/export_round_trip.py --artifacts FOLDER [--run RUN] --work FOLDER --converter llama.cpp

The same test prompts go to the run's own ``Answerer`` (the reference, which the rank stage uses), to the ``merged``
export in transformers, to the ``adapter`` export in PEFT, and to the ``gguf`` export in llama.cpp's server, which
writes the prompt with the file's own chat template (``pip install xllamacpp`` has the server; the converter is of a
checkout of llama.cpp and needs ``pip install sentencepiece``). ``untuned`` is the control: the base model alone.

Orders differ where sums are rounded in another order, so each difference is measured: ``turned`` is the largest
difference between the reference's logits of two candidates that stand the other way round, in steps of the number
format at the size of the prompt's logits. Up to one step, the two are a tie that rounding decides.
"""

# Shape letters in this file: P prompts, C candidates of a prompt, V tokens of the vocabulary, H hidden width
from __future__ import annotations

import gc
import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import httpx
import numpy as np
import polars as pl
import torch
import typer
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, AutoTokenizer

from tripletune.chat import load_tokenizer
from tripletune.contract import AdapterContract, locate_base, read_contract
from tripletune.export.card import LABELS
from tripletune.export.export import export_run
from tripletune.rank.answerer import Answerer
from tripletune.store.files import write_json
from tripletune.store.runs import read_run

SERVER = "xllamacpp"
_TOP = 1000
"""Tokens whose log-probabilities the server returns, as in the guide; a label below is an error, not a last place."""
Logits = list[NDArray[np.float64]]
"""Of each prompt the scores of its candidates in the order shown, each of shape (C,), up to a constant."""
Scorer = Callable[[list[dict[str, str]]], dict[int, float]]
"""From a chat to the scores of tokens by id."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far a path's orders are the reference's."""

    prompts: int
    same_five: int
    same_order: int
    only_ties: int
    """Prompts whose orders differ, but by no more than one step."""
    turned: float
    """Steps between two candidates that stand the other way round, the largest."""
    change: float
    """Largest difference of a logit, each less the mean of its prompt's candidates."""


def best_first(scores_C: NDArray[np.float64]) -> list[int]:
    """Places by score, equal ones in the order shown, as the rank stage has them."""
    return [int(place) for place in np.argsort(-scores_C, kind="stable")]


def largest_turned(reference_C: NDArray[np.float64], order: list[int]) -> float:
    """Largest lead in the reference of a candidate that ``order`` puts behind the other one; 0 without any."""
    inverted = reference_C[order]
    return float(np.max(np.maximum.accumulate(inverted[::-1])[::-1] - inverted))


def compare(reference: Logits, other: Logits, eps: float) -> Agreement:
    """Agreement of two paths over the same prompts; ``eps`` is the number format's relative step."""
    same_five = same_order = only_ties = 0
    turned = change = 0.0
    for ours, theirs in zip(reference, other, strict=True):
        order, expected = best_first(theirs), best_first(ours)
        steps = largest_turned(ours, order) / (eps * float(np.abs(ours).max()))
        same_five += order[:5] == expected[:5]
        same_order += order == expected
        only_ties += order != expected and steps <= 1
        turned = max(turned, steps)
        change = max(change, float(np.abs((ours - ours.mean()) - (theirs - theirs.mean())).max()))
    return Agreement(len(reference), same_five, same_order, only_ties, turned, change)


def by_the_run(finetuned: Path, examples: pl.DataFrame, *, tuned: bool) -> Logits:
    """Label logits of the run's own code."""
    answered = Answerer.load(finetuned, tuned=tuned).answer(examples, constrained=True, batch_size=8)
    found = []
    for shown, ordered, scores in zip(examples["candidates"], answered["answers"], answered["scores"], strict=True):
        of_film = dict(zip(ordered.to_list(), scores.to_list(), strict=True))
        found.append(np.array([of_film[film] for film in shown.to_list()]))
    return found


def by_transformers(folder: Path, form: str, dtype: str) -> Scorer:
    """The code of the model card: one prompt at a time, logits of its last place."""
    from peft import AutoPeftModelForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(folder)
    kind = AutoModelForCausalLM if form == "merged" else AutoPeftModelForCausalLM
    model = kind.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    head_VH = model.get_output_embeddings().weight.detach().float()

    def score(chat: list[dict[str, str]]) -> dict[int, float]:
        inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True, return_tensors="pt")
        with torch.inference_mode():
            hidden_H = model(**inputs, output_hidden_states=True, logits_to_keep=1).hidden_states[-1][0, -1]
            return dict(enumerate((head_VH @ hidden_H.float()).tolist()))

    return score


def start_llama_cpp(file: Path, threads: int) -> Any:
    """llama.cpp's server over a file, in this process; it ends with the object."""
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path = str(file)
    settings.n_ctx, settings.n_parallel = 2048, 1
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = threads
    settings.use_jinja, settings.warmup = True, False
    return xllamacpp.Server(settings)


def by_llama_cpp(server: Any) -> Scorer:
    """The guide's request."""

    def score(chat: list[dict[str, str]]) -> dict[int, float]:
        body = {"messages": chat, "temperature": 0, "max_tokens": 1, "logprobs": True, "top_logprobs": _TOP}
        reply = server.handle_chat_completions({**body, "cache_prompt": False})
        (first,) = reply["choices"][0]["logprobs"]["content"]
        return {token["id"]: token["logprob"] for token in first["top_logprobs"]}

    return score


def same_tokens(server: Any, finetuned: Path, contract: AdapterContract, chats: list[list[dict[str, str]]]) -> int:
    """Chats that the server's chat template and tokenizer turn into the run's own tokens."""

    def ask(path: str, body: dict[str, Any]) -> Any:
        return httpx.post(f"{server.listening_address}{path}", json=body).raise_for_status().json()

    base = locate_base(finetuned, contract)
    tokenizer = load_tokenizer(base.source, base.hub_revision, contract.date_string)
    same = 0
    for chat in chats:
        text = ask("/apply-template", {"messages": chat})["prompt"]
        ids = ask("/tokenize", {"content": text, "add_special": True, "parse_special": True})["tokens"]
        same += ids == tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    return same


def label_scores(score: Scorer, examples: pl.DataFrame, tokens: dict[str, int], name: str) -> Logits:
    """Scores of each prompt's labels; prints every tenth prompt.

    Raises:
        SystemExit: a label is not among the tokens that the server returned.
    """
    found = []
    for row in examples.iter_rows(named=True):
        of_token = score(row["prompt"])
        missing = [label for label in row["candidate_letters"] if tokens[label] not in of_token]
        if missing:
            raise SystemExit(f"{name}: {row['user_id']}: no score of {', '.join(missing)} among {len(of_token)} tokens")
        found.append(np.array([of_token[tokens[label]] for label in row["candidate_letters"]]))
        if len(found) % 10 == 0:
            print(f"{name}: {len(found)} prompts", flush=True)
    return found


def table(found: dict[str, Agreement]) -> str:
    """One row a path."""
    head = "| path | prompts | same first five | same order | differ at ties alone | turned, steps | logit, at most |"
    lines = [head, "|---|--:|--:|--:|--:|--:|--:|"]
    for name, one in found.items():
        shown = (one.prompts, one.same_five, one.same_order, one.only_ties, f"{one.turned:.2f}", f"{one.change:.2g}")
        lines.append(f"| {name} | {' | '.join(map(str, shown))} |")
    return "\n".join(lines)


PATHS = ("run", "gguf", "merged", "adapter", "untuned")


def main(
    artifacts: Annotated[Path, typer.Option(help="Artifact root of the run.")],
    work: Annotated[Path, typer.Option(help="Folder of exports and scores; those it has are used again.")],
    run: Annotated[str, typer.Option(help="Name of the run; empty: the latest with an adapter.")] = "",
    converter: Annotated[str, typer.Option(help="llama.cpp's checkout, or its converter.")] = "",
    prompts: Annotated[int, typer.Option(help="Test prompts, drawn at random.")] = 100,
    threads: Annotated[int, typer.Option(help="Threads of torch and llama.cpp.")] = 1,
    only: Annotated[list[str] | None, typer.Option(help="Paths to score; else all.")] = None,
) -> None:
    """Export, score the prompts on each path, and print the table."""
    torch.set_num_threads(threads)
    record = read_run(artifacts, run, needs="finetune")
    finetuned = record.paths(artifacts).require("finetune")
    contract = read_contract(finetuned)
    examples = pl.read_parquet(record.paths(artifacts).require("generate") / "test" / "*.parquet").sort("example_id")
    examples = examples.sample(min(prompts, len(examples)), seed=7)

    def scored(name: str) -> Logits:
        if name in ("run", "untuned"):
            return by_the_run(finetuned, examples, tuned=name == "run")
        folder = work / name
        if not folder.exists():
            export_run(record, artifacts, folder, name, text_only=True, converter=converter)
        tokens = json.loads((folder / LABELS).read_text(encoding="utf-8"))
        if name != "gguf":
            return label_scores(by_transformers(folder, name, contract.dtype), examples, tokens, name)
        server = start_llama_cpp(next(folder.glob("*.gguf")), threads)
        same = same_tokens(server, finetuned, contract, examples["prompt"].to_list())
        print(f"gguf: {same} of {len(examples)} prompts have the run's tokens", flush=True)
        return label_scores(by_llama_cpp(server), examples, tokens, name)

    found: dict[str, Logits] = {}
    for name in only or PATHS:
        if name == "gguf" and find_spec(SERVER) is None:
            print(f"gguf is skipped: {SERVER} is not installed (pip install {SERVER})")
            continue
        found[name] = kept(work / f"{name}-{len(examples)}.json", lambda name=name: scored(name))
        gc.collect()  # before the next model is loaded
    if "run" in found:
        eps = torch.finfo(getattr(torch, contract.dtype)).eps
        agreed = {name: compare(found["run"], one, eps) for name, one in found.items() if name != "run"}
        print(f"{contract.base_model}, {contract.dtype}:\n\n{table(agreed)}")


def kept(file: Path, score: Callable[[], Logits]) -> Logits:
    """Scores from the file, or computed and written to it."""
    if not file.exists():
        write_json(file, [scores_C.tolist() for scores_C in score()])
    return [np.array(scores) for scores in json.loads(file.read_text(encoding="utf-8"))]


if __name__ == "__main__":
    typer.run(main)
