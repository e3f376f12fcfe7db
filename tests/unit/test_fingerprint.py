"""What a fingerprint covers: each ingredient changes it, nothing else does."""

from __future__ import annotations

import pytest

from tripletune.config.presets import parse_config
from tripletune.store import fingerprint as fp

SPEC = fp.StageSpec(
    name="split",
    parents=("ingest",),
    source=("schemas", "stable_hash"),
    libraries=("polars",),
    fields=("split", "seed"),
)


def make(config: dict | None = None, parent: str = "p", inputs: dict | None = None) -> str:
    settings = parse_config({"dataset": "toy", **(config or {})}, "test")
    return fp.fingerprint("split", fp.gather(SPEC, settings, {"ingest": parent}, inputs or {}))


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
    monkeypatch.setattr(fp, "PACKAGE", tmp_path)
    module = tmp_path / "thing.py"

    def hashed(text: str) -> dict[str, str]:
        module.write_text(text)
        fp.source_hash.cache_clear()
        return fp.source_hash("thing")

    first = hashed("x = 1\n")
    assert hashed("# why\nx   = 1\n") == first
    assert hashed("x = 2\n") != first
    fp.source_hash.cache_clear()


def test_a_module_that_does_not_exist_is_an_error_not_an_empty_hash():
    with pytest.raises(ValueError, match="names no file"):
        fp.source_hash("data.nowhere")


def test_differences_name_the_ingredient_and_both_values():
    settings = parse_config({"dataset": "toy"}, "test")
    other = parse_config({"dataset": "toy", "split": {"like": 3.5}}, "test")
    lines = fp.differences(
        fp.gather(SPEC, settings, {"ingest": "p"}, {"ratings.csv": "a"}),
        fp.gather(SPEC, other, {"ingest": "p"}, {}),
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
