"""The ids that are counted, trained on and ranked with are the same, by the code that counts, trains and ranks.

For tokenizers like those of Llama 3, Qwen 3, Gemma 3 and SmolLM2, and for SmolLM2's own.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest
import torch
from chat_tokenizers import like
from prompt_frames import build
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

from tripletune.answer_lines import LineTokens
from tripletune.chat import load_tokenizer
from tripletune.config import FinetuneConfig
from tripletune.contract import AdapterContract
from tripletune.finetune import training
from tripletune.finetune.job import TrainingJob
from tripletune.finetune.shipped import find_weights
from tripletune.finetune.token_files import TRAIN, read_token_files, token_lengths, write_token_files
from tripletune.prompts.template import load_template
from tripletune.rank.answerer import Answerer

MODELS = ("llama", "qwen", "gemma", "smollm", "smollm2-135m")
TEMPLATES = ("hints-first", "letters", "compact")
POSITIONS = 8192
BATCH = 16


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Batches that are sent one after the other, in their order; on several threads one may overtake another."""
    number = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(number)


@pytest.fixture(scope="module", params=MODELS)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a base model: the tokenizer, and weights as small as they may be."""
    folder = str(tmp_path_factory.mktemp(request.param))
    if request.param == "smollm2-135m":
        file = find_weights()
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    else:
        tokenizer = copy.deepcopy(like(request.param))
    if tokenizer.bos_token and request.param != "smollm2-135m":
        # as the published ones: whoever does not switch it off gets a second one before the chat template's
        bos = (tokenizer.bos_token, tokenizer.bos_token_id)
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{bos[0]} $A", special_tokens=[bos])
        assert tokenizer("A")["input_ids"] != tokenizer("A", add_special_tokens=False)["input_ids"]
    tokenizer.save_pretrained(folder)
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    LlamaForCausalLM(
        LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=POSITIONS, **shape)
    ).save_pretrained(folder)
    return folder


def job_of(base: str, folder: Path, examples: pl.DataFrame, template: str, objective: str) -> TrainingJob:
    folder.mkdir()
    examples.write_parquet(folder / "train.parquet")
    return TrainingJob(
        out=folder,
        train=(folder / "train.parquet",),
        evaluation=None,
        answer_style=load_template(template).answer_style,
        base=base,
        hub_revision=None,
        base_name="the model",
        settings=FinetuneConfig(objective=objective, max_length=POSITIONS),
        seed=0,
    )


def trained_chats(job: TrainingJob) -> list[tuple[list[int], list[int]]]:
    """Objective sft: ids of each example before the first token that is learnt, and from there on."""
    tokenizer = load_tokenizer(job.base)
    write_token_files(job)
    train = read_token_files(job, TRAIN)
    lengths = token_lengths(train)
    trainer = training._trainer(job, tokenizer, train, None, use_cpu=True, from_start=True)
    rows = []
    for ids, labels, length in zip(
        *(trainer.train_dataset[name] for name in ("input_ids", "labels")), lengths, strict=True
    ):
        first = next(place for place, label in enumerate(labels) if label != -100)
        assert len(ids) == length
        assert labels[first:] == ids[first:]
        rows.append((list(ids[:first]), list(ids[first:])))
    return rows


@dataclass(eq=False)
class Recorder(torch.nn.Module):
    """Stands for the model that ranks: keeps the ids it is sent, and writes the answers of the training.

    Its logits are the place that they are read at, or the id of the token, so that scores show what was read.
    """

    vocabulary: int
    pad: int
    answers: dict[tuple[int, ...], list[int]] = field(default_factory=dict)
    reveals: str = "place"

    def __post_init__(self) -> None:
        super().__init__()
        self.device = torch.device("cpu")
        self.sent: list[list[int]] = []
        self.forbidden: list[tuple[int, list[int]]] = []

    def forward(self, input_ids: torch.Tensor, logits_to_keep: torch.Tensor, **_: Any) -> Any:
        self.sent += input_ids.tolist()
        shape = (len(input_ids), len(logits_to_keep), self.vocabulary)
        revealed = torch.arange(self.vocabulary) if self.reveals == "token" else logits_to_keep[None, :, None]
        return SimpleNamespace(logits=revealed.float().expand(shape))

    def generate(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        generation_config: GenerationConfig,
        prefix_allowed_tokens_fn: Any,
    ) -> torch.Tensor:
        rows = []
        for number, (padded, mask) in enumerate(zip(input_ids, attention_mask, strict=True)):
            prompt = padded[mask == 1].tolist()
            self.sent.append(prompt)
            written = padded.tolist()
            for token in self.answers.get(tuple(prompt), []):
                if prefix_allowed_tokens_fn is not None:
                    allowed = prefix_allowed_tokens_fn(number, torch.tensor(written))
                    if token not in allowed:
                        self.forbidden.append((token, allowed))
                        break
                written.append(token)
                if token == generation_config.eos_token_id:
                    break
            assert len(written) <= len(padded) + generation_config.max_new_tokens
            rows.append(written)
        width = max(map(len, rows))
        return torch.tensor([row + [self.pad] * (width - len(row)) for row in rows])


def answerer_of(base: str, template: str, objective: str = "sft") -> tuple[Answerer, Recorder]:
    tokenizer = load_tokenizer(base)  # as Answerer.load does
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    contract = AdapterContract(
        prompt={"answer_style": load_template(template).answer_style},
        tokenizer_sha256="",
        base_model="the model",
        base_revision="",
        objective=objective,
    )
    recorder = Recorder(len(tokenizer), tokenizer.pad_token_id)
    return Answerer(recorder, tokenizer, LineTokens(tokenizer), contract), recorder


def ranked_labels(answerer: Answerer, recorder: Recorder, examples: pl.DataFrame) -> dict[int, list[int]]:
    """User -> ids up to the place at which ranking reads the labels."""
    recorder.sent, recorder.reveals = [], "place"
    answered = answerer.answer(examples, constrained=True, batch_size=BATCH)
    lengths = [int(scores[0]) + 1 for scores in answered["scores"].to_list()]
    order = sorted(zip(lengths, answered["user_id"].to_list(), strict=True))  # in which the batches are sent
    return {user: ids[:length] for (length, user), ids in zip(order, recorder.sent, strict=True)}


def films(real_data: Path) -> tuple[list[str], list[str]]:
    """Titles of MovieLens latest-small, and its tags as names in facts."""
    folder = real_data / "ml-latest-small"
    titles = pl.read_csv(folder / "movies.csv")["title"].to_list()
    return titles, pl.read_csv(folder / "tags.csv")["tag"].unique(maintain_order=True).to_list()


@pytest.fixture(scope="module", params=[40, pytest.param(1000, marks=pytest.mark.slow)], ids=["few", "thousand"])
def num_prompts(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(scope="module", params=TEMPLATES)
def template(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def prompts(base: str, template: str, num_prompts: int, request: pytest.FixtureRequest) -> pl.DataFrame:
    """Examples with their counted tokens; the many are about real films."""
    titles, names = films(request.getfixturevalue("real_data")) if num_prompts == 1000 else (None, None)
    tokenizer = load_tokenizer(base)
    examples = build(template, titles=titles, names=names, tokenizer=tokenizer, num_viewers=num_prompts)
    assert len(examples) == num_prompts
    return examples


def test_an_example_has_the_same_ids_counted_trained_and_ranked(
    base: str, template: str, num_prompts: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    examples = prompts(base, template, num_prompts, request)
    users = examples["user_id"].to_list()
    chats = trained_chats(job_of(base, tmp_path / "sft", examples, template, "sft"))
    assert examples["num_tokens"].to_list() == [len(before) + len(answer) for before, answer in chats]

    answerer, recorder = answerer_of(base, template)
    recorder.answers = {tuple(before): answer for before, answer in chats}
    is_labelled = load_template(template).answers.is_labelled
    written = answerer.answer(examples, constrained=not is_labelled, batch_size=BATCH)
    before_of = {user: before for user, (before, _) in zip(users, chats, strict=True)}
    assert sorted(recorder.sent) == sorted(before_of.values())
    assert not recorder.forbidden
    assert written["text"].to_list() == [completion[0]["content"] for completion in examples["completion"].to_list()]
    assert written["valid"].all()
    if not is_labelled:
        return
    assert ranked_labels(answerer, recorder, examples) == before_of
    learnt = job_of(base, tmp_path / "listwise", examples, template, "listwise")
    write_token_files(learnt)
    labels = read_token_files(learnt, TRAIN)
    assert dict(zip(users, labels["input_ids"], strict=True)) == before_of
    recorder.reveals = "token"
    scored = answerer.answer(examples, constrained=True, batch_size=BATCH)
    for row, tokens, (_, answer) in zip(examples.iter_rows(named=True), labels["label_ids"], chats, strict=True):
        read = scored.row(by_predicate=pl.col("user_id") == row["user_id"], named=True)
        token_of = dict(zip(row["candidates"], tokens, strict=True))
        assert [token_of[film] for film in read["answers"]] == read["scores"]
        first = row["completion"][0]["content"].split("\n")[0]
        assert answer[0] == tokens[row["candidate_letters"].index(first)]
