"""Running out of memory becomes an error that says what to change."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from openjepa.settings.run import RunConfig


@contextmanager
def explain_memory(config: RunConfig) -> Iterator[None]:
    """Turns out-of-memory errors of torch, CUDA and Python into a ValueError that names the settings that help."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise ValueError(_advice(config)) from error
    except RuntimeError as error:
        if "allocate memory" not in str(error):
            raise
        raise ValueError(_advice(config)) from error


def _advice(config: RunConfig) -> str:
    micro = config.optim.microbatch_size or config.optim.batch_size
    lines = [f"out of memory at optim.microbatch_size={micro}. What helps, best first:"]
    lines.append(f"  --optim.microbatch-size {max(1, micro // 2)}   (same results up to rounding, less memory)")
    if config.run.precision == "fp32":
        lines.append("  --run.precision bf16")
    if config.data.cache != "none":
        lines.append(f"  --data.cache none   (now {config.data.cache!r}: the decoded data set is kept there)")
    lines.append(f"  a smaller --model.size (now {config.model.size!r}) or --data.image-size (now {config.data.image_size!r})")
    return "\n".join(lines)
