"""Costs of a training step, counted before the first one: FLOPs of each part, memory, and what the forward keeps.

The counted step runs on torch's meta device, whose tensors have shapes but no values: nothing is computed. The duration of a
step is known only after timing steps.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from openjepa.masks.sampler import TokenShape
from openjepa.models.transformer import PLAIN_MAX_TOKENS, Attention, Block
from openjepa.schedules import Progress
from openjepa.settings.masks import MaskKind
from openjepa.system.console import format_count
from openjepa.types import Batch, BlockMasks, InputSpec, Masks, TokenMask

PROGRESS = Progress(step=999_999, total_steps=1_000_000, steps_per_epoch=1_000_000)
"""The step that is counted: the last one of a long run. Earlier steps cost as much, or less if a part joins later."""
OTHER = "other"
"""Name of the part for products outside of all submodules."""
BF16_SHARE = 36 / 64
"""Bytes that a transformer block keeps in bf16, over the bytes it keeps in fp32, per token and unit of width. Counted on a CPU,
without attention weights. Norms and the residual stream stay in fp32."""


@dataclass(frozen=True)
class WeightUnit:
    """Weights that are gathered together if they are divided over processes: those of one block, or all others of a network."""

    shapes: tuple[tuple[int, ...], ...]
    is_trained: bool
    is_block: bool

    def numbers(self, processes: int = 1, of_matrices: bool = False) -> int:
        """Number of weights that one process holds: rows of every tensor, rounded up, so that all processes hold as many.

        `of_matrices`: only those of tensors with two axes.
        """
        shapes = [shape for shape in self.shapes if len(shape) == 2] if of_matrices else self.shapes
        return sum(-(-shape[0] // processes) * math.prod(shape[1:]) if shape else 1 for shape in shapes)


@dataclass(frozen=True)
class BlockCosts:
    """The part of the costs of a forward that recomputation changes: that of the transformer blocks with gradients."""

    bytes: float = 0.0
    """Bytes that the blocks keep in fp32, without attention weights."""
    scores: float = 0.0
    """Number of attention weights that plain attention keeps in addition."""
    input_bytes: float = 0.0
    """Bytes of the inputs of the blocks, which is all that they keep if the rest is computed again."""
    flops: float = 0.0
    """FLOPs of the forward of the blocks."""
    largest_bytes: float = 0.0
    """The most bytes that one block keeps."""
    largest_scores: float = 0.0
    """The most attention weights that one block keeps."""


@dataclass(frozen=True)
class StepCosts:
    """Costs of one training step."""

    flops: Mapping[str, float]
    """FLOPs of one image's forward by part, 2 per multiply-add, at the mean token counts. Only matrix products count.

    Parts are the submodules that the method's forward calls, in that order, and `other` for products outside of them.
    """
    step_flops: float
    """FLOPs of one image's step: the forward of every part, plus twice that for the backward if the part is trained."""
    kept_bytes: float
    """Bytes that the forward of a microbatch keeps for its backward in fp32, at the most tokens, without attention weights."""
    kept_scores: float
    """Number of attention weights that plain attention keeps in addition."""
    images: int = 1
    """Number of images of the microbatch."""
    contexts: int = 1
    """Number of contexts per image. The numbers above are for all of them."""
    blocks: BlockCosts = BlockCosts()
    """The share of the trained blocks in `kept_bytes`, `kept_scores` and `flops`."""
    units: tuple[WeightUnit, ...] = ()
    """All weights of the method."""

    def kept(self, device: torch.device, precision: str, recompute: bool = False) -> float:
        """Bytes that the forward of one microbatch keeps. `recompute`: of the trained blocks, it keeps only the inputs."""
        if recompute:  # between blocks, and outside of them, nearly everything is in fp32 in any precision
            return self.kept_bytes - self.blocks.bytes + self.blocks.input_bytes
        return stored_bytes(self.kept_bytes, self.kept_scores, device, precision)


def stored_bytes(fp32_bytes: float, scores: float, device: torch.device, precision: str) -> float:
    """Bytes of activations that have `fp32_bytes` in fp32. Only plain attention, on a CPU in bf16, stores attention weights."""
    if precision != "bf16":
        return fp32_bytes
    return BF16_SHARE * fp32_bytes + (2 * scores if device.type == "cpu" else 0)


def times_contexts(contexts: int) -> str:
    """What follows a number of images in words, e.g. ` x 4 contexts`. Empty for one context per image."""
    return f" x {contexts} contexts" if contexts > 1 else ""


def each_context(of_image: float, contexts: int) -> str:
    """What follows a number per image in words: the number per context. Empty for one context per image."""
    return f" ({format_count(of_image / contexts)} for each of {contexts} contexts)" if contexts > 1 else ""


def count_step(
    method: nn.Module, inputs: InputSpec, kind: MaskKind, grid: tuple[int, int], shapes: Sequence[TokenShape], images: int
) -> StepCosts:
    """Counts the costs of a step. A microbatch has `images` images, and its masks have the token counts `shapes` on `grid`.

    `method`: a new one on the meta device, which cannot be used afterwards. It is called as `method(batch, progress)`.
    """
    counter = _Counter(method)
    flops: dict[str, float] = {}
    found = [(weight, counter.count(_batch(inputs, kind, grid, shape, images))) for shape, weight in representatives(shapes)]
    for weight, tally in found:
        for name, value in tally.flops.items():
            flops[name] = flops.get(name, 0.0) + weight * value / images
    weights = {name: [value.requires_grad for value in part.parameters()] for name, part in method.named_children()}
    # a part without weights of its own has a backward, too
    frozen = {name for name, are_trained in weights.items() if are_trained and not any(are_trained)}
    step_flops = sum(value * (1 if name in frozen else 3) for name, value in flops.items())
    most = max((tally for _, tally in found), key=lambda tally: tally.bytes)
    block_flops = sum(weight * tally.blocks.flops / images for weight, tally in found)
    blocks = replace(most.blocks, flops=block_flops)
    return StepCosts(flops, step_flops, most.bytes, most.scores, images, inputs.contexts, blocks, weight_units(method))


def weight_units(method: nn.Module) -> tuple[WeightUnit, ...]:
    """All weights of `method`: one unit for each block, one for the rest of each network, one for its own."""
    units: list[WeightUnit] = []
    for network in method.children():
        blocks = [module for module in network.modules() if isinstance(module, Block)]
        inside = {id(value) for block in blocks for value in block.parameters()}
        units += [_unit(block.parameters(), is_block=True) for block in blocks]
        units.append(_unit((value for value in network.parameters() if id(value) not in inside), is_block=False))
    units.append(_unit(method.parameters(recurse=False), is_block=False))
    return tuple(unit for unit in units if unit.shapes)


def _unit(values: Iterable[nn.Parameter], is_block: bool) -> WeightUnit:
    found = list(values)
    return WeightUnit(tuple(tuple(value.shape) for value in found), any(value.requires_grad for value in found), is_block)


def representatives(shapes: Sequence[TokenShape]) -> list[tuple[TokenShape, float]]:
    """At most six of the shapes, with weights that keep the mean of every quadratic function of the token counts.

    FLOPs are such a function: linear layers are linear in the number of tokens, and attention is quadratic.
    """
    if len(shapes) <= 6:
        return [(shape, shape.probability) for shape in shapes]
    counts = np.array([(shape.context, shape.target) for shape in shapes], dtype=np.float64)
    context, target = (counts / counts.max(axis=0)).T
    terms = np.stack([np.ones_like(context), context, target, context**2, context * target, target**2], axis=1)
    chosen = _independent(terms)
    mean = np.array([shape.probability for shape in shapes]) @ terms
    weights = np.linalg.lstsq(terms[chosen].T, mean, rcond=None)[0]
    return [(shapes[row], float(weight)) for row, weight in zip(chosen, weights, strict=True)]


def _independent(rows: Float[np.ndarray, "n six"]) -> list[int]:
    """Indices of linearly independent rows that span all rows.

    Each turn takes the row that is longest after removing its projection on the rows already taken.
    """
    rest, chosen = rows.copy(), list[int]()
    while (lengths := np.linalg.norm(rest, axis=1)).max() > 1e-6:
        chosen.append(int(lengths.argmax()))
        direction = rest[chosen[-1]] / lengths.max()
        rest -= np.outer(rest @ direction, direction)
    return chosen


def _batch(inputs: InputSpec, kind: MaskKind, grid: tuple[int, int], shape: TokenShape, images: int) -> Batch:
    """A microbatch of normalized views with masks, on the meta device."""
    views = {name: torch.empty(view.count, images, 3, *view.size, device="meta") for name, view in inputs.views.items()}
    rows = {name: inputs.views[name].count * images * inputs.contexts for name in inputs.masked_views}
    masks = {name: _masks(kind, grid, shape, number) for name, number in rows.items()}
    return Batch(torch.empty(images, dtype=torch.int64, device="meta"), views, masks)


def _masks(kind: MaskKind, grid: tuple[int, int], shape: TokenShape, rows: int) -> Masks:
    if kind == "blocks":
        context = torch.empty(rows, shape.context, dtype=torch.int64, device="meta")
        targets = torch.empty(rows, shape.num_targets, shape.target, dtype=torch.int64, device="meta")
        return BlockMasks(context, targets, grid)
    masked = torch.empty(rows, grid[0] * grid[1], dtype=torch.bool, device="meta")
    return TokenMask(masked, grid, shape.target if shape.most_targets is None else None)


@dataclass
class _Tally:
    """Costs of one forward so far."""

    flops: dict[str, float] = field(default_factory=dict)
    bytes: float = 0.0
    scores: float = 0.0
    blocks: BlockCosts = field(default_factory=BlockCosts)

    def add_block(self, flops: float, kept: float, scores: float, inputs: float) -> None:
        """Notes a block that keeps `kept` bytes for its backward. Blocks without gradients keep none and do not count."""
        if kept > 0:
            known = self.blocks
            self.blocks = BlockCosts(
                known.bytes + kept,
                known.scores + scores,
                known.input_bytes + inputs,
                known.flops + flops,
                max(known.largest_bytes, kept),
                max(known.largest_scores, scores),
            )


class _Counter:
    """Counts forwards of a network on the meta device.

    Blocks of one shape cost the same. Only the first one runs; the others return its output and add its costs.
    """

    def __init__(self, network: nn.Module) -> None:
        """Hooks into the parts of `network`, which must not be used for anything else."""
        self._network = network
        self._products = FlopCounterMode(display=False)
        self._more = 0.0  # FLOPs of blocks that were not computed
        self._tally = _Tally()
        self._storages: dict[int, object] = {}
        self._known: dict[object, tuple[float, float, float, Any]] = {}
        for name, part in network.named_children():
            part.register_forward_pre_hook(lambda *_: self._enter())
            part.register_forward_hook(partial(self._leave, name))
        for module in network.modules():
            if isinstance(module, Attention):
                module.register_forward_pre_hook(self._note_scores)
            if isinstance(module, Block):
                kind = (module.drop_path.rate > 0, *(tuple(value.shape) for value in module.parameters()))
                module.forward = partial(self._block, module.forward, kind)  # type: ignore[method-assign]  # meant to replace it

    def count(self, batch: Batch) -> _Tally:
        """The costs of the forward of `batch`."""
        self._tally, self._more = _Tally(), 0.0
        self._storages = _storages(self._network.parameters())
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(self._keep, lambda value: value), self._products:
            self._network(batch, PROGRESS)
            total = self._total()
        rest = total - sum(self._tally.flops.values())
        if rest > 0:
            self._tally.flops[OTHER] = rest
        self._known.clear()
        return self._tally

    def _total(self) -> float:
        return self._products.get_total_flops() + self._more

    def _enter(self) -> None:
        self._begun = self._total()

    def _leave(self, name: str, *_: object) -> None:
        flops, more = self._tally.flops, self._total() - self._begun
        if more > 0:  # a part may choose patches and multiply nothing
            flops[name] = flops.get(name, 0.0) + more

    def _keep(self, value: Tensor) -> Tensor:
        """Counts a tensor that autograd saves, unless a tensor saved before shares its storage."""
        storage = value.untyped_storage()
        if id(storage) not in self._storages:
            self._storages[id(storage)] = storage
            self._tally.bytes += storage.nbytes()
        return value

    def _note_scores(self, module: Attention, arguments: tuple[Any, ...]) -> None:
        """Takes attention weights, which the meta device saves in fp32, out of the bytes. Counts those of plain attention."""
        batch, length, _ = arguments[0].shape
        if torch.is_grad_enabled() and arguments[0].requires_grad:
            scores = batch * module.heads * length**2
            self._tally.bytes -= 4 * scores
            self._tally.scores += scores if length <= PLAIN_MAX_TOKENS else 0

    def _block(
        self,
        forward: Any,
        kind: object,
        x: Tensor,
        bias: Tensor | None = None,
        num_last: int | None = None,
        with_added: bool = False,
    ) -> Any:
        key = (kind, x.shape, None if bias is None else bias.shape, num_last, with_added, torch.is_grad_enabled())
        if key in self._known:
            flops, kept, scores, output = self._known[key]
            self._more += flops
            self._tally.bytes += kept
            self._tally.scores += scores
        else:
            before = self._total(), self._tally.bytes, self._tally.scores
            output = forward(x, bias, num_last, with_added)
            after = self._total(), self._tally.bytes, self._tally.scores
            flops, kept, scores = (now - then for now, then in zip(after, before, strict=True))
            self._known[key] = (flops, kept, scores, output)
        self._tally.add_block(flops, kept, scores, x.nbytes)
        return output


def _storages(values: Iterable[Tensor]) -> dict[int, object]:
    """Storages by their id. The dict keeps them alive, so that ids stay unique."""
    found = [value.untyped_storage() for value in values]
    return {id(storage): storage for storage in found}
