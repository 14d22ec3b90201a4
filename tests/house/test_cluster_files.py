"""The files in docs/clusters: their shell lines are right, they have documented fields, and torchrun gets what it should."""

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from openjepa.checks import check
from openjepa.commands.train import parse_train
from tests.helpers.fake_slurm import ended, install_slurm, start_job

FOLDER = Path(__file__).parents[2] / "docs" / "clusters"
SKY = {
    "": {"name", "num_nodes", "resources", "volumes", "setup", "run"},
    "resources": {"infra", "accelerators", "job_recovery"},
    "job_recovery": {"max_restarts_on_errors"},
}
"""Fields of SkyPilot's YAML (docs.skypilot.co/en/latest/reference/yaml-spec.html, and volumes.html)."""
DSTACK = {
    "": {"type", "name", "nodes", "python", "commands", "volumes", "resources", "retry"},
    "resources": {"gpu", "shm_size"},
    "retry": {"on_events", "duration"},
}
"""Fields of dstack's task (dstack.ai/docs/reference/dstack.yml/task)."""
VARIABLES = {
    "SKYPILOT_NUM_NODES": "2",
    "SKYPILOT_NUM_GPUS_PER_NODE": "8",
    "SKYPILOT_NODE_RANK": "1",
    "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
    "DSTACK_NODES_NUM": "2",
    "DSTACK_GPUS_PER_NODE": "8",
    "DSTACK_NODE_RANK": "1",
    "DSTACK_MASTER_NODE_IP": "10.0.0.1",
}
"""What the schedulers say on the second of two nodes with eight GPUs."""


def read(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((FOLDER / name).read_text())
    return content


def lines_of(name: str) -> str:
    """The shell lines that a scheduler runs on every node; those that install packages come first."""
    content = read(name)
    return "\n".join([content["setup"], content["run"]] if "run" in content else content["commands"])


def check_training(words: list[str]) -> None:
    config, _ = parse_train(words, "openjepa train", "")
    check(config, world_size=16)


def test_every_file_is_tested_and_on_the_page() -> None:
    names = sorted(path.name for path in FOLDER.iterdir())
    assert names == ["train.dstack.yml", "train.sbatch", "train.sky.yaml"]
    assert all(f"(clusters/{name})" in (FOLDER.parent / "many-gpus.md").read_text() for name in names)


@pytest.mark.parametrize(("name", "known"), [("train.sky.yaml", SKY), ("train.dstack.yml", DSTACK)])
def test_fields_are_documented(name: str, known: dict[str, set[str]]) -> None:
    content = read(name)
    found = {"": set(content)} | {group: set(content[group]) for group in known if group in content}
    if "job_recovery" in known:
        found["job_recovery"] = set(content["resources"]["job_recovery"])
    assert found == known


@pytest.mark.parametrize("name", ["train.sky.yaml", "train.dstack.yml"])
def test_every_node_starts_torchrun_on_a_training_that_can_work(name: str, tmp_path: Path) -> None:
    environment = install_slurm(tmp_path, pip="true", torchrun='printf "%s\\n" "$@"') | VARIABLES
    done = subprocess.run(["bash", "-eu", "-c", lines_of(name)], env=environment, capture_output=True, text=True, check=True)
    words = done.stdout.splitlines()
    begin = words.index("-m")
    options = dict(zip(words[:begin:2], words[1:begin:2], strict=True))
    assert options == {
        **{"--nnodes": "2", "--nproc-per-node": "8", "--node-rank": "1"},
        **{"--master-addr": "10.0.0.1", "--master-port": "29500"},
    }
    assert words[begin : begin + 3] == ["-m", "openjepa", "train"]
    check_training(words[begin + 3 :])


def test_the_sbatch_file_starts_torchrun_on_a_training_that_can_work(tmp_path: Path) -> None:
    text = (FOLDER / "train.sbatch").read_text()
    page = (FOLDER.parent / "many-gpus.md").read_text()
    asked = re.search(r"^openjepa launch slurm (ijepa-vith14 .*) --print$", page, re.MULTILINE)
    assert asked and "--nodes 2 --gpus-per-node 8 --partition gpu --time 24:00:00" in asked[1]
    (tmp_path / "bin").mkdir()
    environment = install_slurm(tmp_path / "bin", python='printf "%s\\n" "$@" > "$FAKE/node$SLURM_NODEID"')
    (tmp_path / "openjepa" / "bin").mkdir(parents=True)
    (tmp_path / "openjepa" / "bin" / "activate").write_text("true")
    (tmp_path / "job.sh").write_text(f"module() {{ true; }}\n{text}")
    job = start_job(tmp_path / "job.sh", environment, 2, HOME=str(tmp_path))
    assert ended(job) == 0, (tmp_path / "job.log").read_text()
    words = (tmp_path / "bin" / "node1").read_text().splitlines()
    training = words[words.index("train") + 1 :]
    assert training == shlex.split(asked[1])[:3]
    check_training(training)
