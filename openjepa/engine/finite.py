"""No weight moves after a loss or gradient that is not finite, without a host synchronization in every step."""

from collections import deque

import torch
from jaxtyping import Float, Int
from torch import Tensor


class NotFinite(ArithmeticError):
    """A loss or gradient was NaN or infinite; the weights and the last checkpoint are intact."""

    def __init__(self, step: int, sample_ids: list[int]) -> None:
        """`sample_ids` are the samples of the offending step."""
        super().__init__(f"the loss or a gradient of step {step} is not finite")
        self.step = step
        self.sample_ids = sample_ids


class FiniteGuard:
    """Remembers the first step whose loss or gradient was not finite and freezes the optimizer from that step on.

    On CUDA a fused optimizer skips its update where `found_inf` is not zero; the flag stays on the device and is never cleared,
    so that between two looks from the host nothing moves after the first bad step. Elsewhere, and where the optimizer is not
    fused (torch's AdamW then refuses the flag), the host looks at every step.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device, history: int) -> None:
        """`history` is the largest number of steps between two calls of `raise_if_bad`."""
        self._first_bad = torch.full((), -1, dtype=torch.int64, device=device)
        self._recent: deque[tuple[int, list[Int[Tensor, " B"]]]] = deque(maxlen=history + 1)
        self._optimizer = optimizer
        self._every_step = device.type != "cuda" or not optimizer.defaults.get("fused")

    def watch(self, step: int, loss: Float[Tensor, ""], norm: Float[Tensor, ""], sample_ids: list[Int[Tensor, " B"]]) -> None:
        """Call before the optimizer step. Where the host looks at every step, raises NotFinite at once."""
        self._recent.append((step, sample_ids))
        bad = ~(torch.isfinite(loss) & torch.isfinite(norm))
        self._first_bad = torch.where(bad & (self._first_bad < 0), step, self._first_bad)
        if self._every_step:
            self.raise_if_bad()
            return
        # torch's fused AdamW reads this attribute, as its gradient scaler sets it
        self._optimizer.found_inf = (self._first_bad >= 0).to(torch.float32)  # type: ignore[attr-defined]

    def raise_if_bad(self) -> None:
        """Raises NotFinite with the samples of the first bad step. Synchronizes with the device."""
        first = int(self._first_bad.item())
        if first >= 0:
            ids = next((ids for step, ids in self._recent if step == first), [])
            raise NotFinite(first, torch.cat(ids).tolist() if ids else [])
