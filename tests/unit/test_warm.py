"""Warm start without a training: which champion, which examples, what enters the fingerprint, what is refused."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from tests.finetune_shards import example, write_shards
from tripletune.audit.ancestors import ancestor_leaks, refuse_trained_on
from tripletune.config import RunConfig
from tripletune.contract import AdapterContract, write_contract
from tripletune.errors import ConfigError, InputError, MissingArtifactError
from tripletune.finetune.warm import Champion, reuse_champion, select_new, write_trained_examples
from tripletune.pipeline.garbage import find_garbage, kept_runs
from tripletune.pipeline.resolve import resolve
from tripletune.pipeline.warm import resolved_start
from tripletune.promote.decision import CHAMPION, PromotionDecision, Reference, Rule, decide_promotion
from tripletune.prompts.engine import prompt_contract
from tripletune.schemas.base import conform
from tripletune.schemas.finetune import TRAINED_EXAMPLES, TRAINED_EXAMPLES_NAME
from tripletune.schemas.generate import EXAMPLES
from tripletune.store.champion import Standing, standing_champion, standing_outputs
from tripletune.store.files import write_json
from tripletune.store.paths import RunPaths
from tripletune.store.runs import RunRecord, write_run

MODEL = "tripletune-toy"


def config(**finetune: Any) -> RunConfig:
    return RunConfig.model_validate({"dataset": "toy", "finetune": {"start": "champion", **finetune}})


def make_output(paths: RunPaths, settings: RunConfig, facts: dict[str, Any] | None = None) -> str:
    """A finetune output without weights; its fingerprint."""

    def make(work: Path) -> dict[str, Any]:
        prompt = prompt_contract(settings.prompt, settings.retrieve)
        contract = AdapterContract(prompt=prompt, tokenizer_sha256="t", base_model="tiny", base_revision="r")
        write_contract(work, contract)
        (work / "adapter").mkdir()
        lora = {"r": settings.finetune.lora_r, "lora_alpha": settings.finetune.lora_alpha}
        write_json(work / "adapter" / "adapter_config.json", lora)
        TRAINED_EXAMPLES.to_frame().write_parquet(work / TRAINED_EXAMPLES_NAME)
        return {"ancestors": [], "warm_runs": 0, **(facts or {})}

    return paths.build("finetune", make).name


def decide(root: Path, number: int, adapter: str, before: str | None, *, promote: bool, **more: Any) -> str:
    """A run with its decision; the run's name."""
    name = f"toy-2026010{number}-000000"
    write_run(
        root,
        RunRecord.model_validate(
            {
                "name": name,
                "dataset": "toy",
                "status": "completed",
                "started": f"2026-01-0{number}T00:00:00Z",
                "config": {"dataset": "toy"},
                "fingerprints": {"finetune": adapter},
            }
        ),
    )
    folder = root / "toy" / "promote" / name
    folder.mkdir(parents=True)
    decision = {"model": MODEL, "promote": promote, "adapter": adapter, "champion_before": before, **more}
    write_json(folder / "decision.json", decision)
    return name


def standing(root: Path) -> Standing | None:
    return standing_champion(root, "toy", MODEL)


def test_the_champion_is_the_one_that_the_newest_promotion_left(tmp_path: Path) -> None:
    assert standing(tmp_path) is None
    decide(tmp_path, 1, "a", None, promote=False)
    assert standing(tmp_path) is None
    second = decide(tmp_path, 2, "b", None, promote=True)
    assert standing(tmp_path) == Standing("b", second, beat_fresh=False)
    decide(tmp_path, 3, "c", "b", promote=False)
    assert standing(tmp_path) == Standing("b", second, beat_fresh=False)
    decide(tmp_path, 4, "d", "b", promote=False, kept_against_fresh=True)
    assert standing(tmp_path) == Standing("b", second, beat_fresh=True)
    decide(tmp_path, 5, "e", "x", promote=False)  # someone moved the alias to x
    assert standing(tmp_path) == Standing("x", "", beat_fresh=False)
    sixth = decide(tmp_path, 6, "f", "x", promote=True)
    assert standing(tmp_path) == Standing("f", sixth, beat_fresh=False)
    assert standing_champion(tmp_path, "toy", "another") is None
    assert standing_outputs(tmp_path) == {tmp_path / "toy" / "finetune" / "f"}


def test_without_a_champion_the_fingerprint_is_that_of_a_start_from_the_base(tmp_path: Path) -> None:
    warm, base = (resolve(config(start=start), tmp_path) for start in ("champion", "base"))
    assert warm.fingerprints == base.fingerprints
    assert resolved_start(warm, config()).reason == f"there is no champion of {MODEL} yet"


def test_the_champion_enters_the_fingerprint_and_its_own_inputs_lead_back_to_it(tmp_path: Path) -> None:
    first = resolve(config(), tmp_path)
    champion = make_output(first, config())
    run = decide(tmp_path, 1, champion, None, promote=True)
    assert resolve(config(), tmp_path).fingerprints == first.fingerprints  # nothing new: reused, whatever is due
    assert resolve(config(fresh_every=1), tmp_path).fingerprints == first.fingerprints

    again = resolve(config(num_train_epochs=1.0), tmp_path)
    assert (
        again.fingerprints["finetune"]
        != resolve(config(num_train_epochs=1.0, start="base"), tmp_path).fingerprints["finetune"]
    )
    start = resolved_start(again, config()).champion
    assert start == Champion(tmp_path / "toy" / "finetune" / champion, champion, run, since=1)
    assert start.chain == [{"fingerprint": champion, "run": run}]

    # promoted in its turn, it is found again by the same inputs
    warm = make_output(again, config(), {"ancestors": start.chain, "warm_runs": 1})
    decide(tmp_path, 2, warm, champion, promote=True)
    assert resolve(config(num_train_epochs=1.0), tmp_path).fingerprints["finetune"] == warm
    later = resolve(config(num_train_epochs=2.0), tmp_path)
    assert later.ingredients["finetune"]["inputs"]["champion/adapter"] == warm
    found = resolved_start(later, config()).champion
    assert found is not None
    assert [one["fingerprint"] for one in found.chain] == [champion, warm]
    assert found.since == 2


@pytest.mark.parametrize(("fresh_every", "beat_fresh", "warm"), [(4, False, True), (3, False, False), (3, True, True)])
def test_a_fresh_adapter_is_due_by_the_length_of_the_chain(
    tmp_path: Path, fresh_every: int, beat_fresh: bool, warm: bool
) -> None:
    paths = resolve(config(), tmp_path)
    champion = make_output(paths, config(), {"warm_runs": 2, "ancestors": [{"fingerprint": "f", "run": "r"}] * 2})
    decide(tmp_path, 1, champion, None, promote=True)
    decide(tmp_path, 2, "another", champion, promote=False, kept_against_fresh=beat_fresh)
    changed = {"num_train_epochs": 1.0, "fresh_every": fresh_every}
    found = resolve(config(**changed), tmp_path)
    start = resolved_start(found, config(**changed))
    assert (start.champion is not None) is warm
    if start.champion:
        assert start.champion.since == (1 if beat_fresh else 3)
        return
    assert "a fresh adapter is due after 2 warm trainings (finetune.fresh_every = 3)" in start.reason
    assert found.fingerprints == resolve(config(**changed, start="base"), tmp_path).fingerprints


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"finetune": {"lora_r": 8}},
            r"trained with finetune\.lora_r = 16 and this run has 8; set finetune\.lora_r back",
        ),
        ({"finetune": {"objective": "listwise"}}, r"finetune\.objective = 'sft' and this run has 'listwise'"),
        ({"finetune": {"model": "a/b", "revision": "c"}}, r"finetune\.model = 'tiny' and this run has 'a/b'"),
        ({"finetune": {"tiny": {"num_layers": 1}}}, r"finetune\.tiny\.num_layers = 2 and this run has 1"),
        ({"prompt": {"template": "letters"}}, r"start = 'champion': .*answer_style: the adapter has \"titles\""),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_champion_of_other_settings_is_refused_in_one_line(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    decide(tmp_path, 1, make_output(resolve(config(), tmp_path), config()), None, promote=True)
    finetune = {"start": "champion", **changes.get("finetune", {})}
    prompt = {"template": "letters"} if finetune.get("objective") else {}
    other = RunConfig.model_validate({"dataset": "toy", "prompt": prompt, **changes, "finetune": finetune})
    with pytest.raises(ConfigError, match=message) as caught:
        resolve(other, tmp_path)
    assert "\n" not in str(caught.value)
    assert "'base'" in str(caught.value)


def test_a_champion_whose_output_is_gone_or_says_nothing_of_its_examples_is_refused(tmp_path: Path) -> None:
    decide(tmp_path, 1, "f" * 32, None, promote=True)
    with pytest.raises(MissingArtifactError, match=r"output is gone from .*; bring it back .*, or set finetune\.start"):
        resolve(config(), tmp_path)
    paths = RunPaths(root=tmp_path, dataset="toy", fingerprints={"finetune": "f" * 32})
    paths.build("finetune", lambda work: {"bytes": (work / "contract.json").write_text("{}")})
    with pytest.raises(MissingArtifactError, match="is of an older version"):
        resolve(config(), tmp_path)


def test_gc_keeps_the_champions_output_when_the_run_that_made_it_goes(tmp_path: Path) -> None:
    champion = make_output(resolve(config(), tmp_path), config())
    other = make_output(resolve(config(start="base", lora_r=8), tmp_path), config())
    decide(tmp_path, 1, champion, None, promote=True)
    decide(tmp_path, 2, other, champion, promote=False)
    decide(tmp_path, 3, "a" * 32, champion, promote=False)
    garbage = find_garbage(tmp_path, kept_runs(tmp_path, newest=1, named=[]))
    assert [one.folder.name for one in garbage] == [other]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return write_shards(tmp_path / "shards", train=6, valid=3, test=3, long=False)


def as_champion(folder: Path, run: str = "r", *, ancestors: int = 0) -> Champion:
    """A champion whose output is a folder as it is."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    facts = {"ancestors": [{"fingerprint": "e", "run": "r"}] * ancestors, "warm_runs": ancestors, "eval_loss": 1.5}
    sizes = {name: {"bytes": path.stat().st_size} for name, path in files.items() if name != "manifest.json"}
    write_json(folder / "manifest.json", {"facts": facts, "files": sizes})
    return Champion(folder, folder.name, run, ancestors + 1)


def change(file: Path, *columns: pl.Expr) -> None:
    conform(pl.read_parquet(file).with_columns(*columns), EXAMPLES).write_parquet(file)


def test_only_examples_are_new_that_ask_for_something_else(shards: Path, tmp_path: Path) -> None:
    files = sorted((shards / "train").glob("*.parquet"))
    everything, facts = select_new(files, None, tmp_path / "new")
    assert everything == files
    assert facts == {"start": "base", "ancestors": [], "warm_runs": 0, "examples_new": 6, "examples_known": 0}
    out = tmp_path / "c"
    out.mkdir()
    write_trained_examples(out, files, None)
    champion = as_champion(out)
    assert select_new(files, champion, tmp_path / "new")[0] == []

    # user 1 at a later cutoff, user 3 with an answer less: both in the first file
    later = pl.when(pl.col("user_id") == 1).then(16).otherwise("cutoff").alias("cutoff")
    fewer = pl.when(pl.col("user_id") == 3).then(pl.col("answers").list.head(2)).otherwise("answers").alias("answers")
    change(files[0], later, fewer)
    # another order and other hints are nothing that the users have said
    change(files[1], pl.col("answers").list.reverse(), pl.col("ranking").list.reverse())
    new, facts = select_new(files, champion, tmp_path / "new")
    assert [file.name for file in new] == [files[0].name]
    assert pl.read_parquet(new)["user_id"].to_list() == [1, 3]
    assert (facts["examples_new"], facts["examples_known"]) == (2, 4)
    assert facts["ancestors"] == [{"fingerprint": "c", "run": "r"}]

    warm = tmp_path / "warm"
    warm.mkdir()
    write_trained_examples(warm, new, champion)
    seen = pl.read_parquet(warm / TRAINED_EXAMPLES_NAME)
    assert seen.schema == TRAINED_EXAMPLES
    assert seen.filter(pl.col("generation") == 1)["user_id"].to_list() == [1, 3]
    assert seen.filter(pl.col("generation") == 0)["user_id"].to_list() == [1, 2, 3, 4, 5, 6]
    assert select_new(files, as_champion(warm, ancestors=1), tmp_path / "newer")[0] == []


def test_a_champion_with_nothing_new_is_reused_file_by_file(shards: Path, tmp_path: Path) -> None:
    out, reused = tmp_path / "c", tmp_path / "reused"
    (out / "adapter").mkdir(parents=True)
    (out / "adapter" / "weights").write_text("w")
    champion = as_champion(out)
    for _ in range(2):  # the second time after a kill
        reused.mkdir(exist_ok=True)
        facts = reuse_champion(champion, reused)
    assert {path.relative_to(reused).as_posix() for path in reused.rglob("*")} == {"adapter", "adapter/weights"}
    assert facts == {**champion.facts, "same_as": "c"}


def held_out(folder: Path, user: int, *, unseen: bool = False, answer: int | None = None) -> Path:
    """Shards whose valid has one example."""
    row = example(user, "valid") | {"unseen": unseen}
    row |= {"answers": [answer]} if answer is not None else {}
    for purpose, rows in (("valid", [row]), ("test", [])):
        (folder / purpose).mkdir(parents=True)
        pl.DataFrame(rows, schema=EXAMPLES).write_parquet(folder / purpose / "shard-000.parquet")
    return folder


def test_what_an_ancestor_was_trained_on_and_this_run_holds_out_is_refused_by_example(
    shards: Path, tmp_path: Path
) -> None:
    out = tmp_path / "champion"
    out.mkdir()
    files = sorted((shards / "train").glob("*.parquet"))
    write_trained_examples(out, files, None)
    rows = pl.read_parquet(files).filter(pl.col("user_id") == 2).row(0, named=True)
    never = 10_000
    assert ancestor_leaks(out, held_out(tmp_path / "a", 2, answer=never)) == []
    assert ancestor_leaks(out, held_out(tmp_path / "b", 99, unseen=True)) == []
    refuse_trained_on(out, tmp_path / "a")
    for name, film in (("answer", rows["answers"][1]), ("evidence", rows["liked"][0])):
        moved = held_out(tmp_path / name, 2, answer=film)
        with pytest.raises(
            InputError, match=rf"but 1 of this run's .* 2:valid: answer was trained on, film {film} "
        ) as e:
            refuse_trained_on(out, moved)
        assert "\n" not in str(e.value)
    now_unseen = held_out(tmp_path / "unseen", 2, unseen=True, answer=never)
    with pytest.raises(InputError, match=r"first 2:valid: unseen user was trained on, in training 0 of"):
        refuse_trained_on(out, now_unseen)


RNG = np.random.default_rng(0)


def against_chain(lead: float, noise: float, users: int = 400) -> PromotionDecision:
    """Decision on a fresh adapter that is worse than the champion by ``lead`` on average."""
    drawn_U = RNG.normal(0, noise, users)
    fresh = pl.DataFrame({"user_id": np.arange(users), "ndcg_at_5": 0.5 - lead + drawn_U - drawn_U.mean()})
    champion = pl.DataFrame({"user_id": np.arange(users), "ndcg_at_5": np.full(users, 0.5)})
    rule = Rule(0.02, 0.95, min_users=50, resamples=500, seed=0)
    return decide_promotion(fresh, [Reference(CHAMPION, champion, version="3", warm_runs=3)], rule)


@pytest.mark.parametrize(
    ("lead", "noise", "users", "promote", "reason"),
    [
        (-0.05, 0.02, 400, True, "not worse than champion"),
        (0.005, 0.02, 400, True, "not worse than champion"),  # clearly worse, but not by the margin
        (0.05, 0.02, 400, False, "is below 0, so the chain goes on"),
        (0.05, 0.4, 50, True, "is not below 0, so the chain ends"),  # nobody can tell
        (0.05, 0.4, 49, False, "only 49 users"),
    ],
)
def test_a_warm_champion_stays_only_where_it_is_clearly_better_than_a_fresh_adapter(
    lead: float, noise: float, users: int, promote: bool, reason: str
) -> None:
    decision = against_chain(lead, noise, users)
    assert decision.promote is promote
    assert reason in " ".join([decision.reason, *(one.reason for one in decision.comparisons)])
    assert decision.kept_against_fresh is (reason == "is below 0, so the chain goes on")


def test_fingerprints_with_a_champion_need_no_torch() -> None:
    import subprocess

    code = "import sys, tripletune.pipeline.warm, tripletune.prompts.engine; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
