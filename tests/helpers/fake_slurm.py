"""A cluster of one machine for tests: `sbatch`, `srun` and `scontrol` that do what a job script needs."""

import os
import signal
import stat
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

JOB = "4242"
PROGRAMS = {
    "sbatch": 'cp "${@: -1}" "$FAKE/script"; echo "4242;fake"',
    "scontrol": """\
case "$1 $2" in
    "show hostnames") printf "localhost\\nnode2\\n" ;;
    "show job") cat "$FAKE/job" 2> /dev/null || echo "   PreemptEligibleTime=2026-12-01T09:00:00 PreemptTime=None" ;;
    *) echo "$@" >> "$FAKE/requeued" ;;
esac""",
    "srun": """\
while [ "${1#-}" != "$1" ]; do shift; done  # the options of srun
children=
trap 'kill -USR1 $children' USR1
for node in $(seq 0 $((FAKE_NODES - 1))); do
    SLURM_NODEID=$node "$@" &
    children="$children $!"
done
code=0
for child in $children; do
    wait "$child"; last=$?
    while kill -0 "$child" 2> /dev/null; do wait "$child"; last=$?; done  # a signal ends `wait` early
    [ "$last" -gt "$code" ] && code=$last
done
exit "$code\"""",
}
"""Each program as lines of bash. `srun` passes SIGUSR1 on, as Slurm's does, and returns the highest exit code of its tasks."""


def install_slurm(folder: Path, **programs: str) -> dict[str, str]:
    """Writes the programs, and more `programs`, into `folder`. Returns the environment in which they are found first."""
    for name, lines in {**PROGRAMS, **programs}.items():
        path = folder / name
        path.write_text(f"#!/bin/bash\n{lines}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "FAKE": str(folder)}


def start_job(script: Path, environment: Mapping[str, str], nodes: int = 1, **variables: str) -> subprocess.Popen[bytes]:
    """Runs a job script in its folder, as Slurm does on the first of the job's `nodes`, with more `variables`.

    It prints into the file `job.log` of that folder.
    """
    slurm = {
        "SLURM_JOB_ID": JOB,
        "SLURM_JOB_NAME": "mine",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_CPUS_PER_TASK": "2",
        "FAKE_NODES": str(nodes),
    }
    with (script.parent / "job.log").open("w") as log:
        return subprocess.Popen(
            ["bash", script],
            cwd=script.parent,
            env={**environment, **slurm, **variables},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def ended(job: subprocess.Popen[bytes], seconds: float = 60) -> int:
    """Exit code of a job. Kills all that is left of it then, or after `seconds`, as Slurm does."""
    try:
        return job.wait(seconds)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(job.pid, signal.SIGKILL)
        job.wait()
