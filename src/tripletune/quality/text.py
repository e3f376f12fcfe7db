"""Find damaged text in prompts and completions: encoding errors, invisible characters, bidirectional controls.

A line that occurs in many prompts is checked once. The templates and the titles of a healthy release have no such flaw.
The check shares no code with ``prompts.sanitise``, which cleans the titles.
"""

from __future__ import annotations

import polars as pl

_STEERING = r"[\x{061C}\x{200E}\x{200F}\x{202A}-\x{202E}\x{2066}-\x{2069}]"
"""Bidirectional controls."""
_INVISIBLE = r"[\x{00AD}\x{034F}\x{115F}\x{1160}\x{17B4}\x{17B5}\x{180B}-\x{180F}\x{200B}-\x{200D}\x{2060}-\x{2064}"
_INVISIBLE += r"\x{206A}-\x{206F}\x{3164}\x{FE00}-\x{FE0F}\x{FEFF}\x{FFA0}\x{E0000}-\x{E0FFF}]"
_CONTINUED = "[\u0080-\u00bf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]"
"""Second and later bytes of UTF-8, read as Latin-1 or Windows-1252."""
_MOJIBAKE = f"[ÂÃ]{_CONTINUED}|[à-ï]{_CONTINUED}{{2}}|[ð-ô]{_CONTINUED}{{3}}"

FLAWS: dict[str, pl.Expr] = {
    "not in Unicode NFC": pl.col("line").str.normalize("NFC") != pl.col("line"),
    "replacement character": pl.col("line").str.contains("\N{REPLACEMENT CHARACTER}", literal=True),
    "control character": pl.col("line").str.contains(r"[\p{Cc}\p{Zl}\p{Zp}]"),
    "bidirectional control": pl.col("line").str.contains(_STEERING),
    "invisible character": pl.col("line").str.contains(_INVISIBLE),
    "private or unassigned character": pl.col("line").str.contains(r"[\p{Co}\p{Cn}]"),
    "looks like UTF-8 read as Latin-1": pl.col("line").str.contains(_MOJIBAKE),
}
"""Kind -> condition on a column ``line``."""


def find_flaws(texts: pl.DataFrame) -> pl.DataFrame:
    """Examples whose text has a flaw, once per kind, with the first line that has it.

    Args:
        texts: ``example_id, prompt, completion``.

    Returns:
        ``example_id, kind, line``, in the order of ``texts``.
    """
    text = pl.concat_str("prompt", "completion", separator="\n")
    # most lines are plain letters, digits and marks, which have none of the flaws
    lines = texts.select("example_id", line=text.str.extract_all(r"[^\n]*[^ -~\n][^\n]*"))
    lines = lines.explode("line", empty_as_null=False)
    distinct = lines.select(pl.col("line").unique())
    found = [distinct.filter(condition).with_columns(kind=pl.lit(kind)) for kind, condition in FLAWS.items()]
    return (
        lines.join(pl.concat(found), on="line", maintain_order="left_right")
        .unique(["example_id", "kind"], keep="first", maintain_order=True)
        .select("example_id", "kind", "line")
    )
