"""Threads for a while, gone afterwards whatever ends it."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager


@contextmanager
def thread_pool(number: int, purpose: str) -> Iterator[ThreadPoolExecutor]:
    """A pool of so many threads, named after their purpose. At the end what has begun is finished, what waits is dropped."""
    pool = ThreadPoolExecutor(number, thread_name_prefix=f"openjepa-{purpose}")
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
