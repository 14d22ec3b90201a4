"""The script of a Slurm job with everything real but Slurm: torchrun and a training of two processes, signalled and continued.

Prints what it has seen; docs/results/scale/slurm.txt keeps that.
"""

import os
import shlex
import signal
import subprocess
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from openjepa.cli import main
from openjepa.config import save_yaml
from openjepa.settings.run import RunConfig
from openjepa.training.loop import train
from tests.helpers.fake_slurm import ended, install_slurm, start_job
from tests.helpers.images import write_folder
from tests.helpers.ranks import free_port, on_ranks
from tests.helpers.small_runs import lines, small_config
from tests.helpers.torchruns import ROOT, steps_logged
from tests.helpers.waiting import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
STEPS = 240


def run(images: Path, output: Path) -> RunConfig:
    config = small_config(images, output, total_steps=STEPS)
    system = replace(config.system, threads=1, log_every=3, checkpoint_minutes=0.0)
    return replace(config, monitor=replace(config.monitor, every=0), system=system)


def _logged(job: subprocess.Popen[bytes], folder: Path, least: int) -> bool:
    assert job.poll() is None, f"the job ended before its time was up, with {job.returncode}"
    return steps_logged(folder) >= least


@pytest.mark.parametrize(("nodes", "processes"), [(1, 2), (2, 1)])
def test_a_job_at_its_time_limit_saves_goes_back_to_the_queue_and_ends_as_if_it_had_not(
    nodes: int, processes: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = write_folder(tmp_path / "images", 40)
    on_ranks(2, tmp_path / "output", train, run(images, tmp_path / "whole"))
    save_yaml(run(images, tmp_path / "job"), tmp_path / "config.yaml")
    words = f"--nodes {nodes} --gpus-per-node 0 --processes-per-node {processes} --print"
    main(["launch", "slurm", "--config", str(tmp_path / "config.yaml"), *words.split()])
    script = tmp_path / "job.sh"
    script.write_text(capsys.readouterr().out.replace("LOGS=logs/", f"LOGS={shlex.quote(str(tmp_path))}/"))
    (tmp_path / "bin").mkdir()
    environment = install_slurm(tmp_path / "bin") | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    folder, requeued = tmp_path / "job" / "run", tmp_path / "bin" / "requeued"
    codes, seconds, steps = [], [], []
    number = str(free_port())  # the port at which the processes meet follows from it; another session takes another
    for least in (10, 30, None):  # lines of the log after which the time is up; None: it is enough
        job = start_job(script, environment, nodes, SLURM_JOB_ID=number)
        if least is not None:
            wait_for(partial(_logged, job, folder, least), 120, (tmp_path / "job.log").read_text)
            os.kill(job.pid, signal.SIGUSR1)
        begun = time.monotonic()
        codes.append(ended(job, 180))
        seconds.append(time.monotonic() - begun)
        last = max(path.name for path in (folder / "checkpoints").glob("step_*"))
        steps.append(int(last.removeprefix("step_")))
    output = (tmp_path / "job.log").read_text()
    with capsys.disabled():
        print(
            f"\n{nodes} nodes x {processes}: exit codes {codes}, saved at steps {steps} of {STEPS}, "
            f"{seconds[0]:.1f} and {seconds[1]:.1f} s after SIGUSR1; requeued: {requeued.read_text().split()}"
        )
    assert codes == [75, 75, 0], output[-4000:]
    assert requeued.read_text() == f"requeue {number}\n" * 2 and max(seconds[:2]) < 30
    assert 0 < steps[0] < steps[1] < STEPS == steps[2]
    pairs = zip(lines(tmp_path / "whole" / "run", "train"), lines(folder, "train"), strict=True)
    assert max(abs(first["loss"] - second["loss"]) for first, second in pairs) < 1e-5
