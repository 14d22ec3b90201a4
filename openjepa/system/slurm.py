"""Training as a job of Slurm: the script of the job, an array of several runs, and their submission.

The script is all there is: what `--print` shows is what is submitted, byte for byte, so that it can be read, kept and edited.
It starts torchrun once on every node. Shortly before the time limit Slurm signals the script, the training saves and ends, and
the job goes back to the queue, where the same command continues the run.
"""

import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from openjepa.refusals import Refusal
from openjepa.settings.clusters import SlurmSettings
from openjepa.system.console import command
from openjepa.system.interrupts import REQUEUE
from openjepa.system.shared_files import whole_file

_SAVED_BEFORE = 10
"""Seconds before the time limit at which the job no longer waits for a training that is still saving."""
_KILLED_BEFORE = 20
"""Seconds before the time limit at which torchrun kills processes that have not ended."""


_WAIT = """\
# In the background, because bash runs a trap only between two commands or while it waits
ending=no
training=
trap 'ending=yes; [ -z "$training" ] || kill -USR1 "$training"' USR1
srun --wait=60 bash -c 'train_on_node "$@"' bash "$@" &
training=$!
wait "$training"
code=$?

# Slurm has told us to end: training saves and ends, or there is no time left for that and the last checkpoint counts
if [ "$ending" = yes ]; then
    code={code}
    timeout {saving} tail --pid="$training" -f /dev/null && { wait "$training"; code=$?; }
    [ "$code" -eq 0 ] || code={code}  # torchrun ends with 1, whatever the codes of its processes
fi"""
_REQUEUE = """\
# A preempted job that has a time of grace gets SIGTERM instead, and torchrun passes it on
preempted() { scontrol show job "$SLURM_JOB_ID" | grep --quiet "PreemptTime=[0-9]"; }
if [ "$code" -eq {code} ] || { [ "$code" -ne 0 ] && preempted; }; then
    echo "back to the queue: job $SLURM_JOB_ID"
    scontrol requeue "$SLURM_JOB_ID"
fi"""


@dataclass(frozen=True)
class SlurmRun:
    """One run of a job: its folder, and the words after `openjepa train`."""

    folder: Path
    words: tuple[str, ...]


def variations(settings: SlurmSettings, name: str) -> list[tuple[str, ...]]:
    """What each run of the array adds to the words of `openjepa train`. One empty entry if there is no array.

    `name`: the name of the run folder without these changes. Each run of an array gets a name of its own. Raises Refusal if an
    entry of --array is no list of settings, or stands there twice.
    """
    entries: list[tuple[str, ...]] = [tuple(shlex.split(entry)) for entry in settings.array] or [()]
    for word in (word for words in entries for word in words):
        if "=" not in word or word.startswith("-"):
            raise Refusal(f"--array {word!r} must be a setting as name=value, e.g. --array optim.lr=1e-3 optim.lr=3e-4")
    seeds: list[tuple[str, ...]] = [(f"run.seed={seed}",) for seed in settings.seeds] or [()]
    changed = [(*words, *seed) for words, seed in product(entries, seeds)]
    if len(set(changed)) < len(changed):
        raise Refusal("--array and --seeds must not name the same run twice")
    return [tuple(f"--{word}" for word in (*words, *_own_name(name, words))) for words in changed]


def _own_name(name: str, changes: Sequence[str]) -> list[str]:
    """The setting that names the folder of a run after its changes. Empty if it has none."""
    return [f"run.name={plain_name('-'.join([name, *changes]).replace('run.seed=', 'seed'))}"] if changes else []


def plain_name(words: str) -> str:
    """`words` as a name of a job or folder that needs no quotes: letters, digits and `._=-`; `_` for anything else."""
    return "".join(letter if letter.isalnum() or letter in "._=-" else "_" for letter in words)


def job_script(settings: SlurmSettings, name: str, runs: Sequence[SlurmRun]) -> str:
    """The script of the job `name`, which trains one run, or of an array that trains each of `runs`."""
    setup = ["\n".join(["# What this cluster needs", *settings.setup])] if settings.setup else []
    end = [_WAIT, *([_REQUEUE] if settings.requeue else []), 'exit "$code"\n']
    saving = str(settings.signal_seconds - _SAVED_BEFORE)
    end = [part.replace("{code}", str(REQUEUE)).replace("{saving}", saving) for part in end]
    parts = [_header(settings, name, len(runs)), *setup, _words(runs), _training(settings, len(runs) > 1), *end]
    return "\n\n".join(parts)


def _header(settings: SlurmSettings, name: str, num_runs: int) -> str:
    gpus = f"{settings.gpu_type}:{settings.gpus_per_node}" if settings.gpu_type else settings.gpus_per_node
    options: dict[str, object] = {
        "job-name": name,
        "nodes": settings.nodes,
        "ntasks-per-node": 1,
        "gpus-per-node": gpus if settings.gpus_per_node else None,
        "cpus-per-task": settings.cpus(),
        "mem": settings.memory,
        "time": settings.time,
        "partition": settings.partition,
        "account": settings.account,
        "qos": settings.qos,
        "constraint": settings.constraint,
        "exclude": settings.exclude,
        "mail-user": settings.mail,
        "mail-type": "END,FAIL,REQUEUE" if settings.mail else None,
        "output": shlex.quote(f"{settings.logs}/%x-{'%A_%a' if num_runs > 1 else '%j'}.log"),
        "open-mode": "append",
        "signal": f"B:USR1@{settings.signal_seconds}",
    }
    lines = [f"#SBATCH --{name}={value}" for name, value in options.items() if value is not None]
    lines.append(f"#SBATCH --{'' if settings.requeue else 'no-'}requeue")
    if num_runs > 1:
        lines.append(f"#SBATCH --array=0-{num_runs - 1}" + (f"%{settings.at_once}" if settings.at_once else ""))
    return "\n".join(["#!/bin/bash", *lines, *(f"#SBATCH --{option}" for option in settings.sbatch)])


def _words(runs: Sequence[SlurmRun]) -> str:
    """Lines that make the words of `openjepa train` the arguments of the script."""
    if len(runs) == 1:
        return f"# What `openjepa train` gets\nset -- {shlex.join(runs[0].words)}"
    cases = [f"    {number}) set -- {shlex.join(run.words)} ;;" for number, run in enumerate(runs)]
    head = '# What `openjepa train` gets in each run of the array\ncase "$SLURM_ARRAY_TASK_ID" in'
    return "\n".join([head, *cases, "esac"])


def _training(settings: SlurmSettings, is_array: bool) -> str:
    """Lines that train on all nodes and pass the signal of Slurm on. The variable `code` is the exit code at their end."""
    job = "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID" if is_array else "$SLURM_JOB_ID"
    return f"""\
# The processes meet at the first node, at a port that follows from the number of the job
MEETING="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1):$((20000 + SLURM_JOB_ID % 10000))"
LOGS={shlex.quote(str(settings.logs))}/"$SLURM_JOB_NAME-{job}"
export MEETING LOGS
# The steps of a job do not inherit its cores
export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
# After a signal torchrun kills processes that have not ended in this many seconds: almost all that are left
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT={settings.signal_seconds - _KILLED_BEFORE}{_threads(settings)}

# Runs once on every node. Each process writes its own log; the first of each node also writes to the log of the job
train_on_node() {{
    exec {shlex.quote(settings.python or sys.executable)} -m torch.distributed.run \\
        --nnodes {settings.nodes} --nproc-per-node {settings.processes()} \\
        --rdzv-backend c10d --rdzv-endpoint "$MEETING" --rdzv-id "$SLURM_JOB_ID" \\
        --max-restarts {settings.restarts} --signals-to-handle SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 \\
        --log-dir "$LOGS/node$SLURM_NODEID" --redirects 3 --tee 0:3 \\
        -m openjepa train "$@"
}}
export -f train_on_node"""


def _threads(settings: SlurmSettings) -> str:
    """Lines that divide the cores of a node over its processes. Empty if GPUs compute, because data workers need the cores."""
    if settings.gpus_per_node:
        return ""
    cores = max(1, settings.cpus() // settings.processes())
    return f"\n# Cores of each process; torchrun would give it one\nexport OMP_NUM_THREADS={cores}"


def submit(settings: SlurmSettings, name: str, script: str) -> str:
    """Writes the `script` of the job `name` into the folder of logs, submits it, and returns the number of the job.

    Raises Refusal if there is no Slurm on this machine, or if Slurm refuses the job.
    """
    if shutil.which("sbatch") is None:
        raise Refusal("there is no sbatch here: run this on a login node of the cluster, or add --print to see the script")
    path = settings.logs / f"{name}.sbatch"
    with whole_file(path) as file:
        file.write_text(script)
    done = subprocess.run(["sbatch", "--parsable", path], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = done.stderr.strip() or f"exit code {done.returncode}"
        raise Refusal(f"Slurm refuses the job: {said}. The script is {path}; try it with {command('sbatch', path)}")
    return done.stdout.strip().partition(";")[0]
