"""Config errors: one line that names the key and the allowed values."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from tripletune.config import RunConfig
from tripletune.config.presets import load_config
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
        (
            'dataset = "x"\n[split]\nprotocol = "ratio"\nheld_out = 3\n',
            r"\[split\] held_out = 3 needs protocol = 'leave_one_out' or 'global_time', not 'ratio'",
        ),
        ('dataset = "x"\n[split]\nheld_out = 0\n', "split.held_out = 0: input should be greater than or equal to 1"),
        ('dataset = "../x"\n', "dataset = '../x'"),
        (
            'dataset = "x"\n[finetune]\ngradient_accumulation_steps = 4\n',
            r"unknown key 'gradient_accumulation_steps' in \[finetune\]; its place took global_batch, the examples",
        ),
        (
            'dataset = "x"\n[promote]\nmargin = 0.01\n',
            r"unknown key 'margin' in \[promote\]; its place took relative_margin, a share of the reference's value",
        ),
        ('dataset = "x"\n[finetune]\nmodel = "a/b"\n', "revision must pin a commit of a/b"),
        ('dataset = "x"\n[finetune]\ntargets = "rating"\n', "targets = 'rating' needs an objective over labels; set"),
        (
            'dataset = "x"\nfinetune = {targets = "rating", objective = "ranknet"}\nsplit = {like = 0, dislike = 0}\n',
            "finetune.targets = 'rating' needs likes rated above 0",
        ),
        ("dataset =\n", "cannot be read as TOML"),
        ('dataset = "x"\n[source.feed]\nratings = "x"\n', r"ratings = 'x': should be a list such as \[\"...\"\]"),
        (
            'dataset = "x"\n[evaluate]\nrerank_cutoffs = 3\n',
            r"cutoffs = 3: should be a list such as \[3, 5, 10\]",
        ),
        ('dataset = "x"\n[source]\nfeed = ["x"]\n', r"feed = \['x'\]: should be a table such as { ratings = \[\"..."),
        (
            'dataset = "x"\n[source.feed]\ncolumns = ["a"]\n',
            r"source.feed.columns = \['a'\]: should be a table such as { user_id = \"userId\" }",
        ),
        (
            'dataset = "x"\n[split]\nvalid_from = 2017-01-01T10:00:00\n',
            "split.valid_from = 2017-01-01T10:00:00: should be a day such as 2017-01-01",
        ),
        ('dataset = "x"\n[ingest]\nearliest = "long ago"\n', "earliest = 'long ago': should be a day such as"),
    ],
)
def test_a_wrong_value_is_named_in_one_line(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(write(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder_name_the_shipped_presets_and_no_other_toml(tmp_path):
    write(tmp_path, "[project]\n")
    with pytest.raises(
        ConfigError, match=r"no config file .*other.toml; presets in .*configs: interactions.toml, kerag-r"
    ) as caught:
        load_config(tmp_path / "other.toml")
    assert "config.toml" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"is a folder; give a .toml file; presets in .*configs: .*smoke.toml"):
        load_config(tmp_path)


def test_an_accelerate_config_beside_the_preset_is_found_from_another_working_directory(tmp_path, monkeypatch):
    checkout, elsewhere = tmp_path / "checkout", tmp_path / "elsewhere"
    wanted = checkout / RunConfig(dataset="x").finetune.accelerate_config
    wanted.parent.mkdir(parents=True)
    wanted.write_text("num_processes: 1\n")
    preset = write(checkout / "configs", 'dataset = "x"\n')
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert Path(load_config(preset).finetune.accelerate_config) == wanted
    assert Path(load_config(Path("../checkout/configs/config.toml")).finetune.accelerate_config) == wanted


def test_a_template_beside_the_preset_is_found_from_another_working_directory(tmp_path, monkeypatch):
    preset = write(tmp_path, 'dataset = "x"\n[prompt]\ntemplate = "mine.txt"\n')
    (tmp_path / "mine.txt").touch()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load_config(preset).prompt.template == str(tmp_path / "mine.txt")
    monkeypatch.chdir(tmp_path)
    assert load_config(preset).prompt.template == "mine.txt"
    shipped = write(tmp_path, 'dataset = "x"\n[prompt]\ntemplate = "letters"\n')
    (tmp_path / "letters").touch()
    assert load_config(shipped).prompt.template == "letters"


def test_an_accelerate_config_of_the_working_directory_keeps_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("num_processes: 1\n")
    preset = write(tmp_path, 'dataset = "x"\n[finetune]\naccelerate_config = "mine.yaml"\n')
    assert load_config(preset).finetune.accelerate_config == "mine.yaml"


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
