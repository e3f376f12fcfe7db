"""Worked examples: the same training examples with their answers in every prompt, within every rule and the budget."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
import small_world
from prompt_frames import llama_like_tokenizer

from tests.unit.written_run import rewrite
from tripletune.audit.audit import audit_shards
from tripletune.cli.app import CHECKOUT
from tripletune.config import PromptConfig, RetrieveConfig
from tripletune.config.presets import load_config
from tripletune.errors import ConfigError
from tripletune.pipeline.resolve import resolve
from tripletune.prompts.engine import prompt_contract
from tripletune.prompts.explain import explain_lines
from tripletune.prompts.shards import generate_shards
from tripletune.prompts.template import load_template
from tripletune.prompts.worked import read_worked
from tripletune.retrieve.candidates import retrieve_all
from tripletune.schemas.answers import TITLES, answer_style
from tripletune.store.parquet import parquet_files

LIGHTGCN = RetrieveConfig(retriever="lightgcn")
TWO = PromptConfig(worked_examples=2)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> small_world.World:
    world = small_world.make_world(tmp_path_factory.mktemp("world"))
    folders = (world.split, world.knowledge, world.specialists, world.retrieve)
    retrieve_all(*folders, LIGHTGCN, num_liked_triples=5, seed=7)
    return world


def generate(world: small_world.World, out: Path, prompt: PromptConfig, tokenizer=None) -> dict:
    out.mkdir(exist_ok=True)
    folders = (world.ingest, world.split, world.retrieve, out)
    prints = {"lightgcn": "l" * 32, "rgat": "r" * 32}
    return generate_shards(*folders, prompt, LIGHTGCN, dislike=3.0, specialists=prints, seed=7, tokenizer=tokenizer)


@pytest.fixture(scope="module")
def two(world: small_world.World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("two")
    generate(world, out, TWO)
    return out


@pytest.fixture(scope="module")
def none(world: small_world.World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("none")
    generate(world, out, PromptConfig())
    return out


def examples(out: Path) -> pl.DataFrame:
    return pl.read_parquet([path for purpose in ("train", "valid", "test") for path in parquet_files(out, purpose)])


def user_text(row: dict) -> str:
    return row["prompt"][1]["content"]


def test_all_prompts_are_those_without_examples_with_the_same_examples_before_them(two, none):
    worked, plain = read_worked(two), {row["example_id"]: row for row in examples(none).iter_rows(named=True)}
    assert len(set(worked.users)) == 2
    section = f"Examples of other viewers, each with the answer that was right:\n\n{worked.text}\n\nNow the viewer to "
    for row in examples(two).iter_rows(named=True):
        assert user_text(row) == f"{section}answer for.\n\n{user_text(plain[row['example_id']])}"
        assert row["worked"] == list(worked.ids)
        assert row["completion"] == plain[row["example_id"]]["completion"]
    assert plain.keys() - set(examples(two)["example_id"]) == set(worked.ids)  # no prompt shows its own answer
    assert not any(plain[one]["worked"] for one in plain)


def test_an_example_is_a_training_example_without_the_instruction_then_its_answer(two, none):
    plain = {row["example_id"]: row for row in examples(none).iter_rows(named=True)}
    worked = read_worked(two)
    told = [
        f"{user_text(plain[one]).rpartition(chr(10) * 2)[0]}\n\nThe answer:\n{plain[one]['completion'][0]['content']}"
        for one in worked.ids
    ]
    assert worked.text == "\n\n".join(told)
    assert all(plain[one]["purpose"] == "train" and not plain[one]["unseen"] for one in worked.ids)


def test_fewer_examples_are_the_first_of_more_and_a_second_run_has_the_same_bytes(world, two, tmp_path):
    generate(world, tmp_path / "one", PromptConfig(worked_examples=1))
    assert read_worked(tmp_path / "one").ids == read_worked(two).ids[:1]
    again = tmp_path / "again"
    generate(world, again, TWO)
    files = [path.relative_to(two) for path in sorted(two.rglob("*")) if path.is_file()]
    assert [(again / file).read_bytes() for file in files] == [(two / file).read_bytes() for file in files]


def leaks(world: small_world.World, out: Path, template: str = "hints-first") -> set[tuple[int, str]]:
    loaded = load_template(template)
    found = audit_shards(
        out,
        world.split,
        world.retrieve,
        {"lightgcn": world.lightgcn},
        style=loaded.answers,
        inline=loaded.inline_in("arrow"),
    )
    return {(leak.rule, leak.kind) for leak in found}


@pytest.mark.parametrize("template", ["hints-first", "compact", "letters", "japanese", "likes-only"])
def test_the_audit_finds_no_leak_in_any_template(world, two, tmp_path, template):
    out = two if template == "hints-first" else tmp_path / "out"
    generate(world, out, PromptConfig(worked_examples=2, template=template))
    assert leaks(world, out, template) == set()
    style = answer_style(load_template(template).answer_style)
    assert ("A. " in read_worked(out).text) == (style is not TITLES and style.is_labelled)


def _test_answer(rows: list[dict]) -> None:
    rows[0]["answers"][0] = small_world.NUM_FILMS


def _unseen(rows: list[dict]) -> None:
    rows[0] |= {"user_id": 40, "example_id": f"40:train:{rows[0]['cutoff']}"}


def _later_evidence(rows: list[dict]) -> None:
    rows[0]["cutoff"] -= 3
    rows[0]["example_id"] = f"{rows[0]['user_id']}:train:{rows[0]['cutoff']}"


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (_test_answer, (4, "answer of a train example is not a target like")),
        (_unseen, (4, "unseen user in a training example")),
        (_later_evidence, (2, "evidence that does not precede the cutoff")),
    ],
)
def test_the_audit_holds_worked_examples_to_the_rules_of_training_examples(
    world, two, tmp_path, change: Callable[[list[dict]], None], kind
):
    shutil.copytree(two, tmp_path / "out")
    rewrite(tmp_path / "out" / "worked" / "examples.parquet", change)
    assert kind in leaks(world, tmp_path / "out")


def test_the_audit_finds_text_beyond_the_examples_and_prompts_that_show_others(world, two, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(two, out)
    text = out / "worked" / "text.txt"
    text.write_text(text.read_text() + "\n- Film 1 (1951)")
    assert leaks(world, out) == {
        (3, "worked examples say what their rows do not"),
        (3, "prompt does not show the worked examples once"),
        (2, "prompt names a film that its columns do not"),
        (3, "answer stands in the prompt beyond candidates and hints"),
    }


def test_the_audit_finds_a_training_example_whose_answer_every_prompt_shows(world, two, none, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(two, out)
    shown, (first, _) = read_worked(two), read_worked(two).ids
    own = examples(none).filter(example_id=first).to_dicts()[0]
    like = examples(two).filter(purpose="train").to_dicts()[0]
    own |= {"worked": list(shown.ids), "template_sha256": like["template_sha256"]}
    start = user_text(like).partition(shown.text)
    own["prompt"][1]["content"] = f"{start[0]}{shown.text}\n\nNow the viewer to answer for.\n\n{user_text(own)}"
    rewrite(sorted((out / "train").glob("*.parquet"))[0], lambda rows: [*rows, own])
    assert leaks(world, out) == {(3, "own answer stands among the worked examples")}


def test_tokens_and_the_budget_count_the_examples(world, two, tmp_path):
    model = tmp_path / "model"
    llama_like_tokenizer().save_pretrained(str(model))
    whole = generate(world, tmp_path / "whole", TWO, tokenizer=(str(model), ""))
    plain = generate(world, tmp_path / "plain", PromptConfig(), tokenizer=(str(model), ""))
    in_text = len(llama_like_tokenizer()(read_worked(two).text)["input_ids"])
    assert whole["longest_tokens"] - plain["longest_tokens"] == pytest.approx(in_text, rel=0.1)
    budget = whole["longest_tokens"] - 60
    cut = generate(world, tmp_path / "cut", TWO.model_copy(update={"max_tokens": budget}), tokenizer=(str(model), ""))
    assert cut["longest_tokens"] <= budget
    assert cut["shortened"] > 0
    assert read_worked(tmp_path / "cut") == read_worked(tmp_path / "whole")  # never shortened


def test_the_adapter_knows_how_many_and_how_they_are_shown_and_not_which():
    none, two = (prompt_contract(prompt, LIGHTGCN) for prompt in (PromptConfig(), TWO))
    assert "worked_examples" not in none
    assert two["worked_examples"] == 2
    loaded = load_template("hints-first")
    shas = {loaded.with_worked(text).sha256 for text in ("", "one", "two")}
    assert shas == {two["template_sha256"]} != {none["template_sha256"]}
    assert none["template_sha256"] == loaded.sha256


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["prompt.template=published"], "needs a template with the section 'worked', and 'published' has none"),
        (
            ["prompt.template=compact", "finetune.objective=listwise", "finetune.behaviour_tokens=sequence"],
            "prompt.worked_examples = 2, and finetune.behaviour_tokens = 'sequence' has tokens for the films",
        ),
    ],
)
def test_what_does_not_go_with_examples_is_refused_before_the_run(tmp_path, given, message):
    config = load_config(CHECKOUT / "configs" / "smoke.toml", ["prompt.worked_examples=2", *given])
    with pytest.raises(ConfigError, match=message):
        resolve(config, tmp_path)


def test_more_examples_than_training_users_are_refused(world, tmp_path):
    few = tmp_path / "few"
    few.mkdir()
    for table in ("retrieved", "choices"):
        shutil.copytree(world.retrieve / table, few / table)
    for path in (few / "retrieved").glob("*.parquet"):
        rewrite(path, lambda rows: [row for row in rows if row["purpose"] != "train" or row["user_id"] < 10])
    folders = (world.ingest, world.split, few, tmp_path)
    prints = {"lightgcn": "l", "rgat": "r"}
    with pytest.raises(ConfigError, match=r"worked_examples = 20, and \d training users have an answer among"):
        generate_shards(*folders, PromptConfig(worked_examples=20), LIGHTGCN, dislike=3.0, specialists=prints, seed=7)


def test_lines_of_examples_are_explained_as_such(two):
    worked, template = read_worked(two), load_template("hints-first")
    row = examples(two).filter(purpose="test").to_dicts()[0]
    lines = explain_lines(row, template.with_worked(worked.text), worked=worked.text)
    assert [line for line, _ in lines] == user_text(row).split("\n")
    assert [line for line, origin in lines if origin == "worked example"] == worked.text.split("\n")
    assert sum(origin.startswith("candidate: ") for _, origin in lines) == len(row["candidates"])
