"""Random numbers of the images of a step: the same in however many microbatches and processes the step is computed."""

from collections.abc import Callable

import torch
from jaxtyping import Int, Shaped
from torch import Tensor, nn


class SlotDraws(nn.Module):
    """A module that draws random numbers for each image from torch's generator. Abstract."""

    def __init__(self) -> None:
        """Draws for each row by itself until `ImageSlots.set` is called."""
        super().__init__()
        self.slots: Int[Tensor, " b"] | None = None
        """Numbers of the images within the step's batch, see `ImageSlots.set`. None: every row is drawn for itself."""
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


class ImageSlots:
    """Makes what modules draw independent of how a step's batch is divided into microbatches and over processes."""

    def __init__(self, network: nn.Module, contexts: int = 1) -> None:
        """Collects each module of `network` that draws; it must be on its device already. `contexts`: sequences of an image."""
        self._contexts = contexts
        self._drawing = [module for module in network.modules() if isinstance(module, SlotDraws) and module.draws()]
        self._device = next(network.parameters()).device

    def set(self, first: int, number: int, batch_size: int) -> None:
        """The next sequences belong to the images `first`, ..., `first + number - 1` of a step of `batch_size` images.

        For each view there are `number` times `contexts` sequences, view by view. With the same state of torch's generator
        before each forward, the same is then drawn for an image of the step, in whatever microbatch and process it is.
        """
        if not self._drawing:
            return
        # a tensor, because compiled blocks would be compiled anew for another Python number
        slots = torch.arange(first * self._contexts, (first + number) * self._contexts, device=self._device)
        for module in self._drawing:
            module.slots, module.batch_size = slots, batch_size * self._contexts
