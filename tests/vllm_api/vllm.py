"""Part of vLLM's API as of 0.28 to 0.30, computed by transformers on a CPU: what ranking calls, with its parameters.

Put this folder on the path to import it as ``vllm``. Written after vLLM's documentation and source: parameter names,
defaults and meanings are theirs, and a name that is not theirs raises TypeError, as there. Logits are those of the
model folder that it is given, one prompt at a time and without a cache.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypedDict

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

RUNNING: list[LLM] = []
"""Engines that hold memory."""
STARTED: list[LLM] = []


class TokensPrompt(TypedDict, total=False):
    prompt_token_ids: list[int]
    prompt: str
    cache_salt: str


@dataclass(kw_only=True)
class SamplingParams:
    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True
    logit_bias: dict[int, float] | None = None
    allowed_token_ids: list[int] | None = None
    extra_args: dict[str, Any] | None = None
    bad_words: list[str] | None = None

    def __post_init__(self) -> None:
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, got {self.max_tokens}.")


@dataclass
class Logprob:
    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass
class CompletionOutput:
    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None
    logprobs: list[dict[int, Logprob]] | None
    finish_reason: str | None = None


@dataclass
class RequestOutput:
    request_id: str
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool = True


class _EngineCore:
    def __init__(self, llm: LLM) -> None:
        self._llm = llm

    def shutdown(self, timeout: float | None = None) -> None:
        if self._llm in RUNNING:
            RUNNING.remove(self._llm)


@dataclass
class _Engine:
    engine_core: _EngineCore


@dataclass(eq=False)
class _EngineArgs:
    """The engine arguments, by keyword, that a test may want to see."""

    model: str
    tokenizer: str | None = None
    skip_tokenizer_init: bool = False
    trust_remote_code: bool = False
    tensor_parallel_size: int = 1
    dtype: str = "auto"
    quantization: str | None = None
    revision: str | None = None
    tokenizer_revision: str | None = None
    seed: int = 0
    gpu_memory_utilization: float = 0.92
    enforce_eager: bool = False
    max_model_len: int | None = None
    max_num_batched_tokens: int | None = None
    max_num_seqs: int | None = None
    enable_prefix_caching: bool | None = None
    enable_chunked_prefill: bool | None = None
    load_format: str = "auto"
    generation_config: str = "auto"
    max_logprobs: int = 20
    logprobs_mode: str = "raw_logprobs"
    disable_log_stats: bool = True
    hf_overrides: dict[str, Any] = field(default_factory=dict)
    additional_config: dict[str, Any] = field(default_factory=dict)


class LLM:
    def __init__(self, model: str, **engine_args: Any) -> None:
        self.args = args = _EngineArgs(model, **engine_args)
        if RUNNING:
            raise ValueError("Free memory on device is less than desired GPU memory utilization.")
        if args.logprobs_mode not in ("raw_logprobs", "processed_logprobs"):
            raise ValueError(f"no such mode here: {args.logprobs_mode}")
        self._model = AutoModelForCausalLM.from_pretrained(
            model, revision=args.revision, dtype=getattr(torch, args.dtype), use_safetensors=True
        ).eval()
        if args.generation_config != "vllm":
            raise ValueError("the folder's generation config is not read here")
        # vLLM adds the end tokens of the model's folder to those of a request
        self._eos = AutoTokenizer.from_pretrained(
            args.tokenizer or model, revision=args.tokenizer_revision
        ).eos_token_id
        self._longest = args.max_model_len or self._model.config.max_position_embeddings
        self.llm_engine = _Engine(_EngineCore(self))
        RUNNING.append(self)
        STARTED.append(self)

    def generate(
        self,
        prompts: list[TokensPrompt],
        sampling_params: list[SamplingParams] | SamplingParams | None = None,
        *,
        use_tqdm: bool = True,
        lora_request: Any = None,
        priority: list[int] | None = None,
    ) -> list[RequestOutput]:
        if self not in RUNNING:
            raise RuntimeError("EngineDeadError")
        many = sampling_params if isinstance(sampling_params, list) else [sampling_params or SamplingParams()]
        many = many if isinstance(sampling_params, list) else many * len(prompts)
        if len(many) != len(prompts):
            raise ValueError("The lengths of prompts and params must be the same.")
        return [
            RequestOutput(str(number), prompt["prompt_token_ids"], [self._complete(prompt["prompt_token_ids"], params)])
            for number, (prompt, params) in enumerate(zip(prompts, many, strict=True))
        ]

    def _complete(self, prompt: list[int], params: SamplingParams) -> CompletionOutput:
        if params.temperature != 0.0 or params.repetition_penalty != 1.0 or params.logit_bias:
            raise NotImplementedError("greedy decoding alone")
        if params.logprobs is not None and params.logprobs > self.args.max_logprobs:
            raise ValueError(
                f"Requested sample logprobs of {params.logprobs}, which is greater than max allowed: "
                f"{self.args.max_logprobs}"
            )
        if params.allowed_token_ids is not None and not params.allowed_token_ids:
            raise ValueError("allowed_token_ids is not None and empty!")
        if len(prompt) >= self._longest:
            raise ValueError(f"The decoder prompt (length {len(prompt)}) is longer than the maximum model length")
        stops = {*(params.stop_token_ids or ()), *(() if params.ignore_eos else (self._eos,))}
        most = min(params.max_tokens or self._longest, self._longest - len(prompt))
        written: list[int] = []
        places: list[dict[int, Logprob]] = []
        while len(written) < most and not (written and written[-1] in stops):
            token, place = self._next([*prompt, *written], params)
            written.append(token)
            places.append(place)
        return CompletionOutput(0, "", written, None, places if params.logprobs is not None else None, "stop")

    def _next(self, ids: list[int], params: SamplingParams) -> tuple[int, dict[int, Logprob]]:
        """The likeliest token, and the log-probabilities that are asked for: its own and the highest."""
        head_dtype = getattr(torch, self.args.hf_overrides.get("head_dtype", self.args.dtype))
        with torch.inference_mode():
            hidden_H = self._model.base_model(torch.tensor([ids])).last_hidden_state[0, -1]
            logits_V = (self._model.lm_head.weight.to(head_dtype) @ hidden_H.to(head_dtype)).float()
        allowed_V = logits_V
        if params.allowed_token_ids is not None:
            allowed_V = torch.full_like(logits_V, -torch.inf)
            allowed_V[params.allowed_token_ids] = logits_V[params.allowed_token_ids]
        token = int(allowed_V.argmax())
        shown_V = (allowed_V if self.args.logprobs_mode == "processed_logprobs" else logits_V).log_softmax(-1)
        return token, _place(shown_V, token, params.logprobs or 0)


def _place(logprob_V: Tensor, token: int, number: int) -> dict[int, Logprob]:
    """A dict with the token written first, as vLLM gives it, then the highest ones."""
    best = logprob_V.topk(number).indices.tolist()
    rank_of = {one: rank for rank, one in enumerate(best, 1)}
    mine = 1 + int((logprob_V > logprob_V[token]).sum())
    return {one: Logprob(float(logprob_V[one]), rank_of.get(one, mine)) for one in dict.fromkeys([token, *best])}
