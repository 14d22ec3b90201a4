"""An ordered map over worker processes. Results do not depend on the number of workers, nor on workers that are killed."""

import multiprocessing
import os
import signal
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from itertools import chain
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from openjepa.refusals import Refusal

Task = TypeVar("Task")
Result = TypeVar("Result")

HANG_SECONDS = 600.0
"""How long a result is waited for before the workers count as hanging. Longer than two reads that are given up."""
WATCH_SECONDS = 10.0
"""How often this is looked at."""
PARENT_SECONDS = 1.0
"""How often a worker looks whether its parent is there."""
RESTARTS, RESTART_SECONDS = 2, 3600.0
"""Number of times that the workers are started again within `RESTART_SECONDS`."""


def parallel_map(
    function: Callable[[Task], Result],
    tasks: Iterable[Task],
    workers: int,
    ahead: int = 0,
    describe: Callable[[Task], str] = lambda task: "",
) -> Generator[Result, None, None]:
    """The results of `function` for each task, in order. If `workers` is 0, runs in this process, one task at a time.

    `ahead` is the number of tasks to keep in flight (at least two per worker). `function`, tasks and results must be picklable.
    `function` runs with one torch thread and must not use an accelerator. A ValueError or OSError of `function` is raised here.

    If a worker is killed or hangs, all are started again with the tasks whose results are missing, and a warning says so.
    Raises Refusal if that happens too often. `describe` says what a task is, for this warning.
    """
    if workers == 0:
        yield from map(function, tasks)
        return
    waiting: deque[Task] = deque()
    fresh = iter(tasks)
    stops: list[float] = []
    while True:
        pool = _Pool(function, chain(tuple(waiting), _noted(fresh, waiting)), workers, ahead)
        try:
            for result in pool:
                waiting.popleft()
                yield result
            return
        except _Stopped as stopped:
            words = f"{stopped}{_working_on(waiting, describe)}"
        finally:
            pool.close()
        stops = [moment for moment in stops if moment > time.monotonic() - RESTART_SECONDS]
        if len(stops) == RESTARTS:
            raise Refusal(f"{words}, more than {RESTARTS} times within {RESTART_SECONDS / 60:g} minutes")
        stops.append(time.monotonic())
        warnings.warn(f"{words}. All workers start again with the same tasks", stacklevel=2)


def _noted(tasks: Iterator[Task], waiting: deque[Task]) -> Iterator[Task]:
    for task in tasks:
        waiting.append(task)
        yield task


def _working_on(waiting: deque[Task], describe: Callable[[Task], str]) -> str:
    words = describe(waiting[0]) if waiting else ""
    return f" (the first missing result is that of {words})" if words else ""


# -------------------------------------------------------------------------------------------------------------- processes


class _Failure:
    """An expected error of a task. It is returned as a value, so that the user does not see two tracebacks."""

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


class _Stopped(Exception):
    """Workers give no more results. The message says why."""


class _Pool(Generic[Task, Result]):
    """Worker processes that work on tasks until one of them stops."""

    def __init__(self, function: Callable[[Task], Result], tasks: Iterable[Task], workers: int, ahead: int) -> None:
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
        others, on_child_end = multiprocessing.active_children(), signal.getsignal(signal.SIGCHLD)
        with warnings.catch_warnings():
            # Python 3.12 warns of forking while threads run. Our workers use nothing that one of our threads may have locked.
            warnings.simplefilter("ignore", DeprecationWarning)
            self._results: Iterator[Any] | None = iter(loader)
        if signal.getsignal(signal.SIGCHLD) is not on_child_end:
            # torch would raise the end of a worker wherever this process happens to be, such as in the middle of a step
            signal.signal(signal.SIGCHLD, on_child_end)
        self._workers = [child for child in multiprocessing.active_children() if child not in others]
        self._waiting_since: float | None = None
        self._is_hanging, self._is_closed = False, threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def __iter__(self) -> Iterator[Result]:
        """The results in the order of the tasks. Raises _Stopped if there will be no more."""
        assert self._results is not None
        while True:
            self._waiting_since = time.monotonic()
            try:
                result = next(self._results)
            except StopIteration:
                return
            except (RuntimeError, OSError, EOFError) as error:  # of a mistake in a task, or of the connection
                reason = self._reason()
                if reason is None:
                    raise
                raise _Stopped(reason) from error
            self._waiting_since = None
            if isinstance(result, _Failure):
                raise result.error
            yield result

    def _watch(self) -> None:
        """Kills the workers if they hang. What waits for them, even for one that is stopped as a whole, then ends."""
        while not self._is_closed.wait(min(WATCH_SECONDS, HANG_SECONDS)):
            since = self._waiting_since
            if since is not None and time.monotonic() - since > HANG_SECONDS:
                self._is_hanging = True
                self._kill()
                return

    def _reason(self) -> str | None:
        """Why there are no more results. None if all workers are well."""
        if self._is_hanging:
            return f"the data workers have given no result for {HANG_SECONDS:g} s"
        ended = [worker.exitcode for worker in self._workers if worker.exitcode]
        return _words_of(ended[0]) if ended else None

    def _kill(self) -> None:
        for worker in self._workers:
            worker.kill()

    def close(self) -> None:
        """Ends the processes."""
        self._is_closed.set()
        self._kill()
        # an error's traceback would keep the workers alive, and the interpreter would wait for them at exit
        self._results = None


def _words_of(exit_code: int) -> str:
    if exit_code > 0:
        return f"a data worker has ended with the code {exit_code}"
    likely = {
        signal.SIGKILL: ", probably because the memory was full: fewer system.workers need less",
        signal.SIGBUS: ", probably because shared memory (/dev/shm) was full, or a mapped file was cut",
        signal.SIGSEGV: ", probably because of an image that a decoder cannot stand",
    }
    number = signal.Signals(-exit_code)
    return f"a data worker was ended by {number.name}{likely.get(number, '')}"


def _as_is(result: Result) -> Result:
    return result


def _start_worker(_: int) -> None:
    # The main process decides when to stop, after its checkpoint. Workers end with it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends this process soon after its parent. If that is killed, large results that nobody takes would keep it for ever."""
    parent = multiprocessing.parent_process()
    while parent is not None and os.getppid() == parent.pid:
        time.sleep(PARENT_SECONDS)
    os._exit(1)
