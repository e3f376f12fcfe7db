"""Settings given as ``section.key=value``: how they are read, refused, recorded and shown."""

from __future__ import annotations

import ast
import datetime

import pytest
from typer.main import get_command

from tripletune.cli.app import CHECKOUT, app
from tripletune.cli.main import main
from tripletune.config.overrides import only_store, parse_override
from tripletune.config.presets import load_config
from tripletune.errors import ConfigError
from tripletune.pipeline.resolve import resolve
from tripletune.store.runs import read_run
from tripletune.tracking import recorded_run

SMOKE = CHECKOUT / "configs" / "smoke.toml"


@pytest.mark.parametrize(
    ("given", "key", "value"),
    [
        ("seed=3", "seed", 3),
        (" rank.batch_size = 64 ", "rank.batch_size", 64),
        ("finetune.learning_rate=1e-3", "finetune.learning_rate", 1e-3),
        ("finetune.residual=false", "finetune.residual", False),
        ("retrieve.triple_choice=random", "retrieve.triple_choice", "random"),
        ("retrieve.triple_choice='random'", "retrieve.triple_choice", "random"),
        ('source.feed.ratings=["a b.csv", "s3://b/*.parquet"]', "source.feed.ratings", ["a b.csv", "s3://b/*.parquet"]),
        ("source.movielens=/data/my ratings=2.zip", "source.movielens", "/data/my ratings=2.zip"),
        ("source.imdb=", "source.imdb", ""),
        ("split.valid_from=2017-01-01", "split.valid_from", datetime.date(2017, 1, 1)),
        ("finetune.trainer.weight_decay=0.1", "finetune.trainer.weight_decay", 0.1),
        ("finetune.trainer={ weight_decay = 0.1 }", "finetune.trainer", {"weight_decay": 0.1}),
        ("models.itemknn.neighbours=20", "models.itemknn.neighbours", 20),
    ],
)
def test_a_value_is_toml_and_a_bare_word_is_text(given, key, value):
    found = parse_override(given)
    assert (found.key, found.value) == (key, value)
    assert type(found.value) is type(value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("rank.batch_size", "write section.key=value, such as"),
        ("=3", "write section.key=value"),
        ("rank batch_size=3", "write section.key=value"),
        ("retrieve.tripel_choice=none", "no setting retrieve.tripel_choice; did you mean retrieve.triple_choice[?]"),
        ("triple_choice=none", "no setting triple_choice; did you mean retrieve.triple_choice[?]"),
        ("generate.template=letters", "did you mean prompt.template[?]"),
        ("promote.margin=0.1", "no setting promote.margin; its place took relative_margin"),
        ("retrieve=none", "retrieve is a section; name one of its keys: candidates, ease_history_age"),
        ("seed.more=3", "seed is a setting and no section; did you mean seed=...[?]"),
        ('source.feed.ratings=["a', "the value is no TOML"),
        ("source.feed.ratings=[a.csv]", "the value is no TOML .*; quote texts inside lists"),
        ("seed=3\nrank.batch_size=4", "write section.key=value"),
        ("rank.batch_size=many", "--set rank.batch_size=many: rank.batch_size = 'many': input should be a valid int"),
        ("source.feed.ratings=a.csv", r"should be a list such as \[\"...\"\]"),
        ("sample.viewers=5", r"smoke.toml --set sample.viewers=5: \[sample\] viewers = 5 does not go with method"),
        ("prompt.max_tokens=5", r"smoke.toml --set prompt.max_tokens=5: \[\] prompt.max_tokens = 5 needs a tokenizer"),
    ],
)
def test_a_wrong_one_is_refused_in_one_line(given, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(SMOKE, [given])
    assert "\n" not in str(caught.value)


def test_of_two_with_one_name_the_last_holds_and_others_keep_the_presets_values():
    config = load_config(SMOKE, ["retrieve.hint_films=3", "retrieve.hint_films=4"])
    assert (config.retrieve.hint_films, config.retrieve.similar_films) == (4, 3)


def test_a_source_given_twice_is_refused():
    with pytest.raises(ConfigError, match=r"--set source.imdb=a and --imdb name one thing"):
        load_config(SMOKE, ["source.imdb=a"], imdb="b")
    assert load_config(SMOKE, ["source.imdb=a"], imdb="").source.imdb == "a"


def test_a_preset_without_the_table_is_named(tmp_path):
    preset = tmp_path / "wrong.toml"
    preset.write_text('dataset = "x"\nrank = 3\n')
    with pytest.raises(ConfigError, match=r"'rank' should be a table; --set rank.batch_size=3 sets a key of it"):
        load_config(preset, ["rank.batch_size=3"])


def test_a_run_that_is_gone_on_with_takes_only_its_store():
    only_store(["store.shared=s3://a/b"])
    with pytest.raises(ConfigError, match="--set seed=3: a run that is gone on with keeps its settings"):
        only_store(["store.shared=s3://a/b", "seed=3"])


def test_plan_says_what_was_set_and_a_wrong_key_has_exit_code_2(tmp_path, capsys):
    command = ["plan", "--config", str(SMOKE), "--artifacts", str(tmp_path)]
    assert main([*command, "--set", "prompt.triple_form=sentence", "--set", "seed=3"]) == 0
    assert "plan for smoke --set prompt.triple_form=sentence --set seed=3" in capsys.readouterr().out
    assert main([*command, "--set", "prompt.triple_from=sentence"]) == 2
    assert capsys.readouterr().err == (
        "tripletune: --set prompt.triple_from=sentence: there is no setting prompt.triple_from; did you mean "
        "prompt.triple_form?\n"
    )


def test_every_command_with_a_config_takes_settings():
    commands = get_command(app).commands
    options = {name: {one.name for one in command.params} for name, command in commands.items()}
    with_config = {name for name, names in options.items() if "config" in names}
    assert {"run", "plan", "estimate", "promote", "join", "ingest", "evaluate"} <= with_config
    assert with_config == {name for name, names in options.items() if "set" in names}


def test_a_run_records_what_was_set_and_show_says_it(tmp_path, capsys):
    given = ["tracking.experiment=other", "seed=3"]
    config = load_config(SMOKE, given)
    with recorded_run(config, resolve(config, tmp_path), {}, overrides=given) as (name, tracker):
        pass
    record = read_run(tmp_path, name)
    assert record.overrides == tuple(given)
    assert record.settings().seed == 3
    logged = tracker.client().get_run(record.mlflow_run_id).data
    assert (logged.tags["config.set"], logged.params["seed"]) == ("tracking.experiment=other; seed=3", "3")
    assert main(["show", name, "--artifacts", str(tmp_path)]) == 0
    assert "set tracking.experiment=other\nset seed=3\n" in capsys.readouterr().out


def test_every_flow_takes_settings():
    folder = CHECKOUT / "flows"
    for path in sorted(folder.glob("*.py")):
        if path.stem not in ("__init__", "compare"):  # these read no config
            tree = ast.parse(path.read_text(encoding="utf-8"))
            flow = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == path.stem)
            assert "set" in [one.arg for one in flow.args.args], path.name
