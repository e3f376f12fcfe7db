"""An adapter answers only prompts of the kind it was trained on, over the base model it was trained over."""

from __future__ import annotations

import hashlib
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


def test_the_order_of_keys_is_no_difference_at_any_depth(finetuned: Path) -> None:
    prompts = {"hints": [{"name": "rgat", "facts": {"a": 1, "b": 2}}], "retrieve": {"x": 1, "y": 2}}
    turned = {"retrieve": {"y": 2, "x": 1}, "hints": [{"facts": {"b": 2, "a": 1}, "name": "rgat"}]}
    adapter = read_contract(finetuned).model_copy(update={"prompt": prompts})
    require_same(turned, adapter)
    with pytest.raises(ContractError, match=r"^the adapter was trained on other prompts: hints: the adapter has"):
        require_same({**turned, "hints": [{"facts": {"b": 1, "a": 2}, "name": "rgat"}]}, adapter)


@pytest.mark.parametrize(("num_fields", "more"), [(3, False), (4, True), (6, True)])
def test_three_differing_fields_are_named_and_the_others_counted(finetuned: Path, num_fields: int, more: bool) -> None:
    adapter = read_contract(finetuned).model_copy(update={"prompt": {f"f{n}": n for n in range(num_fields)}})
    with pytest.raises(ContractError) as caught:
        require_same({}, adapter)
    named = "; ".join(f"f{n}: the adapter has {n}, the prompts have nothing" for n in range(3))
    others = f" (and {num_fields - 3} more)" if more else ""
    assert str(caught.value).startswith(f"the adapter was trained on other prompts: {named}{others}; generate")


@pytest.mark.parametrize(("length", "shown"), [(38, f'"{"x" * 38}"'), (39, f'"{"x" * 36}...')])
def test_a_value_of_forty_characters_is_shown_whole_and_a_longer_one_cut_to_forty(
    finetuned: Path, length: int, shown: str
) -> None:
    adapter = read_contract(finetuned).model_copy(update={"prompt": {"f": "x" * length}})
    with pytest.raises(ContractError, match="the adapter has") as caught:
        require_same({"f": 1}, adapter)
    assert f"f: the adapter has {shown}, the prompts have 1;" in str(caught.value)
    assert len(shown) == 40


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_each_file_that_a_model_folder_lacks_is_named(tmp_path: Path, name: str) -> None:
    (model_folder(tmp_path / "model") / name).unlink()
    with pytest.raises(InputError, match=f"not a model folder, {name} is missing"):
        identify_base(str(tmp_path / "model"), "")


def test_a_chat_template_counts_wherever_the_release_keeps_it(tmp_path: Path) -> None:
    inside, beside, without = (model_folder(tmp_path / name) for name in ("inside", "beside", "without"))
    for folder in (beside, without):
        (folder / "tokenizer_config.json").write_text("{}")
    (beside / "chat_template.jinja").write_text("{{ messages }}")
    one, same, other = (identify_base(str(folder), "").tokenizer_sha256 for folder in (inside, beside, without))
    assert one == same != other
    want = hashlib.sha256(b"{}" + json.dumps("{{ messages }}").encode()).hexdigest()
    assert one == want
    assert other == hashlib.sha256(b"{}" + json.dumps("").encode()).hexdigest()


def test_a_damaged_field_is_named_by_its_path(finetuned: Path) -> None:
    path = finetuned / "contract.json"
    whole = json.loads(path.read_text())
    path.write_text(json.dumps({**whole, "lineage": {"rgat": 7}}))
    with pytest.raises(ContractError, match=r"contract\.json: lineage\.rgat: Input should be a valid string; run the"):
        read_contract(finetuned)
    path.write_text("[]")
    with pytest.raises(ContractError, match=r"contract\.json: the file: "):
        read_contract(finetuned)


def test_a_changed_base_is_shown_by_the_first_twelve_digits_then_and_now(finetuned: Path) -> None:
    before = read_contract(finetuned)
    (finetuned / "base" / "model.safetensors").write_bytes(b"other")
    now = identify_base(str(finetuned / "base"), "").revision
    message = rf"base_revision is {before.base_revision[:12]} but .*/base now has {now[:12]}; restore"
    with pytest.raises(ContractError, match=message):
        locate_base(finetuned, before)
