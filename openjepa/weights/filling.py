"""Fills a network with the tensors of a file: all of them and nothing else, in little more memory than its own."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor, nn

from openjepa.refusals import Refusal

NetworkType = TypeVar("NetworkType", bound=nn.Module)

PARTS = 16
"""A file is mapped anew for every so many-th of a network, so that not more than that of it is in memory beside the copy."""
MOST_NAMES = 20


def _only(tensor: Tensor) -> Tensor:
    return tensor


def stacked(*tensors: Tensor) -> Tensor:
    """Rows below one another: queries, keys and values that a file keeps apart."""
    return torch.cat(tensors)


@dataclass(frozen=True)
class Source:
    """Where one weight comes from."""

    keys: tuple[str, ...]
    """Its tensors in the file."""
    make: Callable[..., Tensor] = _only
    """The weight, of these tensors."""


@dataclass(frozen=True)
class Plan:
    """Where every weight of a network comes from."""

    sources: Mapping[str, Source]
    """By the name of the weight."""
    checked: frozenset[str] = field(default_factory=frozenset)
    """Keys of tensors that were read but become no weight: fixed positions."""


def same_names(network_names: Iterator[str] | list[str]) -> dict[str, Source]:
    """The sources where a file has our names."""
    return {name: Source((name,)) for name in network_names}


def weight_names(build: Callable[[], nn.Module]) -> list[str]:
    """The names of a network's weights."""
    return list(_without_values(build).state_dict())


def fill(
    build: Callable[[], NetworkType], plan: Plan, open_tensors: Callable[[], Mapping[str, Tensor]], where: str
) -> NetworkType:
    """The network that `build` makes, in evaluation mode, in fp32 on the CPU, its weights copied from a file.

    `open_tensors` maps the file anew. Raises Refusal, which begins with `where`, with all keys that are missing, left
    over or of another shape. The peak of memory is the network's own, a sixteenth of it, and its largest weight.
    """
    network = _without_values(build)
    wanted = {name: value.shape for name, value in network.state_dict().items()}
    assert set(plan.sources) == set(wanted), "a plan must name every weight"
    _check(wanted, plan, open_tensors(), where)
    state: dict[str, Tensor] = {}
    for names in _parts(wanted):
        tensors = open_tensors()
        for name in names:
            source = plan.sources[name]
            state[name] = _copy(source.make(*(tensors[key] for key in source.keys)), wanted[name])
        del tensors  # and with them what is mapped
    network.load_state_dict(state, assign=True)
    return network.requires_grad_(True).eval()


def _without_values(build: Callable[[], NetworkType]) -> NetworkType:
    """A network whose weights take no memory. torch's random generator is left as it was."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return build()


def _copy(value: Tensor, shape: torch.Size) -> Tensor:
    return torch.empty(shape, dtype=torch.float32).copy_(value)


def _parts(wanted: Mapping[str, torch.Size]) -> Iterator[list[str]]:
    """Names in parts of about a sixteenth of all numbers each."""
    limit = sum(shape.numel() for shape in wanted.values()) / PARTS
    part: list[str] = []
    size = 0
    for name, shape in wanted.items():
        part.append(name)
        size += shape.numel()
        if size >= limit:
            yield part
            part, size = [], 0
    if part:
        yield part


def _check(wanted: Mapping[str, torch.Size], plan: Plan, tensors: Mapping[str, Tensor], where: str) -> None:
    used = {key for source in plan.sources.values() for key in source.keys} | plan.checked
    problems = []
    if missing := sorted(used - set(tensors)):
        problems.append(f"missing {listed(missing)}")
    if extra := sorted(set(tensors) - used):
        problems.append(f"left over {listed(extra)}")
    wrong = [text for name, shape in wanted.items() if (text := _misfit(plan.sources[name], tensors, shape))]
    if wrong:
        problems.append(f"of another shape {listed(wrong)}")
    if problems:
        raise Refusal(f"{where}: {'; '.join(problems)}")


def _misfit(source: Source, tensors: Mapping[str, Tensor], shape: torch.Size) -> str:
    """The keys and shapes of a weight that would not fit; empty where it fits or is missing."""
    if any(key not in tensors for key in source.keys):
        return ""
    found = [tensors[key] for key in source.keys]
    try:
        # shapes alone: nothing of the file is read
        made = source.make(*(torch.empty(item.shape, device="meta") for item in found)).shape
    except RuntimeError:
        made = None
    if made == shape and all(item.is_floating_point() for item in found):
        return ""
    shapes = ", ".join(
        f"{key} {list(item.shape)} {str(item.dtype).removeprefix('torch.')}"
        for key, item in zip(source.keys, found, strict=True)
    )
    return f"{shapes} instead of {list(shape)}"


def listed(names: list[str]) -> str:
    """The names, or the first twenty of them and how many more there are."""
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(names[:MOST_NAMES]) + more
