"""An ordered map over worker processes. Results do not depend on the number of workers."""

import shutil
import signal
import sys
import warnings
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from openjepa.refusals import Refusal
from openjepa.system.machine import available_cores

Task = TypeVar("Task")
Result = TypeVar("Result")


class _Failure:
    """An expected error of a worker. It is returned as a value, so that the user does not see two tracebacks."""

    def __init__(self, error: Exception) -> None:
        self.error = error


class _MappedTasks(Dataset[Any], Generic[Task, Result]):
    """Presents a function as a data set whose indices are the tasks."""

    def __init__(self, function: Callable[[Task], Result]) -> None:
        self._function = function

    def __getitem__(self, task: Task) -> "Result | _Failure":
        try:
            return self._function(task)
        except (ValueError, OSError) as error:
            return _Failure(error)


def choose_workers(workers: int | None, cache: str = "none") -> int:
    """Number of worker processes. If `workers` is None: all cores but one, at most 16, or none if pixels are cached."""
    if workers is not None:
        return workers
    return 0 if cache != "none" else min(16, max(1, available_cores() - 1))


def check_shared_memory(workers: int, needed: int, setting: str = "system.workers") -> None:
    """Raises Refusal if `needed` bytes of results in flight do not fit into shared memory, which would kill the workers."""
    folder = Path("/dev/shm")
    if folder.is_dir() and shutil.disk_usage(folder).free < needed:
        raise Refusal(
            f"{setting}={workers} needs {needed:,} bytes of shared memory, but /dev/shm has only "
            f"{shutil.disk_usage(folder).free:,} free: use fewer workers, or enlarge it (docker run --shm-size=2g)"
        )


def parallel_map(
    function: Callable[[Task], Result], tasks: Iterable[Task], workers: int, ahead: int = 0
) -> Generator[Result, None, None]:
    """The results of `function` for each task, in order. If `workers` is 0, runs in this process, one task at a time.

    `ahead` is the number of tasks to keep in flight (at least two per worker). `function`, tasks and results must be picklable.
    `function` runs with one torch thread and must not use an accelerator. A ValueError or OSError of `function` is raised here.
    """
    if workers == 0:
        yield from map(function, tasks)
        return
    # Forked workers share the data source and the cached pixels without copying them; macOS cannot fork safely.
    context = "fork" if sys.platform == "linux" else "spawn"
    loader = DataLoader(
        _MappedTasks(function),
        batch_size=None,
        sampler=tasks,
        num_workers=workers,
        prefetch_factor=max(2, -(-ahead // workers)),
        collate_fn=_as_is,
        worker_init_fn=_start_worker,
        multiprocessing_context=context,
        generator=torch.Generator(),  # otherwise, starting the workers would draw from the generator that training uses
    )
    with warnings.catch_warnings():
        # Python 3.12 warns of forking while threads run. Our workers use nothing that one of our threads may have locked.
        warnings.simplefilter("ignore", DeprecationWarning)
        results = iter(loader)
    try:
        for result in results:
            if isinstance(result, _Failure):
                raise result.error
            yield result
    finally:
        # an error's traceback would keep the workers alive, and the interpreter would wait for them at exit
        del results


def _as_is(result: Result) -> Result:
    return result


def _start_worker(_: int) -> None:
    # The main process decides when to stop, after its checkpoint. Workers end with it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
