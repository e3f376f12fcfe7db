"""Are the token counts of the shards those of the model's own chat template, and is the budget kept?

    python benchmarks/generate_200k.py --sizes 8 --work FOLDER     # what this reads
    python benchmarks/token_counts.py --work FOLDER                # a minute; exit code 1 where one count is wrong

Shards of an eighth of ml-32m's users are written once more, with a budget that most prompts exceed. Of a sample each
whole conversation is then tokenised as TRL does it, and compared with the column ``num_tokens``.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import polars as pl
import typer
from generate_200k import CONFIG
from transformers import AutoTokenizer

from tripletune.prompts.shards import generate_shards


def main(
    work: Annotated[str, typer.Option(help="Folder of generate_200k.py.")],
    budget: Annotated[int, typer.Option(help="prompt.max_tokens.")] = 1450,
    sample: Annotated[int, typer.Option(help="Examples that are tokenised one by one.")] = 10_000,
) -> None:
    """Count, compare, and print what was dropped."""
    first, tokenizer = Path(work) / "first-8", str(Path(work) / "tokenizer")
    with TemporaryDirectory() as out:
        facts = generate_shards(
            Path(work) / "ingest",
            first / "split",
            first / "retrieve",
            Path(out),
            CONFIG.prompt.model_copy(update={"max_tokens": budget}),
            CONFIG.retrieve,
            dislike=CONFIG.split.dislike,
            specialists={"lightgcn": "made up", "rgat": "made up"},
            seed=CONFIG.seed,
            tokenizer=(tokenizer, ""),
        )
        examples = pl.read_parquet(f"{out}/test/*.parquet", columns=["prompt", "completion", "num_tokens"])
    model = AutoTokenizer.from_pretrained(tokenizer)
    wrong = longer = 0
    for prompt, completion, stated in examples.sample(min(sample, len(examples)), seed=7).iter_rows():
        ids = model.apply_chat_template([*prompt, *completion], tokenize=True, return_dict=True)["input_ids"]
        wrong += len(ids) != stated
        longer += len(ids) > budget
    print(
        f"vocabulary {len(model):,}; {len(examples):,} examples, {facts['shortened']:,} shortened for {budget:,} tokens"
    )
    print(f"of {min(sample, len(examples)):,} tokenised one by one: {wrong} counts wrong, {longer} over the budget")
    raise typer.Exit(bool(wrong or longer))


if __name__ == "__main__":
    typer.run(main)
