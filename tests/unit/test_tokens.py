"""Counts by line are the tokens of the whole conversation, and tokenizers for which they would not be are refused."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import polars as pl
import pytest
from chat_tokenizers import like
from prompt_frames import build, ids_of_whole, llama_like_tokenizer
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tripletune.chat import load_tokenizer
from tripletune.config import FinetuneConfig, RunConfig
from tripletune.errors import ConfigError, InputError
from tripletune.finetune.tiny import CHAT_TEMPLATE
from tripletune.pipeline.resolve import resolve
from tripletune.prompts.render import Lines
from tripletune.prompts.template import load_template, shipped
from tripletune.prompts.tokens import TokenCounter, load_counter


@pytest.mark.parametrize("form", ["arrow", "sentence"])
@pytest.mark.parametrize("template", shipped())
def test_the_count_of_every_example_is_the_tokens_of_the_whole(template, form):
    tokenizer = llama_like_tokenizer()
    examples = build(template, form=form, tokenizer=tokenizer)
    assert examples["num_tokens"].dtype == pl.Int32
    for row in examples.iter_rows(named=True):
        assert row["num_tokens"] == len(ids_of_whole(tokenizer, row))


@pytest.mark.parametrize("candidates", [20, 40, 80])
def test_many_candidates_have_labels_of_one_length_and_are_counted(candidates):
    tokenizer = llama_like_tokenizer()
    examples = build("letters", tokenizer=tokenizer, num_candidates=candidates)
    for row in examples.head(5).iter_rows(named=True):
        assert len(set(row["candidate_letters"])) == candidates
        assert {len(label) for label in row["candidate_letters"]} == {1 if candidates <= 26 else 2}
        assert row["num_tokens"] == len(ids_of_whole(tokenizer, row))


@pytest.mark.parametrize("model", ["llama", "qwen", "gemma", "smollm"])
def test_compact_prompts_are_counted_exactly(model, tmp_path):
    like(model).save_pretrained(str(tmp_path))
    tokenizer = load_tokenizer(str(tmp_path))
    template = load_template("compact")
    assert TokenCounter(tokenizer, template, model).cuts_at_spaces == (model in ("llama", "smollm"))
    examples = build("compact", tokenizer=tokenizer)
    for row in examples.iter_rows(named=True):
        assert row["num_tokens"] == len(ids_of_whole(tokenizer, row))
    if model in ("llama", "smollm"):  # the others' words are whole lines of these few prompts
        assert examples["num_tokens"].sum() < 0.9 * build("letters", tokenizer=tokenizer)["num_tokens"].sum()


def test_lines_that_lack_their_last_pieces_are_counted_as_they_are():
    counter = TokenCounter(llama_like_tokenizer(), load_template("compact"), "the model")
    assert counter.cuts_at_spaces
    columns = (["A.", "B.", "C."], ["Heat", "Heat", "Heat (1995)"], ["> #1", None, None], [None, None, "> #2"])
    pieces = tuple(pl.Series(column) for column in columns)
    texts = pl.Series(["A. Heat > #1", "B. Heat", "C. Heat (1995) > #2"])
    lines = Lines(texts, np.array([0, 3]), pieces)
    whole = Lines(texts, np.array([0, 3]), (texts,))
    assert counter.inner(lines).tolist() == counter.inner(whole).tolist()
    assert counter.last(lines, "candidates").tolist() == counter.last(whole, "candidates").tolist()


def test_a_counter_that_has_seen_other_prompts_counts_the_same():
    tokenizer, template = llama_like_tokenizer(), load_template("hints-first")
    counter = TokenCounter(tokenizer, template, "the model")
    examples = build(tokenizer=tokenizer)
    counter.check(examples, examples["num_tokens"])
    with pytest.raises(InputError, match="the model counts"):
        counter.check(examples, examples["num_tokens"] + 1)


def test_the_prompts_are_the_same_whether_counted_or_not():
    counted, plain = build(tokenizer=llama_like_tokenizer()), build()
    assert plain["num_tokens"].null_count() == len(plain)
    assert counted.drop("num_tokens").equals(plain.drop("num_tokens"))


def other_tokenizer(pre_tokenizer: Any = None, template: str = CHAT_TEMPLATE, special: str = "") -> Any:
    """Byte-level pieces of another cut, learnt from prompts."""
    tokenizer = Tokenizer(models.BPE())
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    names = [
        "<|begin_of_text|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
        *([special] if special else []),
    ]
    trainer = trainers.BpeTrainer(
        vocab_size=2000, special_tokens=[AddedToken(name, special=True) for name in names], show_progress=False
    )
    texts = [message["content"] for prompt in build()["prompt"] for message in prompt]
    tokenizer.train_from_iterator(texts, trainer=trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>", chat_template=template
    )


LINES = pre_tokenizers.Split(Regex(r"[^\n]+\n*|\n+"), behavior="isolated")


def test_any_tokenizer_that_cuts_at_line_breaks_will_do():
    tokenizer = other_tokenizer(LINES)
    for row in build(tokenizer=tokenizer).iter_rows(named=True):
        assert row["num_tokens"] == len(ids_of_whole(tokenizer, row))


def cut_at(pattern: str) -> Any:
    return other_tokenizer(pre_tokenizers.Split(Regex(pattern), behavior="isolated"))


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        (lambda: other_tokenizer(None), "the tokenizer of the model joins"),
        (lambda: cut_at(r"\n\d|[^\n]+|\n"), r"joins the header of an answer and its beginning '1\. "),
        (lambda: cut_at(r"(?<=\w)\n\d|[^\n]+|\n"), r"joins 'a\\n' and '2\. x' across the line break, and answers of"),
    ],
    ids=["no cut", "joined to the header", "joined to the line before"],
)
def test_a_tokenizer_that_joins_the_lines_of_an_answer_is_refused(tokenizer, message):
    with pytest.raises(ConfigError, match=message):
        TokenCounter(tokenizer(), load_template("hints-first"), "the model")


@pytest.mark.parametrize("template", ["hints-first", "letters", "compact"])
def test_where_lines_of_a_prompt_are_joined_whole_conversations_are_counted(template):
    tokenizer = like("joining")
    assert not TokenCounter(tokenizer, load_template(template), "the model").sums_lines
    examples = build(template, tokenizer=tokenizer)
    lengths = [len(ids_of_whole(tokenizer, row)) for row in examples.iter_rows(named=True)]
    assert examples["num_tokens"].to_list() == lengths


@pytest.mark.parametrize("template", ["hints-first", "letters", "compact", "likes-only"])
def test_a_tokenizer_that_joins_all_line_breaks_but_the_last_to_what_stands_before_is_counted_by_line(template):
    tokenizer = other_tokenizer(pre_tokenizers.ByteLevel(add_prefix_space=False))
    assert TokenCounter(tokenizer, load_template(template), "the model").sums_lines
    for row in build(template, tokenizer=tokenizer).iter_rows(named=True):
        assert row["num_tokens"] == len(ids_of_whole(tokenizer, row))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('System role not supported') }}", "no chat template .*: System role not supported"),
        ("{% for m in messages %}{{ m['content'] | upper }}\n{% endfor %}", "changes messages"),
        ("{% for m in messages %}{{ m['content'] }}{% endfor %}", "begins an answer in the middle of a line"),
        ("{% for m in messages if m['role'] != 'system' %}{{ m['content'] }}\n{% endfor %}", "changes messages"),
        ("{% for m in messages | reverse %}{{ m['content'] }}\n{% endfor %}", "changes messages"),
    ],
)
def test_a_chat_template_that_does_not_show_messages_as_they_are_is_refused(template, message):
    tokenizer = copy.copy(llama_like_tokenizer())
    tokenizer.chat_template = template
    with pytest.raises(ConfigError, match=message):
        TokenCounter(tokenizer, load_template("hints-first"), "the model")


@pytest.mark.parametrize("token", ["[gEND]", "{{eos}}", "END"])
def test_a_tokenizer_whose_control_tokens_a_title_could_hold_is_refused(token):
    with pytest.raises(ConfigError, match="as a control token, and a title or tag could hold it"):
        TokenCounter(other_tokenizer(LINES, special=token), load_template("hints-first"), "the model")


def test_a_tokenizer_is_read_from_a_models_folder(tmp_path):
    tokenizer = llama_like_tokenizer()
    tokenizer.save_pretrained(str(tmp_path))
    template = load_template("japanese")
    loaded = load_counter(str(tmp_path), "", template)
    examples = build("japanese", tokenizer=tokenizer)
    loaded.check(examples, examples["num_tokens"])
    with pytest.raises(InputError, match="its tokenizer cannot be read"):
        load_counter(str(tmp_path / "nothing"), "", template)


def test_the_generate_stage_knows_the_tokenizer_by_its_content(tmp_path):
    def generated(folder: str, template: str, weights: str) -> str:
        path = tmp_path / folder
        tokenizer = copy.copy(llama_like_tokenizer())
        tokenizer.chat_template = template
        tokenizer.save_pretrained(str(path))
        (path / "model.safetensors").write_text(weights)
        config = RunConfig(dataset="d", finetune=FinetuneConfig(model=str(path)))
        return resolve(config, tmp_path / "artifacts").fingerprints["generate"]

    known = generated("a", CHAT_TEMPLATE, "1")
    assert generated("b", CHAT_TEMPLATE, "1") == known
    assert generated("b", CHAT_TEMPLATE, "2") == known
    assert generated("b", CHAT_TEMPLATE + "{# #}", "2") != known
    on_hub = [FinetuneConfig(model="org/model", revision=revision) for revision in ("abc", "abd")]
    fingerprints = [
        resolve(RunConfig(dataset="d", finetune=settings), tmp_path / "artifacts").fingerprints["generate"]
        for settings in on_hub
    ]
    assert len({known, *fingerprints}) == 3


def test_lines_are_counted_by_pieces_only_where_the_tokenizer_cuts_before_spaces():
    template = load_template("hints-first")
    tokenizer = llama_like_tokenizer()
    assert TokenCounter(tokenizer, template, "the model").cuts_at_spaces
    assert not TokenCounter(other_tokenizer(LINES), template, "the model").cuts_at_spaces
