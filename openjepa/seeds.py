"""Random numbers as a function of where they are used, so that nothing depends on workers, processes or interruptions.

A seed is made of parts. (run seed, step, group) seeds everything that a mask group shares. (run seed, epoch, sample) seeds
everything that belongs to one sample. No seed depends on the rank. The mixing function is splitmix64 (Steele, Lea and Flood,
2014).
"""

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
STREAMS = {
    "order": 1,
    "crop": 2,
    "mask": 3,
    "group": 4,
    "weights": 5,
    "step": 6,
    "subset": 7,
    "scene": 8,
    "color": 9,
    "directions": 10,
}
"""Number of each purpose of a seed. A sample draws independent numbers for each purpose, such as its crop and its masks."""


def mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The splitmix64 finalizer, elementwise on uint64."""
    with np.errstate(over="ignore"):
        mixed = values + _GOLDEN
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mixed ^ (mixed >> np.uint64(31))


def derive(stream: str, *parts: int) -> int:
    """One 63-bit seed for the purpose `stream`, a key of STREAMS, and any number of integers."""
    state = np.array([STREAMS[stream]], dtype=np.uint64)
    for part in parts:
        state = mix(state ^ np.uint64(part & 0xFFFFFFFFFFFFFFFF))
    return int(mix(state)[0] >> np.uint64(1))


def derive_samples(stream: str, seed: int, epochs: NDArray[np.int64], samples: NDArray[np.int64]) -> NDArray[np.int64]:
    """63-bit seeds [B] for the purpose `stream`, one per sample [B] in its epoch [B]. The two arrays broadcast."""
    state = mix(np.array([STREAMS[stream]], dtype=np.uint64) ^ np.uint64(seed & 0xFFFFFFFFFFFFFFFF))
    state = mix(state ^ np.asarray(epochs).astype(np.uint64))
    state = mix(state ^ np.asarray(samples).astype(np.uint64))
    return (state >> np.uint64(1)).astype(np.int64)


def uniforms(seeds: NDArray[np.int64], num: int, start: int = 0) -> NDArray[np.float64]:
    """Numbers `start` to `start + num` (exclusive) of each seed's sequence, uniform in [0, 1): [B] -> [B, num]."""
    with np.errstate(over="ignore"):
        counters = (np.arange(start, start + num, dtype=np.uint64) + np.uint64(1)) * _GOLDEN
        bits = mix(seeds.astype(np.uint64)[:, None] + counters[None, :])
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
