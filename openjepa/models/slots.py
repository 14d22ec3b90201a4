"""Random numbers of the images of a step: the same in however many microbatches and processes the step is computed."""

from collections.abc import Callable

import torch
from jaxtyping import Int, Shaped
from torch import Tensor, nn


class SlotDraws(nn.Module):
    """A module that draws random numbers for each image from torch's generator. Abstract."""

    def __init__(self) -> None:
        """Draws for each row by itself until `set_slots` is called."""
        super().__init__()
        self.slots: Int[Tensor, " b"] | None = None
        """Numbers of the images within the step's batch, see `set_slots`. None: every row is drawn for itself."""
        self.batch_size = 0
        """Number of images of the step's batch, if there are `slots`."""

    def draws(self) -> bool:
        """True if the module draws anything in training."""
        raise NotImplementedError

    def drawn(self, rows: int, draw: Callable[[int], Shaped[Tensor, "n *rest"]]) -> Shaped[Tensor, "rows *rest"]:
        """Random numbers for `rows` sequences. `draw(n)` draws those of n sequences.

        With `slots`, the numbers of the whole batch are drawn, and those of the slots are returned.
        """
        if self.slots is None:
            return draw(rows)
        whole = draw(rows // len(self.slots) * self.batch_size)
        return whole.view(-1, self.batch_size, *whole.shape[1:])[:, self.slots].flatten(0, 1)


def set_slots(network: nn.Module, first: int, number: int, batch_size: int) -> None:
    """Makes random numbers independent of how a step's batch is divided into microbatches and over processes.

    Tells each SlotDraws in `network` that the next sequences belong to the images `first`, ..., `first + number - 1` of a step
    of `batch_size` images: `number` sequences for each view, view by view. (If images have several contexts, all three count
    contexts.) With the same state of torch's generator before each forward, it then draws the same for an image of the step,
    in whatever microbatch and process that is.
    """
    drawing = [module for module in network.modules() if isinstance(module, SlotDraws) and module.draws()]
    if not drawing:
        return
    # a tensor, because compiled blocks would be compiled anew for another Python number
    slots = torch.arange(first, first + number, device=next(network.parameters()).device)
    for module in drawing:
        module.slots, module.batch_size = slots, batch_size
