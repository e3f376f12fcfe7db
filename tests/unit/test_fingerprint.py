"""What a fingerprint covers: each ingredient changes it, nothing else does."""

from __future__ import annotations

import pytest
from prompt_frames import llama_like_tokenizer

from tripletune.config.presets import parse_config
from tripletune.pipeline.registry import BY_NAME
from tripletune.pipeline.resolve import resolve
from tripletune.store import fingerprint as fp
from tripletune.store import sources

SPLIT = BY_NAME["split"]


def ingredients(config: dict | None = None, parent: str = "p", inputs: dict | None = None) -> fp.Ingredients:
    settings = parse_config({"dataset": "toy", **(config or {})}, "test")
    return SPLIT.ingredients(settings, {"ingest": parent}, inputs or {})


def make(config: dict | None = None, parent: str = "p", inputs: dict | None = None) -> str:
    return fp.fingerprint("split", ingredients(config, parent, inputs))


def test_the_same_ingredients_give_the_same_fingerprint():
    assert make() == make()
    assert len(make()) == 32


@pytest.mark.parametrize(
    "changed",
    [
        {"config": {"split": {"like": 3.5}}},
        {"config": {"seed": 1}},
        {"parent": "q"},
        {"inputs": {"ratings.csv": "ab"}},
    ],
)
def test_each_ingredient_counts(changed):
    assert make(**changed) != make()


def test_fields_of_other_stages_do_not_count():
    assert make({"finetune": {"lora_r": 4}}) == make()


def test_a_library_version_counts(monkeypatch):
    before = make()
    monkeypatch.setattr(fp.metadata, "version", lambda name: "0.0.1")
    assert make() != before


def test_source_counts_but_its_comments_do_not(monkeypatch, tmp_path):
    monkeypatch.setattr(sources, "PACKAGE", tmp_path)
    module = tmp_path / "thing.py"

    def hashed(text: str) -> dict[str, str]:
        module.write_text(text)
        return sources.close_over(["thing"]).hashes

    first = hashed("x = 1\n")
    assert hashed("# why\nx   = 1\n") == first
    assert hashed("x = 2\n") != first


def test_a_string_that_is_data_counts_and_one_that_stands_alone_does_not(monkeypatch, tmp_path):
    monkeypatch.setattr(sources, "PACKAGE", tmp_path)

    def hashed(text: str) -> dict[str, str]:
        (tmp_path / "thing.py").write_text(text)
        return sources.close_over(["thing"]).hashes

    first = hashed('def f():\n    """Says."""\n    return "a"\n')
    assert hashed('"""Module."""\n\ndef f():\n    return "a"\n') == first
    assert hashed('def f():\n    """Says."""\n    return "b"\n') != first


def test_a_module_that_does_not_exist_is_an_error_not_an_empty_hash():
    with pytest.raises(ValueError, match="names no file"):
        sources.close_over(["data.nowhere"])
    with pytest.raises(ValueError, match="does not exist"):
        sources.close_over(["pipeline.stages:run_nothing"])


def test_differences_name_the_ingredient_and_both_values():
    lines = fp.differences(
        ingredients(inputs={"ratings.csv": "a"}),
        ingredients({"split": {"like": 3.5}}),
    )
    assert lines == ["fields split.like: 4.0 -> 3.5", "inputs ratings.csv: a -> absent"]


def test_a_file_one_folder_down_counts(tmp_path):
    (tmp_path / "ml-32m").mkdir()
    (tmp_path / "ml-32m" / "ratings.csv").write_text("a")
    before = fp.input_checksums({"movielens": tmp_path})
    (tmp_path / "ml-32m" / "ratings.csv").write_text("b")
    assert list(before) == ["movielens/ml-32m/ratings.csv"]
    assert fp.input_checksums({"movielens": tmp_path}) != before


def test_two_inputs_of_one_name_both_count(tmp_path):
    named = {f"extra_triples[{i}]": tmp_path / str(i) / "x.tsv" for i in range(2)}
    for path in named.values():
        path.parent.mkdir()
        path.write_text("a")
    before = fp.input_checksums(named)
    for path in named.values():
        old = path.read_text()
        path.write_text("b")
        assert fp.input_checksums(named) != before
        path.write_text(old)


def test_a_build_of_a_library_does_not_count(monkeypatch):
    monkeypatch.setattr(fp.metadata, "version", lambda name: "2.13.0")
    before = make()
    monkeypatch.setattr(fp.metadata, "version", lambda name: "2.13.0+cpu")
    assert make() == before


def test_of_a_model_folder_only_what_shapes_weights_tokens_or_template_counts(tmp_path):
    llama_like_tokenizer().save_pretrained(str(tmp_path))
    (tmp_path / "original").mkdir()
    (tmp_path / ".cache/huggingface/download").mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_text("{}")

    def known_by() -> str:
        settings = parse_config({"dataset": "toy", "finetune": {"model": str(tmp_path)}}, "test")
        return resolve(settings, tmp_path / "artifacts").fingerprints["finetune"]

    before = known_by()
    for name in ("README.md", ".gitattributes", "original/consolidated.00.pth", "original/params.json"):
        (tmp_path / name).write_text("x")
    (tmp_path / ".cache/huggingface/download/config.json.metadata").write_text("2026-11-27")
    (tmp_path / "generation_config.json").write_text("{}")  # ranking decodes by its own settings alone
    assert known_by() == before
    for name in ("config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"):
        old, path = known_by(), tmp_path / name
        path.write_text(f"{path.read_text()}\n")
        assert known_by() != old, name
