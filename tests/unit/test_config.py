"""A wrong config ends in one line that names the key and what would be right."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from tripletune.config import RunConfig, load_config
from tripletune.errors import ConfigError


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('dataset = "x"\n[split]\nhold_out = 1\n', r"unknown key 'hold_out' in \[split\]; the keys there are: dislike"),
        ('dataset = "x"\nsplits = 1\n', "unknown key 'splits' at the top; the keys there are: dataset"),
        ('dataset = "x"\n[finetune.tiny]\nwidth = 1\n', r"unknown key 'width' in \[finetune.tiny\].*hidden_size"),
        ("seed = 1\n", "'dataset' is missing"),
        ('dataset = "x"\n[lightgcn]\nlayers = 9\n', "lightgcn.layers = 9: input should be less than or equal to 4"),
        ('dataset = "x"\n[split]\nlike = 1.0\n', r"\[split\] dislike = 3.0 must not exceed like = 1.0"),
        ('dataset = "../x"\n', "dataset = '../x'"),
        ('dataset = "x"\n[finetune]\nmodel = "a/b"\n', "revision must pin a commit of a/b"),
        ("dataset =\n", "cannot be read as TOML"),
    ],
)
def test_a_wrong_value_is_named_in_one_line(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(write(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_a_missing_file_names_the_presets_beside_it(tmp_path):
    write(tmp_path, 'dataset = "x"\n')
    with pytest.raises(ConfigError, match=r"no config file .*other.toml; presets there: .*config.toml"):
        load_config(tmp_path / "other.toml")


def test_a_config_cannot_change_after_it_was_read():
    config = RunConfig(dataset="x")
    with pytest.raises(ValidationError):
        config.split.like = 3.0  # type: ignore[misc]


def test_command_line_paths_override_the_file_and_empty_ones_do_not(tmp_path):
    path = write(tmp_path, 'dataset = "x"\n[source]\nmovielens = "a"\nimdb = "b"\n')
    config = load_config(path, movielens="c", imdb="")
    assert (config.source.movielens, config.source.imdb) == ("c", "b")


def test_flat_names_every_setting_once():
    flat = RunConfig(dataset="x").flat()
    assert flat["finetune.tiny.hidden_size"] == RunConfig(dataset="x").finetune.tiny.hidden_size
    assert flat["dataset"] == "x"
    assert not any(isinstance(value, dict) for value in flat.values())
