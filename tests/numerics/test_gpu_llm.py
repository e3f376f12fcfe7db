"""The GPU benchmark of the language model trains as the product does, ranks and reports, on the CPU and on a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from tests.benchmark_scripts import BENCHMARKS, benchmark_script
from tests.film_vectors import write_lightgcn

CPU = torch.device("cpu")
ABSENT_THERE = ("trl", "datasets", "prefect", "mlflow", "dgl", "pydantic")


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    with benchmark_script("gpu/llm") as module:
        yield module


@pytest.fixture(scope="module")
def kit(script: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return script.Kit.read(script.draw_kit(tmp_path_factory.mktemp("kit")), CPU)


@pytest.fixture(scope="module")
def prompts(kit: Any) -> Any:
    return kit.prompts("tiny")


class Recorder:
    """A session with so many seconds left."""

    def __init__(self, seconds_left: float) -> None:
        self.seconds_left, self.results = seconds_left, {}

    def record(self, name: str, result: Any) -> None:
        self.results[name] = result


def test_without_a_gpu_it_says_so_and_writes_nothing(script, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    script.measure(out=tmp_path / "report.json")
    assert "torch sees no GPU here" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_tiny_run_writes_every_job_and_its_page(script, device, tmp_path):
    variants = {
        "tuned": {},
        "untuned": {"epochs": 0},
        "drawn": {"weights": "random", "trains": "all", "behaviour": True, "curriculum": 0.5},
        "behaviour tokens": {"behaviour": True},
    }
    (tmp_path / "variants.json").write_text(json.dumps(variants))
    script.measure(
        out=tmp_path / "report.json", variants=tmp_path / "variants.json", device=device, epochs=2, tiny=True
    )
    page = json.loads((tmp_path / "report.json").read_text())
    assert page["ended"] == "complete"
    keys = ["tiny | tuned | 7", "tiny | untuned | 7", "tiny | behaviour tokens | 7"]
    keys += ["smaller | tuned | 7", "tiny | drawn | 7", "tiny | tuned | 8"]
    assert [name for name, one in page["results"].items() if "training" in one] == keys
    main, untuned = (page["results"][key] for key in keys[:2])
    assert [one["epoch"] for one in page["results"][f"curve of {keys[0]}"]] == [1, 2]
    assert {page["results"][key]["training"]["examples"] for key in (keys[0], keys[2])} == {24}
    assert main["test"]["users"] == 24
    assert main["test"]["means"]["retriever"] == untuned["test"]["means"]["retriever"]
    assert main["test"]["means"]["retriever"]["hr_at_10"] <= 0.75  # a quarter of the answers are no candidates
    assert main["losses"]["select"]["both"] <= main["losses"]["select"]["prior"]
    text = script.format_report(page)
    assert text.count("| smaller | tuned | 7 |") == text.count("| tiny | behaviour tokens | 7 |") == 9
    assert "Film vectors of `drawn`, fit b turned into the space of fit a: mean cosine 0.9" in text
    assert "of 38 shared films" in text
    del page["results"]["check"], page["results"][keys[0]]
    assert "# The language model" in script.format_report(page)


def test_it_needs_no_package_that_the_gpu_machine_lacks():
    """Nor does fine-tuning speed until it trains; ranking speed needs pydantic, whose wheel comes along."""
    absent = f"import sys; sys.modules.update(dict.fromkeys({ABSENT_THERE!r})); import llm, finetune_speed\n"
    absent += "del sys.modules['pydantic']; import ranking_speed"
    path = os.pathsep.join([str(BENCHMARKS / "gpu"), str(BENCHMARKS.parent / "src")])
    subprocess.run([sys.executable, "-c", absent], check=True, env={**os.environ, "PYTHONPATH": path})


@pytest.fixture
def make_job(kit: Any, prompts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes the product's training on the kit's training examples, from settings."""
    from tests.flows.test_trainer import keep_on_the_cpu
    from tripletune.behaviour.tables import FILMS
    from tripletune.config import FinetuneConfig
    from tripletune.finetune.job import TrainingJob

    keep_on_the_cpu(monkeypatch)

    def make(**changes: Any) -> Any:
        settings = FinetuneConfig.model_validate(
            {
                "num_train_epochs": 2,
                "save_steps": 1000,
                "global_batch": 5,
                "per_device_train_batch_size": 5,
                "learning_rate": 1e-2,
            }
            | changes
        )
        return TrainingJob(
            out=tmp_path,
            train=(kit.folder.parent / "one" / "train" / "shard-000.parquet",),
            evaluation=None,
            prior=prompts.prior,
            films=kit.folder / FILMS if settings.has_behaviour else None,
            film_columns=("liked", "disliked", "candidates") if settings.has_behaviour else (),
            answer_style="letters",
            base=str(kit.folder / "model"),
            hub_revision=None,
            base_name="tiny",
            settings=settings,
            seed=5,
        )

    return make


@pytest.mark.parametrize(
    ("settings", "behaviour"),
    [
        ({"objective": "listwise"}, {}),
        ({"objective": "listwise", "residual": False}, {}),
        ({"objective": "ranknet"}, {}),
        ({"objective": "listwise"}, {"behaviour": True, "curriculum": 0.5}),
        ({"objective": "listwise"}, {"behaviour": True}),
    ],
)
def test_its_training_is_the_products(script, kit, prompts, make_job, settings, behaviour):
    import llm_training

    from tripletune.behaviour.tables import read_film_tables
    from tripletune.finetune import training
    from tripletune.finetune.token_files import write_token_files

    variant = script.Variant(epochs=2, batch=5, learning_rate=1e-2, **settings, **behaviour)
    named = {"behaviour_tokens": "sequence", "curriculum": variant.curriculum} if variant.behaviour else {}
    job = make_job(**settings, **named)
    films = read_film_tables(job.films) if job.films else None
    write_token_files(job)
    examples, _ = training._training_examples(job)
    theirs = training._trainer(job, kit.tokenizer, examples, None, films, use_cpu=True, from_start=True)
    ours = kit.model(variant, 1)
    ours.load_state_dict(theirs.model.state_dict())
    rows = (kit.with_films(prompts) if variant.behaviour else prompts).training_rows()
    assert rows == [dict(row) for row in theirs.train_dataset]
    batch = next(iter(theirs.get_train_dataloader()))
    with torch.no_grad():
        expected = theirs.compute_loss(theirs.model, dict(batch))
        torch.testing.assert_close(llm_training.batch_losses(ours, batch, variant).mean(), expected, rtol=1e-6, atol=0)
    theirs.train()
    losses = []
    script.train(ours, rows, prompts.prior, variant, 5, lambda epoch, loss: losses.append(loss))
    assert losses[1] < losses[0]
    for (name, mine), (_, other) in zip(ours.named_parameters(), theirs.model.named_parameters(), strict=True):
        assert mine.requires_grad == other.requires_grad
        # AdamW divides by the gradient's size: where that is almost 0, last bits become 1e-6; a step is up to 1e-2
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("purpose", ["valid", "test"])
def test_its_ranked_prompts_with_behaviour_tokens_are_the_products(kit, prompts, make_job, purpose, tmp_path):
    from tripletune.finetune.token_files import EVALUATION, read_token_files, write_token_files

    job = make_job(objective="listwise", behaviour_tokens="sequence")
    hits = prompts.frame.filter(pl.col("hit"), purpose=purpose)
    shard = pl.read_parquet(kit.folder.parent / "one" / purpose / "shard-000.parquet")
    hits.select("example_id").join(shard, on="example_id", maintain_order="left").write_parquet(
        tmp_path / "hits.parquet"
    )
    job = job.model_copy(update={"evaluation": tmp_path / "hits.parquet"})
    write_token_files(job)
    theirs = read_token_files(job, EVALUATION)
    mine = kit.with_films(prompts)
    assert [mine.rows[row] for row in hits["row"]] == [dict(row) for row in theirs]


def test_film_vectors_of_a_trained_model_are_kept_where_the_prompts_lines_are_films(
    script, kit, prompts, tmp_path, capsys
):
    import llm_kit

    from tripletune.behaviour.tables import FILMS, read_film_tables

    write_lightgcn(tmp_path / "films", fits={"a": 0, "b": 0}, num_films=150, width=8, noise={"b": 0.2}, turned={"b": 3})
    llm_kit.draw_generated(tmp_path / "other")
    for file in (tmp_path / "other").glob("*/*.parquet"):
        pl.read_parquet(file).with_columns(liked=pl.col("liked").list.head(1)).write_parquet(file)
    shards = [f"same={kit.folder.parent / 'one'}", f"other={tmp_path / 'other'}"]
    model, source = kit.folder / "model", f"lightgcn={tmp_path / 'films'}"
    script.prepare(shards, model, tmp_path / "kit", source)
    made = script.Kit.read(tmp_path / "kit", CPU)
    assert made.films["columns"] == {"same": ["liked", "disliked", "candidates"], "other": []}
    assert (made.films["source"], made.films["shared"]) == ("lightgcn", 150)
    first_MD, second_MD = read_film_tables(tmp_path / "kit" / FILMS).vectors_RD[1:].split(150)
    assert float((first_MD * second_MD).sum(dim=1).mean()) == pytest.approx(made.films["cosine"])
    assert made.films["cosine"] > 0.9
    assert "other gets no behaviour tokens: the prompt of example 2:test has 14 lines" in capsys.readouterr().out
    assert len(made.with_films(replace(prompts, name="same")).rows) == len(prompts.rows)
    for wrong in ("text=folder", "sequence"):
        with pytest.raises(SystemExit, match="give --films as SOURCE=FOLDER, SOURCE one of sequence"):
            script.prepare(shards, model, tmp_path / "kit", wrong)


def test_its_parts_and_its_prior_are_those_of_the_stage(kit, prompts):
    from tripletune.config import FinetuneConfig
    from tripletune.finetune.shards import prior_of, valid_examples

    generated = kit.folder.parent / "one"
    assert prompts.prior == prior_of([generated / "train" / "shard-000.parquet"], 12)
    settings = FinetuneConfig(objective="listwise")
    selecting = valid_examples(generated, 1000, settings, 7)
    mine = prompts.frame.filter(pl.col("hit"), part="select")
    assert sorted(mine["example_id"]) == sorted(selecting["example_id"])


def test_its_order_is_the_one_that_is_served(script, prompts):
    import llm_results

    from tripletune.contract import Residual
    from tripletune.rank.served import add_retriever

    frame = prompts.frame.filter(part="test")
    rows, random = prompts.part("test"), np.random.default_rng(1)
    shape = len(rows), 12
    prior_EC = np.array(prompts.prior)[[row["places"] for row in rows]]
    logits_EC = random.normal(size=shape).round(1)  # with ties
    scores = scores_of(logits_EC, prior_EC, np.array([row["targets"] for row in rows]))
    hits = frame.filter("hit").with_columns(
        answers=pl.col("candidates"), scores=pl.Series(logits_EC.tolist(), dtype=pl.List(pl.Float32))
    )
    residual = Residual(prior=prompts.prior, weight=0.5)
    served = add_retriever(hits.select("user_id", "answers", "scores"), hits["retrieved"], residual)
    found = llm_results.order_films(frame, scores, 0.5)
    assert found.filter(frame["hit"])["tuned+retriever"].to_list() == served["answers"].to_list()
    assert found.filter(~frame["hit"])["tuned"].to_list() == frame.filter(~pl.col("hit"))["retrieved"].to_list()
    values = llm_results.score_users(found)
    assert values["retriever"]["hr_at_10"].sum() <= len(rows)


def scores_of(logits_EC: np.ndarray, prior_EC: np.ndarray, targets_EC: np.ndarray) -> Any:
    import llm_training

    return llm_training.Scores(logits_EC, prior_EC, targets_EC, np.ones_like(prior_EC, dtype=np.bool_))


def test_a_users_examples_count_as_one_user(script):
    import llm_results

    lists = pl.DataFrame({"user_id": [2, 1, 1], "answers": [[5], [5], [7]]})
    lists = lists.with_columns(pl.Series(system, [[5, 7]] * 3) for system in llm_results.SYSTEMS)
    values = llm_results.score_users(lists)["tuned"]
    assert values["user_id"].to_list() == [1, 2]
    assert values["ndcg_at_5"].to_list() == pytest.approx([(1 + 1 / np.log2(3)) / 2, 1.0])


def test_scores_do_not_depend_on_the_batch(script, kit, prompts, monkeypatch):
    import llm_training

    model, rows = kit.model(script.Variant(epochs=0), 7), prompts.part("test")
    together = script.score(model, rows, prompts.prior)
    monkeypatch.setattr(llm_training, "RANK_TOKENS", {"cpu": 1})
    alone = script.score(model, rows, prompts.prior)
    np.testing.assert_allclose(alone.logits, together.logits, rtol=1e-4, atol=1e-5)
    assert (alone.targets == together.targets).all()


def test_what_does_not_fit_into_the_time_is_skipped_by_name(script, kit):
    session = Recorder(seconds_left=script.PER_JOB)
    variants = {"tuned": script.Variant(batch=4), "untuned": script.Variant(epochs=0)}
    script.run_all(session, kit, variants, 3, [7])
    assert session.results["plan"]["epochs"] == 1
    assert list(session.results["skipped"]) == ["tiny | tuned | 7", "tiny | untuned | 7", "smaller | tuned | 7"]


def test_without_film_vectors_behaviour_tokens_are_skipped_by_name(script, kit):
    session = Recorder(seconds_left=1000)
    variants = {"untuned": script.Variant(epochs=0), script.BEHAVIOUR: script.Variant(epochs=0, behaviour=True)}
    script.run_all(session, replace(kit, films={}), variants, 1, [7])
    assert session.results["skipped"] == {
        "tiny | behaviour tokens | 7": "the kit has no film vectors for these prompts"
    }
    assert "tiny | untuned | 7" in session.results


def test_another_model_than_the_prepared_one_is_refused(script, kit, prompts, monkeypatch):
    assert script.check(kit, prompts)["float32"] == pytest.approx(0, abs=1e-5)
    moved = [[value + 0.1 for value in row] for row in kit.reference["logits"]]
    monkeypatch.setitem(kit.reference, "logits", moved)
    with pytest.raises(SystemExit, match=r"logits differ by 0\.1 from those of prepare"):
        script.check(kit, prompts)
    monkeypatch.setitem(kit.reference, "input_ids", [[1]])
    with pytest.raises(SystemExit, match="other tokens"):
        script.check(kit, prompts)


def test_shards_that_cannot_be_used_are_refused_by_name(script, tmp_path):
    with pytest.raises(SystemExit, match="give each --shards as NAME=FOLDER"):
        script.prepare(["ml-1m"], tmp_path, tmp_path / "out")
    with pytest.raises(SystemExit, match="lacks shards of train, valid or test"):
        script.prepare([f"a={tmp_path / 'none'}"], tmp_path, tmp_path / "out")
    import llm_kit

    llm_kit.draw_generated(tmp_path / "titles")
    for file in (tmp_path / "titles").glob("*/*.parquet"):
        none = pl.lit([], dtype=pl.List(pl.String))
        pl.read_parquet(file).with_columns(candidate_letters=none).write_parquet(file)
    with pytest.raises(SystemExit, match="has candidates without letters"):
        script.prepare([f"a={tmp_path / 'titles'}"], tmp_path, tmp_path / "other")


def test_the_template_without_hints_differs_from_the_compact_one_in_nothing_else():
    from tripletune.prompts.template import load_template

    without, compact = load_template(str(BENCHMARKS / "gpu" / "no-hints.txt")), load_template("compact")
    assert (without.answers, without.user) == (compact.answers, compact.user)
    assert compact.inline
    assert not without.inline
