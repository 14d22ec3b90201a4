"""Errors that say what to change, for a run that is out of memory or whose numbers are not finite.

After a loss or gradient that is not finite, no weight moves any more. This needs no host synchronization in every step.
"""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor

from openjepa.engine import distributed
from openjepa.refusals import Refusal
from openjepa.settings.derived import fitting_microbatches
from openjepa.settings.run import RunConfig


class NotFinite(ArithmeticError):
    """A loss or gradient was NaN or infinite. The weights and the last checkpoint are intact."""

    def __init__(self, step: int, sample_ids: list[int], own_loss: bool = True) -> None:
        """`step`: the step with that loss or gradient. `sample_ids`: its samples in this process.

        `own_loss`: True if the loss of this process was not finite; else that of another process, or only a gradient.
        """
        super().__init__(f"the loss or a gradient of step {step} is not finite")
        self.step = step
        self.sample_ids = sample_ids
        self.own_loss = own_loss


class FiniteGuard:
    """Remembers the first step whose loss or gradient is not finite, and freezes the optimizer from that step on.

    On CUDA a fused optimizer skips its update if `found_inf` is not zero. The flag stays on the device and is never cleared. So
    nothing moves after the first bad step, however rarely the host checks. On other devices, and with an optimizer that is not
    fused (torch's AdamW then refuses the flag), the host checks at every step.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device, history: int) -> None:
        """`history`: the largest number of steps between two calls of `raise_if_bad`."""
        self._first_bad = torch.full((), -1, dtype=torch.int64, device=device)
        self._own_bad = torch.zeros((), dtype=torch.bool, device=device)
        self._recent: deque[tuple[int, list[Int[Tensor, " B"]]]] = deque(maxlen=history + 1)
        self._optimizer = optimizer
        self._every_step = device.type != "cuda" or not optimizer.defaults.get("fused")

    def watch(self, step: int, loss: Float[Tensor, ""], norm: Float[Tensor, ""], sample_ids: list[Int[Tensor, " B"]]) -> None:
        """Checks one step. Call it before the optimizer step. Raises NotFinite at once if the host checks every step."""
        self._recent.append((step, sample_ids))
        own = torch.isfinite(loss)
        self._own_bad = ~own | self._own_bad
        # the norm is the same in all processes, and the own loss is not: all must freeze at the same step
        bad = ~torch.isfinite(norm) if distributed.is_active() else ~(own & torch.isfinite(norm))
        self._first_bad = torch.where(bad & (self._first_bad < 0), step, self._first_bad)
        if self._every_step:
            self.raise_if_bad()
            return
        # torch's fused AdamW reads this attribute, which is meant for torch's gradient scaler
        self._optimizer.found_inf = (self._first_bad >= 0).to(torch.float32)  # type: ignore[attr-defined]

    def raise_if_bad(self) -> None:
        """Raises NotFinite with the samples of the first bad step. Synchronizes with the device."""
        first = int(self._first_bad.item())
        if first >= 0:
            ids = next((ids for step, ids in self._recent if step == first), [])
            raise NotFinite(first, torch.cat(ids).tolist() if ids else [], bool(self._own_bad.item()))


_OUT_OF_MEMORY = ("allocate memory", "MPS backend out of memory")
"""Words in the plain RuntimeErrors that torch raises without memory, on a CPU and on Apple's GPUs."""


@contextmanager
def advise_on_memory(advice: Callable[[], str]) -> Iterator[None]:
    """Turns out-of-memory errors of torch, CUDA, MPS and Python into a Refusal with the text that `advice` returns."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise Refusal(advice()) from error
    except RuntimeError as error:
        if not any(words in str(error) for words in _OUT_OF_MEMORY):
            raise
        raise Refusal(advice()) from error


def explain_memory(config: RunConfig) -> AbstractContextManager[None]:
    """Turns out-of-memory errors of a run into a Refusal that names the settings that help."""
    return advise_on_memory(lambda: _advice(config))


@contextmanager
def explain_not_finite(config: RunConfig, sample_name: Callable[[int], str]) -> Iterator[None]:
    """Turns NotFinite, which all processes raise after the same step, into a Refusal.

    It names samples of the step, those of the processes whose own loss was not finite, and the settings that help.
    `sample_name`: the name of a sample, given its number.
    """
    try:
        yield
    except NotFinite as error:
        raise Refusal(
            f"the loss or a gradient of step {error.step} is not finite; no weight has moved since, and the checkpoints are "
            f"intact. {_samples(error, sample_name)}. Lower optim.lr (now {config.optim.lr:g}), "
            "lengthen the warm-up or set optim.clip_grad; run.precision=fp32 tells whether it is the precision."
        ) from error


def _samples(error: NotFinite, sample_name: Callable[[int], str]) -> str:
    names = [sample_name(index) for index in error.sample_ids[:8]]
    found = distributed.gathered((error.own_loss, len(error.sample_ids), names))
    guilty = [number for number, (own_loss, _, _) in enumerate(found) if own_loss]
    chosen = guilty or list(range(len(found)))
    total = sum(found[number][1] for number in chosen)
    first = ", ".join(found[chosen[0]][2])
    where = f" in process {', '.join(map(str, guilty))} of {len(found)}" if guilty and len(found) > 1 else ""
    return f"The first of its {total} samples{where}: {first}"


def _advice(config: RunConfig) -> str:
    share = config.optim.batch_size // distributed.world_size()
    micro = config.optim.images_at_a_time(distributed.world_size())
    lines = [f"out of memory at optim.microbatch_size={micro}. What helps, best first:"]
    if micro > 1:
        smaller = max(size for size in fitting_microbatches(share, config.masks.group_size) if size <= micro // 2)
        lines.append(f"  --optim.microbatch-size {smaller}   (the same batch in smaller parts)")
    if config.run.precision == "fp32":
        lines.append("  --run.precision bf16")
    if config.data.cache != "none":
        lines.append(f"  --data.cache none   (now {config.data.cache!r}: the decoded data set is kept there)")
    lines.append(f"  a smaller --model.size (now {config.model.size!r}) or --data.image-size (now {config.data.image_size!r})")
    return "\n".join(lines)
