"""The probe stage on a small world with a tiny Llama: its numbers are those of transformers, its prompts generate's."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import polars as pl
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.adapters import write_adapter
from tests.unit import small_world
from tripletune.config import ProbeConfig, PromptConfig, RankConfig, RetrieveConfig
from tripletune.contract import Residual
from tripletune.errors import ContractError
from tripletune.probe.counterfactual import FactPool
from tripletune.probe.explain import explain_answer
from tripletune.probe.probe import Probing, choose_examples, probe_examples
from tripletune.probe.retriever import _in_another_order, _without_a_like, probe_retriever
from tripletune.prompts.engine import Frame, prompt_contract
from tripletune.prompts.shards import generate_shards
from tripletune.rank.answerer import Answerer
from tripletune.rank.predict import rank_examples
from tripletune.retrieve.candidates import retrieve_all
from tripletune.retrieve.retriever import Retriever
from tripletune.retrieve.triples import read_triples
from tripletune.schemas.probe import (
    CONTROL,
    FACT_CHANGES,
    FACT_CHANGES_NAME,
    PROBED,
    PROBED_NAME,
    RELIANCE,
    RELIANCE_NAME,
    STABILITY,
    STABILITY_NAME,
)
from tripletune.schemas.query import QUERY_KEY
from tripletune.schemas.rank import SERVED
from tripletune.stable_hash import VIEWERS, mix

RETRIEVE = RetrieveConfig(retriever="lightgcn", num_candidates=12, similar_films=3)
SPECIALISTS = {"lightgcn": "l" * 32, "rgat": "r" * 32}
USERS = ProbeConfig(users=4, purposes=("train", "test"), facts=2)
RESIDUAL = Residual(prior=tuple(-1.0 - 0.1 * place for place in range(12)), weight=0.5)


@dataclass(frozen=True)
class Written:
    """A world with shards of one template, and a tiny adapter on them."""

    world: small_world.World
    shards: Path
    finetuned: Path
    prompt: PromptConfig

    def probing(self, settings: ProbeConfig = USERS, **rank: object) -> Probing:
        return Probing(
            settings=settings,
            rank=RankConfig.model_validate(rank),
            frame=Frame.load(self.world.ingest, self.prompt, SPECIALISTS, small_world.SEED),
            pool=FactPool.of(read_triples(self.world.knowledge), small_world.SEED),
            prompt_contract=prompt_contract(self.prompt, RETRIEVE),
            confidence=0.95,
            resamples=50,
            seed=small_world.SEED,
            folders={},
        )

    def run(self, out: Path, settings: ProbeConfig = USERS, **rank: object) -> dict[str, pl.DataFrame]:
        """The files of the stage."""
        examples = choose_examples(self.shards, settings, small_world.SEED)
        out.mkdir()
        probe_examples(examples, self.finetuned, out, self.probing(settings, **rank), STABILITY.to_frame())
        names = (RELIANCE_NAME, FACT_CHANGES_NAME, STABILITY_NAME, PROBED_NAME)
        return {name: pl.read_parquet(out / name) for name in names}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> small_world.World:
    world = small_world.make_world(tmp_path_factory.mktemp("world"))
    stages = (world.split, world.knowledge, world.specialists, world.retrieve)
    retrieve_all(*stages, RETRIEVE, num_liked_triples=5, seed=small_world.SEED)
    return world


def write(world: small_world.World, folder: Path, template: str, residual: Residual | None) -> Written:
    prompt, shards = PromptConfig(template=template), folder / "shards"
    shards.mkdir()
    generate_shards(
        *(world.ingest, world.split, world.retrieve, shards, prompt, RETRIEVE),
        dislike=3.0,
        specialists=SPECIALISTS,
        seed=small_world.SEED,
    )
    finetuned = write_adapter(folder / "finetuned", shards, prompt_contract(prompt, RETRIEVE), residual=residual)
    return Written(world, shards, finetuned, prompt)


@pytest.fixture(scope="module")
def letters(world: small_world.World, tmp_path_factory: pytest.TempPathFactory) -> Written:
    return write(world, tmp_path_factory.mktemp("letters"), "letters", RESIDUAL)


@pytest.fixture(scope="module")
def probed(letters: Written, tmp_path_factory: pytest.TempPathFactory) -> dict[str, pl.DataFrame]:
    return letters.run(tmp_path_factory.mktemp("probed") / "out", batch_size=8)


def log_probability(finetuned: Path, prompt: list[dict[str, str]], labels: list[str], right: list[str]) -> float:
    """Mean of the right labels' log-softmax among all labels, from one call of transformers with the adapter beside the
    weights."""
    tokenizer = AutoTokenizer.from_pretrained(finetuned / "base")
    base = AutoModelForCausalLM.from_pretrained(finetuned / "base", dtype=torch.float32)
    model = PeftModel.from_pretrained(base, finetuned / "adapter").eval()
    text = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        logits = model(ids).logits[0, -1]
    found = logits[tokenizer.convert_tokens_to_ids(labels)].log_softmax(0)
    return float(found[[labels.index(label) for label in right]].mean())


def without_hint_2(prompt: list[dict[str, str]]) -> list[dict[str, str]]:
    """The same prompt with an empty section, by hand."""
    user = re.sub(r"(Hint 2[^\n]*\n)(?:- [^\n]*\n?)+", r"\1(none)\n", prompt[1]["content"])
    return [prompt[0], {"role": "user", "content": re.sub(r"\(none\)\n(?=\n?Which)", "(none)\n", user)}]


def test_the_change_is_that_of_a_direct_call_of_transformers(letters: Written, probed: dict[str, pl.DataFrame]) -> None:
    examples = {row["example_id"]: row for row in choose_examples(letters.shards, USERS, small_world.SEED).to_dicts()}
    rows = probed[RELIANCE_NAME].filter(pl.col("part") == "hint 2", pl.col("system") == "tuned")
    assert set(rows["purpose"]) == {"train", "test"}
    for row in rows.to_dicts():
        example = examples[row["example_id"]]
        labels = example["candidate_letters"]
        right = [labels[example["candidates"].index(film)] for film in example["answers"]]
        before = log_probability(letters.finetuned, example["prompt"], labels, right)
        after = log_probability(letters.finetuned, without_hint_2(example["prompt"]), labels, right)
        assert row["before"] == pytest.approx(before, abs=1e-4)
        assert row["change"] == pytest.approx(before - after, abs=1e-4)
        assert abs(row["change"]) > 1e-3  # else the test shows nothing


def test_the_logs_have_their_columns_and_every_part_and_purpose(probed: dict[str, pl.DataFrame]) -> None:
    schemas = {
        RELIANCE_NAME: RELIANCE,
        FACT_CHANGES_NAME: FACT_CHANGES,
        STABILITY_NAME: STABILITY,
        PROBED_NAME: PROBED,
    }
    assert {name: frame.schema for name, frame in probed.items()} == schemas
    parts = {"likes", "dislikes", "hint 1", "hint 2", "other films' facts", "nothing"}
    assert set(probed[RELIANCE_NAME]["part"]) == parts
    for frame in probed.values():
        assert set(frame["system"]) == {"tuned", SERVED}
        assert set(frame["purpose"]) == {"train", "test"}
    assert set(probed[STABILITY_NAME]["perturbation"]) == {*USERS.perturbations, CONTROL} - {
        "articles-moved"
    }  # no title has an article
    facts = probed[FACT_CHANGES_NAME].filter(pl.col("system") == "tuned", pl.col("how") == "without")
    assert facts.group_by("example_id").len()["len"].max() == 2
    assert facts["share"].is_between(0, 1).all()


def test_the_same_prompt_in_another_batch_differs_by_last_bits_alone(probed: dict[str, pl.DataFrame]) -> None:
    control = probed[RELIANCE_NAME].filter(pl.col("part") == "nothing")
    assert control.height == probed[RELIANCE_NAME].filter(pl.col("part") == "hint 1").height
    assert control["distance"].max() < 1e-6  # type: ignore[operator]
    assert (probed[STABILITY_NAME].filter(pl.col("perturbation") == "nothing")["tau"] > 0.99).all()


def test_what_is_served_is_probed_with_the_retrievers_scores(letters: Written, probed: dict[str, pl.DataFrame]) -> None:
    """The served scores are those that ranking writes; a softmax over them."""
    rows = probed[RELIANCE_NAME].filter(pl.col("part") == "hint 1").pivot("system", index="example_id", values="before")
    assert (rows["tuned"] - rows[SERVED]).abs().min() > 1e-4  # type: ignore[operator]
    examples = choose_examples(letters.shards, USERS, small_world.SEED).filter("relies")
    served = rank_examples(examples, letters.finetuned, tuned=True, constrained=True, batch_size=4)
    before = dict(rows.select("example_id", SERVED).iter_rows())
    for example, row in zip(examples.to_dicts(), served.to_dicts(), strict=True):
        log = torch.tensor(row["scores"], dtype=torch.float64).log_softmax(0)
        right = [float(log[row["answers"].index(film)]) for film in example["answers"]]
        assert before[example["example_id"]] == pytest.approx(sum(right) / len(right), abs=1e-5)


def test_the_batch_size_changes_no_more_than_last_bits(
    letters: Written, probed: dict[str, pl.DataFrame], tmp_path: Path
) -> None:
    other = letters.run(tmp_path / "out", USERS.model_copy(update={"perturbations": ()}), batch_size=3)
    for name in (RELIANCE_NAME, FACT_CHANGES_NAME):
        assert (
            other[name].drop("change", "before", "distance").equals(probed[name].drop("change", "before", "distance"))
        )
        assert (other[name]["change"] - probed[name]["change"]).abs().max() < 1e-5  # type: ignore[operator]


@pytest.mark.slow
def test_the_number_of_processes_changes_no_byte(letters: Written, tmp_path: Path) -> None:
    for number in (1, 2):
        letters.run(tmp_path / str(number), batch_size=8, workers=number)
    for name in (RELIANCE_NAME, FACT_CHANGES_NAME, STABILITY_NAME, PROBED_NAME):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


def test_written_answers_are_probed_by_the_probability_of_their_first_line(
    world: small_world.World, tmp_path: Path
) -> None:
    (tmp_path / "titles").mkdir()
    titles = write(world, tmp_path / "titles", "hints-first", None)
    settings = ProbeConfig(users=2, facts=1, perturbations=("candidates-reshuffled",))
    found = titles.run(tmp_path / "a", settings, batch_size=2)
    again = titles.run(tmp_path / "b", settings, batch_size=5)
    assert all(found[name].equals(again[name]) for name in found)  # each is scored alone
    assert (found[RELIANCE_NAME]["distance"] > 0).any()
    assert (found[RELIANCE_NAME]["before"] < 0).all()


def test_an_adapter_of_other_prompts_is_refused(letters: Written, tmp_path: Path) -> None:
    other = replace(letters.probing(), prompt_contract={**letters.probing().prompt_contract, "max_liked": 3})
    examples = choose_examples(letters.shards, USERS, small_world.SEED)
    with pytest.raises(ContractError, match="the adapter was trained on other prompts: max_liked"):
        probe_examples(examples, letters.finetuned, tmp_path, other, STABILITY.to_frame())


def test_the_users_are_the_first_by_hash_and_reliance_needs_an_answer_among_the_candidates(letters: Written) -> None:
    every = pl.concat(pl.read_parquet(letters.shards / purpose / "*.parquet") for purpose in USERS.purposes)
    found = choose_examples(letters.shards, USERS, small_world.SEED)
    assert found.select(QUERY_KEY).equals(found.select(QUERY_KEY).sort(QUERY_KEY))
    for purpose in USERS.purposes:
        rows = every.filter(pl.col("purpose") == purpose)
        order = sorted(rows["user_id"].unique(), key=lambda user: int(mix([user], small_world.SEED + VIEWERS)[0]))
        answerable = {row["user_id"] for row in rows.to_dicts() if {*row["answers"]} & {*row["candidates"]}}
        mine = found.filter(pl.col("purpose") == purpose)
        assert set(mine.filter("steady")["user_id"]) == set(order[:4])
        assert set(mine.filter("relies")["user_id"]) == set([user for user in order if user in answerable][:4])
    assert not found.filter("steady", ~pl.col("relies")).is_empty()  # else the test shows nothing


def test_only_rows_before_the_cutoff_change_their_place(letters: Written) -> None:
    rows = small_world.read_split(letters.world).filter(pl.col("user_id") == 3)
    places = ["position", "timestamp"]
    for cutoff, seed in product((10, 20), range(8)):
        after = rows.filter(pl.col("position") >= cutoff)
        shorter, other = _without_a_like(rows, cutoff, seed), _in_another_order(rows, cutoff, seed)
        gone = rows.join(shorter, on="position", how="anti")
        assert len(gone) == 1
        assert gone["position"][0] < cutoff
        assert gone["label"][0] != "other"
        assert other.filter(pl.col("position") >= cutoff).equals(after)
        assert other.select(places).equals(rows.select(places))
        assert not other["movie_id"].equals(rows["movie_id"])
        films = ["movie_id", "rating", "label"]
        assert other.select(films).sort("movie_id").equals(rows.select(films).sort("movie_id"))


def test_the_retriever_is_asked_again_with_another_history(letters: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    world, examples = letters.world, choose_examples(letters.shards, USERS, small_world.SEED)
    names = ("like-removed", "history-shuffled", "years-missing")

    def load(fits: tuple[str, ...]) -> Retriever:
        stages = world.knowledge, world.specialists, RETRIEVE
        return Retriever.load(*stages, num_liked_triples=5, seed=small_world.SEED, fits=fits)

    arguments = (world.split, examples, load, RETRIEVE)
    found = probe_retriever(*arguments, names, small_world.SEED)
    assert set(found["perturbation"]) == {"like-removed", "history-shuffled"}  # words mean nothing to it
    assert found.group_by("perturbation").len()["len"].to_list() == [len(examples)] * 2
    assert found["kept"].is_between(0, 1).all()
    assert found["kept"].mean() < 1  # type: ignore[operator]
    assert found["tau"].drop_nulls().is_between(-1, 1).all()
    monkeypatch.setattr("tripletune.probe.retriever._without_a_like", lambda rows, cutoff, seed: rows)
    unchanged = probe_retriever(*arguments, ("like-removed",), small_world.SEED)
    assert unchanged.select((pl.col("tau", "kept") == 1).all(), ~pl.col("first_changed").any()).row(0) == (True,) * 3
    assert probe_retriever(*arguments, ("years-missing",), small_world.SEED).is_empty()
    kerag = RETRIEVE.model_copy(update={"candidates": "kerag"})
    assert probe_retriever(*arguments[:3], kerag, names, small_world.SEED).is_empty()


def test_the_first_answer_is_explained_by_the_parts_of_its_prompt(
    letters: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    example = choose_examples(letters.shards, USERS, small_world.SEED).head(1).drop("relies", "steady")
    answerer, scored = Answerer.load(letters.finetuned), []

    def score(answerer: Answerer, prompts: pl.DataFrame, *, batch_size: int) -> pl.DataFrame:
        scored.append(prompts["prompt"].to_list())
        return answerer._answered(prompts, constrained=True, scored=True, batch_size=batch_size)

    monkeypatch.setattr(Answerer, "score", score)
    relied = explain_answer(example, answerer, letters.probing().frame, batch_size=4)
    (alone,), (again, longer), others = scored
    assert alone == again == example["prompt"][0].to_list()
    assert longer[1]["content"].startswith(alone[1]["content"])  # so the control is padded
    assert len(longer[1]["content"]) > len(alone[1]["content"])
    assert alone not in others
    assert (relied.control.part, relied.control.instead) == (CONTROL, "")
    assert abs(relied.control.change) < 1e-5
    served = rank_examples(example, letters.finetuned, tuned=True, constrained=True, batch_size=1)
    titles = dict(zip(example["candidates"][0], example["candidate_titles"][0], strict=True))
    assert relied.system == SERVED
    assert relied.title == titles[served["answers"][0][0]]
    changes = [abs(part.change) for part in relied.parts]
    assert changes == sorted(changes, reverse=True)
    assert {"likes", "dislikes", "hint 1", "hint 2"} <= {part.part for part in relied.parts}
    assert len(relied.parts) == 4 + len(example["triples"][0])
