"""Which edits of the source rebuild which stages: exactly those whose bytes the edit can change."""

from __future__ import annotations

import ast
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tripletune.config import RetrieveConfig, RunConfig
from tripletune.pipeline import resolve as resolving
from tripletune.pipeline.registry import reusable_stages
from tripletune.pipeline.resolve import resolve
from tripletune.prompts import template
from tripletune.store import sources

HERE = Path(sources.__file__).parents[1]
TRAINED = "text rgat lightgcn sequence ease slist fusion retrieve generate finetune rank evaluate"
INGEST = f"ingest split knowledge {TRAINED}"
FUSION = "fusion retrieve generate finetune rank evaluate"
RETRIEVE = "retrieve generate finetune rank evaluate"
GENERATE = "generate finetune rank evaluate"
FINETUNE = "finetune rank evaluate"
RANK = "rank evaluate"
NOTHING = ""

CODE = "\nedited = 1\n"
DOCSTRING = '\n"""A sentence about what stands above."""\n'

EDITS = [
    # what can change no byte
    ("a docstring", "schemas/split.py", DOCSTRING, NOTHING),
    ("a comment", "models/lightgcn/loss.py", "\n# why it is so\n", NOTHING),
    ("blank lines", "retrieve/fuse.py", "\n\n\n", NOTHING),
    ("an import for the type checker", "retrieve/fuse.py", "\nif TYPE_CHECKING:\n    import this\n", NOTHING),
    ("a new module", "models/foo.py", CODE, NOTHING),
    ("a new retriever that no config names", "models/itemknn/serve.py", CODE, NOTHING),
    ("a template that is not chosen", "prompts/templates/letters.txt", "\nmore words", NOTHING),
    ("inline hints that are not chosen", "prompts/templates/compact.txt", "\n", NOTHING),
    ("a new template", "prompts/templates/mine.txt", "anything", NOTHING),
    ("messages for the user", "errors.py", CODE, NOTHING),
    ("where settings are defined", "config/prompts.py", CODE, NOTHING),
    ("presets", "config/presets.py", CODE, NOTHING),
    ("the store's folders", "store/paths.py", CODE, NOTHING),
    ("run records", "store/runs.py", CODE, NOTHING),
    ("whether a run's process lives", "store/alive.py", CODE, NOTHING),
    ("closing dead runs", "dead_runs.py", CODE, NOTHING),
    ("access to object storage", "store/objects.py", CODE, NOTHING),
    ("what machines share", "store/shared.py", CODE, NOTHING),
    ("what is logged to MLflow", "tracking.py", CODE, NOTHING),
    ("the command line", "cli/main.py", CODE, NOTHING),
    ("lines of progress", "progress.py", CODE, NOTHING),
    ("which lines of libraries are shown", "noise.py", CODE, NOTHING),
    ("lines about a stage", "pipeline/stage_lines.py", CODE, NOTHING),
    ("how a subprocess is watched", "processes/supervise.py", CODE, NOTHING),
    ("the order of stages", "pipeline/registry.py", CODE, NOTHING),
    ("a stage that is never reused", "promote/decision.py", CODE, NOTHING),
    ("another stage that is never reused", "quality/drift.py", CODE, NOTHING),
    ("what is probed, where nothing is", "probe/parts.py", CODE, NOTHING),
    ("short forms of prompts, where there are none", "prompts/forms.py", CODE, NOTHING),
    ("its page", "html/templates/quality.html.j2", "\n", NOTHING),
    ("what a run adds to the report", "html/templates/run.html.j2", "\n", NOTHING),
    ("readers of a feed, where there is none", "data/feed/parse.py", CODE, NOTHING),
    ("a function of no stage in the stages' module", "pipeline/stages.py", "\ndef run_other() -> None: ...\n", NOTHING),
    # what can
    ("the synthetic world", "synthetic/world.py", CODE, INGEST),
    ("columns of ingest", "schemas/ingest.py", CODE, INGEST),
    ("hashes that order ties", "stable_hash.py", CODE, INGEST),
    ("how JSON is written", "store/files.py", CODE, INGEST),
    ("rules of the split", "data/split/rules.py", CODE, "split " + TRAINED),
    ("facts of the knowledge graph", "knowledge/facts.py", CODE, "knowledge text rgat sequence " + FUSION),
    ("how many threads torch takes", "threads.py", CODE, TRAINED),
    ("the training loop", "models/training/loop.py", CODE, TRAINED),
    ("sums in a fixed order", "models/message_passing/fixed_order.py", CODE, "rgat lightgcn sequence " + FUSION),
    ("the DGL back end", "models/message_passing/dgl_backend.py", CODE, "rgat lightgcn " + FUSION),
    ("what the back ends share", "models/message_passing/compressed.py", CODE, "rgat lightgcn " + FUSION),
    ("the training of R-GAT", "models/rgat/fit.py", CODE, "rgat " + RETRIEVE),
    ("what is written of a film", "models/text/texts.py", CODE, "text sequence " + FUSION),
    ("content of film vectors", "models/sequence/content.py", CODE, "sequence " + FUSION),
    ("the serving of EASE", "models/ease/serve.py", CODE, FUSION),
    ("rank fusion", "retrieve/fuse.py", CODE, FUSION),
    ("the chosen template", "prompts/templates/hints-first.txt", None, GENERATE),
    ("how prompts are rendered", "prompts/render.py", CODE, GENERATE),
    ("the declarations of hints", "schemas/hints.py", CODE, RETRIEVE),
    ("the declarations of answer styles", "schemas/answers.py", CODE, GENERATE),
    ("the declarations of inline hints", "schemas/inline.py", CODE, GENERATE),
    ("a rule of the audit on inline hints", "audit/inline.py", CODE, GENERATE),
    ("a rule of the audit", "audit/rules.py", CODE, GENERATE),
    ("the adapter's contract", "contract.py", CODE, FINETUNE),
    ("what the training's processes run", "finetune/train.py", CODE, FINETUNE),
    ("constrained decoding", "rank/decoding.py", CODE, RANK),
    ("columns of predictions", "schemas/rank.py", CODE, RANK),
    ("a metric", "evaluate/metrics.py", CODE, "evaluate"),
    ("the metric of a training's evaluations", "ndcg.py", CODE, FINETUNE),
    ("the report's page", "html/templates/report.html.j2", "\n", "evaluate"),
    ("a section of the report", "html/templates/report/cases.html.j2", "\n", "evaluate"),
    ("an audit of the answers", "evaluate/answers/groups.py", CODE, "evaluate"),
    ("popularity of films", "store/popularity.py", CODE, "evaluate"),
    ("age groups", "schemas/ages.py", CODE, RETRIEVE),
    ("questions about one and two films", "forms.py", CODE, GENERATE),
    ("the order by all forms", "rank/ensemble.py", CODE, RANK),
    ("scores of written answers", "rank/line_scores.py", CODE, RANK),
]


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the package that fingerprints are computed from."""
    copy = tmp_path / "tripletune"
    shutil.copytree(HERE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(sources, "PACKAGE", copy)
    monkeypatch.setattr(resolving, "PAGES", copy / "html" / "templates")
    monkeypatch.setattr(template, "FOLDER", copy / "prompts" / "templates")
    return copy


def config(**settings: object) -> RunConfig:
    return RunConfig.model_validate({"dataset": "toy", **settings})


def rebuilt(settings: RunConfig, edit, after: RunConfig | None = None) -> list[str]:
    """Stages whose fingerprint an edit changes."""
    before = resolve(settings, Path("nowhere")).fingerprints
    edit()
    now = resolve(after or settings, Path("nowhere")).fingerprints
    return [stage for stage in now if now[stage] != before[stage]]


def append(path: Path, text: str | None) -> None:
    path.parent.mkdir(exist_ok=True)
    old = path.read_text(encoding="utf-8") if path.exists() else ""
    changed = old.replace("Five", "Six").replace("five", "six") if text is None else old + text
    assert changed != old
    path.write_text(changed, encoding="utf-8")


@pytest.mark.parametrize(("file", "text", "stages"), [row[1:] for row in EDITS], ids=[row[0] for row in EDITS])
def test_an_edit_rebuilds_the_stages_whose_bytes_it_can_change_and_no_other(tree, file, text, stages):
    assert rebuilt(config(), lambda: append(tree / file, text)) == stages.split()


def test_an_edit_of_the_base_of_the_chosen_template_rebuilds_the_prompts(tree):
    chosen = config(prompt={"template": "letters"})

    def edit() -> None:
        path = tree / "prompts/templates/hints-first.txt"
        path.write_text(path.read_text(encoding="utf-8").replace("[liked]\n", "[liked]\nOf late, "), encoding="utf-8")

    assert rebuilt(chosen, edit) == GENERATE.split()


def test_of_a_template_of_ones_own_the_content_counts_and_not_where_it_lies(tree, tmp_path):
    mine, moved = tmp_path / "mine.txt", tmp_path / "moved" / "mine.txt"
    mine.write_text("---\nid: mine\nbase: hints-first\n---\n[system]\nHello.\n", encoding="utf-8")
    before, after = (config(prompt={"template": str(path)}) for path in (mine, moved))

    def move() -> None:
        moved.parent.mkdir()
        shutil.move(mine, moved)

    assert rebuilt(before, move, after) == []
    assert rebuilt(after, lambda: append(moved, "Good day.\n")) == GENERATE.split()


def test_the_generator_of_synthetic_data_does_not_count_for_a_real_release(tree, tmp_path):
    (tmp_path / "ml").mkdir()
    real = config(source={"movielens": str(tmp_path / "ml")})
    assert rebuilt(real, lambda: append(tree / "synthetic/world.py", CODE)) == []


def test_readers_of_a_feed_count_where_there_is_one(tree, tmp_path):
    (tmp_path / "ml").mkdir()
    (tmp_path / "new.csv").write_text("userId,movieId,rating,timestamp\n1,1,4.0,1000000000\n")
    feed = {"ratings": [str(tmp_path / "new.csv")]}
    real = config(source={"movielens": str(tmp_path / "ml"), "feed": feed})
    assert rebuilt(real, lambda: append(tree / "data/feed/parse.py", CODE)) == INGEST.split()


def test_code_of_a_retriever_that_is_not_trained_does_not_count(tree):
    without = config(retrieve={"retriever": "ease"})
    assert rebuilt(without, lambda: append(tree / "models/sasrec/fit.py", CODE)) == []
    assert rebuilt(without, lambda: append(tree / "models/sasrec/serve.py", CODE)) == []
    with_it = config(retrieve={"fused_sasrec": 1.0})
    for file in ("fit.py", "model.py"):
        rebuilds = rebuilt(with_it, lambda file=file: append(tree / "models/sasrec" / file, CODE))
        assert rebuilds == f"sasrec {FUSION}".split()


def test_learned_weights_are_learned_again_where_the_lists_can_change(tree):
    assert rebuilt(config(), lambda: append(tree / "retrieve/weights.py", CODE)) == FUSION.split()
    fixed = config(retrieve={"fusion": "fixed"})
    assert rebuilt(fixed, lambda: append(tree / "models/ease/serve.py", CODE)) == RETRIEVE.split()


def test_an_edit_of_a_stages_own_function_rebuilds_it(tree):
    def edit() -> None:
        path = tree / "pipeline/stages.py"
        path.write_text(path.read_text().replace('ingest / "ratings.parquet", ', 'paths.folder("x"), ', 1))

    assert rebuilt(config(), edit) == ["split", *TRAINED.split()]


class _Retrieve(RetrieveConfig):
    surplus: int = 1


class _Deeper(RetrieveConfig):
    @property
    def depth(self) -> int:
        return 200


class _Run(RunConfig):
    retrieve: _Retrieve = _Retrieve()


class _DeeperRun(RunConfig):
    retrieve: _Deeper = _Deeper()


def test_a_new_setting_that_no_stage_reads_rebuilds_nothing():
    assert rebuilt(config(), lambda: None, _Run(dataset="toy")) == []


def test_what_a_section_computes_counts_by_its_value():
    assert rebuilt(config(), lambda: None, _DeeperRun(dataset="toy")) == FUSION.split()


@pytest.mark.parametrize(
    ("changed", "stages"),
    [
        ({"split": {"held_out": 2}}, "split " + TRAINED),
        ({"retrieve": {"num_candidates": 30}}, RETRIEVE),
        ({"retrieve": {"ease_lambda": 9.0}}, "ease " + RETRIEVE),
        ({"retrieve": {"ease_max_films": 30}}, "ease " + RETRIEVE),
        ({"rgat": {"checkpoint_minutes": 9.0}}, NOTHING),
        ({"lightgcn": {"dim": 32}}, "lightgcn " + FUSION),
        ({"retrieve": {"fused_k": 9.0}}, FUSION),
        ({"text": {"relations": ["genre"]}}, "text sequence " + FUSION),
        ({"prompt": {"max_liked": 3}}, GENERATE),
        ({"prompt": {"candidate_order": "retrieved"}}, GENERATE),
        ({"finetune": {"tiny": {"num_layers": 1}}}, FINETUNE),
        ({"finetune": {"timeout_minutes": 1.0, "ddp_timeout_minutes": 2.0}}, NOTHING),
        ({"finetune": {"start": "champion", "fresh_every": 3}}, NOTHING),  # there is no champion
        ({"finetune": {"global_batch": 16}}, FINETUNE),
        ({"finetune": {"keep": "best"}}, FINETUNE),
        ({"finetune": {"patience": 2}}, FINETUNE),
        ({"rank": {"max_viewers": 5}}, RANK),
        ({"rank": {"untuned_viewers": 5}}, RANK),
        ({"rank": {"quantized": ["int8"]}}, RANK),
        ({"rank": {"quantized_viewers": 5}}, RANK),
        ({"rank": {"workers": 2}}, NOTHING),
        ({"rank": {"backend": "vllm"}}, RANK),
        ({"evaluate": {"confidence": 0.9}}, "evaluate"),
        ({"store": {"shared": "s3://bucket/prefix"}}, NOTHING),
        ({"promote": {"relative_margin": 0.5}, "workers": {"count": 9}, "tracking": {"experiment": "x"}}, NOTHING),
    ],
    ids=str,
)
def test_a_setting_rebuilds_the_stages_that_read_it(changed, stages):
    assert rebuilt(config(), lambda: None, config(**changed)) == stages.split()


PROBED = {"users": 5}


@pytest.mark.parametrize(
    ("file", "stages"),
    [
        ("probe/parts.py", "probe evaluate"),
        ("probe/retriever.py", "probe evaluate"),
        ("rank/answerer.py", "rank probe evaluate"),
        ("prompts/render.py", "generate finetune rank probe evaluate"),
        ("retrieve/histories.py", "fusion retrieve generate finetune rank probe evaluate"),
        ("evaluate/significance.py", "probe evaluate"),
        ("serve/run_prompts.py", "probe evaluate"),
        ("serve/prompting.py", NOTHING),
        ("rank/quantize.py", NOTHING),
    ],
)
def test_the_probe_is_rebuilt_with_what_it_renders_scores_and_measures(tree, file, stages):
    assert rebuilt(config(probe=PROBED), lambda: append(tree / file, CODE)) == stages.split()


@pytest.mark.parametrize(
    ("changed", "stages"),
    [
        ({"probe": PROBED | {"facts": 9}}, "probe evaluate"),
        ({"probe": PROBED | {"perturbations": ["like-removed"]}}, "probe evaluate"),
        ({"probe": PROBED, "evaluate": {"confidence": 0.9}}, "probe evaluate"),
        ({"probe": PROBED, "rank": {"batch_size": 5}}, "rank probe evaluate"),
        ({"probe": PROBED, "rank": {"max_viewers": 5}}, "rank evaluate"),
        ({"probe": PROBED, "rank": {"workers": 2}}, NOTHING),
    ],
    ids=str,
)
def test_settings_of_the_probe_rebuild_it_and_the_report(changed, stages):
    assert rebuilt(config(probe=PROBED), lambda: None, config(**changed)) == stages.split()


LEARNED = {"triple_choice": "learned"}


@pytest.mark.parametrize(
    ("file", "stages"),
    [
        ("selector/learn.py", "selector " + RETRIEVE),
        ("retrieve/triple_features.py", "selector " + RETRIEVE),
        ("pipeline/feedback.py", NOTHING),
    ],
)
def test_the_selector_is_rebuilt_with_what_it_learns_by(tree, file, stages):
    assert rebuilt(config(retrieve=LEARNED), lambda: append(tree / file, CODE)) == stages.split()


@pytest.mark.parametrize(
    ("changed", "stages"),
    [
        ({"retrieve": LEARNED, "selector": {"ridge": 5.0}}, "selector " + RETRIEVE),
        ({"retrieve": LEARNED | {"explore_triples": 0.1}}, RETRIEVE),
    ],
    ids=str,
)
def test_settings_of_the_selector_rebuild_it_and_the_hints(changed, stages):
    assert rebuilt(config(retrieve=LEARNED), lambda: None, config(**changed)) == stages.split()


def test_vllm_and_the_code_that_calls_it_count_where_it_ranks():
    (stage,) = (stage for stage in reusable_stages(config()) if stage.name == "rank")
    parents = dict.fromkeys(f"{INGEST} sasrec probe".split(), "")
    for backend, counts in (("transformers", False), ("vllm", True)):
        counted = stage.ingredients(config(rank={"backend": backend}), parents, {})
        assert ("vllm" in counted["libraries"]) is counts
        assert ("rank.vllm_backend" in counted["source"]) is counts
        assert counted["fields"]["rank.backend"] == backend


@pytest.mark.parametrize(
    ("settings", "stages"),
    [
        ("num_processes: 4\ndistributed_type: MULTI_GPU", NOTHING),
        ("num_processes: auto\ndistributed_type: MULTI_GPU", NOTHING),
        (
            "num_processes: 4\nnum_machines: 2\nmachine_rank: 1\nmain_process_ip: host\nmain_process_port: 9\n"
            "distributed_type: MULTI_GPU",
            NOTHING,
        ),
        ("num_processes: 2\ndistributed_type: MULTI_GPU\nmixed_precision: bf16", FINETUNE),
    ],
)
def test_the_number_of_processes_rebuilds_nothing_and_other_settings_of_accelerate_do(tmp_path, settings, stages):
    files = []
    for folder, text in (("before", "num_processes: 2\ndistributed_type: MULTI_GPU"), ("after", settings)):
        (tmp_path / folder).mkdir()
        files.append(tmp_path / folder / "mine.yaml")
        files[-1].write_text(text)
    before, after = (
        config(finetune={"accelerate_config": str(file), "global_batch": 32, "per_device_train_batch_size": 2})
        for file in files
    )
    assert rebuilt(before, lambda: None, after) == stages.split()


def test_every_setting_of_a_run_counts_for_some_stage_or_is_known_not_to():
    """A setting that a stage's declaration forgets would change bytes and rebuild nothing."""
    settings = config(split={"frozen": ""}, retrieve={"fused_sasrec": 1.0, **LEARNED}, probe=PROBED)
    asks_forms = config(ensemble={"forms": ["pointwise", "pairwise"]})
    counted: set[str] = set()
    for chosen in (settings, asks_forms):
        for stage in reusable_stages(chosen):
            parents = dict.fromkeys(f"{INGEST} sasrec selector probe forms".split(), "")
            counted |= stage.ingredients(chosen, parents, {})["fields"].keys()
    sections = ("source", "quality", "promote", "tracking", "store", "specialists", "workers")
    by_content = {"split.frozen", "finetune.accelerate_config", "finetune.teacher", "prompt.template", "dataset"}
    limits = {f"{name}.checkpoint_minutes" for name in ("rgat", "lightgcn", "sasrec", "sequence")} | {
        "finetune.timeout_minutes",
        "finetune.ddp_timeout_minutes",
        "finetune.start",
        "finetune.fresh_every",
        "rank.workers",
        "selector.from_run",
    }
    lists = ("lightgcn", "ease", "sasrec", "sequence", "text", "slist")
    inside_weights = {f"retrieve.fused_{name}" for name in (*lists, "films")}
    rest = {name for name in settings.flat() if name.split(".")[0] not in sections} - counted
    assert rest == by_content | limits | inside_weights | {"split.dislike"} - counted


def installed_packages(modules: Iterable[str]) -> set[str]:
    """Top-level names of the installed packages that these modules of the package import, anywhere in them."""
    found: set[str] = set()
    for module in modules:
        path = HERE.joinpath(*module.split(":")[0].split("."))
        file = path.with_suffix(".py") if path.with_suffix(".py").is_file() else path / "__init__.py"
        if ":" not in module:
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    found |= {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module:
                    found.add(node.module.split(".")[0])
    return found - {*sys.stdlib_module_names, "tripletune"}


def test_the_libraries_that_a_stage_imports_are_those_it_declares():
    settings = config(probe=PROBED, retrieve=LEARNED)
    no_bytes = {"rich", "filelock", "psutil", "pydantic", "yaml", "tenacity", "httpx", "fsspec", "safetensors"}
    for stage in reusable_stages(settings):
        closure = stage.sources(settings)
        imported = installed_packages(closure.hashes) - no_bytes
        parents = dict.fromkeys(f"{INGEST} sasrec selector probe".split(), "")
        declared = stage.ingredients(settings, parents, {})["libraries"].keys()
        # imported on the way by modules of the prompts, which are parents' work where these are not declared
        on_the_way = (
            {"torch", "transformers", "tokenizers", "pyarrow", "numpy"}
            if stage.name in ("generate", "finetune", "rank", "probe")
            else {"sentence_transformers"}  # declared where a folder is named
            if stage.name == "text"
            else set()
        )
        assert imported - declared - on_the_way == set(), stage.name
