"""Answer prompts with vLLM in place of transformers: ``rank.backend = "vllm"``.

vLLM batches by itself, and keeps the keys and values of prefixes that prompts share. It is given the token ids that
transformers would get, and asked for one token out of the candidates' labels, with the log-probability of each. These
are the labels' logits minus one number for each prompt, so they have the same order, and the same values once centred,
as in the sum with the retriever's scores. The last bits depend on vLLM's kernels and on what it batches together.

An engine is a process of its own, on the first GPU that this process sees; each process of ``rank.workers`` sees one.
"""

from __future__ import annotations

import importlib.util
import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from tripletune.answer_lines import LineTokens, Names
from tripletune.contract import AdapterContract
from tripletune.errors import ConfigError
from tripletune.rank.answerer import Answerer, Written, open_folder, style_of
from tripletune.rank.merge import load_base, merge_adapter

_INSTEAD = "set rank.backend to 'transformers'"


def require_answerable(finetuned: Path) -> None:
    """Refuse what vLLM can't answer here, before any weights are read.

    Raises:
        ConfigError: vLLM is not installed, the adapter reads behaviour tokens or was trained on quantised weights, or
            its answers are not labels of one token each.
        MissingArtifactError, ContractError: as ``Answerer.load``.
    """
    if importlib.util.find_spec("vllm") is None:
        raise ConfigError(
            "rank.backend = 'vllm' needs vLLM, which is installed apart: pip install 'vllm>=0.28,<0.31', then "
            f"pip install 'fastapi>=0.139,<0.151' for Prefect; or {_INSTEAD}"
        )
    contract, _, tokenizer = open_folder(finetuned)
    if contract.behaviour:
        raise ConfigError(
            f"{finetuned}: the adapter reads behaviour tokens made of the vectors of {contract.behaviour.source}, "
            f"which rank.backend = 'vllm' can't give it; {_INSTEAD}"
        )
    if contract.quantization != "none":
        raise ConfigError(
            f"{finetuned}: the adapter was trained on weights in {contract.quantization}, and rank.backend = 'vllm' "
            f"would rank the untuned model with others; {_INSTEAD}"
        )
    style = style_of(contract)
    if style.labels is None:
        raise ConfigError(
            f"{finetuned}: the adapter answers with {style.name}, and rank.backend = 'vllm' reads scores of labels; "
            f"{_INSTEAD}, or prompt.template to one whose answers are letters and train again"
        )
    _label_tokens(LineTokens(tokenizer), Names(style.labels(_num_candidates(contract)), style))


def write_merged(finetuned: Path, to: Path) -> None:
    """Write the tuned model's config and weights, as safetensors, whole or not at all; done before is done.

    Raises:
        NonFiniteError: a weight of the adapter is NaN or infinite.
        MissingArtifactError, ContractError: as ``Answerer.load``.
    """
    if to.is_dir():
        return
    contract, base, _ = open_folder(finetuned)
    model = merge_adapter(load_base(base, contract), finetuned / "adapter")
    model.generation_config = GenerationConfig()  # that of the base may sample
    part = to.with_name(f".{to.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # of a killed run
    model.save_pretrained(part)
    part.replace(to)


@dataclass(slots=True)
class VllmAnswerer(Answerer):
    """An answerer whose ``model`` is vLLM's engine; make it with ``open``."""

    def __post_init__(self) -> None:
        """Nothing to reset: each request brings all of its sampling parameters."""

    @classmethod
    def open(cls, finetuned: Path, merged: Path, *, tuned: bool) -> VllmAnswerer:
        """Start an engine.

        Args:
            finetuned: a folder that ``require_answerable`` has passed.
            merged: of ``write_merged``; read only where ``tuned``.
            tuned: with the adapter, or the base model alone.

        Raises:
            MissingArtifactError, ContractError: as ``Answerer.load``.
        """
        from vllm import LLM

        contract, base, tokenizer = open_folder(finetuned)
        engine = LLM(
            model=str(merged) if tuned else base.source,
            revision=None if tuned else base.hub_revision,
            tokenizer=base.source,
            tokenizer_revision=base.hub_revision,
            trust_remote_code=False,
            load_format="safetensors",
            generation_config="vllm",  # and not the folder's, which may stop or penalise
            dtype=contract.dtype,
            hf_overrides={"head_dtype": "float32"},  # as head_in_float32
            max_model_len=contract.prompt.get("max_tokens") or None,  # None: the model's own
            enable_prefix_caching=True,
            logprobs_mode="processed_logprobs",  # after the restriction to the labels
            max_logprobs=_num_candidates(contract),
        )
        return cls(engine, tokenizer, LineTokens(tokenizer), contract, tuned)

    def close(self) -> None:
        """End the engine's process, which holds the GPU's memory."""
        self.model.llm_engine.engine_core.shutdown()

    def _write(
        self, ids: list[list[int]], names: Sequence[Names], order: Sequence[int], constrained: bool, batch_size: int
    ) -> Iterator[tuple[int, Written]]:
        """The answer to each prompt with its row; ``batch_size`` is vLLM's own."""
        from vllm import TokensPrompt

        ask = self._for_labels if constrained else self._for_text
        outputs = self.model.generate(
            [TokensPrompt(prompt_token_ids=ids[row]) for row in order],
            [ask(names[row]) for row in order],
            use_tqdm=False,
        )
        read = self._labels_of if constrained else self._text_of
        for row, output in zip(order, outputs, strict=True):
            yield row, read(output.outputs[0], names[row])

    def _for_labels(self, names: Names) -> Any:
        from vllm import SamplingParams

        labels = _label_tokens(self.lines, names)
        return SamplingParams(
            max_tokens=1, temperature=0.0, logprobs=len(labels), allowed_token_ids=labels, detokenize=False
        )

    def _for_text(self, names: Names) -> Any:
        """Greedy decoding up to the end token, which is the only one that ends an answer."""
        from vllm import SamplingParams

        return SamplingParams(
            max_tokens=1 if self._names_one else self._longest_answer([names]),
            temperature=0.0,
            logprobs=0,  # of the tokens written, to see whether they are numbers
            stop_token_ids=[self.lines.end],
            ignore_eos=True,
            detokenize=False,
        )

    def _labels_of(self, output: Any, names: Names) -> Written:
        found = output.logprobs[0]
        logprobs = [found[label].logprob if label in found else math.nan for label in _label_tokens(self.lines, names)]
        if not all(map(math.isfinite, logprobs)):
            raise self._not_finite()
        return self._by_label(torch.tensor(logprobs), names)

    def _text_of(self, output: Any, names: Names) -> Written:
        tokens = list(output.token_ids)
        written = (place[token].logprob for place, token in zip(output.logprobs, tokens, strict=True))
        if not all(map(math.isfinite, written)):
            raise self._not_finite()
        return self._as_text(tokens)


def _num_candidates(contract: AdapterContract) -> int:
    return int(contract.prompt["num_candidates"])


def _label_tokens(lines: LineTokens, names: Names) -> list[int]:
    """The token of each label.

    Raises:
        ConfigError: a label is not one token.
    """
    tokens = lines.single(names)
    if tokens is None:
        raise ConfigError(
            f"the base model's tokenizer cuts one of the labels {names.names[0]} to {names.names[-1]}, and "
            f"rank.backend = 'vllm' reads labels of one token; {_INSTEAD}, or train with fewer candidates"
        )
    return tokens
