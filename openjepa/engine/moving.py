"""Results on their way from a device to the host, for which nobody waits until they are needed."""

import torch
from jaxtyping import Shaped
from torch import Tensor


class Moving:
    """Rows on their way to the CPU, for which the device does not wait."""

    def __init__(self, rows: Shaped[Tensor, "B *shape"]) -> None:
        """Starts the copy; rows that are on the CPU stay as they are."""
        is_cuda = rows.device.type == "cuda"
        self._event = torch.cuda.Event() if is_cuda else None  # type: ignore[no-untyped-call]  # torch has no types for it
        if self._event is None:
            self._rows = rows
        else:
            self._rows = torch.empty(rows.shape, dtype=rows.dtype, pin_memory=True)
            self._rows.copy_(rows, non_blocking=True)
            self._event.record()

    def arrived(self) -> Shaped[Tensor, "B *shape"]:
        """The rows on the CPU, once they are there."""
        if self._event is not None:
            self._event.synchronize()
        return self._rows.cpu()
