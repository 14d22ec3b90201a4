"""Running out of memory, or of finite numbers, becomes an error that says what to change."""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

from openjepa.engine import distributed
from openjepa.engine.finite import NotFinite
from openjepa.refusals import Refusal
from openjepa.settings.run import RunConfig

_OUT_OF_MEMORY = ("allocate memory", "MPS backend out of memory")
"""What the plain RuntimeErrors of torch on a CPU and on Apple's GPUs say."""


@contextmanager
def advise_on_memory(advice: Callable[[], str]) -> Iterator[None]:
    """Turns out-of-memory errors of torch, CUDA, MPS and Python into a Refusal that says what `advice` returns."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise Refusal(advice()) from error
    except RuntimeError as error:
        if not any(words in str(error) for words in _OUT_OF_MEMORY):
            raise
        raise Refusal(advice()) from error


def explain_memory(config: RunConfig) -> AbstractContextManager[None]:
    """Turns running out of memory in a run into a Refusal that names the settings that help."""
    return advise_on_memory(lambda: _advice(config))


@contextmanager
def explain_not_finite(config: RunConfig, sample_name: Callable[[int], str]) -> Iterator[None]:
    """Turns NotFinite into a Refusal that names the samples of the step and the settings that help."""
    try:
        yield
    except NotFinite as error:
        names = ", ".join(sample_name(index) for index in error.sample_ids[:8])
        raise Refusal(
            f"the loss or a gradient of step {error.step} is not finite; no weight has moved since, and the checkpoints are "
            f"intact. The first of its {len(error.sample_ids)} samples: {names}. Lower optim.lr (now {config.optim.lr:g}), "
            "lengthen the warm-up or set optim.clip_grad; run.precision=fp32 tells whether it is the precision."
        ) from error


def _advice(config: RunConfig) -> str:
    share = config.optim.batch_size // distributed.world_size()
    micro = config.optim.microbatch_size or share
    lines = [f"out of memory at optim.microbatch_size={micro}. What helps, best first:"]
    if micro > 1:
        whole = math.gcd(share, config.masks.group_size or share)  # a microbatch must divide the batch and a group of masks
        smaller = next(size for size in range(micro // 2, 0, -1) if whole % size == 0)
        lines.append(f"  --optim.microbatch-size {smaller}   (the same batch in smaller parts)")
    if config.run.precision == "fp32":
        lines.append("  --run.precision bf16")
    if config.data.cache != "none":
        lines.append(f"  --data.cache none   (now {config.data.cache!r}: the decoded data set is kept there)")
    lines.append(f"  a smaller --model.size (now {config.model.size!r}) or --data.image-size (now {config.data.image_size!r})")
    return "\n".join(lines)
