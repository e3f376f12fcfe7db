"""RecBole's atomic files become a release in GroupLens's layout."""

from __future__ import annotations

from pathlib import Path

from tests.benchmark_scripts import benchmark_script
from tripletune.data.release.layouts import GENRES_100K


def test_atomic_files_become_the_three_tables(tmp_path: Path) -> None:
    (tmp_path / "ml-100k.inter").write_text(
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n196\t242\t3\t881250949\n1\t2\t5.0\t8.5e2\n"
    )
    (tmp_path / "ml-100k.item").write_text(
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
        "1\tToy Story\t1995\tAnimation Children's Comedy\n267\tunknown\t\tunknown\n",
        encoding="utf-8",
    )
    (tmp_path / "ml-100k.user").write_text(
        "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n1\t24\tM\ttechnician\t85711\n"
    )
    with benchmark_script("recbole_release") as script:
        script.convert(tmp_path, tmp_path / "out")
    assert (tmp_path / "out" / "u.data").read_text() == "196\t242\t3\t881250949\n1\t2\t5\t850\n"
    first, second = (tmp_path / "out" / "u.item").read_text(encoding="latin-1").splitlines()
    flags = [str(int(genre in ("Animation", "Children's", "Comedy"))) for genre in GENRES_100K]
    assert first == "|".join(["1", "Toy Story (1995)", "", "", "", *flags])
    assert second.startswith("267|unknown||||1|0|")
    assert (tmp_path / "out" / "u.user").read_text() == "1|24|M|technician|85711\n"
