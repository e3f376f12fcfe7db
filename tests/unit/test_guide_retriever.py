"""The guide's retriever, added to a copy of the checkout by the guide's own files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from docs import example_retriever
from docs.checkout import with_example
from tripletune.config import RunConfig
from tripletune.pipeline.resolve import resolve

ONE_LINE = "1 file changed, 1 insertion(+), 1 deletion(-)"
FINGERPRINTS = """
import json
from pathlib import Path
from tripletune.config import RunConfig
from tripletune.errors import ConfigError
from tripletune.pipeline.resolve import resolve

def find(**settings):
    try:
        return resolve(RunConfig.model_validate({"dataset": "x", **settings}), Path("nowhere")).fingerprints
    except ConfigError as error:
        return str(error)

def edited(file):
    path = Path("src/tripletune/models/itemknn", file)
    text = path.read_text()
    path.write_text(text + "\\nedited = 1\\n")
    found = find(**chosen)
    path.write_text(text)
    return found

chosen = {"retrieve": {"retriever": "itemknn"}}
found = {
    "default": find(),
    "chosen": find(**chosen),
    "setting": find(**chosen, models={"itemknn": {"neighbours": 3}}),
    "serve.py": edited("serve.py"),
    "fit.py": edited("fit.py"),
    "misspelt": find(models={"itemknn": {"neighbors": 3}}),
}
print(json.dumps(found))
"""


def test_the_retriever_takes_one_existing_line_and_ranks_in_the_stages():
    printed = example_retriever.main()
    assert "movies 100, likes (a 1,832, b 2,389)" in printed  # what is said of a stage that names no headline
    assert "lists: ease, ease-plain, itemknn, lightgcn, popularity, rgat\n" in printed
    assert ONE_LINE in printed


@pytest.mark.slow
def test_the_retriever_is_in_the_table_and_the_report_and_recommends():
    printed = example_retriever.main(run=True)
    assert "│ itemknn " in printed
    assert "in the report: True" in printed
    assert "│ 5 │" in printed
    assert ONE_LINE in printed


def test_a_registered_retriever_rebuilds_what_selects_it_and_nothing_else(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    with with_example("retriever") as checkout:
        found = json.loads(checkout.run("-c", FINGERPRINTS))
    assert found["default"] == resolve(RunConfig(dataset="x"), Path("nowhere")).fingerprints
    assert "itemknn" in found["chosen"]

    def rebuilt(change: str) -> list[str]:
        return [stage for stage in found["chosen"] if found[change][stage] != found["chosen"][stage]]

    later = ["retrieve", "generate", "finetune", "rank", "evaluate"]
    assert rebuilt("setting") == ["itemknn", *later]
    assert rebuilt("serve.py") == later
    assert rebuilt("fit.py") == ["itemknn", *later]
    assert found["misspelt"].startswith("unknown key 'neighbors' in [models.itemknn]; the keys there are: neighbours")
