"""A tuned language model against its retriever, on a GPU: all examples, several epochs, with and without each part.

    python benchmarks/gpu/llm.py prepare --shards ml-1m=GENERATE --shards no-hints=OTHER --model BASE \\
        --films sequence=SEQUENCE --out gpu-kit/llm
    python benchmarks/gpu/llm.py measure --data /tmp/kit/llm --out gpu-results/llm.json    # ends by a deadline
    python benchmarks/gpu/llm.py report gpu-results/llm.json    # writes benchmarks/gpu/llm.md

prepare keeps what is read of the shards (GENERATE: the folder of a finished stage, of a template with letters) and of
the model, with the logits of two prompts as computed here, which measure compares with its own before it trains. From
--films (the folder of a finished stage sequence, lightgcn or rgat) come the film vectors of behaviour tokens; without
it, or where the main shards' prompts have lines of data that are no films, the variants with such tokens are skipped.

A job is a variant on some shards. The model is tuned on all training examples, then gives each candidate of every valid
and test example a logit. The weight of the logits next to the retriever's prior is fitted on the valid users who
select; the others and all test users are ranked. The main job, tuned on the first shards, goes first; then the untuned
model and behaviour tokens, tuned on the other shards, the other VARIANTS (or those of --variants, JSON: name to
settings) on the first, and tuned again with each further seed. A job that does not fit into the time left is skipped;
where the main one does not fit into half of it, all get fewer epochs. An example whose answer is not a candidate counts
0 in every system, and no model reads it.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
import typer
from llm_kit import SEED, Kit, Prompts, draw_kit, keep_kit, read_reference
from llm_results import CURVE, MAIN, format_report, measure_scores
from llm_training import Variant, clock, num_tokens, score, train
from report_command import add_report
from rich.console import Console
from session import DEFAULT_MINUTES, MAX_MINUTES, Session
from transformers.utils.logging import disable_progress_bar

from tripletune.errors import UserError

if TYPE_CHECKING:
    from tripletune.behaviour.space import FilmVectors

REPORT = Path(__file__).with_name("llm.md")
FOLLOWED = 1000
"""Examples of users who select whose loss is followed from epoch to epoch."""
SHARE_OF_MAIN, RESERVE, PER_JOB = 0.5, 20.0, 8.0
"""Share of the time that the main job may take; seconds kept at the end; seconds of a job next to its two passes."""
LARGEST_DIFFERENCE = 0.05
"""Of a logit in float32 between two machines; another template or position encoding would change it by more."""
TINY_BATCH = 4
SOURCES = ("sequence", "lightgcn", "rgat")
UNTUNED = "untuned"
BEHAVIOUR, FROM_START = "behaviour tokens", "behaviour tokens from the start"
EARLY = (UNTUNED, BEHAVIOUR, FROM_START)
"""Variants that run before the other shards."""
VARIANTS: dict[str, dict[str, Any]] = {
    MAIN: {},
    UNTUNED: {"epochs": 0},
    BEHAVIOUR: {"behaviour": True, "curriculum": 0.5},
    FROM_START: {"behaviour": True},
    "random weights": {"weights": "random"},
    "loss without prior": {"residual": False},
    "a fifth of the weight": {"residual_weight": 0.2},
    "ranknet": {"objective": "ranknet"},
    "lambdarank": {"objective": "lambdarank"},
    "a third of the rate": {"learning_rate": 3e-4},
    "all trained": {"trains": "all", "learning_rate": 1e-4},
    "random weights, all trained": {"weights": "random", "trains": "all", "learning_rate": 3e-4},
    "behaviour tokens, random weights": {"behaviour": True, "curriculum": 0.5, "weights": "random"},
}


@dataclass(frozen=True, slots=True)
class Job:
    """A variant on some shards."""

    shards: str
    name: str
    seed: int
    variant: Variant

    @property
    def key(self) -> str:
        """Of its results."""
        return f"{self.shards} | {self.name} | {self.seed}"


@dataclass(frozen=True, slots=True)
class Rates:
    """Tokens per second, padding not counted."""

    train: float
    rank: float

    def seconds(self, prompts: Prompts, epochs: int) -> float:
        """What a job takes."""
        return PER_JOB + epochs * num_tokens(prompts.part("train")) / self.train + prompts.tokens_read() / self.rank


def check(kit: Kit, prompts: Prompts) -> dict[str, float]:
    """Largest difference of a label's logit from ``prepare``'s, for the same prompts.

    Raises:
        SystemExit: the tokens differ, or the logits do in float32; what follows would not be what the product does.
    """
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        got = read_reference(kit, prompts, dtype)
        if got["input_ids"] != kit.reference["input_ids"]:
            raise SystemExit(
                "llm: prompts have other tokens here than in prepare; compare the versions of transformers"
            )
        pairs = zip(got["logits"], kit.reference["logits"], strict=True)
        found[str(dtype).removeprefix("torch.")] = max(float(np.abs(np.subtract(*pair)).max()) for pair in pairs)
    if not found["float32"] < LARGEST_DIFFERENCE:
        raise SystemExit(
            f"llm: logits differ by {found['float32']:.2g} from those of prepare (float32, the same tokens); look for "
            "another position encoding or attention in this machine's transformers"
        )
    return found


def probe(kit: Kit, prompts: Prompts, variant: Variant) -> Rates:
    """Rates of a few steps, after one that does not count."""
    rows, once = prompts.part("train")[: 4 * variant.batch], replace(variant, epochs=1, behaviour=False)
    model = kit.model(once, SEED)
    train(model, rows[: variant.batch], prompts.prior, once, SEED)
    facts = train(model, rows, prompts.prior, once, SEED)
    score(model, rows, prompts.prior)
    start = clock(kit.device)
    score(model, rows, prompts.prior)
    return Rates(facts["tokens_per_s"], num_tokens(rows) / (clock(kit.device) - start))


def plan(names: Sequence[str], variants: Mapping[str, Variant], seeds: Sequence[int]) -> list[Job]:
    """The jobs, the most important first."""
    first, *others = names
    main = [Job(first, MAIN, seed, variants[MAIN]) for seed in seeds if MAIN in variants]
    jobs = {name: Job(first, name, seeds[0], variant) for name, variant in variants.items() if name != MAIN}
    early = [jobs.pop(name) for name in EARLY if name in jobs]
    return [*main[:1], *early, *(replace(main[0], shards=name) for name in others if main), *jobs.values(), *main[1:]]


def run(job: Job, kit: Kit, prompts: Prompts, session: Session) -> dict[str, Any]:
    """Train, weigh and rank; the job's results."""
    if kit.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    model = kit.model(job.variant, job.seed)
    followed, curve = prompts.part("select")[:FOLLOWED], []

    def after_epoch(epoch: int, loss: float) -> None:
        scores = score(model, followed, prompts.prior)
        weight = scores.weight() if scores.are_finite else 0.0
        curve.append({"epoch": epoch, "train": loss, "weight": weight, "select": scores.losses(weight)["both"]})
        session.record(f"{CURVE}{job.key}", curve)

    trained = None
    if job.variant.epochs:
        trained = train(model, prompts.training_rows(), prompts.prior, job.variant, job.seed, after_epoch)
    start = clock(kit.device)
    scores = {part: score(model, prompts.part(part), prompts.prior) for part in ("select", "judge", "test")}
    seconds = clock(kit.device) - start
    read = sum(len(one.logits) for one in scores.values())
    found = {
        "variant": asdict(job.variant),
        "training": trained,
        "ranking": {
            "seconds": round(seconds, 3),
            "users_per_s": read / seconds,
            "tokens_per_s": prompts.tokens_read() / seconds,
        },
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if kit.device.type == "cuda" else None,
    }
    if not all(one.are_finite for one in scores.values()):
        return found | {"diverged": True}
    return found | measure_scores(prompts, scores)


def run_all(session: Session, kit: Kit, variants: Mapping[str, Variant], epochs: int, seeds: Sequence[int]) -> None:
    """Run what fits into the session, and record each job as it ends."""
    read: dict[tuple[str, bool], Prompts] = {}

    def read_once(name: str, behaviour: bool) -> Prompts:
        if (name, behaviour) not in read:
            read[name, behaviour] = kit.with_films(read_once(name, False)) if behaviour else kit.prompts(name)
        return read[name, behaviour]

    prompts = read_once(kit.names[0], False)
    session.record("check", check(kit, prompts))
    if kit.films:
        session.record("films", kit.films)
    rates = probe(kit, prompts, variants.get(MAIN, Variant()))
    while epochs > 1 and rates.seconds(prompts, epochs) > SHARE_OF_MAIN * session.seconds_left:
        epochs -= 1
    session.record("plan", {"epochs": epochs, "tokens_per_s": asdict(rates)})
    skipped: dict[str, str] = {}

    def skip(job: Job, reason: str) -> None:
        skipped[job.key] = reason
        session.record("skipped", skipped)

    for job in plan(kit.names, variants, seeds):
        if job.variant.behaviour and not kit.film_columns(job.shards):
            skip(job, "the kit has no film vectors for these prompts")
            continue
        prompts = read_once(job.shards, job.variant.behaviour)
        if job.variant.epochs is None:
            job = replace(job, variant=replace(job.variant, epochs=epochs))
        needed, left = rates.seconds(prompts, job.variant.epochs or 0), session.seconds_left
        if needed > left - RESERVE:
            skip(job, f"needs {needed:.0f} s, {left:.0f} s were left")
            continue
        session.record(f"shards {job.shards}", describe(read_once(job.shards, False)))
        found = run(job, kit, prompts, session)
        session.record(job.key, found)
        if found["training"]:
            rates = Rates(found["training"]["tokens_per_s"], found["ranking"]["tokens_per_s"])


def describe(prompts: Prompts) -> dict[str, Any]:
    """Sizes of some shards."""
    parts = {
        part: {"examples": len(some), "hits": int(some["hit"].sum()), "users": some["user_id"].n_unique()}
        for (part,), some in sorted(prompts.frame.group_by("part"))
    }
    lengths = [len(row["input_ids"]) for row in prompts.rows]
    return {"parts": parts, "tokens": float(np.mean(lengths)), "longest": max(lengths), "prior": prompts.prior}


HELP = "\n\n".join(f"\b\n{paragraph}" for paragraph in str(__doc__).split("\n\n"))
"""Typer keeps the lines of a paragraph that starts with a \\b."""
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, help=HELP)


@app.command()
def prepare(
    shards: Annotated[list[str], typer.Option(help="NAME=FOLDER of a generate stage; the first is the main one.")],
    model: Annotated[Path, typer.Option(help="Folder in Hugging Face's layout, such as the stage base writes.")],
    out: Annotated[Path, typer.Option(help="New folder.")],
    films: Annotated[str | None, typer.Option(help="SOURCE=FOLDER of the stage whose film vectors are used.")] = None,
) -> None:
    """Write the data that ``measure`` reads; needs no GPU."""
    pairs = [text.partition("=") for text in shards]
    if not all(name and folder and not set(name) & set("|/") for name, _, folder in pairs):
        raise SystemExit("llm: give each --shards as NAME=FOLDER, NAME without slash and bar")
    try:
        keep_kit({name: Path(folder) for name, _, folder in pairs}, model, out, _read_films(films) if films else None)
    except UserError as error:
        raise SystemExit(f"llm: {error}") from None


def _read_films(text: str) -> tuple[str, FilmVectors, FilmVectors]:
    from tripletune.behaviour.space import read_vectors  # only here: measuring needs no pydantic

    source, _, folder = text.partition("=")
    if source not in SOURCES or not folder:
        raise SystemExit(f"llm: give --films as SOURCE=FOLDER, SOURCE one of {', '.join(SOURCES)}")
    first, second = (read_vectors(Path(folder), source, fit) for fit in ("a", "b"))
    return source, first, second


@app.command()
def measure(
    out: Annotated[Path, typer.Option(help="Results, as JSON.")],
    data: Annotated[Path | None, typer.Option(help="Folder that prepare wrote.")] = None,
    variants: Annotated[Path | None, typer.Option(help="JSON file: name to settings, in place of VARIANTS.")] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the training examples.")] = 3,
    seeds: Annotated[list[int] | None, typer.Option(help="Of weights and order; further ones repeat tuned.")] = None,
    device: Annotated[str, typer.Option(help="cuda or cpu.")] = "cuda",
    minutes: Annotated[float, typer.Option(help=f"Ends by then, at most {MAX_MINUTES:g} on a GPU.")] = DEFAULT_MINUTES,
    tiny: Annotated[bool, typer.Option("--tiny", help="Random data and a tiny model: does it run?")] = False,
) -> None:
    """Tune and rank on the device, and write the results."""
    if device == "cuda" and not torch.cuda.is_available():
        print("llm: torch sees no GPU here, so nothing was measured")
        return
    if data is None and not tiny:
        raise SystemExit("llm: give --data, a folder that prepare wrote, or --tiny")
    disable_progress_bar()
    settings = json.loads(variants.read_text(encoding="utf-8")) if variants else VARIANTS
    every = {name: Variant(**({"batch": TINY_BATCH} if tiny else {}) | values) for name, values in settings.items()}
    place = torch.device(device)
    with Session("llm", place, out, minutes, tiny) as session, tempfile.TemporaryDirectory() as scratch:
        session.measure_ceilings()
        kit = Kit.read(data or draw_kit(Path(scratch)), place)
        run_all(session, kit, every, epochs, seeds or [SEED, SEED + 1])
    Console().print(format_report(session.page), markup=False, soft_wrap=True)


report = add_report(app, format_report, REPORT)

if __name__ == "__main__":
    app()
