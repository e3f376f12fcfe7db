"""Parquet files appear whole, under their final name, with the requested options."""

import polars as pl
import pyarrow.parquet as pq
import pytest

from tripletune.store.parquet import write_parquet


def test_a_file_has_the_rows_row_groups_and_footer_that_were_asked_for(tmp_path):
    frame = pl.DataFrame({"film": range(10)})
    write_parquet(tmp_path / "films.parquet", frame, row_group_size=4, metadata={"note": "ten"}, unique=True)
    file = pq.ParquetFile(tmp_path / "films.parquet")
    assert file.num_row_groups == 3
    assert file.metadata.metadata[b"note"] == b"ten"
    assert file.metadata.row_group(0).column(0).compression == "ZSTD"
    assert pl.read_parquet(tmp_path / "films.parquet").equals(frame)
    assert [path.name for path in tmp_path.iterdir()] == ["films.parquet"]


def test_the_bytes_are_those_of_polars_own_writer(tmp_path):
    frame = pl.DataFrame({"film": range(150_000), "titles": [["Heat"]] * 150_000})
    write_parquet(tmp_path / "one.parquet", frame)
    frame.write_parquet(tmp_path / "other.parquet", compression="zstd")
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "other.parquet").read_bytes()


def test_a_file_that_cannot_be_finished_leaves_the_earlier_one(tmp_path):
    write_parquet(tmp_path / "films.parquet", pl.DataFrame({"film": [1]}))
    with pytest.raises(pl.exceptions.ComputeError):
        write_parquet(tmp_path / "films.parquet", pl.DataFrame({"film": [2]}), metadata={"note": 3})  # type: ignore[dict-item]
    assert pl.read_parquet(tmp_path / "films.parquet")["film"].item() == 1
