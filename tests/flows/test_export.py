"""An exported model answers other programs as the run's own predictions say, or is refused."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from huggingface_hub import ModelCard
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.finetune_shards import LETTERS_CONTRACT, write_shards
from tests.flows.test_trainer import SETTINGS, keep_on_the_cpu
from tripletune.behaviour.embedding import PROJECTOR, attach_films, with_unknown
from tripletune.chat import DATE, load_tokenizer
from tripletune.cli.main import main
from tripletune.config import RankConfig, RunConfig
from tripletune.contract import BaseIdentity, BehaviourSpace, Residual, identify_base, read_contract, write_contract
from tripletune.evaluate.evaluate import METRICS
from tripletune.finetune.launch import finetune_adapter
from tripletune.finetune.training import train
from tripletune.rank.predict import rank_examples, rank_shards
from tripletune.store import runs
from tripletune.store.paths import MANIFEST
from tripletune.store.runs import RunRecord

STAGES = {name: name * 4 for name in ("generate", "finetune", "rank", "evaluate")}
TIE = 1e-5
"""Difference of two logits that the order of float32 sums decides: prompts alone have other sums than in a batch."""
RESIDUAL = Residual(prior=tuple(-float(place) for place in range(20)), weight=0.5)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one run: shards, an adapter trained on labels, its predictions and two figures."""
    root = tmp_path_factory.mktemp("artifacts")
    paths = write_record(root, "toy-1").paths(root)
    settings = SETTINGS.model_copy(update={"objective": "listwise", "num_train_epochs": 4.0})

    def shards(work: Path) -> dict[str, Any]:
        write_shards(work, train=30, valid=4, test=100, long=False, letters=True)
        return {}

    made = paths.build("generate", shards)

    def adapter_alone(work: Path) -> dict[str, Any]:
        with pytest.MonkeyPatch.context() as patch:  # in this process: starting another takes longer than the training
            keep_on_the_cpu(patch)
            patch.setattr("tripletune.finetune.launch._launch", lambda job, on_log, machine: train(job))
            facts = finetune_adapter(made, work, settings, LETTERS_CONTRACT, {}, 0)
        write_contract(work, read_contract(work).model_copy(update={"residual": None}))
        return facts

    adapter = paths.build("finetune", adapter_alone)
    paths.build(
        "rank", lambda work: rank_shards(made, adapter, work, RankConfig(unconstrained_viewers=1), LETTERS_CONTRACT, 0)
    )
    paths.build("evaluate", write_figures)
    return root


def write_record(root: Path, name: str, fingerprints: dict[str, str] = STAGES) -> RunRecord:
    record = RunRecord(
        name=name,
        dataset="toy",
        status="completed",
        started=runs.utc_now(),
        config=RunConfig(dataset="toy").model_dump(mode="json"),
        fingerprints=fingerprints,
    )
    runs.write_run(root, record)
    return record


def write_figures(work: Path) -> dict[str, Any]:
    rows = [("tuned", 0.25), ("untuned", 0.125), ("popularity", 0.5)]
    figures = [("all", "ndcg_at_5", value, value - 0.1, value + 0.1, 16) for _, value in rows]
    frame = [(row, *figure) for (row, _), figure in zip(rows, figures, strict=True)]
    pl.DataFrame(frame, schema=METRICS, orient="row").write_parquet(work / "metrics.parquet")
    return {}


def export(root: Path, out: Path, *options: str) -> int:
    return main(["export", "--out", str(out), "--artifacts", str(root), *options])


def changed(root: Path, to: Path, change: Callable[[Path], object]) -> Path:
    """The store with another adapter: ``change`` gets its folder. A manifest states sizes, which then differ."""
    shutil.copytree(root, to)
    folder = to / "toy" / "finetune" / STAGES["finetune"]
    change(folder)
    manifest = json.loads((folder / MANIFEST).read_text())
    for name in manifest["files"]:
        manifest["files"][name]["bytes"] = (folder / name).stat().st_size
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return to


def code_of(card: Path) -> str:
    """The Python code of a model card, for this folder."""
    (code,) = re.findall(r"```python\n(.*?)```", card.read_text(encoding="utf-8"), re.S)
    return str(code).replace('"DIR"', repr(str(card.parent)))


def run_code(card: Path) -> dict[str, Any]:
    code = code_of(card)
    assert "tripletune" not in code.replace(str(card.parent), "")
    names: dict[str, Any] = {}
    exec(compile(code, str(card), "exec"), names)
    return names


def orders_of(names: dict[str, Any], examples: pl.DataFrame) -> list[list[int]]:
    """The candidates of each example in the order that a card's code gives their labels."""
    found = []
    for row in examples.iter_rows(named=True):
        film_of = dict(zip(row["candidate_letters"], row["candidates"], strict=True))
        found.append([film_of[label] for label in names["order"](row["prompt"], len(film_of))])
    return found


def predicted(root: Path) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The test examples, and of each the run's own predictions."""
    store = root / "toy"
    examples = pl.read_parquet(store / "generate" / STAGES["generate"] / "test" / "*.parquet").sort("user_id")
    rows = pl.read_parquet(store / "rank" / STAGES["rank"] / "predictions.parquet")
    rows = rows.filter(purpose="test", system="tuned", constrained=True).sort("user_id")
    assert rows["user_id"].to_list() == examples["user_id"].to_list()
    return examples, rows


def expected(root: Path) -> tuple[pl.DataFrame, list[list[int]]]:
    """The first 16 test examples and the run's own order of each one's candidates."""
    examples, rows = predicted(root)
    return examples.head(16), rows["answers"].head(16).to_list()


def differing(ours: Sequence[Sequence[int]], theirs: Sequence[Sequence[int]]) -> int:
    """Lists whose first five films differ. A tie of float32 would be one; these prompts have none."""
    return sum(a[:5] != b[:5] for a, b in zip(ours, theirs, strict=True))


def lead_turned(order: Sequence[int], answers: Sequence[int], scores: Sequence[float]) -> float:
    """Largest lead, in the run's own scores, of a film that ``order`` puts behind another; 0 where all agree."""
    assert sorted(order) == sorted(answers)
    score = dict(zip(answers, scores, strict=True))
    ours = [score[film] for film in order]
    return max(max(ours[place:]) - ours[place] for place in range(len(ours)))


def assert_same_orders(ours: Sequence[Sequence[int]], rows: pl.DataFrame) -> None:
    """The same order of all candidates, but for two films now and then whose scores are as near as rounding."""
    theirs = zip(ours, rows["answers"].to_list(), rows["scores"].to_list(), strict=True)
    differences = [lead_turned(*one) for one in theirs if one[0] != one[1]]
    assert [lead for lead in differences if lead > TIE] == []
    assert len(differences) <= len(rows) // 20


@pytest.mark.parametrize("form", ["merged", "adapter"])
def test_an_export_orders_candidates_as_the_run_did(root, tmp_path, capsys, form):
    """With the code of its model card, which knows nothing of this project."""
    out = tmp_path / "out"
    assert export(root, out, "--format", form) == 0
    printed = capsys.readouterr().out
    assert f"{form} of toy-1" in printed
    assert "not in it" not in printed
    examples, rows = predicted(root)
    assert len(rows) == 100
    assert_same_orders(orders_of(run_code(out / "README.md"), examples), rows)
    examples, theirs = expected(root)
    untuned = AutoModelForCausalLM.from_pretrained(root / "toy" / "finetune" / STAGES["finetune"] / "base").eval()
    names = run_code(out / "README.md")
    names["order"].__globals__["model"] = untuned
    assert differing(orders_of(names, examples), theirs) > 0, "the base model alone would pass"


def test_the_code_of_a_card_does_not_round_scores(root, tmp_path):
    """A model in bfloat16: the order is that of its last hidden state with the labels' rows in float64."""
    out = tmp_path / "out"
    assert export(root, out) == 0
    names = run_code(out / "README.md")
    model = names["model"].to(torch.bfloat16)
    head = model.get_output_embeddings()
    seen: list[torch.Tensor] = []
    head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0, -1].double()))
    examples, _ = predicted(root)
    rounded = 0
    for row, order in zip(examples.iter_rows(named=True), orders_of(names, examples), strict=True):
        rows = head.weight.detach()[list(names["labels"].values())[: len(order)]]
        scores = rows.double() @ seen.pop(0)
        exact = scores.argsort(descending=True, stable=True)
        assert order == [row["candidates"][place] for place in exact.tolist()]
        rounded += scores.bfloat16().argsort(descending=True, stable=True).tolist() != exact.tolist()
    assert rounded > 0, "rounded scores would pass"


def write_the_day(folder: Path) -> None:
    """A base model whose chat template writes a day, as Llama 3.2's, and an adapter trained on another than today's."""
    template = folder / "base" / "chat_template.jinja"
    day = "{% if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    template.write_text(f"{day}Today Date: {{{{ date_string }}}}\n{template.read_text()}")
    contract = read_contract(folder).model_copy(update={"date_string": "31 Dec 1999"})
    base = identify_base(str(folder / "base"), "")
    write_contract(folder, contract.model_copy(update={"tokenizer_sha256": base.tokenizer_sha256}))


@pytest.mark.parametrize("form", ["merged", "adapter"])
def test_an_export_writes_the_day_that_the_adapter_was_trained_on(root, tmp_path, form):
    dated, out = changed(root, tmp_path / "dated", write_the_day), tmp_path / "out"
    assert export(dated, out, "--format", form) == 0
    examples = predicted(root)[0]
    finetuned = dated / "toy" / "finetune" / STAGES["finetune"]
    rows = rank_examples(examples, finetuned, tuned=True, constrained=True, batch_size=16)
    names = run_code(out / "README.md")
    assert_same_orders(orders_of(names, examples), rows)
    written = names["tokenizer"].apply_chat_template(examples["prompt"][0].to_list(), tokenize=False)
    assert "Today Date: 31 Dec 1999\n" in written


def test_a_merged_export_is_a_plain_model_folder_with_greedy_settings(root, tmp_path):
    out = tmp_path / "out"
    assert export(root, out) == 0
    assert {path.name for path in out.iterdir()} == {
        *("README.md", "contract.json", "config.json", "generation_config.json", "label_tokens.json"),
        *("model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
    }
    settings = AutoModelForCausalLM.from_pretrained(out).generation_config
    assert (settings.do_sample, settings.max_new_tokens) == (False, 1)
    tokenizer = AutoTokenizer.from_pretrained(out)
    ids = json.loads((out / "label_tokens.json").read_text())
    assert [tokenizer.decode([token]) for token in ids.values()] == list("ABCDEFGHIJKLMNOPQRST")
    assert read_contract(out) == read_contract(root / "toy" / "finetune" / STAGES["finetune"])
    here = str(root).encode(), str(tmp_path).encode()
    assert [path.name for path in out.iterdir() if any(path_ in path.read_bytes() for path_ in here)] == []


def test_an_adapter_that_was_moved_loads_with_its_base_named(root, tmp_path):
    out, moved = tmp_path / "out", tmp_path / "elsewhere" / "moved"
    assert export(root, out, "--format", "adapter") == 0
    moved.parent.mkdir()
    out.rename(moved)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(moved / "base"), moved).eval()
    names = {"model": model, "folder": moved, "json": json, "torch": torch}
    names["tokenizer"] = AutoTokenizer.from_pretrained(moved)
    code = code_of(moved / "README.md")
    exec(compile(code[code.index("labels = ") :], "card", "exec"), names)
    examples, theirs = expected(root)
    assert differing(orders_of(names, examples), theirs) == 0
    config = json.loads((moved / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(out / "base"), "the card says to write the new path here"


def test_the_model_card_is_one_of_the_hubs_with_the_runs_figures(root, tmp_path):
    out = tmp_path / "out"
    assert export(root, out) == 0
    card = ModelCard.load(out / "README.md")
    assert card.data.library_name == "transformers"
    assert card.data.license == "other"
    assert "| tuned | 0.250 (0.150 to 0.350) |" in card.text
    assert "popularity" not in card.text
    for text in ("`toy-1`", "| objective | listwise |", "| examples | 30 |", "| ratings | synthetic |", "label A to T"):
        assert text.replace("label A", "labels A") in card.text
    assert "## Licences\n\nThe base model was built by tripletune from random weights." in card.text


def test_a_base_model_on_the_hub_is_named_with_its_commit(root, tmp_path, monkeypatch):
    base, loaded = root / "toy" / "finetune" / STAGES["finetune"] / "base", []
    commit = BaseIdentity("org/model", "c0ffee", "c0ffee", "")
    monkeypatch.setattr("tripletune.export.export.locate_base", lambda *_: commit)
    monkeypatch.setattr(
        "tripletune.export.export.load_tokenizer", lambda *asked: loaded.append(asked) or load_tokenizer(base)
    )
    out = tmp_path / "out"
    assert export(root, out, "--format", "adapter") == 0
    assert loaded == [("org/model", "c0ffee", DATE)]
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("org/model", "c0ffee")
    assert not (out / "base").exists()
    card = ModelCard.load(out / "README.md")
    assert card.data.base_model == "org/model"
    assert "is fetched from the hub: org/model at c0ffee" in card.text


def test_an_export_whose_answers_are_titles_writes_what_ranking_wrote(root, tmp_path):
    def write_titles(folder: Path) -> None:
        prompt = {**LETTERS_CONTRACT, "answer_style": "titles"}
        contract = read_contract(folder).model_copy(update={"objective": "sft", "prompt": prompt})
        write_contract(folder, contract)

    titles, out = changed(root, tmp_path / "titles", write_titles), tmp_path / "out"
    assert export(titles, out) == 0
    assert not (out / "label_tokens.json").exists()
    examples = expected(root)[0].head(2)
    theirs = rank_examples(
        examples, titles / "toy" / "finetune" / STAGES["finetune"], tuned=True, constrained=False, batch_size=1
    )
    names = run_code(out / "README.md")
    for chat, text in zip(examples["prompt"], theirs["text"], strict=True):
        assert text
        assert names["answer"](chat.to_list()).startswith(text), "ranking stops where no titles could go on"


def test_the_guide_shows_the_code_of_the_card(root, tmp_path):
    out = tmp_path / "out"
    assert export(root, out) == 0
    (code,) = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.S)
    assert code in (Path(__file__).parents[2] / "docs" / "guides" / "serve.md").read_text()


def test_a_run_that_serves_the_sum_with_the_retriever_is_exported_as_text_only(root, tmp_path, capsys):
    def fuse(folder: Path) -> None:
        write_contract(folder, read_contract(folder).model_copy(update={"residual": RESIDUAL}))

    fused, out = changed(root, tmp_path / "fused", fuse), tmp_path / "out"
    assert export(fused, out) == 2
    assert_refused(capsys, r"'toy-1' serves its model with the retriever's scores, which no export carries; add --text")
    assert not out.exists()
    assert export(fused, out, "--text-only") == 0
    said = "The retriever's scores are dropped: what the run serves adds them to the model's, whose weight in the sum"
    assert f"not in it: {said}" in capsys.readouterr().out
    assert said in (out / "README.md").read_text()
    examples, theirs = expected(root)
    assert differing(orders_of(run_code(out / "README.md"), examples), theirs) == 0


def add_films(folder: Path) -> None:
    """Make the adapter one that reads film vectors: the trained LoRA matrices and a projector of random weights."""
    vectors = with_unknown(torch.randn(150, 8, generator=torch.Generator().manual_seed(1)))
    model = AutoModelForCausalLM.from_pretrained(folder / "base")
    attach_films(model, vectors, 0)
    lora = LoraConfig(r=4, target_modules="all-linear", modules_to_save=[PROJECTOR], task_type="CAUSAL_LM")
    get_peft_model(model, lora).save_pretrained(folder / "films", save_embedding_layers=False)
    made = load_file(folder / "films" / "adapter_model.safetensors")
    trained = load_file(folder / "adapter" / "adapter_model.safetensors")
    assert {name for name in made if PROJECTOR not in name} == set(trained)
    save_file(made | trained, folder / "adapter" / "adapter_model.safetensors")
    config = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(config | {"modules_to_save": [PROJECTOR]}))
    shutil.rmtree(folder / "films")
    space = BehaviourSpace(source="lightgcn", space="0" * 64, columns=("liked", "candidates"))
    write_contract(folder, read_contract(folder).model_copy(update={"behaviour": space}))


@pytest.mark.parametrize("form", ["merged", "adapter"])
def test_an_adapter_with_behaviour_tokens_is_exported_without_its_projector(root, tmp_path, capsys, form):
    """The LoRA matrices are those of the run, so prompts of text alone are answered as by the adapter itself."""
    films, out = changed(root, tmp_path / "films", add_films), tmp_path / "out"
    assert export(films, out, "--format", form) == 2
    assert_refused(capsys, "serves its model with behaviour tokens, which no export carries; add --text-only")
    assert export(films, out, "--format", form, "--text-only") == 0
    said = "Behaviour tokens are dropped: the model was trained to read after each title a token"
    assert f"not in it: {said}" in capsys.readouterr().out
    assert said in (out / "README.md").read_text()
    if form == "adapter":
        assert not any(PROJECTOR in name for name in load_file(out / "adapter_model.safetensors"))
        assert json.loads((out / "adapter_config.json").read_text())["modules_to_save"] is None
    examples, theirs = expected(root)
    assert differing(orders_of(run_code(out / "README.md"), examples), theirs) == 0


CONVERTER = """
import json, pathlib, sys
_, model, flag, outfile, kind, outtype = sys.argv
assert (flag, kind) == ("--outfile", "--outtype"), sys.argv
files = sorted(path.name for path in pathlib.Path(model).iterdir())
pathlib.Path(outfile).write_text(json.dumps([files, outtype]))
"""


@pytest.mark.parametrize("where", ["file", "checkout", "path"])
def test_gguf_is_written_by_llama_cpps_converter(root, tmp_path, monkeypatch, where):
    script = tmp_path / "llama.cpp" / "convert_hf_to_gguf.py"
    script.parent.mkdir()
    script.write_text(CONVERTER)
    script.chmod(0o755)
    given = {"file": script, "checkout": script.parent}.get(where)
    if given is None:
        monkeypatch.setenv("PATH", str(script.parent))
    out = tmp_path / "out"
    assert export(root, out, "--format", "gguf", *(["--converter", str(given)] if given else [])) == 0
    files, outtype = json.loads((out / "toy-f32.gguf").read_text())
    assert outtype == "f32"
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= set(files)
    assert {path.name for path in out.iterdir()} == {"README.md", "contract.json", "label_tokens.json", "toy-f32.gguf"}
    assert "llama-server --model toy-f32.gguf" in (out / "README.md").read_text()


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("import sys; print('loading'); sys.exit('BPE pre-tokenizer was not recognized')", "exit code 1 and no file; "),
        ("print('nothing to do')", "exit code 0 and no file; its last line: nothing to do"),
    ],
)
def test_a_converter_that_fails_leaves_nothing_behind(root, tmp_path, capsys, script, message):
    converter = tmp_path / "convert_hf_to_gguf.py"
    converter.write_text(script)
    assert export(root, tmp_path / "out", "--format", "gguf", "--converter", str(converter)) == 2
    assert_refused(capsys, message)
    assert [path.name for path in tmp_path.iterdir()] == [converter.name]


def test_without_a_converter_gguf_says_what_to_install(root, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert export(root, tmp_path / "out", "--format", "gguf") == 2
    assert_refused(
        capsys, r"needs llama\.cpp's convert_hf_to_gguf\.py, which is not on PATH; install it with: git clone"
    )
    assert export(root, tmp_path / "out", "--format", "gguf", "--converter", str(tmp_path)) == 2
    assert_refused(capsys, "is neither a file nor a folder with convert_hf_to_gguf.py")
    assert not list(tmp_path.iterdir())


def assert_refused(capsys: Any, message: str) -> None:
    """One line of ours on stderr that holds ``message``, after the progress bars of what was loaded before."""
    *bars, line = capsys.readouterr().err.splitlines()
    assert not [bar for bar in bars if "tripletune" in bar]
    assert re.search(rf"^tripletune: .*{message}", line), line


def not_finite(folder: Path) -> None:
    file = folder / "adapter" / "adapter_model.safetensors"
    weights = load_file(file)
    weights[sorted(weights)[0]][0, 0] = math.nan
    save_file(weights, file)


def other_base(folder: Path) -> None:
    file = folder / "base" / "config.json"
    file.write_text(file.read_text().replace("rms_norm_eps", "rms_norm_epz"))


@pytest.mark.parametrize("form", ["merged", "adapter"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (not_finite, r"is NaN or infinite, so its answers mean nothing; remove "),
        (other_base, r"base_revision is \w+ but .* now has \w+; restore that model"),
    ],
)
def test_what_ranking_would_refuse_is_not_exported(root, tmp_path, capsys, form, change, message):
    broken = changed(root, tmp_path / "broken", change)
    assert export(broken, tmp_path / "out", "--format", form) == 2
    assert_refused(capsys, message)
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


def test_a_run_that_is_not_there_or_not_trained_is_refused(root, tmp_path, capsys):
    out = tmp_path / "out"
    assert export(root, out, "--run", "toy-2") == 2
    assert_refused(capsys, r"no run 'toy-2' in .*; did you mean toy-1\?$")
    assert export(root, out, "--format", "onnx") == 2
    assert_refused(capsys, "--format 'onnx': there are merged, adapter, gguf")
    write_record(tmp_path / "store", "bare-1", {"finetune": "f"})
    assert export(tmp_path / "store", out, "--run", "bare-1") == 2
    assert_refused(capsys, "no finished 'finetune' output")
    assert not out.exists()


def test_a_folder_with_files_is_left_as_it_is_and_an_empty_one_is_taken(root, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    assert export(root, out) == 2
    assert_refused(capsys, r"is a file or not empty; name a new folder, or remove what is there")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "mine.txt"]
    (out / "mine.txt").unlink()
    assert export(root, out, "--format", "adapter") == 0
    assert (out / "adapter_config.json").is_file()
