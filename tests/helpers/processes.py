"""Processes that a test starts: copies of its own, or of one that has only imported what a command needs."""

import multiprocessing
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

import openjepa

CLEAN = multiprocessing.get_context("forkserver")
CLEAN.set_forkserver_preload(["torch._dynamo", "openjepa.training.loop", "openjepa.inference.encoder"])


def embed_one(subject: str, output: Path) -> None:
    """Writes the features of a black image. For a clean process: huggingface_hub reads the environment as it is imported."""
    assert "huggingface_hub" not in sys.modules
    torch.save(openjepa.load(subject).embed(torch.zeros(1, 3, 40, 48, dtype=torch.uint8), precision="fp32"), output)


def in_process(work: Callable[[], object]) -> BaseProcess:
    """Starts `work` in a copy of this process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forking beside threads
        process = multiprocessing.get_context("fork").Process(target=work)
        process.start()
    return process


def in_clean_process(
    work: Callable[..., object], *arguments: object, log: Path, variables: Mapping[str, str] | None = None
) -> BaseProcess:
    """Starts `work(*arguments)` as a new Python in this folder would, but with the slow imports done; it prints into `log`.

    `variables` are added to the environment, which packages read that are not imported yet (huggingface_hub is not).
    """
    environment = {**os.environ, **(variables or {})}
    process = CLEAN.Process(target=_print_into, args=(log, Path.cwd(), environment, work, arguments))
    process.start()
    return process


def _print_into(
    log: Path, folder: Path, environment: dict[str, str], work: Callable[..., object], arguments: tuple[object, ...]
) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    work(*arguments)
