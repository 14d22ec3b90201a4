"""The predictor's joint and cross passes against separate ones on one core: `python -m benchmarks.predictor_passes`.

FLOPs cannot tell: a joint pass also multiplies the scores that its mask then hides.
"""

import time
from dataclasses import replace
from typing import get_args

import torch
from torch import Tensor

from openjepa.engine.device import keep_freed_memory
from openjepa.models.predictor import Predictor, build_predictor
from openjepa.settings.models import PredictorConfig, PredictorPasses

CASES = (
    (PredictorConfig(encoder_width=128, width=64, depth=3, heads=4, grid=(8, 8)), 32, 25, 4, 5),
    (PredictorConfig(encoder_width=384, width=384, depth=2, heads=6, grid=(14, 14)), 8, 49, 4, 35),
    (PredictorConfig(encoder_width=384, width=384, depth=2, heads=6, grid=(14, 14)), 8, 49, 4, 8),
)
"""Predictor, images, context tokens, blocks, tokens of a block."""


def processor_seconds(predictor: Predictor, inputs: tuple[Tensor, ...]) -> float:
    """Processor time of one forward and backward."""
    start = time.process_time()
    predictor(*inputs).square().mean().backward()
    return time.process_time() - start


def main(repeats: int = 9) -> None:
    """Prints milliseconds of separate passes, the smallest of several runs in turn, and the ratios of the others to them."""
    torch.set_num_threads(1)
    keep_freed_memory()
    for config, images, kept, blocks, length in CASES:
        places = config.grid[0] * config.grid[1]
        context = torch.rand(images, places).argsort(dim=1)[:, :kept]
        targets = torch.rand(images, blocks, places).argsort(dim=2)[:, :, :length]
        inputs = (torch.randn(images, kept, config.encoder_width), context, targets)
        networks = [build_predictor(replace(config, passes=passes)) for passes in get_args(PredictorPasses)]
        times = [[processor_seconds(network, inputs) for network in networks] for _ in range(repeats)]
        first, *others = (min(column) for column in zip(*times, strict=True))
        ratios = ", ".join(
            f"{name} {seconds / first:.2f}" for name, seconds in zip(get_args(PredictorPasses)[1:], others, strict=True)
        )
        print(
            f"{config.width} wide, {config.depth} deep, {images} images, {kept} context tokens, {blocks} x {length} targets: "
            f"separate {1000 * first:.0f} ms; ratios: {ratios}"
        )


if __name__ == "__main__":
    main()
