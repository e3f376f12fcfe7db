"""The stages: ``run_<stage>(paths, config)``, paths in, paths out. Prefect tasks and the command line call these.

Each function names the folders a stage reads and the package that does the work; ``registry.py`` declares the stages.
Packages are imported inside the functions: ``tripletune --help`` and ``plan`` then need not wait for torch, DGL and
transformers, and a stage's fingerprint follows just these imports.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tripletune.config import RunConfig
from tripletune.errors import ConfigError
from tripletune.store.increments import Earlier, SameContent, describe, find_earlier, same_files, write_unchanged
from tripletune.store.paths import SCRATCH, Facts, RunPaths
from tripletune.store.read import scan_parquet
from tripletune.store.runs import earlier_run, quality_folder

if TYPE_CHECKING:
    from tripletune.prompts.shards import MapJobs
    from tripletune.tracking import StageRun

log = logging.getLogger(__name__)

LogCurve = Callable[[int, Mapping[str, float]], None]
Train = Callable[..., Facts]


def require_one_answer(config: RunConfig) -> None:
    """Refuse a split that holds out several likes of a user; a run calls this before any training.

    Raises:
        ConfigError: ``split.protocol`` is ``ratio``.
    """
    if config.split.protocol == "ratio":
        raise ConfigError(
            "split.protocol = 'ratio' serves retrieval benchmarks, up to the trained models: it holds out several "
            "likes of a user, and a prompt has one answer; use leave_one_out or global_time"
        )


def run_ingest(paths: RunPaths, config: RunConfig) -> Path:
    """Read a release, or generate a synthetic one, into typed Parquet; bad rows go to rejects.parquet."""
    from tripletune.data.release.movielens import ingest_release
    from tripletune.pipeline.feed import parse_feed, refuse_changes
    from tripletune.synthetic.release import write_release

    def make(work: Path) -> Facts:
        if not config.source.movielens:
            facts = write_release(work / "release", config.synthetic, config.seed)
            return {**facts, **ingest_release(work / "release", work, config.ingest)}
        feed, facts = parse_feed(paths, config, work / SCRATCH) if config.source.feed.ratings else (None, {})
        facts |= ingest_release(Path(config.source.movielens), work, config.ingest, feed)
        refuse_changes(paths, config)
        return facts

    return paths.build("ingest", make)


def run_split(paths: RunPaths, config: RunConfig) -> Path:
    """Label every rating by the split's protocol, and bucket the rows by user."""
    from tripletune.data.split.write import write_split

    ingest = paths.require("ingest")
    ratings, movies = ingest / "ratings.parquet", ingest / "movies.parquet"
    return paths.build("split", lambda work: write_split(ratings, work, config.split, config.seed, movies))


def run_knowledge(paths: RunPaths, config: RunConfig) -> Path:
    """Build the film knowledge graph from genres, decades, tags, credits and extra triples."""

    from tripletune.knowledge.build import write_knowledge
    from tripletune.knowledge.imdb import read_credits

    ingest = paths.require("ingest")
    imdb = Path(config.source.imdb) if config.source.imdb else ingest / "release" / "imdb"

    def make(work: Path) -> Facts:
        links, movies = (scan_parquet(ingest / f"{table}.parquet") for table in ("links", "movies"))
        credits, facts = read_credits(imdb if imdb.is_dir() else None, links, config.knowledge, movies)
        return facts | write_knowledge(
            ingest / "movies.parquet",
            ingest / "tags.parquet",
            ingest / "ratings.parquet",
            credits,
            [Path(extra) for extra in config.source.extra_triples],
            work,
            config.knowledge,
            config.tags_before,
        )

    return paths.build("knowledge", make)


def run_rgat(paths: RunPaths, config: RunConfig) -> Path:
    """Train the relational graph attention network, fits a and b."""
    from tripletune.models.rgat.fit import train_rgat

    def train(knowledge: Path, split: Path, work: Path) -> Facts:
        return train_rgat(knowledge, split, work, config.rgat, config.seed)

    return _train("rgat", paths, ("knowledge", "split"), train)


def run_lightgcn(paths: RunPaths, config: RunConfig) -> Path:
    """Train LightGCN, fits a and b."""
    from tripletune.models.lightgcn.fit import train_lightgcn

    def train(split: Path, work: Path) -> Facts:
        return train_lightgcn(split, work, config.lightgcn, config.seed)

    return _train("lightgcn", paths, ("split",), train)


def run_sasrec(paths: RunPaths, config: RunConfig) -> Path:
    """Train SASRec, fits a and b; for retrieve.retriever = "sasrec", or "fused" with a weight for it."""
    from tripletune.models.sasrec.fit import train_sasrec

    _refuse_unneeded("sasrec", "SASRec", config)

    def train(split: Path, work: Path) -> Facts:
        return train_sasrec(split, work, config.sasrec, config.seed)

    return _train("sasrec", paths, ("split",), train)


def run_text(paths: RunPaths, config: RunConfig) -> Path:
    """Embed the films' texts; for retrieve.retriever = "text", "fused" with a weight for it, or the sequence model."""
    from tripletune.models.text.fit import embed_films

    _refuse_unneeded("text", "film texts", config)

    def train(knowledge: Path, split: Path, work: Path) -> Facts:
        return embed_films(knowledge, split, work, config.text)

    return _train("text", paths, ("knowledge", "split"), train)


def run_sequence(paths: RunPaths, config: RunConfig) -> Path:
    """Train the sequence model, fits a and b; for retrieve.retriever = "sequence", or "fused" with a weight for it."""
    from tripletune.models.sequence.fit import train_sequence

    _refuse_unneeded("sequence", "sequence model", config)

    def train(split: Path, *content: Path) -> Facts:
        *folders, work = content
        by_name: dict[str, Path] = dict(zip(config.sequence.content, folders, strict=True))
        return train_sequence(split, work, config.sequence, config.seed, by_name)

    return _train("sequence", paths, ("split", *config.content_stages), train)


def run_ease(paths: RunPaths, config: RunConfig) -> Path:
    """Fit EASE in closed form, fits a and b; b alone, for the comparison, where it makes no candidates."""
    from tripletune.models.ease.fit import train_ease

    def train(split: Path, work: Path) -> Facts:
        return train_ease(split, work, config.retrieve, config.seed)

    return _train("ease", paths, ("split",), train)


def run_slist(paths: RunPaths, config: RunConfig) -> Path:
    """Fit SLIST in closed form, fits a and b; for retrieve.retriever = "slist", or "fused" with a weight for it."""
    from tripletune.models.slist.fit import train_slist

    _refuse_unneeded("slist", "SLIST", config)

    def train(split: Path, work: Path) -> Facts:
        return train_slist(split, work, config.slist, config.seed)

    return _train("slist", paths, ("split",), train)


def run_further_retriever(paths: RunPaths, config: RunConfig, *, name: str) -> Path:
    """Train {name}, fits a and b; for retrieve.retriever = "{name}", or "fused" with a weight for it."""
    from tripletune.models.registry import train_further

    if name not in config.trained_stages:
        raise ConfigError(
            f"retrieve.retriever = {config.retrieve.retriever!r} needs no {name}; set it to {name!r}, or to 'fused' "
            f"with retrieve.fused_more.{name} above 0"
        )

    def train(split: Path, work: Path) -> Facts:
        return train_further(name, split, work, config)

    return _train(name, paths, ("split",), train)


def _refuse_unneeded(stage: str, model: str, config: RunConfig) -> None:
    """Refuse to train a retriever that no list of this config needs."""
    if stage not in config.trained_stages:
        raise ConfigError(
            f"retrieve.retriever = {config.retrieve.retriever!r} needs no {model}; set it to {stage!r}, or to 'fused' "
            f"with retrieve.fused_{stage} above 0"
        )


def _train(stage: str, paths: RunPaths, parents: tuple[str, ...], train: Train) -> Path:
    """Reuse a trained model (a pinned one too, whose parents may be gone), or train it on all threads."""
    from tripletune.threads import take_all_threads

    if paths.is_done(stage):
        return paths.folder(stage)
    folders = [paths.require(parent) for parent in parents]
    take_all_threads()
    return paths.build(stage, lambda work: train(*folders, work))


def run_fusion(paths: RunPaths, config: RunConfig) -> Path:
    """Learn the weights of the fused list; for retrieve.retriever = "fused" with retrieve.fusion = "learned"."""
    from tripletune.retrieve.fusion import learn_fusion

    if not config.retrieve.learns_weights:
        raise ConfigError(
            f"retrieve.retriever = {config.retrieve.retriever!r} with retrieve.fusion = {config.retrieve.fusion!r} "
            "learns no weights; set them to 'fused' and 'learned'"
        )

    def train(split: Path, work: Path) -> Facts:
        trained = {stage: paths.require(stage) for stage in config.listed_stages}
        return learn_fusion(split, trained, work, config.retrieve, config.seed)

    return _train("fusion", paths, ("split",), train)


def run_selector(paths: RunPaths, config: RunConfig) -> Path:
    """Learn from an earlier run's probe which facts help; for retrieve.triple_choice = "learned"."""
    from tripletune.pipeline.feedback import resolved_log
    from tripletune.selector.selector import Judging, learn_selector

    if not config.retrieve.learns_triples:
        raise ConfigError(
            f"retrieve.triple_choice = {config.retrieve.triple_choice!r} learns no choice; set it to 'learned'"
        )
    evaluate = config.evaluate
    judging = Judging(confidence=evaluate.confidence, resamples=evaluate.bootstrap_resamples, seed=config.seed)

    def train(split: Path, knowledge: Path, rgat: Path, lightgcn: Path, work: Path) -> Facts:
        run = resolved_log(paths)
        return learn_selector(run, split, knowledge, rgat, lightgcn, work, config.selector, judging)

    return _train("selector", paths, ("split", "knowledge", "rgat", "lightgcn"), train)


def run_retrieve(paths: RunPaths, config: RunConfig) -> Path:
    """Retrieve candidates, hint lists, similar users' films and chosen triples of every user and purpose."""
    from tripletune.retrieve.candidates import retrieve_all

    require_one_answer(config)
    knowledge, split = paths.require("knowledge"), paths.require("split")
    trained = {stage: paths.require(stage) for stage in config.trained_stages}

    def make(work: Path) -> Facts:
        found = find_earlier(paths, "retrieve", {**_same_facts(trained["rgat"]), "ingest": _same_people})
        facts = retrieve_all(
            split,
            knowledge,
            trained,
            work,
            config.retrieve,
            num_liked_triples=config.prompt.triples_for_liked,
            seed=config.seed,
            sample=config.sample,
            earlier=found.folder if isinstance(found, Earlier) else None,
            **{stage: paths.require(stage) for stage in config.retrieve.optional_stages},
        )
        log.info(describe("retrieve", found, facts))
        return facts | _reused(found)

    return paths.build("retrieve", make)


def _same_facts(rgat: Path) -> SameContent:
    """Content comparison, for an increment of retrieve, of the parents that every run rebuilds."""
    from tripletune.retrieve.reuse import same_facts

    return {"knowledge": lambda before, now: same_facts(before, now, rgat)}


def _same_facts_and_titles(rgat: Path, *, people: bool) -> SameContent:
    """Content comparison for an increment of generate; with ``people`` its retrieve reads the users of ingest."""
    from tripletune.prompts.reuse import same_titles

    if not people:
        return {**_same_facts(rgat), "ingest": same_titles}
    return {**_same_facts(rgat), "ingest": lambda before, now: same_titles(before, now) and _same_people(before, now)}


def _same_people(before: Path, now: Path) -> bool:
    """Whether two ingest outputs say the same of the release's users; a feed adds none."""
    return same_files(before, now, ("users.parquet",))


def _reused(found: Earlier | str) -> Facts:
    return {"nothing_reused": found} if isinstance(found, str) else {"reused": found.folder.name}


def run_generate(paths: RunPaths, config: RunConfig, map_jobs: MapJobs | None = None) -> Path:
    """Write the prompt / ground-truth shards, and publish them only when the audit finds no leak."""
    from tripletune.audit.audit import audit_work_folder
    from tripletune.audit.late import late_leaks
    from tripletune.audit.leaks import refuse_leaks
    from tripletune.audit.record import write_record
    from tripletune.prompts.card import Origin, write_card
    from tripletune.prompts.shards import generate_shards, one_after_the_other
    from tripletune.prompts.template import load_template
    from tripletune.schemas.hints import SPECIALISTS
    from tripletune.store.request_time import request_time_note

    require_one_answer(config)
    ingest, split, retrieve = paths.require("ingest"), paths.require("split"), paths.require("retrieve")
    trained = {stage: paths.require(stage) for stage in config.trained_stages}

    def make(work: Path) -> Facts:
        same = _same_facts_and_titles(trained["rgat"], people=config.retrieve.similar_people > 0)
        # worked examples are chosen among this run's users, and stand in every prompt
        is_new = config.prompt.worked_examples > 0
        found = "all prompts have new worked examples" if is_new else find_earlier(paths, "generate", same)
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
            specialists={one.stage: paths.fingerprints[one.stage] for one in SPECIALISTS},
            seed=config.seed,
            tokenizer=tokenizer_of(paths, config),
            map_jobs=map_jobs or one_after_the_other,
            previous=found.folder if isinstance(found, Earlier) else None,
            unchanged=unchanged if isinstance(found, Earlier) else None,
        )
        log.info(describe("generate", found, changes))
        earlier = found.folder if isinstance(found, Earlier) else None
        template = load_template(config.prompt.template)
        inline = template.inline_in(config.prompt.triple_form)
        audit = audit_work_folder(
            work, split, retrieve, trained, style=template.answers, inline=inline, earlier=earlier
        )
        read = {"ingest": ingest, "split": split, "retrieve": retrieve, "generate": work}
        refuse_leaks(audit.leaks + late_leaks(read, config.ingest.as_of))
        if note := request_time_note(trained):
            log.warning("generate: %s", note)
        write_record(work, audit.proven)
        log.info("generate: %s of %s examples audited again", f"{audit.newly_audited:,}", f"{audit.proven.height:,}")
        write_card(work, template, Origin.of(config, paths.fingerprints))
        if earlier:
            changes["examples_proven_anew"] = audit.newly_audited
        return facts | changes | _reused(found)

    return paths.build("generate", make)


def run_quality(paths: RunPaths, config: RunConfig, *, run: str, child: StageRun) -> Path:
    """Measure the shards, compare them with the last run's, and stop where they moved too far. Never reused."""
    from tripletune.quality.report import refuse_drift, report_quality
    from tripletune.selector.guards import say_choice

    generate, split = paths.require("generate"), paths.require("split")
    last = earlier_run(paths, "generate", but=run)
    before = (last.name, last.paths(paths.root).folder("generate")) if last else None
    folder = quality_folder(paths.root, paths.dataset, run)
    choice = say_choice(paths.manifest("selector")["facts"]) if config.retrieve.learns_triples else ""
    quality = report_quality(generate, split, folder, config.quality, run=run, before=before, choice=choice)
    child.log_report(folder, quality.metrics)
    refuse_drift(quality, config.quality)
    return folder


def run_base(paths: RunPaths, config: RunConfig) -> Path:
    """Convert the pretrained model that a package ships, SmolLM2-135M-Instruct, into a model folder."""
    from tripletune.finetune.shipped import write_shipped

    return paths.build("base", write_shipped)


def tokenizer_of(paths: RunPaths, config: RunConfig) -> tuple[str, str] | None:
    """Folder or id, and revision, of the tokenizer that counts the prompts' tokens; None for ``tiny``."""
    return (str(paths.require("base")), "") if config.finetune.is_shipped else config.counted_with


def run_teach(paths: RunPaths, config: RunConfig) -> Path:
    """Score the training prompts' candidates with the teacher, the tuned model that finetune.teacher names."""
    from tripletune.pipeline.teacher import teacher_folder
    from tripletune.prompts.engine import prompt_contract
    from tripletune.rank.teach import score_training

    teacher = teacher_folder(config, paths.root)
    if teacher is None:
        raise ConfigError(
            "finetune.teacher names no model to learn from (or finetune.teacher_weight is 0); set it to a run's name "
            "or to the folder of a finetune stage"
        )
    generate = paths.require("generate")
    contract = prompt_contract(config.prompt, config.retrieve)
    return paths.build("teach", lambda work: score_training(generate, teacher, work, config.rank, contract))


def run_forms(paths: RunPaths, config: RunConfig) -> Path:
    """Write the short forms of the training prompts, about one film and about two; for ensemble.forms."""
    from tripletune.audit.forms import audit_forms
    from tripletune.audit.leaks import refuse_leaks
    from tripletune.prompts.forms import write_forms
    from tripletune.prompts.template import load_template

    if not config.ensemble.forms:
        raise ConfigError("ensemble.forms = [] asks the list alone; set it to ['pointwise', 'pairwise']")
    generate, texts = paths.require("generate"), load_template(config.prompt.template).further_forms()

    def make(work: Path) -> Facts:
        facts = write_forms(generate, work, config.ensemble.forms, texts, config.seed)
        refuse_leaks(audit_forms(generate, work, texts))
        return facts

    return paths.build("forms", make)


def run_finetune(paths: RunPaths, config: RunConfig, on_log: LogCurve | None = None) -> Path:
    """LoRA-tune the language model in a subprocess; the curve is live in MLflow."""
    return paths.build("finetune", _finetune(paths, config, on_log))


def join_finetune(paths: RunPaths, config: RunConfig, machine: int) -> None:
    """Lend this machine's processes to a training over several machines, of which machine 0 publishes the adapter."""
    paths.assist("finetune", machine, _finetune(paths, config, machine=machine))


def _finetune(
    paths: RunPaths, config: RunConfig, on_log: LogCurve | None = None, machine: int = 0
) -> Callable[[Path], Facts]:
    """What fills a work folder of the stage."""
    from tripletune.audit.ancestors import refuse_trained_on
    from tripletune.contract import Ensemble
    from tripletune.finetune.launch import finetune_adapter
    from tripletune.finetune.prepare import FilmSource
    from tripletune.finetune.shards import FurtherForms
    from tripletune.pipeline.warm import resolved_start
    from tripletune.prompts.engine import prompt_contract
    from tripletune.prompts.template import load_template

    generate = paths.require("generate")
    base = paths.require("base") if config.finetune.is_shipped else None
    behaviour = None
    if config.finetune.has_behaviour:
        source = config.finetune.behaviour_tokens
        behaviour = FilmSource(source, paths.require(source), load_template(config.prompt.template).slots)

    forms = None
    if config.ensemble.forms:
        texts = load_template(config.prompt.template).further_forms()
        forms = FurtherForms(paths.require("forms"), Ensemble(weights=config.ensemble.weights, texts=texts))

    def make(work: Path) -> Facts:
        start = resolved_start(paths, config)
        if start.champion:
            refuse_trained_on(start.champion.folder, generate)
        elif start.reason:
            log.info("finetune: from the base model: %s", start.reason)
        return finetune_adapter(
            generate,
            work,
            config.finetune,
            prompt_contract(config.prompt, config.retrieve),
            dict(paths.fingerprints),
            config.seed,
            on_log,
            base=base,
            behaviour=behaviour,
            machine=machine,
            teacher=paths.require("teach") if config.finetune.has_teacher else None,
            champion=start.champion,
            forms=forms,
        )

    return make


def run_rank(paths: RunPaths, config: RunConfig) -> Path:
    """Answer the valid and test prompts with the tuned and the untuned model and with both trivial orders."""
    from tripletune.prompts.engine import prompt_contract
    from tripletune.rank.predict import rank_shards

    generate, finetune = paths.require("generate"), paths.require("finetune")
    contract = prompt_contract(config.prompt, config.retrieve)
    return paths.build(
        "rank",
        lambda work: rank_shards(generate, finetune, work, config.rank, contract, config.seed, folder_of=paths.require),
    )


def run_probe(paths: RunPaths, config: RunConfig) -> Path:
    """Change one thing at a time in some users' prompts and score them again: what the tuned model relies on."""
    from tripletune.probe.counterfactual import FactPool
    from tripletune.probe.probe import Probing, choose_examples, probe_examples
    from tripletune.probe.retriever import probe_retriever
    from tripletune.prompts.engine import prompt_contract
    from tripletune.retrieve.triples import read_triples
    from tripletune.serve.run_prompts import RunPrompts

    if not config.probe.users:
        raise ConfigError("probe.users = 0 probes nobody; set it to a number of users, such as 100")
    generate, finetune, split = (paths.require(stage) for stage in ("generate", "finetune", "split"))
    opened = RunPrompts(paths, config)

    def make(work: Path) -> Facts:
        probing = Probing(
            settings=config.probe,
            rank=config.rank,
            frame=opened.frame(),
            pool=FactPool.of(read_triples(paths.require("knowledge")), config.seed),
            prompt_contract=prompt_contract(config.prompt, config.retrieve),
            confidence=config.evaluate.confidence,
            resamples=config.evaluate.bootstrap_resamples,
            seed=config.seed,
            folders={stage: paths.require(stage) for stage in config.behaviour_stages},
        )
        examples = choose_examples(generate, config.probe, config.seed)
        steady, names = examples.filter("steady"), config.probe.perturbations
        stability = probe_retriever(split, steady, opened.retriever, config.retrieve, names, config.seed)
        return probe_examples(examples, finetune, work, probing, stability)

    return paths.build("probe", make)


def run_evaluate(paths: RunPaths, config: RunConfig) -> Path:
    """Metrics with intervals, comparisons between all rows, audits of the answers, and the HTML report."""
    from tripletune.evaluate.evaluate import evaluate_run

    trained = {stage: paths.require(stage) for stage in (*config.trained_stages, "finetune", *config.probe_stages)}
    rank, generate, retrieve, split = (paths.require(stage) for stage in ("rank", "generate", "retrieve", "split"))
    ingest = paths.require("ingest")
    return paths.build(
        "evaluate",
        lambda work: evaluate_run(
            rank, generate, retrieve, split, work, config.evaluate, config.seed, trained, ingest=ingest
        ),
    )


def run_promote(paths: RunPaths, config: RunConfig, *, run: str, child: StageRun) -> Path:
    """Move the champion alias to this adapter, or give the reason why not. Never reused: the champion may change."""
    from tripletune.promote.champion import promote_or_keep

    if config.ingest.as_of:
        raise ConfigError(
            f"ingest.as_of = {config.ingest.as_of}: an adapter of an earlier day is not promoted; remove the setting "
            "to train and promote one on all ratings"
        )
    return promote_or_keep(paths, config, run=run, child=child)
