"""Short forms of prompts: what a template says, what is cut from a list's prompt, and the audit of what is written."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from prompt_frames import build

from tripletune.answer_lines import LineTokens
from tripletune.audit.forms import audit_forms
from tripletune.config import RunConfig
from tripletune.errors import ConfigError, ContractError
from tripletune.finetune.label_batches import tokenize_labels
from tripletune.finetune.tiny import train_tokenizer
from tripletune.forms import LABELS, ListPrompt, pairs_of
from tripletune.pipeline.resolve import resolve
from tripletune.prompts.forms import write_forms
from tripletune.prompts.template import FOLDER, load_template, parse_template
from tripletune.schemas.answers import LETTERS
from tripletune.schemas.base import conform
from tripletune.schemas.forms import FORMS
from tripletune.schemas.generate import EXAMPLES

SHIPPED = (FOLDER / "recranker.txt").read_text(encoding="utf-8")
TEXTS = load_template("recranker").further_forms()
BOTH = ("pointwise", "pairwise")
LIST = """\
Films the viewer liked, newest first:
- Heat (1995)

Films the viewer disliked, newest first:
(none)

How would the viewer rank these films? Each has a label before its title.
A. Dune (1984) > #2
B. Eden > #3
C. A. B. C. (1990) > #1"""
SYSTEM = {"role": "system", "content": "Rank."}


def a_list(text: str = LIST, after: str = TEXTS.after) -> ListPrompt:
    return ListPrompt.cut([SYSTEM, {"role": "user", "content": text + after}], ["A", "B", "C"], TEXTS, "here")


def settings(**sections: object) -> RunConfig:
    return RunConfig.model_validate({"dataset": "x", **sections})


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Training examples of 200 users."""
    folder = tmp_path_factory.mktemp("shards")
    (folder / "train").mkdir()
    rows = build("recranker", num_viewers=200)
    rows = conform(rows.with_columns(purpose=pl.lit("train"), example_id=pl.format("{}:train:50", "user_id")), EXAMPLES)
    for number, part in enumerate((rows.head(80), rows.tail(120))):
        part.write_parquet(folder / "train" / f"shard-{number:03d}.parquet")
    return folder


@pytest.fixture(scope="module")
def written(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("forms")
    facts = write_forms(shards, out, BOTH, TEXTS, seed=7)
    assert facts["examples"] == {"pointwise": 200, "pairwise": 200}
    return out


def test_a_short_form_shows_the_evidence_of_the_list_and_the_lines_of_its_films() -> None:
    system, user = a_list().pairwise(2, 0)
    assert system == SYSTEM
    assert user["content"] == (
        "Films the viewer liked, newest first:\n- Heat (1995)\n\nFilms the viewer disliked, newest first:\n(none)\n\n"
        "Which of these two films will the viewer prefer? Each has a label before its title.\n"
        "A. A. B. C. (1990) > #1\nB. Dune (1984) > #2\n\n"
        "Answer with the label of that film, A or B, and write nothing else."
    )
    assert (
        a_list()
        .pointwise(1)[1]["content"]
        .endswith("Will the viewer like this film?\n- Eden > #3\n\nAnswer with Yes or No and write nothing else.")
    )


@pytest.mark.parametrize(
    ("text", "after"),
    [
        (LIST.replace("rank these", "order these"), TEXTS.after),
        (LIST.replace("\nB. Eden > #3", ""), TEXTS.after),
        (LIST.replace("B. Eden", "D. Eden"), TEXTS.after),
        (LIST, f"{TEXTS.after}!"),
    ],
)
def test_a_prompt_of_another_template_is_refused(text: str, after: str) -> None:
    with pytest.raises(ContractError, match="here: the prompt does not end with 3 candidates"):
        a_list(text, after)


@pytest.mark.parametrize("number", [0, 1, 2, 3, 10, 11])
def test_each_film_is_compared_once_at_either_place_and_an_even_list_in_both_orders(number: int) -> None:
    pairs = pairs_of(number)
    assert all(first != second for first, second in pairs)
    if number > 1:
        assert sorted(first for first, _ in pairs) == sorted(second for _, second in pairs) == list(range(number))
    if number % 2 == 0:
        assert {(second, first) for first, second in pairs} == set(pairs)


def test_half_of_the_questions_are_about_an_answer_and_half_of_the_choices_show_it_first(written: Path) -> None:
    rows = pl.read_parquet(written / "train" / "*.parquet")
    assert rows.schema == FORMS
    for form, labels in LABELS.items():
        said = rows.filter(form=form)["completion"].list.first().struct.field("content")
        assert set(said) == set(labels)
        assert 72 < (said == labels[0]).sum() < 128  # four standard deviations


def test_what_is_asked_depends_on_the_example_and_the_seed_alone(shards: Path, written: Path, tmp_path: Path) -> None:
    for seed in (7, 8):
        write_forms(shards, tmp_path / str(seed), BOTH, TEXTS, seed=seed)
    one, same, other = (
        pl.read_parquet(folder / "train" / "*.parquet") for folder in (written, tmp_path / "7", tmp_path / "8")
    )
    assert one.equals(same)
    assert not one.equals(other)
    (tmp_path / "few" / "train").mkdir(parents=True)
    kept = pl.read_parquet(shards / "train" / "*.parquet").filter(pl.col("user_id") % 3 == 0)
    kept.write_parquet(tmp_path / "few" / "train" / "shard-000.parquet")
    write_forms(tmp_path / "few", tmp_path / "of-few", BOTH, TEXTS, seed=7)
    few = pl.read_parquet(tmp_path / "of-few" / "train" / "*.parquet")
    assert few.equals(one.filter(pl.col("user_id") % 3 == 0))


def test_the_audit_finds_nothing_in_what_is_written(shards: Path, written: Path) -> None:
    assert audit_forms(shards, written, TEXTS) == []


def content(rows: pl.DataFrame, change: object) -> list[object]:
    return [[{**prompt[0]}, {**prompt[1], "content": change(prompt[1]["content"])}] for prompt in rows["prompt"]]


FAULTS = {
    "form of no example": lambda rows: rows.with_columns(of=pl.lit("0:train:50")),
    "form of other films": lambda rows: rows.with_columns(
        candidates=pl.col("candidates").list.eval(pl.element() + 1000)
    ),
    "form with a wrong label": lambda rows: rows.with_columns(
        completion=pl.Series([[{"role": "assistant", "content": "Yes"}]] * len(rows), dtype=FORMS["completion"])
    ),
    "form with other labels": lambda rows: rows.with_columns(candidate_letters=pl.lit(["X", "Y"])),
    "form with other text": lambda rows: rows.with_columns(
        prompt=pl.Series(content(rows, lambda text: f"{text}\nThe answer is Yes."), dtype=FORMS["prompt"])
    ),
    "form with other evidence": lambda rows: rows.with_columns(
        prompt=pl.Series(content(rows, lambda text: f"- Eden\n{text}"), dtype=FORMS["prompt"])
    ),
    "form told by its label": lambda rows: rows.filter(
        pl.col("completion").list.first().struct.field("content").is_in(["No", "A"])
    ),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_the_audit_finds_a_planted_fault(kind: str, shards: Path, written: Path, tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    for path in (written / "train").iterdir():
        conform(FAULTS[kind](pl.read_parquet(path)), FORMS).write_parquet(tmp_path / "train" / path.name)
    assert kind in {leak.kind for leak in audit_forms(shards, tmp_path, TEXTS)}


def test_a_label_is_a_share_of_one_for_the_right_answer(written: Path) -> None:
    rows = pl.read_parquet(written / "train" / "*.parquet").head(100)
    texts = [message["content"] for name in ("prompt", "completion") for chat in rows[name] for message in chat]
    tokenizer = train_tokenizer(iter(texts), 700)
    made = tokenize_labels(
        rows.to_dict(as_series=False), tokenizer, LineTokens(tokenizer), LETTERS, base_name="x", objective="listwise"
    )
    for row, ids, targets in zip(rows.iter_rows(named=True), made["label_ids"], made["targets"], strict=True):
        assert tokenizer.convert_ids_to_tokens(ids) == list(LABELS[row["form"]])
        assert row["candidate_letters"][targets.index(1.0)] == row["completion"][0]["content"]
        assert sorted(targets) == [0.0, 1.0]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[pairwise]", "[unknown]", "unknown"),
        ("{candidates}\n\nAnswer with Yes", "Answer with Yes", r"\[pointwise\] must have \{candidates\} once"),
        ("answers: letters", "answers: titles", "answers must be letters"),
        ("liked, disliked, candidates", "candidates, liked, disliked", "must end with candidates, answer"),
        ("Answer with Yes", "- Answer with Yes", "starts like a line of data"),
    ],
)
def test_a_template_whose_forms_can_not_be_asked_is_refused(old: str, new: str, message: str) -> None:
    assert old in SHIPPED
    with pytest.raises(ConfigError, match=message):
        parse_template(SHIPPED.replace(old, new).encode(), "mine.txt")


def test_the_hash_of_a_template_covers_its_forms() -> None:
    changed = parse_template(SHIPPED.replace("with Yes or No", "Yes or No").encode(), "mine.txt")
    assert changed.sha256 != load_template("recranker").sha256


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ("finetune", {"objective": "listwise"}, "finetune.residual = true"),
        ("finetune", {"start": "champion"}, 'finetune.start = "champion"'),
        ("prompt", {"worked_examples": 2}, "prompt.worked_examples = 2"),
        ("rank", {"backend": "vllm"}, 'rank.backend = "vllm"'),
        ("ensemble", {"listwise": 0, "pointwise": 0}, "weights of listwise, pointwise are all 0"),
        ("ensemble", {"forms": ["pairwise", "pairwise"]}, "names a form twice"),
    ],
)
def test_settings_that_forms_can_not_keep_are_refused(section: str, changes: dict[str, object], message: str) -> None:
    sections = {"ensemble": {"forms": ["pointwise"]}}
    sections[section] = {**sections.get(section, {}), **changes}
    with pytest.raises(ValueError, match=message):
        settings(**sections)


def test_a_template_without_forms_is_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ensemble\.forms needs a template with the parts"):
        resolve(settings(ensemble={"forms": ["pointwise"]}, prompt={"template": "letters"}), tmp_path)


def test_forms_make_a_stage_and_leave_the_shards_alone_and_weights_train_again(tmp_path: Path) -> None:
    def fingerprints(**ensemble: object) -> dict[str, str]:
        return dict(resolve(settings(ensemble=ensemble, prompt={"template": "recranker"}), tmp_path).fingerprints)

    without, ours = fingerprints(), fingerprints(forms=["pairwise", "pointwise"])
    assert "forms" not in without
    assert {stage for stage in ours if ours[stage] != without.get(stage)} == {"forms", "finetune", "rank", "evaluate"}
    heavier = fingerprints(forms=["pointwise", "pairwise"], pairwise=2.0)
    assert {stage for stage in ours if ours[stage] != heavier[stage]} == {"finetune", "rank", "evaluate"}
    assert without == fingerprints(pairwise=2.0)
