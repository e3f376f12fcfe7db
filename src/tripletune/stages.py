"""The stages: ``run_<stage>(paths, config)``, paths in, paths out. Tasks and the command line call these.

Each function says which folders a stage reads and which room does the work; ``specs.py`` says what its fingerprint is
made of. Rooms are imported inside the functions, so that ``tripletune --help`` and ``plan`` do not wait
for torch, DGL and transformers.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import logging
import shutil
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tripletune.config import RunConfig
from tripletune.errors import ConfigError, InputError, MissingArtifactError
from tripletune.fingerprint import (
    TOKENIZER_FILES,
    Ingredients,
    StageSpec,
    fingerprint,
    gather,
    input_checksums,
    sha256_file,
)
from tripletune.increments import Earlier, SameContent, describe, find_earlier, write_unchanged
from tripletune.paths import SCRATCH, Facts, RunPaths, damaged_files
from tripletune.runs import earlier_run, read_run
from tripletune.specs import PARSED, stage_specs, tags_before

if TYPE_CHECKING:
    from tripletune.data.feed import FeedPart
    from tripletune.data.remote import SourceFile
    from tripletune.prompts.shards import MapJobs
    from tripletune.tracking import StageRun

log = logging.getLogger(__name__)

DUMPS = frozenset(f"{table}.tsv.gz" for table in ("title.basics", "title.crew", "title.principals", "name.basics"))
"""What is read in the IMDb folder."""
LogCurve = Callable[[int, Mapping[str, float]], None]


def resolve(config: RunConfig, artifacts: Path) -> RunPaths:
    """Compute every stage's fingerprint, before anything runs.

    Raises:
        InputError: a file or folder named by the config does not exist.
        MissingArtifactError, ConfigError: ``specialists.pin`` names no usable run, there is no such template, or
            ``[finetune.trainer]`` cannot be handed to the trainer.
    """
    from tripletune.finetune.trainer_settings import check_trainer_settings
    from tripletune.prompts.template import load_template

    load_template(config.prompt.template)  # a wrong name should not show after the specialists have trained
    check_trainer_settings(config.finetune.trainer)  # nor a wrong setting of the trainer
    fingerprints: dict[str, str] = {}
    ingredients: dict[str, Ingredients] = {}
    pinned = _pinned_specialists(config, artifacts)
    for spec in stage_specs(config):
        parts = gather(spec, config, fingerprints, _outside_inputs(spec, config))
        parts["source"][f"stages.run_{spec.name}"] = _function_hash(globals()[f"run_{spec.name}"])
        ingredients[spec.name] = parts
        fingerprints[spec.name] = pinned.get(spec.name) or fingerprint(spec.name, parts)
    return RunPaths(root=artifacts, dataset=config.dataset, fingerprints=fingerprints, ingredients=ingredients)


def _function_hash(function: Callable[..., Any]) -> str:
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def _outside_inputs(spec: StageSpec, config: RunConfig) -> dict[str, str]:
    from tripletune.data.layouts import files_read

    source, finetune = config.source, config.finetune
    named = {
        "movielens": source.movielens,
        "imdb": source.imdb,
        **{f"extra_triples[{index}]": name for index, name in enumerate(source.extra_triples)},
        "frozen": config.split.frozen,
        "accelerate_config": finetune.accelerate_config,
        "model": finetune.model if finetune.names_a_folder else "",
        "tokenizer": finetune.model if finetune.names_a_folder else "",
    }
    wanted = {key: Path(text) for key, text in named.items() if text and key.split("[")[0] in spec.outside}
    for key, path in wanted.items():
        if not path.exists():
            raise InputError(f"{key} = {str(path)!r}: no such file or folder; give a path that exists")
        if key in ("imdb", "model", "tokenizer") and not path.is_dir():
            raise InputError(f"{key} = {str(path)!r}: this is a file; give the folder that holds it")
    read = {"movielens": files_read(config.source.feed), "imdb": DUMPS, "tokenizer": TOKENIZER_FILES}
    checksums = input_checksums(wanted, read=read)
    if "feed" in spec.outside:
        checksums |= {f"feed/{file.name}": file.checksum for file in _feed_files(config)}
    return checksums


def _feed_files(config: RunConfig) -> list[SourceFile]:
    from tripletune.data.remote import list_files

    return list_files(config.source.feed.ratings) if config.source.feed.ratings else []


def _pinned_specialists(config: RunConfig, artifacts: Path) -> dict[str, str]:
    if not config.specialists.pin:
        return {}
    run = read_run(artifacts, config.specialists.pin)
    if run.dataset != config.dataset:
        raise ConfigError(
            f"specialists.pin = {run.name!r} is a run of dataset {run.dataset!r}, not of {config.dataset!r}; "
            "name a run of the same dataset"
        )
    untrained = [stage for stage in config.trained_stages if stage not in run.fingerprints]
    if untrained:
        other = "set retrieve.retriever = 'ease' or 'lightgcn', " if untrained[0] == "sasrec" else ""
        raise ConfigError(
            f"specialists.pin = {run.name!r}, but that run has no {untrained[0]}, which tonight's run reads; "
            f"pin a run that has, {other}or remove the pin for a night"
        )
    pinned = {stage: run.fingerprints[stage] for stage in config.trained_stages}
    kept = RunPaths(root=artifacts, dataset=run.dataset, fingerprints=pinned)
    for stage in pinned:
        if not kept.is_done(stage):
            raise MissingArtifactError(
                f"specialists.pin = {run.name!r}, but its {stage} output is gone from {kept.folder(stage)}; "
                "pin a run whose specialists are there, or remove the pin"
            )
    return pinned


def require_one_answer(config: RunConfig) -> None:
    """Refuse a split that asks several likes of a viewer; a run calls this before anything trains.

    Raises:
        ConfigError: ``split.protocol`` is ``ratio``.
    """
    if config.split.protocol == "ratio":
        raise ConfigError(
            "split.protocol = 'ratio' serves retrieval benchmarks and ends where likes are learned: it asks several "
            "likes of a viewer, prompts are made for one; use leave_one_out or global_time"
        )


def run_ingest(paths: RunPaths, config: RunConfig) -> Path:
    """Read a release, or generate a synthetic one, into typed Parquet; bad rows go to rejects.parquet."""
    from tripletune.data.movielens import ingest_release
    from tripletune.data.synthetic import write_release

    def make(work: Path) -> Facts:
        if not config.source.movielens:
            facts = write_release(work / "release", config.synthetic, config.seed)
            return {**facts, **ingest_release(work / "release", work, config.ingest)}
        feed, facts = _parse_feed(paths, config, work / SCRATCH) if config.source.feed.ratings else (None, {})
        facts |= ingest_release(Path(config.source.movielens), work, config.ingest, feed)
        _refuse_changes(paths, config)
        return facts

    return paths.build("ingest", make)


def _refuse_changes(paths: RunPaths, config: RunConfig) -> None:
    """Nothing is published under a fingerprint whose release was another one when it was read."""
    from tripletune.data.layouts import files_read

    now = input_checksums(
        {"movielens": Path(config.source.movielens)}, read={"movielens": files_read(config.source.feed)}
    )
    for name, checksum in now.items():
        if paths.ingredients["ingest"]["inputs"].get(name) != checksum:
            raise InputError(f"{name} was changed while it was read; run again")


def _parse_feed(paths: RunPaths, config: RunConfig, scratch: Path) -> tuple[list[FeedPart], Facts]:
    """The parsed rows of each file of the feed. A file is parsed once, in whatever night it arrives."""
    from tripletune.data.feed import FeedPart, parse_feed_file
    from tripletune.data.remote import fetch

    parts, reused = [], 0
    for file in _resolved_feed(paths, config):
        made_of = gather(PARSED, config, {}, {"file": file.checksum})
        one = RunPaths(
            root=paths.root,
            dataset=paths.dataset,
            fingerprints={PARSED.name: fingerprint(PARSED.name, made_of)},
            ingredients={PARSED.name: made_of},
        )
        # it is read again for months: a damaged one must not get into every night
        if one.is_done(PARSED.name) and damaged_files(one.folder(PARSED.name)):
            shutil.rmtree(one.folder(PARSED.name))
        reused += one.is_done(PARSED.name)

        def make(work: Path, file: SourceFile = file) -> Facts:
            path = fetch(file, scratch)
            facts = parse_feed_file(path, file.url, work, config.source.feed.columns, config.ingest)
            if file.is_remote:
                path.unlink()
            elif sha256_file(path) != file.checksum:
                raise InputError(f"{file.url} was changed while it was read; run again")
            return facts

        parts.append(FeedPart(one.build(PARSED.name, make), file.name))
    return parts, {"feed_files": len(parts), "feed_files_parsed": len(parts) - reused}


def _resolved_feed(paths: RunPaths, config: RunConfig) -> list[SourceFile]:
    """The files that the fingerprint names; one that has come since is for the next run."""
    wanted = {name: sha for name, sha in paths.ingredients["ingest"]["inputs"].items() if name.startswith("feed/")}
    there = {f"feed/{file.name}": file for file in _feed_files(config)}
    for name, checksum in wanted.items():
        if name not in there or there[name].checksum != checksum:
            raise InputError(f"{name.removeprefix('feed/')} in the feed was changed since this run began; run again")
    return [there[name] for name in wanted]


def run_split(paths: RunPaths, config: RunConfig) -> Path:
    """Label every rating by the split's protocol, and bucket the rows by viewer."""
    from tripletune.data.split import write_split

    ratings = paths.require("ingest") / "ratings.parquet"
    return paths.build("split", lambda work: write_split(ratings, work, config.split, config.seed))


def run_knowledge(paths: RunPaths, config: RunConfig) -> Path:
    """Build the film knowledge graph from genres, decades, tags, credits and extra triples."""
    import polars as pl

    from tripletune.data.imdb import read_credits
    from tripletune.graph.knowledge import write_knowledge

    ingest = paths.require("ingest")
    imdb = Path(config.source.imdb) if config.source.imdb else ingest / "release" / "imdb"

    def make(work: Path) -> Facts:
        links, movies = (pl.scan_parquet(ingest / f"{table}.parquet") for table in ("links", "movies"))
        credits, facts = read_credits(imdb if imdb.is_dir() else None, links, config.knowledge, movies)
        return facts | write_knowledge(
            ingest / "movies.parquet",
            ingest / "tags.parquet",
            ingest / "ratings.parquet",
            credits,
            [Path(extra) for extra in config.source.extra_triples],
            work,
            config.knowledge,
            tags_before(config),
        )

    return paths.build("knowledge", make)


def run_rgat(paths: RunPaths, config: RunConfig) -> Path:
    """Train the relational graph attention network, fits a and b."""
    from tripletune.graph.rgat_fit import train_rgat
    from tripletune.threads import take_all_threads

    if paths.is_done("rgat"):  # also a pinned one, whose parents may be gone
        return paths.folder("rgat")
    knowledge, split = paths.require("knowledge"), paths.require("split")
    take_all_threads()
    return paths.build("rgat", lambda work: train_rgat(knowledge, split, work, config.rgat, config.seed))


def run_lightgcn(paths: RunPaths, config: RunConfig) -> Path:
    """Train LightGCN, fits a and b."""
    from tripletune.graph.lightgcn_fit import train_lightgcn
    from tripletune.threads import take_all_threads

    if paths.is_done("lightgcn"):
        return paths.folder("lightgcn")
    split = paths.require("split")
    take_all_threads()
    return paths.build("lightgcn", lambda work: train_lightgcn(split, work, config.lightgcn, config.seed))


def run_sasrec(paths: RunPaths, config: RunConfig) -> Path:
    """Train SASRec, fits a and b; for retrieve.retriever = "sasrec", or "fused" with a weight for it."""
    from tripletune.graph.sasrec_fit import train_sasrec
    from tripletune.threads import take_all_threads

    if "sasrec" not in config.trained_stages:
        raise ConfigError(
            f"retrieve.retriever = {config.retrieve.retriever!r} needs no SASRec; set it to 'sasrec', or to 'fused' "
            "with retrieve.fused_sasrec above 0"
        )
    if paths.is_done("sasrec"):
        return paths.folder("sasrec")
    split = paths.require("split")
    take_all_threads()
    return paths.build("sasrec", lambda work: train_sasrec(split, work, config.sasrec, config.seed))


def run_ease(paths: RunPaths, config: RunConfig) -> Path:
    """Fit EASE in closed form, fits a and b; b alone, for the comparison, where it makes no candidates."""
    from tripletune.graph.ease_fit import train_ease
    from tripletune.threads import take_all_threads

    if paths.is_done("ease"):
        return paths.folder("ease")
    split = paths.require("split")
    take_all_threads()
    return paths.build("ease", lambda work: train_ease(split, work, config.retrieve, config.seed))


def run_retrieve(paths: RunPaths, config: RunConfig) -> Path:
    """Candidates, hint lists, similar viewers' films and chosen triples of every viewer and purpose."""
    from tripletune.retrieve.candidates import retrieve_all

    require_one_answer(config)
    knowledge, split = paths.require("knowledge"), paths.require("split")
    trained = {stage: paths.require(stage) for stage in config.trained_stages}

    def make(work: Path) -> Facts:
        found = find_earlier(paths, "retrieve", _same_content(trained["rgat"]))
        facts = retrieve_all(
            split,
            knowledge,
            trained["lightgcn"],
            trained["rgat"],
            work,
            config.retrieve,
            num_liked_triples=config.prompt.triples_for_liked,
            seed=config.seed,
            sasrec=trained.get("sasrec"),
            ease=trained["ease"],
            sample=config.sample,
            earlier=found.folder if isinstance(found, Earlier) else None,
        )
        log.info(describe("retrieve", found, facts))
        return facts | _reused(found)

    return paths.build("retrieve", make)


def _same_content(rgat: Path) -> SameContent:
    """What an increment compares of the parents that are new every night."""
    from tripletune.prompts.earlier import same_titles
    from tripletune.retrieve.earlier import same_facts

    return {"knowledge": lambda before, now: same_facts(before, now, rgat), "ingest": same_titles}


def _reused(found: Earlier | str) -> Facts:
    return {"nothing_reused": found} if isinstance(found, str) else {"reused": found.folder.name}


def run_generate(paths: RunPaths, config: RunConfig, map_jobs: MapJobs | None = None) -> Path:
    """Write the prompt / ground-truth shards, and publish them only when the audit finds no leak."""
    from tripletune.prompts.card import Origin, write_card
    from tripletune.prompts.shards import generate_shards, one_after_the_other
    from tripletune.prompts.template import load_template
    from tripletune.rank.audit_leaks import refuse_leaks
    from tripletune.rank.audit_record import write_record
    from tripletune.rank.audits import audit_night

    require_one_answer(config)
    ingest, split, retrieve = paths.require("ingest"), paths.require("split"), paths.require("retrieve")
    trained = {stage: paths.require(stage) for stage in config.trained_stages}

    def make(work: Path) -> Facts:
        found = find_earlier(paths, "generate", _same_content(trained["rgat"]))
        unchanged, changes = work / SCRATCH / "unchanged", Facts()
        if isinstance(found, Earlier):
            changes = write_unchanged(found.parents["retrieve"], retrieve, unchanged)
        facts = generate_shards(
            ingest,
            split,
            retrieve,
            work,
            config.prompt,
            config.retrieve,
            dislike=config.split.dislike,
            specialists={stage: paths.fingerprints[stage] for stage in ("lightgcn", "rgat")},
            seed=config.seed,
            tokenizer=config.counted_with,
            map_jobs=map_jobs or one_after_the_other,
            previous=found.folder if isinstance(found, Earlier) else None,
            unchanged=unchanged if isinstance(found, Earlier) else None,
        )
        log.info(describe("generate", found, changes))
        earlier = found.folder if isinstance(found, Earlier) else None
        audit = audit_night(work, split, retrieve, trained, earlier=earlier)
        refuse_leaks(audit.leaks)
        write_record(work, audit.proven)
        log.info("generate: %s of %s examples proven anew", f"{audit.anew:,}", f"{audit.proven.height:,}")
        write_card(work, load_template(config.prompt.template), Origin.of(config, paths.fingerprints))
        if earlier:
            changes["examples_proven_anew"] = audit.anew
        return facts | changes | _reused(found)

    return paths.build("generate", make)


def run_quality(paths: RunPaths, config: RunConfig, *, run: str, child: StageRun) -> Path:
    """Measure the shards, compare them with the last night's, and stop where they moved too far. Never reused."""
    from tripletune.rank.quality import refuse_drift, report_quality

    generate, split = paths.require("generate"), paths.require("split")
    last = earlier_run(paths, "generate", but=run)
    before = (last.name, last.paths(paths.root).folder("generate")) if last else None
    folder = paths.root / paths.dataset / "quality" / run
    quality = report_quality(generate, split, folder, config.quality, run=run, before=before)
    child.log_report(folder, quality.metrics)
    refuse_drift(quality, config.quality)
    return folder


def run_finetune(paths: RunPaths, config: RunConfig, on_log: LogCurve | None = None) -> Path:
    """LoRA-tune the language model in a subprocess; the curve is live in MLflow."""
    from tripletune.finetune.launch import finetune_adapter
    from tripletune.prompts.engine import prompt_contract

    generate = paths.require("generate")
    return paths.build(
        "finetune",
        lambda work: finetune_adapter(
            generate,
            work,
            config.finetune,
            prompt_contract(config.prompt, config.retrieve),
            dict(paths.fingerprints),
            config.seed,
            on_log,
        ),
    )


def run_rank(paths: RunPaths, config: RunConfig) -> Path:
    """Answer the valid and test prompts with the tuned and the untuned model and with both trivial orders."""
    from tripletune.prompts.engine import prompt_contract
    from tripletune.rank.predict import rank_shards

    generate, finetune = paths.require("generate"), paths.require("finetune")
    contract = prompt_contract(config.prompt, config.retrieve)
    return paths.build("rank", lambda work: rank_shards(generate, finetune, work, config.rank, contract, config.seed))


def run_evaluate(paths: RunPaths, config: RunConfig) -> Path:
    """Metrics with intervals, comparisons between all rows, and the HTML report."""
    from tripletune.rank.evaluate import evaluate_run

    trained = {stage: paths.require(stage) for stage in (*config.trained_stages, "finetune")}
    rank, generate, retrieve = (paths.require(stage) for stage in ("rank", "generate", "retrieve"))
    return paths.build(
        "evaluate",
        lambda work: evaluate_run(rank, generate, retrieve, work, config.evaluate, config.seed, trained),
    )


def run_promote(paths: RunPaths, config: RunConfig, *, run: str, child: StageRun) -> Path:
    """Move the champion alias to this adapter, or say why not. Never reused: the champion may have changed."""
    from tripletune.champion import promote_or_keep

    return promote_or_keep(paths, config, run=run, child=child)
