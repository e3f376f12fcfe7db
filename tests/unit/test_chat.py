"""Chats are written the same whenever and wherever: counted, trained and ranked tokens are the same ids."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from chat_tokenizers import CHATML, THINKING, like
from prompt_frames import build, ids_of_whole

from tripletune.chat import DATE, fix_template, load_tokenizer, require_one_format, write_chat
from tripletune.config import FinetuneConfig, PromptConfig, RunConfig
from tripletune.errors import ConfigError, InputError
from tripletune.pipeline.resolve import resolve
from tripletune.prompts.template import load_template
from tripletune.prompts.tokens import TokenCounter, load_counter

MODELS = ("llama", "qwen", "gemma", "smollm")
CHAT = [{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}]
DATED = (
    "{%- if not date_string is defined %}{%- set date_string = strftime_now('%d %b %Y') %}{%- endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'system' %}{{ 'Today Date: ' + date_string + '\n\n' }}{% endif %}"
    "{{ m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def with_template(template: Any, model: str = "smollm") -> Any:
    tokenizer = copy.copy(like(model))
    tokenizer.chat_template = template
    return tokenizer


def saved(folder: Path, tokenizer: Any) -> str:
    tokenizer.save_pretrained(str(folder))
    return str(folder)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("template", ["hints-first", "letters", "compact", "japanese"])
def test_counted_trained_and_ranked_ids_are_the_same(tmp_path, template, model):
    tokenizer = load_tokenizer(saved(tmp_path, like(model)))
    assert TokenCounter(tokenizer, load_template(template), model).sums_lines
    examples = build(template, tokenizer=tokenizer)
    for row in examples.iter_rows(named=True):
        whole = ids_of_whole(tokenizer, row)
        asked = write_chat(tokenizer, row["prompt"], model, opened=True)
        ranked = tokenizer([asked], add_special_tokens=False)["input_ids"][0]
        assert row["num_tokens"] == len(whole)
        assert whole[: len(ranked)] == ranked
        answer = row["completion"][0]["content"]
        assert tokenizer.decode(whole[len(ranked) :]).startswith(answer)


def test_a_template_that_writes_the_day_writes_one_day():
    for template in (DATED, DATED.replace("not date_string is defined", "true")):
        tokenizer = with_template(template)
        fix_template(tokenizer)
        text = write_chat(tokenizer, CHAT, "the model")
        assert f"Today Date: {DATE}\n" in text
        fix_template(tokenizer)
        assert write_chat(tokenizer, CHAT, "the model") == text


def test_the_fixed_names_add_nothing_to_a_template_that_does_not_use_them():
    for template in (CHATML, "\n  {% for m in messages %}\n  {{ m['content'] }}\n{% endfor %}", {"default": CHATML}):
        plain, tokenizer = with_template(template), with_template(template)
        fix_template(tokenizer)
        assert write_chat(tokenizer, CHAT, "m", opened=True) == write_chat(plain, CHAT, "m", opened=True)


def test_a_reasoning_model_is_asked_behind_the_empty_block_that_a_written_answer_has():
    tokenizer = with_template(THINKING)
    with pytest.raises(ConfigError, match=r"goes on '<think>.*', the model is asked after ''"):
        require_one_format(tokenizer, "the model")
    fix_template(tokenizer)
    require_one_format(tokenizer, "the model")
    assert write_chat(tokenizer, CHAT, "m", opened=True).endswith("<think>\n\n</think>\n\n")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (CHATML.replace("assistant\n' }}", "assistant\n<think>\n\n</think>\n\n' }}"), "as header, text, end token"),
        (CHATML.replace("{{ '<|im_start|>assistant\n' }}", ""), "as header, text, end token"),
        (CHATML.replace("<|im_end|>\n", "\n"), "does not end an answer with a control token: .* is '.n'"),
        (CHATML.replace("<|im_start|>assistant\n' }}", "<|im_start|>assistant: ' }}"), "as header, text, end token"),
        (CHATML + "{{ range(1000) | random }}", "differently from call to call"),
    ],
    ids=["think block", "no header", "no end", "other header", "chance"],
)
def test_a_template_that_asks_where_no_answer_is_written_is_refused_before_anything_trains(tmp_path, template, message):
    folder = saved(tmp_path / "model", with_template(template))
    config = RunConfig(
        dataset="d", finetune=FinetuneConfig(model=folder), prompt=PromptConfig(template="letters", max_tokens=900)
    )
    with pytest.raises(ConfigError, match=message):
        resolve(config, tmp_path / "artifacts")


def test_a_folder_without_a_tokenizer_is_refused_before_anything_trains_and_an_id_that_is_not_here_is_not(tmp_path):
    (tmp_path / "empty").mkdir()
    named = FinetuneConfig(model=str(tmp_path / "empty"))
    with pytest.raises(InputError, match="its tokenizer cannot be read"):
        resolve(RunConfig(dataset="d", finetune=named), tmp_path / "artifacts")
    on_hub = FinetuneConfig(model="nobody/nothing", revision="abc")
    assert resolve(RunConfig(dataset="d", finetune=on_hub), tmp_path / "artifacts").fingerprints


def test_truncation_and_padding_that_a_tokenizer_file_asks_for_are_ignored(tmp_path):
    tokenizer = copy.deepcopy(like("llama"))
    tokenizer.backend_tokenizer.enable_truncation(20)
    tokenizer.backend_tokenizer.enable_padding(length=64)
    loaded = load_counter(saved(tmp_path, tokenizer), "", load_template("letters"))
    examples = build("letters", tokenizer=like("llama"))
    loaded.check(examples, examples["num_tokens"])
