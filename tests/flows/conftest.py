"""One real run of a very small config under Prefect, shared by the tests that check its output."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tripletune.store.paths import RunPaths
from tripletune.store.runs import RunRecord, read_run

ROOT = Path(__file__).parents[2]
TRIPLETUNE = Path(sys.executable).with_name("tripletune")

MICRO = """
dataset = "micro"
seed = 3

[synthetic]
viewers = 120
movies = 100
mean_ratings = 40

[split]
shards = 3
unseen_share = 0.1

[rgat]
max_steps = 12
eval_every = 4
dim = 16

[lightgcn]
max_steps = 20
eval_every = 5
dim = 16

[sequence]
max_steps = 20
eval_every = 10
dim = 16
max_length = 20

[finetune]
num_train_epochs = 1.0
max_eval_examples = 8
save_steps = 5
eval_steps = 5
logging_steps = 1

[finetune.tiny]
vocab_size = 800
hidden_size = 32
intermediate_size = 64
num_layers = 2
num_heads = 2
num_kv_heads = 1

[rank]
max_viewers = 24
unconstrained_viewers = 4

[evaluate]
bootstrap_resamples = 200

# of 24 users one to three get a hit, whoever ranks: only with such a margin is it sure that another processor's last
# bits do not leave the run without a champion
[promote]
relative_margin = 1000.0
min_users = 2
"""


UNTOUCHED = "untouched"


@dataclass(frozen=True)
class MicroRun:
    """A finished run and where it is."""

    config: Path
    root: Path
    home: Path
    record: RunRecord
    output: str
    log: str
    """What stood on stderr."""

    @property
    def paths(self) -> RunPaths:
        return self.record.paths(self.root)

    def call(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run ``tripletune`` on this run's artifacts, as a user would."""
        return call_tripletune(*arguments, "--artifacts", str(self.root), home=self.home)


def call_tripletune(*arguments: str, home: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PREFECT_HOME": str(home), **variables}
    return subprocess.run(
        [str(TRIPLETUNE), *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="session")
def micro_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "micro.toml"
    path.write_text(MICRO)
    return path


@pytest.fixture(scope="session")
def micro(tmp_path_factory: pytest.TempPathFactory, micro_config: Path) -> MicroRun:
    folder = tmp_path_factory.mktemp("micro")
    root, home = folder / "artifacts", folder / "prefect"
    done = call_tripletune("run", "--config", str(micro_config), "--artifacts", str(root), home=home)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-8000:]
    shutil.copytree(folder, folder.with_name(f"{folder.name}-{UNTOUCHED}"))
    return MicroRun(micro_config, root, home, read_run(root), done.stdout, done.stderr)


@pytest.fixture(scope="session")
def untouched(micro: MicroRun) -> MicroRun:
    """The run as it left its root and Prefect's home, in copies: other tests add runs and champions to ``micro``'s."""
    folder = micro.root.parent.with_name(f"{micro.root.parent.name}-{UNTOUCHED}")
    return replace(micro, root=folder / micro.root.name, home=folder / micro.home.name)
