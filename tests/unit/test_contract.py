"""An adapter answers only prompts of the kind it was trained on, over the base model it was trained over."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tripletune.contract import (
    TINY,
    AdapterContract,
    identify_base,
    locate_base,
    read_contract,
    require_same,
    write_contract,
)
from tripletune.errors import ContractError, InputError, MissingArtifactError

PROMPT = {"template": {"id": "hints-first", "sha256": "ab" * 32}, "retrieve": {"num_candidates": 20}, "cutoffs": (3, 5)}


def model_folder(folder: Path, weights: bytes = b"weights") -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    (folder / "model.safetensors").write_bytes(weights)
    return folder


def contract(folder: Path) -> AdapterContract:
    base = identify_base(str(folder / "base"), "")
    return AdapterContract(
        prompt=PROMPT,
        tokenizer_sha256=base.tokenizer_sha256,
        base_model=TINY,
        base_revision=base.revision,
        lineage={"rgat": "1"},
    )


@pytest.fixture
def finetuned(tmp_path: Path) -> Path:
    model_folder(tmp_path / "base")
    write_contract(tmp_path, contract(tmp_path))
    return tmp_path


def test_prompts_of_the_same_settings_are_accepted_after_a_round_trip_through_the_file(finetuned: Path) -> None:
    require_same(PROMPT, read_contract(finetuned))  # the tuple has become a list on the way


def test_a_differing_field_is_named_with_both_values(finetuned: Path) -> None:
    other = {**PROMPT, "retrieve": {"num_candidates": 10}}
    with pytest.raises(ContractError, match=r"retrieve\.num_candidates: the adapter has 20, the prompts have 10"):
        require_same(other, read_contract(finetuned))


@pytest.mark.parametrize("other", [{**PROMPT, "new": 1}, {k: v for k, v in PROMPT.items() if k != "cutoffs"}])
def test_a_field_that_only_one_side_has_is_a_difference(finetuned: Path, other: dict[str, object]) -> None:
    with pytest.raises(ContractError, match="nothing"):
        require_same(other, read_contract(finetuned))


def test_lineage_is_not_compared(finetuned: Path) -> None:
    before = read_contract(finetuned)
    require_same(PROMPT, before.model_copy(update={"lineage": {"rgat": "2"}}))


def test_the_error_is_one_line_however_many_fields_differ(finetuned: Path) -> None:
    with pytest.raises(ContractError) as caught:
        require_same({}, read_contract(finetuned))
    assert "\n" not in str(caught.value)
    assert "(and 1 more)" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "field"),
    [("model.safetensors", "base_revision"), ("config.json", "base_revision"), ("tokenizer.json", "tokenizer_sha256")],
)
def test_a_base_model_that_changed_under_the_adapter_is_refused(finetuned: Path, name: str, field: str) -> None:
    locate_base(finetuned, read_contract(finetuned))
    (finetuned / "base" / name).write_text('{"changed": 1}')
    with pytest.raises(ContractError, match=field):
        locate_base(finetuned, read_contract(finetuned))


def test_a_changed_chat_template_changes_the_tokenizer_hash(finetuned: Path) -> None:
    (finetuned / "base" / "chat_template.jinja").write_text("{{ other }}")
    with pytest.raises(ContractError, match="tokenizer_sha256"):
        locate_base(finetuned, read_contract(finetuned))


def test_the_identity_of_a_folder_does_not_depend_on_where_it_is(tmp_path: Path) -> None:
    here, there = (identify_base(str(model_folder(tmp_path / name)), "") for name in ("here", "there"))
    assert (here.revision, here.tokenizer_sha256) == (there.revision, there.tokenizer_sha256)


def test_a_folder_without_weights_is_named(tmp_path: Path) -> None:
    (model_folder(tmp_path / "model") / "model.safetensors").unlink()
    with pytest.raises(InputError, match="safetensors is missing"):
        identify_base(str(tmp_path / "model"), "")


def test_a_missing_contract_names_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(MissingArtifactError, match="tripletune finetune"):
        read_contract(tmp_path)


def test_a_damaged_contract_is_one_line(finetuned: Path) -> None:
    (finetuned / "contract.json").write_text('{"prompt": {}}')
    with pytest.raises(ContractError, match="tokenizer_sha256"):
        read_contract(finetuned)
