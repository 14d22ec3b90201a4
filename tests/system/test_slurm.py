"""Jobs of Slurm: the script that is submitted, arrays, and the way back into the queue, on a cluster that the test makes."""

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from openjepa.cli import main
from openjepa.commands.train import parse_train
from openjepa.settings.clusters import SlurmSettings
from tests.helpers.fake_slurm import JOB, ended, install_slurm, start_job
from tests.helpers.ranks import free_port
from tests.helpers.waiting import wait_for

WORDS = ["gpu-128", "--data.path", "/data/my photos", "--optim.lr=1e-3"]
Printed = Callable[..., str]


def launch(*words: str) -> None:
    main(["launch", "slurm", *words])


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Printed:
    """The script that some words of the command would submit."""

    def script(*words: str) -> str:
        launch(*words, "--print")
        text = capsys.readouterr().out
        done = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True, check=False)
        assert done.returncode == 0 and not done.stderr
        return text

    return script


def header(script: str) -> dict[str, str]:
    """The options of sbatch in a script. Slurm reads them up to the first line that is no comment."""
    lines = script.splitlines()
    end = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    found = [line.removeprefix("#SBATCH --").partition("=") for line in lines[1:end]]
    assert lines[0] == "#!/bin/bash" and script.count("#SBATCH") == len(found)
    return {name: value for name, _, value in found}


def trained(script: str, task: str = "") -> list[str]:
    """The words that a script hands to `openjepa train`, as bash reads them."""
    begin = script.index("# What `openjepa train` gets")
    lines = script[begin : script.index("\n\n", begin)] + '\nprintf "%s\\0" "$@"'
    done = subprocess.run(["bash", "-c", lines], env={"SLURM_ARRAY_TASK_ID": task}, capture_output=True, text=True, check=True)
    return done.stdout.split("\0")[:-1]


def test_the_header_says_what_was_asked_for(printed: Printed) -> None:
    asked = (
        "--nodes 2 --gpus-per-node 8 --gpu-type a100 --partition gpu --account mine --qos long --constraint nvlink --exclude n7"
    )
    more = (
        "--time 1-12:00:00 --memory 480G --cpus-per-task 96 --mail me@lab.org --logs my-logs --signal-seconds 240 --name mine"
    )
    script = printed(*WORDS, *asked.split(), *more.split(), "--sbatch", "reservation=r1", "exclusive")
    assert header(script) == {
        **{"job-name": "mine", "nodes": "2", "ntasks-per-node": "1", "gpus-per-node": "a100:8", "cpus-per-task": "96"},
        **{"mem": "480G", "time": "1-12:00:00", "partition": "gpu", "account": "mine", "qos": "long", "constraint": "nvlink"},
        **{"exclude": "n7", "mail-user": "me@lab.org", "mail-type": "END,FAIL,REQUEUE", "output": "my-logs/%x-%j.log"},
        **{"open-mode": "append", "signal": "B:USR1@240", "requeue": "", "reservation": "r1", "exclusive": ""},
    }
    assert "--nnodes 2 --nproc-per-node 8 " in script


def test_defaults_ask_for_one_gpu_and_name_the_job_after_the_run(printed: Printed) -> None:
    found = header(printed(*WORDS))
    assert found["job-name"] == "gpu-128-default-my-photos" and found["gpus-per-node"] == "1" and found["cpus-per-task"] == "8"
    assert not {"partition", "mem", "time", "array", "mail-type"} & set(found)
    cpu = printed(*WORDS, "--gpus-per-node", "0", "--processes-per-node", "4")
    assert "gpus-per-node" not in header(cpu) and "--nproc-per-node 4 " in cpu and header(cpu)["cpus-per-task"] == "32"
    assert "\nexport OMP_NUM_THREADS=8\n" in cpu and "OMP_NUM_THREADS" not in printed(*WORDS)


def test_the_words_of_the_training_arrive_as_they_were_given(printed: Printed) -> None:
    words = [
        "--nodes",
        "2",
        WORDS[0],
        "--time",
        "60",
        *WORDS[1:],
        "--setup",
        "module load 'my cuda'",
        "source env",
        "--no-requeue",
    ]
    script = printed(*words)
    assert trained(script) == WORDS
    assert "\nmodule load 'my cuda'\nsource env\n" in script
    assert "no-requeue" in header(script) and "scontrol requeue" not in script


def test_an_array_has_every_variation_with_every_seed_in_a_folder_of_its_own(printed: Printed) -> None:
    changes = ["optim.lr=1e-3", "optim.lr=3e-4 optim.batch-size=512"]
    script = printed(*WORDS, "--array", *changes, "--seeds", "0", "7", "--at-once", "2")
    assert header(script)["array"] == "0-3%2" and header(script)["output"] == "logs/%x-%A_%a.log"
    seen = []
    for task in range(4):
        config, _ = parse_train(trained(script, str(task)), "openjepa train", "")
        seen.append((config.optim.lr, config.optim.batch_size, config.run.seed))
        assert config.run.name is not None and config.run.name.endswith(f"-seed{config.run.seed}")
    batch = parse_train(WORDS, "openjepa train", "")[0].optim.batch_size
    assert seen == [(1e-3, batch, 0), (1e-3, batch, 7), (3e-4, 512, 0), (3e-4, 512, 7)]
    names = re.findall(r"--run\.name=(\S+)", script)
    assert len(set(names)) == 4 and "gpu-128-default-my-photos-optim.lr=1e-3-seed0" in " ".join(trained(script, "0"))


@pytest.mark.parametrize(
    ("time_limit", "seconds"),
    [
        *(("0", None), ("90", 5400), ("10:30", 630), ("24:00:00", 86400), ("1-12", 129600), ("1-12:30", 131400)),
        ("2-00:00:01", 172801),
    ],
)
def test_time_limits_are_read_as_slurm_reads_them(time_limit: str, seconds: int | None) -> None:
    assert SlurmSettings(time=time_limit).seconds() == seconds


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--nodes", "2", "--gpus-per-node", "7"], r"14 processes do not divide optim.batch_size=\d+"),
        (["--partitoin", "gpu"], "unknown option --partitoin: did you mean '--partition'"),
        (["--optim.lrr", "1"], "unknown option --optim.lrr: did you mean '--optim.lr'"),
        (["--array", "optim.lrr=1"], "unknown option --optim.lrr: did you mean '--optim.lr'"),
        (["--array", "lr=3"], "--array lr=3: no setting is called lr; did you mean optim.lr"),
        (["--sbatch", "exclusive", "--reservation=mine"], "without its dashes: --sbatch reservation=mine"),
        (["--time", "00:02:00"], "--time 00:02:00 is 120 s, .*180 s before .*give at least 360 s"),
        (["--name", "my job"], "--name 'my job' must be one word, without blanks"),
        (["--array", "lr 3"], "--array 'lr' must be a setting as name=value"),
        (["--array", "optim.batch-size=96", "--gpus-per-node", "64"], "64 processes do not divide optim.batch_size=96"),
        (["--seeds", "1", "1"], "must not name the same run twice"),
        (["--at-once", "2"], "--at-once 2 has no effect without --seeds or --array"),
        (["--time", "soon"], "--time soon must be minutes, HH:MM:SS or D-HH:MM:SS"),
        (["--memory", "many"], "--memory many must be a number of megabytes"),
        (["--partition", "a b"], "--partition 'a b' must be one word"),
        (["--sbatch", "Reservation"], "--sbatch 'Reservation' must be an option of sbatch without its dashes"),
        (["--fresh"], "--fresh would start a new run each time the job comes back"),
        (["--dry-run"], "--dry-run has no effect in a job"),
        (["--signal-seconds", "5"], "--signal-seconds 5"),
        ([], "there is no sbatch here"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_submitted(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        launch(*WORDS, *words)
    assert stopped.value.code == 2 and re.search(message, capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


def test_what_is_printed_is_what_is_submitted(
    printed: Printed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = printed(*WORDS)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bin").mkdir()
    for name, value in install_slurm(tmp_path / "bin").items():
        monkeypatch.setenv(name, value)
    launch(*WORDS)
    assert (tmp_path / "bin" / "script").read_text() == text == (tmp_path / "logs/gpu-128-default-my-photos.sbatch").read_text()
    assert "submitted job 4242" in (said := capsys.readouterr().out) and "runs/gpu-128-default-my-photos" in said
    install_slurm(tmp_path / "bin", sbatch='echo "Invalid account" >&2; exit 1')
    with pytest.raises(SystemExit):
        launch(*WORDS)
    assert "Slurm refuses the job: Invalid account" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------------ as a job


def submitted(tmp_path: Path, text: str, python: str) -> tuple[Path, dict[str, str]]:
    """The script and the environment of a job whose Python is a program of bash lines."""
    (tmp_path / "bin").mkdir()
    environment = install_slurm(tmp_path / "bin", **{"fake-python": python})
    script = tmp_path / "job.sh"
    script.write_text(
        text.replace(f"exec {shlex.quote(sys.executable)} ", "exec fake-python ").replace("=logs/", f"={tmp_path}/")
    )
    return script, environment


def signal_when_begun(job: subprocess.Popen[bytes], folder: Path) -> None:
    """Sends SIGUSR1 to the script of a job, as Slurm does before the time limit, once both of its processes train."""

    def both_train() -> bool:
        assert job.poll() is None, f"the job ended before it was signaled, with {job.returncode}"
        return len(list(folder.glob("begun*"))) == 2

    wait_for(both_train, 100, (folder.parent / "job.log").read_text)
    os.kill(job.pid, signal.SIGUSR1)


RUNNING = 'touch "$FAKE/begun$SLURM_NODEID"; while true; do sleep 0.05; done'
SAVES = f"trap 'echo saved; exit 1' USR1; {RUNNING}"
"""A training that saves; torchrun then ends with 1."""


@pytest.mark.parametrize(
    ("python", "job", "code", "requeued"),
    [
        ("exit 0", "", 0, False),
        ("exit 1", "", 1, False),
        ("exit 75", "", 75, True),
        (SAVES, "", 75, True),
        (f"trap 'exit 0' USR1; {RUNNING}", "", 0, False),
        (f"trap '' USR1; {RUNNING}", "", 75, True),
        ("exit 143", "   PreemptTime=2026-12-01T09:00:00", 143, True),
        ("exit 143", "", 143, False),
    ],
    ids=["finished", "failed", "75", "time limit", "finished at the limit", "does not save in time", "preempted", "cancelled"],
)
def test_a_job_goes_back_to_the_queue_only_if_there_is_more_to_train(
    printed: Printed, tmp_path: Path, python: str, job: str, code: int, requeued: bool
) -> None:
    text = printed(*WORDS, "--nodes", "2")
    text = text.replace("timeout 170", "timeout 1") if "trap ''" in python else text
    script, environment = submitted(tmp_path, text, python)
    if job:
        (tmp_path / "bin" / "job").write_text(job)
    running = start_job(script, environment, nodes=2)
    if "USR1" in python:
        signal_when_begun(running, tmp_path / "bin")
    assert ended(running) == code
    calls = tmp_path / "bin" / "requeued"
    assert (calls.read_text() if calls.exists() else "") == (f"requeue {JOB}\n" if requeued else "")
    assert (tmp_path / "job.log").read_text().count("saved") == (2 if python == SAVES else 0)


def test_every_node_starts_torchrun_on_the_words_of_its_task(printed: Printed, tmp_path: Path) -> None:
    text = printed(*WORDS, "--nodes", "2", "--gpus-per-node", "4", "--seeds", "0", "1", "--setup", "export FROM_SETUP=yes")
    python = 'printf "%s\\n" "$FROM_SETUP" "$SRUN_CPUS_PER_TASK" "$@" > "$FAKE/node$SLURM_NODEID"'
    script, environment = submitted(tmp_path, text, python)
    assert ended(start_job(script, environment, 2, SLURM_ARRAY_TASK_ID="1", SLURM_ARRAY_JOB_ID="4241")) == 0
    for node in (0, 1):
        setup, cpus, *words = (tmp_path / "bin" / f"node{node}").read_text().splitlines()
        begin = words.index("openjepa")
        options = dict(zip(words[2:begin:2], words[3 : begin + 1 : 2], strict=True))
        assert (setup, cpus, words[:2]) == ("yes", "2", ["-m", "torch.distributed.run"])
        assert options["--rdzv-endpoint"] == "localhost:24242" and options["--rdzv-id"] == JOB
        assert options["--max-restarts"] == "2"
        assert options["--log-dir"] == f"{tmp_path}/mine-4241_1/node{node}" and options["-m"] == "openjepa"
        assert words[begin + 1 :] == ["train", *trained(text, "1")]


TRAINING = """
import os, signal, sys, time
ended = []
signal.signal(signal.SIGUSR1, lambda number, frame: ended.append(number))
print("rank", os.environ["RANK"], "of", os.environ["WORLD_SIZE"], *sys.argv[1:], flush=True)
open(os.environ["FAKE"] + "/begun" + os.environ["RANK"], "w").close()
while not ended:
    time.sleep(0.02)
print("saved by", os.environ["RANK"], flush=True)
sys.exit(75)
"""


def test_torchrun_passes_the_signal_on_and_writes_a_log_for_each_process(printed: Printed, tmp_path: Path) -> None:
    """With the torchrun that is installed; what it starts is a program in the place of openjepa."""
    text = printed(*WORDS, "--gpus-per-node", "2").replace("=logs/", f"={tmp_path}/")
    script = tmp_path / "job.sh"
    script.write_text(text)
    (tmp_path / "bin").mkdir()
    (tmp_path / "openjepa").mkdir()
    (tmp_path / "openjepa" / "__init__.py").touch()  # a package without it would come after the real one
    (tmp_path / "openjepa" / "__main__.py").write_text(TRAINING)
    environment = install_slurm(tmp_path / "bin") | {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    number = str(free_port())  # the port at which the processes meet follows from it; another session takes another
    job = start_job(script, environment, SLURM_JOB_ID=number)
    signal_when_begun(job, tmp_path / "bin")
    code, output = ended(job, 100), (tmp_path / "job.log").read_text()
    assert code == 75 and (tmp_path / "bin" / "requeued").read_text() == f"requeue {number}\n", output
    logs = sorted((tmp_path / f"mine-{number}" / "node0").rglob("stdout.log"))
    assert [log.read_text().splitlines()[0] for log in logs] == [
        f"rank {rank} of 2 train gpu-128 --data.path /data/my photos --optim.lr=1e-3" for rank in range(2)
    ]
    assert all("saved by" in log.read_text() for log in logs)
    assert "rank 0 of 2" in output and "rank 1 of 2" not in output
