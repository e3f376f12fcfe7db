"""Ablation sets: what is read and planned, that no output is made twice, resuming, failures, and the results."""

from __future__ import annotations

import functools
import html
import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.unit.compared_runs import values_of, write_questions, write_rows
from tripletune.ablate.plan import Plan, Planned, plan_set, stages_of
from tripletune.ablate.results import collect, counted, difference_metrics, rows, write_results
from tripletune.ablate.run import ID, MEMBER, SET, MemberFailed, begun_run, refuse_failures, run_set
from tripletune.ablate.sets import find_config, load_set
from tripletune.cli.app import CHECKOUT
from tripletune.cli.main import main
from tripletune.compare.compare import compare_runs
from tripletune.compare.runs import read_scores
from tripletune.errors import ConfigError, InputError, MissingArtifactError
from tripletune.pipeline.resolve import resolve
from tripletune.store.paths import Facts
from tripletune.store.runs import RunRecord, earlier_run, list_runs, new_run_name, read_run, utc_now, write_run

SETS = CHECKOUT / "configs" / "ablations"
SMOKE = CHECKOUT / "configs" / "smoke.toml"
LLM = "finetune rank evaluate"
PROMPTS = f"generate {LLM}"
NUM_USERS = 60

TWO = """
why = "Two changes."
row = "tuned"
metrics = ["ndcg_at_5"]

[[member]]
name = "sentence"
why = "facts as sentences"
set = ["prompt.triple_form=sentence"]

[[member]]
name = "order"
why = "the retriever's order"
[member.set.prompt]
candidate_order = "retrieved"
"""


METRICS = '["ndcg_at_5", "ndcg_at_10"]'
"""The first is measured whatever the cut-offs."""


@pytest.fixture
def two(tmp_path: Path) -> Path:
    path = tmp_path / "two.toml"
    path.write_text(TWO)
    return path


def planned(path: Path, root: Path, **more: Sequence[str]) -> Plan:
    """The plan of a set on the smoke preset; fingerprints, which do not depend on the root, are computed once."""
    plan = _planned(path.read_bytes(), path.stem, tuple((name, tuple(value)) for name, value in more.items()))
    members = [replace(one, paths=replace(one.paths, root=root)) for one in plan.members]
    return replace(plan, members=tuple(members))


@functools.cache
def _planned(content: bytes, name: str, more: tuple[tuple[str, tuple[str, ...]], ...]) -> Plan:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.toml"
        path.write_bytes(content)
        return plan_set(load_set(path), name, SMOKE, Path(folder), **dict(more))


class Runner:
    """Makes a member's stages in the real store; of generate and evaluate as much as ``compare`` reads."""

    def __init__(self, gains: Mapping[str, float] | None = None) -> None:
        self.gains = gains or {}
        self.made: list[tuple[str, str]] = []
        """Member and stage of each output in the order in which they were made."""
        self.breaks: dict[str, BaseException] = {}
        """Raised by a member as it reaches finetune."""

    def __call__(self, one: Planned, belongs: Mapping[str, str]) -> str:
        paths, name = one.paths, new_run_name(one.paths.root, one.settings.dataset)
        record = RunRecord(
            name=name, dataset=paths.dataset, status="running", started=utc_now(),
            config=one.settings.model_dump(mode="json"), fingerprints=dict(paths.fingerprints), tags=dict(belongs),
        )  # fmt: skip
        write_run(paths.root, record)
        stages: dict[str, str] = {}
        for stage in paths.fingerprints:
            if stage == "finetune" and one.name in self.breaks:
                raise self.breaks[one.name]
            stages[stage] = "reused" if paths.is_here(stage) else "made"
            paths.build(stage, lambda work, stage=stage: self._make(one.name, stage, work))
        write_run(paths.root, record.model_copy(update={"status": "completed", "stages": stages}))
        return name

    def _make(self, member: str, stage: str, work: Path) -> Facts:
        self.made.append((member, stage))
        (work / "made.txt").write_text(f"{member} {stage}")
        values = {purpose: values_of(NUM_USERS, 3, self.gains.get(member, 0.0)) for purpose in ("test", "valid")}
        if stage == "generate":
            for purpose in values:
                write_questions(work / purpose, 1, NUM_USERS)
        if stage == "evaluate":
            write_rows(work, {"tuned": values, "untuned": {name: np.zeros(NUM_USERS) for name in values}})
        return {}

    def of(self, member: str) -> str:
        return " ".join(stage for name, stage in self.made if name == member)


def test_members_make_only_what_their_change_reaches_and_the_plan_says_so_before(two, tmp_path):
    plan = planned(two, tmp_path / "a")
    before = [" ".join(stage for stage, how in row.items() if how == "make") for row in stages_of(plan)]
    runner = Runner()
    outcomes = run_set(plan, runner, {})
    whole = " ".join(plan.base.paths.fingerprints)
    assert [runner.of(name) for name in ("base", "sentence", "order")] == before == [whole, PROMPTS, PROMPTS]
    assert len(set(runner.made)) == len(runner.made)
    assert [one.count("made") for one in outcomes] == [len(whole.split()), 4, 4]
    assert [one.count("reused") for one in outcomes] == [0, len(whole.split()) - 4, len(whole.split()) - 4]
    outputs = {stage: len(list((tmp_path / "a" / "smoke" / stage).glob("*/manifest.json"))) for stage in whole.split()}
    assert outputs == dict.fromkeys(whole.split(), 1) | dict.fromkeys(PROMPTS.split(), 3)


def test_each_member_is_a_run_of_its_own_with_tags_and_none_is_taken_for_the_latest_run(two, tmp_path):
    plan = planned(two, tmp_path)
    usual = Runner()(plan.base, {})
    outcomes = run_set(plan, Runner(), {"mlflow.parentRunId": "p"})
    records = [read_run(tmp_path, one.run) for one in outcomes]
    assert len({record.name for record in records} | {usual}) == 4
    assert [record.tags for record in records] == [
        {SET: "two", MEMBER: name, ID: plan.id, "mlflow.parentRunId": "p"} for name in ("base", "sentence", "order")
    ]
    assert read_run(tmp_path).name == usual
    assert earlier_run(records[1].paths(tmp_path), "generate").name == usual  # not the member before it
    (tmp_path / "runs" / f"{usual}.json").unlink()
    with pytest.raises(MissingArtifactError):
        read_run(tmp_path)


def test_a_member_that_would_train_an_untouched_stage_again_is_found_by_the_manifests(two, tmp_path):
    plan, runner = planned(two, tmp_path), Runner()

    def careless(one: Planned, belongs: Mapping[str, str]) -> str:
        if one.name == "order":
            (one.paths.folder("lightgcn") / "made.txt").unlink()  # so that the store makes it again
        return runner(one, belongs)

    with pytest.raises(RuntimeError, match="member order made lightgcn again, which was there"):
        run_set(plan, careless, {})


def test_a_killed_set_goes_on_with_the_member_that_was_at_work(two, tmp_path):
    plan, runner = planned(two, tmp_path), Runner()
    runner.breaks["sentence"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        run_set(plan, runner, {})
    assert begun_run(plan).tags[MEMBER] == "sentence"
    again = Runner()
    outcomes = run_set(planned(two, tmp_path), again, {})
    assert [one.state for one in outcomes] == ["finished before", "ran", "ran"]
    assert [again.of(name) for name in ("base", "sentence", "order")] == ["", LLM, PROMPTS]
    third = run_set(planned(two, tmp_path), Runner(), {})
    assert [one.state for one in third] == ["finished before"] * 3
    assert [(one.run, one.stages) for one in third] == [(one.run, one.stages) for one in outcomes]
    made = sum(one.count("made") for one in outcomes)
    assert counted(third) == f"Stages: 0 made in 0 s, 0 reused; members that had finished made {made} before; " + (
        "no output was made twice."
    )


def test_a_changed_set_runs_what_has_changed(two, tmp_path):
    run_set(planned(two, tmp_path), Runner(), {})
    two.write_text(TWO.replace('candidate_order = "retrieved"', "max_liked = 3"))
    again = Runner()
    assert [one.state for one in run_set(planned(two, tmp_path), again, {})] == ["finished before"] * 2 + ["ran"]
    assert again.of("order") == PROMPTS


def test_a_finished_run_counts_for_the_member_with_its_outputs_and_not_for_its_name_alone(two, tmp_path):
    run_set(planned(two, tmp_path), Runner(), {})
    first, second = "prompt.triple_form=sentence", 'candidate_order = "retrieved"'
    two.write_text(TWO.replace(first, "prompt.candidate_order=retrieved").replace(second, 'triple_form = "sentence"'))
    again = Runner()
    assert [one.state for one in run_set(planned(two, tmp_path), again, {})] == ["finished before", "ran", "ran"]
    assert again.made == []


def test_a_member_that_fails_does_not_stop_the_others_and_is_named_at_the_end(two, tmp_path):
    plan, runner = planned(two, tmp_path), Runner(gains={"order": 0.3})
    runner.breaks["sentence"] = InputError("the disk is full.")
    outcomes = run_set(plan, runner, {})
    assert [one.state for one in outcomes] == ["ran", "failed", "ran"]
    found = collect(plan, outcomes)
    assert {line.run for line in found.comparison.lines} == {"order"}
    assert found.left_out == {"sentence": "failed: the disk is full."}
    with pytest.raises(MemberFailed, match=r"1 of 3 members failed: sentence: the disk is full; the same command"):
        refuse_failures(outcomes, plan.folder)
    again = Runner()
    assert [one.state for one in run_set(plan, again, {})] == ["finished before", "ran", "finished before"]
    refuse_failures(run_set(plan, again, {}), plan.folder)


def test_without_the_base_nothing_is_compared(two, tmp_path):
    plan, runner = planned(two, tmp_path), Runner()
    runner.breaks["base"] = ValueError("bug")
    found = collect(plan, run_set(plan, runner, {}))
    assert found.comparison is None
    write_results(plan.folder, found)
    assert "Nothing could be compared." in (plan.folder / "ablation.md").read_text()


def test_a_member_without_a_change_is_the_bases_own_run_at_another_row(two, tmp_path):
    two.write_text(TWO + '\n[[member]]\nname = "no-tuning"\nwhy = "?"\nrow = "untuned"\n')
    plan = planned(two, tmp_path, only=["no-tuning"])
    outcomes = run_set(plan, Runner(), {})
    assert [(one.state, one.run) for one in outcomes] == [("ran", outcomes[0].run), ("same run", outcomes[0].run)]
    (line,) = (line for line in collect(plan, outcomes).comparison.lines if line.purpose == "test")
    assert (line.run, line.mean, line.verdict) == ("no-tuning", 0.0, "worse")


def test_the_table_is_compares_own_over_all_members_as_one_family(two, tmp_path):
    plan = planned(two, tmp_path)
    outcomes = run_set(plan, Runner(gains={"order": 0.5}), {})
    found = collect(plan, outcomes)
    named = [read_scores(one.run, tmp_path, "tuned") for one in outcomes]
    direct = compare_runs(named, metrics=("ndcg_at_5",), confidence=0.95, resamples=10_000)
    numbers = ("difference", "low", "high", "p_value", "p_adjusted", "detectable", "verdict")
    assert [[getattr(line, name) for name in numbers] for line in found.comparison.lines] == [
        [getattr(line, name) for name in numbers] for line in direct.lines
    ]
    assert found.comparison.family["num_tests"] == 4  # two members by two purposes
    verdicts = {(line.run, line.purpose): line.verdict for line in found.comparison.lines}
    assert verdicts == {
        ("sentence", "test"): "no difference shown", ("sentence", "valid"): "no difference shown",
        ("order", "test"): "better", ("order", "valid"): "better",
    }  # fmt: skip
    assert difference_metrics(found)["order.test_ndcg_at_5"] == found.comparison.lines[2].difference > 0


def test_the_three_files_say_the_same(two, tmp_path):
    two.write_text(TWO.replace("the retriever's order", "order <b>|</b>"))
    plan = planned(two, tmp_path)
    found = collect(plan, run_set(plan, Runner(gains={"order": 0.5}), {}))
    as_json, as_markdown, as_html, *compared = write_results(plan.folder, found)
    data, text, page = json.loads(as_json.read_text()), as_markdown.read_text(), as_html.read_text()
    assert [path.name for path in compared] == ["comparison.json", "comparison.md", "comparison.html"]
    assert data["table"] == [list(row) for row in rows(found)]
    for row in data["table"]:
        assert f"| {' | '.join(row)} |" in text
        assert all(f">{html.escape(cell)}<" in page for cell in row)
    assert r"order <b>\|</b>" in text
    assert "order &lt;b&gt;|&lt;/b&gt;" in page
    assert [one["state"] for one in data["members"]] == ["ran"] * 3
    for sentence in data["said"]:
        assert sentence in text
        assert sentence in page
    assert re.search(r"Stages: \d+ made in .* s, \d+ reused; no output was made twice", text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('why = "Two', 'hwy = "Two'), "two.toml: why is missing; add it"),
        (('row = "tuned"', 'rwo = "tuned"'), "two.toml: rwo: unknown key; the keys there are why, config"),
        (('set = ["prompt.triple_form=sentence"]', "sets = []"), "member 'sentence', sets: unknown key; the keys"),
        (('name = "order"', 'name = "sentence"'), "member: the name 'sentence' is there twice"),
        (('name = "order"', 'name = "base"'), "the name 'base' is there twice .'base' is the unchanged run's"),
        (("why = \"the retriever's order\"", ""), "member 'order', why is missing; add it"),
        (("why =", "why"), "two.toml cannot be read as TOML"),
    ],
)  # fmt: skip
def test_a_wrong_set_is_refused_in_one_line(two, change, message):
    two.write_text(TWO.replace(*change, 1))
    with pytest.raises(ConfigError, match=message) as caught:
        load_set(two)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ('"prompt.triple_form=sentense"', "member sentence: --set prompt.triple_form=sentense: prompt.triple_form = "),
        ('"prompt.tripel_form=sentence"', "member sentence: .*did you mean prompt.triple_form[?]"),
        ('"workers.count=3"', "member sentence changes no output of the base [(]workers.count=3[)]"),
        ('"dataset=other"', "member sentence sets dataset"),
        ('"evaluate.rerank_cutoffs=[3]"', "member sentence: metrics names 'ndcg_at_10', which is not measured"),
    ],
)
def test_a_wrong_member_is_refused_before_anything_runs(two, tmp_path, change, message):
    two.write_text(TWO.replace('"prompt.triple_form=sentence"', change).replace('["ndcg_at_5"]', METRICS))
    with pytest.raises(ConfigError, match=message):
        planned(two, tmp_path)
    assert list_runs(tmp_path) == []


def test_a_metric_that_is_not_measured_is_refused_before_anything_runs(two, tmp_path):
    two.write_text(TWO.replace("ndcg_at_5", "ndcg_at_7"))
    with pytest.raises(ConfigError, match="metrics names 'ndcg_at_7', which is not measured; there are hr_at_3, ndcg"):
        planned(two, tmp_path)


def test_the_config_is_the_given_one_or_the_sets_from_any_directory(two, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"two.toml names no config; give its base preset with --config"):
        find_config(load_set(two), two)
    monkeypatch.chdir(tmp_path)
    hints = SETS / "hints.toml"
    assert find_config(load_set(hints), hints) == CHECKOUT / "configs" / "ml-latest-small.toml"
    assert find_config(load_set(hints), hints, "mine.toml") == Path("mine.toml")


COMPACT = ("prompt.template=compact", "finetune.objective=listwise")
FROM_RETRIEVE = f"retrieve {PROMPTS}"
REACHED = {
    "hints": {"no-tuning": "", "no-hint-1": PROMPTS, "no-hint-2": PROMPTS, "no-hints": PROMPTS,
              "random-fact": FROM_RETRIEVE},
    "hints-compact": {"no-tuning": "", "no-hint-1": PROMPTS, "no-hint-2": PROMPTS, "no-hints": PROMPTS,
                      "random-fact": FROM_RETRIEVE},
    "triples": {**dict.fromkeys(("random-fact", "most-shared-fact", "published-fact", "no-facts", "two-facts",
                                 "three-facts"), FROM_RETRIEVE), "sentence-form": PROMPTS},
    "retrieval": {"no-fusion": f"ease {FROM_RETRIEVE}", "fixed-fusion": FROM_RETRIEVE,
                  "kerag-candidates": FROM_RETRIEVE, "no-knowledge-graph": f"text sequence fusion {FROM_RETRIEVE}",
                  "recranker-sampling": FROM_RETRIEVE, "uniform-sampling": FROM_RETRIEVE},
    "prompt": dict.fromkeys(("published-order", "retriever-order", "letters", "sentence-form", "no-dislikes"), PROMPTS),
    "few-shot": {**dict.fromkeys(("one-shot", "two-shot", "four-shot"), PROMPTS), "tuned": ""},
    "model": {"no-tuning": "", "served": "", "other-base": PROMPTS, "sft": LLM, "behaviour-tokens": LLM},
}  # fmt: skip
"""By shipped set and member, the stages that differ from the base's."""
BASES = {"hints-compact": COMPACT, "few-shot": COMPACT, "model": (*COMPACT, "finetune.model=smollm2-135m")}
"""Settings that make the smoke preset a base as the set wants it."""


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(SETS.glob("*.toml")), ids=lambda path: path.stem)
def test_members_of_shipped_sets_reach_the_stages_they_are_meant_to(path, tmp_path):
    found = load_set(path)
    assert find_config(found, path).is_file()
    plan = planned(path, tmp_path, overrides=BASES.get(path.stem, ()))
    base = plan.base.paths.fingerprints
    reached = {
        one.name: " ".join(stage for stage, mine in one.paths.fingerprints.items() if mine != base.get(stage))
        for one in plan.members[1:]
    }
    assert reached == REACHED[path.stem]


def test_a_dry_run_says_what_each_member_makes_and_runs_nothing(two, tmp_path, capsys):
    Runner()(planned(two, tmp_path).base, {})
    command = ["ablate", str(two), "--config", str(SMOKE), "--artifacts", str(tmp_path)]
    assert main([*command, "--dry-run", "--member", "order"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"ablation two on .*smoke.toml: 2 runs", said)
    assert re.search(r"base +│ row tuned +│ nothing +│ 15 ", said)
    assert re.search(
        r'order +│ prompt.candidate_order="retrieved" +│ 4: generate, finetune, rank, evaluate +│ 11 ', said
    )
    assert len(list_runs(tmp_path)) == 1
    assert main([*command, "--dry-run", "--member", "ordre"]) == 2
    assert "--member 'ordre': set two has sentence, order" in capsys.readouterr().err
    assert main(["ablate", str(SETS / "hnts.toml"), "--dry-run"]) == 2
    assert "no ablation set" in capsys.readouterr().err


def test_a_set_is_known_by_its_base_and_members(two, tmp_path):
    one = planned(two, tmp_path)
    assert one.id == planned(two, tmp_path / "b").id
    assert one.id != planned(two, tmp_path, overrides=["seed=3"]).id
    assert one.id != planned(two, tmp_path, only=["order"]).id
    assert resolve(one.base.settings, tmp_path).fingerprints == one.base.paths.fingerprints
