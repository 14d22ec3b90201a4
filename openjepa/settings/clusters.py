"""Settings of `openjepa launch slurm`: the nodes of a job, what its cluster needs, and the runs of an array."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from openjepa.refusals import Refusal
from openjepa.settings.fields import AT_LEAST_1, NOT_NEGATIVE, at_least

CPUS_PER_PROCESS = 8
"""Cores for each process, its data workers included, if `cpus_per_task` is not set."""
_TIME = r"\d+|\d+:\d\d(:\d\d)?|\d+-\d+(:\d\d){0,2}"
_FORMS = {
    "time": (_TIME, "minutes, HH:MM:SS or D-HH:MM:SS, e.g. --time 1-12:00:00"),
    "memory": (r"\d+[KMGT]?", "a number of megabytes, or one with K, M, G or T, e.g. --memory 480G (0: all of a node)"),
}
"""The form that the value of an option must have, as an expression and in words."""
_WORDS = ("name", "partition", "account", "qos", "constraint", "exclude", "gpu_type", "mail")
"""Options that sbatch reads as one word."""
_SIGNALS_BEFORE_LIMIT = 2
"""Least time limit, in times of `signal_seconds`: a shorter job would spend most of its time on starting and saving."""


@dataclass(frozen=True, kw_only=True)
class SlurmSettings:
    """Settings of a job that trains on a cluster with Slurm."""

    nodes: Annotated[int, AT_LEAST_1] = 1
    """Nodes of the job."""
    gpus_per_node: Annotated[int, NOT_NEGATIVE] = 1
    """GPUs of each node, with one process each. 0: train on the CPUs."""
    gpu_type: str | None = None
    """Type of the GPUs as the cluster calls it, such as a100. None: any."""
    processes_per_node: Annotated[int | None, AT_LEAST_1] = None
    """Processes of each node. None: one for each GPU, or a single one without GPUs."""
    partition: str | None = None
    """Partition of the cluster. None: its default."""
    account: str | None = None
    """Account that is charged."""
    qos: str | None = None
    """Quality of service."""
    constraint: str | None = None
    """Features that the nodes must have."""
    exclude: str | None = None
    """Nodes that must not be used."""
    time: str | None = None
    """Time limit of one session, e.g. 24:00:00. The job goes back to the queue at the limit, so a run may take longer."""
    memory: str | None = None
    """Memory of each node, e.g. 480G. None: the default of the cluster."""
    cpus_per_task: Annotated[int | None, AT_LEAST_1] = None
    """Cores of each node, on which all its processes and their data workers run. None: 8 for each process."""
    setup: tuple[str, ...] = ()
    """Shell lines that run before the training, each in quotes: "module load cuda" "source ~/venv/bin/activate"."""
    python: str | None = None
    """Python of the nodes, e.g. `python` if `setup` activates an environment. None: the one that runs this command."""
    mail: str | None = None
    """Address that gets a mail when the job ends, fails or goes back to the queue."""
    sbatch: tuple[str, ...] = ()
    """More options of sbatch, without their dashes: reservation=mine exclusive."""
    name: str | None = None
    """Name of the job. None: that of the run folder."""
    logs: Path = Path("logs")
    """Folder of the logs, of all processes and of the job, and of the script that is submitted."""
    signal_seconds: Annotated[int, at_least(60)] = 180
    """Seconds before the time limit at which training is told to save and end. Must be enough for one checkpoint."""
    requeue: bool = True
    """Put the job back into the queue at its time limit and after a preemption. It continues its run."""
    restarts: Annotated[int, NOT_NEGATIVE] = 2
    """Times that torchrun starts all processes again, from the last checkpoint, after one has failed or was killed."""
    seeds: Annotated[tuple[int, ...], NOT_NEGATIVE] = ()
    """Submit one array of runs with these seeds."""
    array: tuple[str, ...] = ()
    """Submit one array of runs that differ in these settings: optim.lr=1e-3 "optim.lr=3e-4 optim.batch-size=512"."""
    at_once: Annotated[int | None, AT_LEAST_1] = None
    """Most runs of an array that train at the same time. None: as many as the cluster allows."""
    print: bool = False
    """Print the script that would be submitted, and stop. Needs no cluster."""

    def processes(self) -> int:
        """Processes of each node."""
        return self.processes_per_node or max(1, self.gpus_per_node)

    def cpus(self) -> int:
        """Cores of each node."""
        return self.cpus_per_task or CPUS_PER_PROCESS * self.processes()

    def seconds(self) -> int | None:
        """Time limit in seconds, as Slurm reads `time`. None: no limit of our own, which Slurm also writes as 0."""
        days, dash, clock = (self.time or "0").rpartition("-")
        parts = [int(part) for part in clock.split(":")]
        hours = parts if dash or len(parts) == 3 else [0, *parts]  # without days, the first of one or two numbers is minutes
        seconds = sum(part * unit for part, unit in zip([int(days or 0), *hours], (86400, 3600, 60, 1), strict=False))
        return seconds or None

    def check(self) -> None:
        """Raises Refusal if the value of an option is not of the form that sbatch reads."""
        for name, (form, words) in _FORMS.items():
            value = getattr(self, name)
            if value is not None and not re.fullmatch(form, value):
                raise Refusal(f"--{name} {value} must be {words}")
        for name in _WORDS:
            value = getattr(self, name)
            if value is not None and not re.fullmatch(r"[^\s'\"]+", value):
                raise Refusal(f"--{name.replace('_', '-')} {value!r} must be one word, without blanks and quotes")
        seconds = self.seconds()
        if seconds is not None and seconds < _SIGNALS_BEFORE_LIMIT * self.signal_seconds:
            raise Refusal(
                f"--time {self.time} is {seconds} s, and training is told to end {self.signal_seconds} s before that "
                f"(--signal-seconds): give at least {_SIGNALS_BEFORE_LIMIT * self.signal_seconds} s, as minutes or HH:MM:SS"
            )
        for option in self.sbatch:
            if not re.fullmatch(r"[a-z][a-z-]*(=\S+)?", option):
                raise Refusal(f"--sbatch {option!r} must be an option of sbatch without its dashes, e.g. reservation=mine")
        if self.at_once is not None and not (self.seeds or self.array):
            raise Refusal(f"--at-once {self.at_once} has no effect without --seeds or --array")
        if "\n" in str(self.logs) or any("\n" in line for line in self.setup):
            raise Refusal("--logs and the lines of --setup must not hold line breaks; give each line in quotes of its own")
