"""The contents of files and folders of weights, and networks that are filled with them.

Nothing in a file is executed. Large files are mapped instead of read into memory. A network must use every tensor of a file and
gets nothing from elsewhere. Filling it takes little more memory than the network itself.
"""

import hashlib
import pickle
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from openjepa.config import read_object
from openjepa.refusals import Refusal, few
from openjepa.system.console import absent
from openjepa.weights.state_dicts import PLAIN_DATA, Groups, Network, networks_in

AGAIN = "export or download the network again"
"""Advice for a damaged folder of weights."""
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
PICKLE_FILE = "pytorch_model.bin"
INDEX_FILES = (f"{WEIGHTS_FILE}.index.json", f"{PICKLE_FILE}.index.json")
"""Names of index files, which say which file holds which weights."""
CHECKPOINT_FILE = "checkpoint.pth.tar"
"""Name of the file in a folder written by `openjepa convert --to official`."""
ONNX_ENDING = ".onnx"
READ = (".json", ".safetensors", ".bin")
"""Endings of the files in a folder that are read."""
SMALL = 64 * 2**20
"""Files (or folders) of at most this many bytes are read once, as a whole."""
DEEPEST = 3
"""Largest depth of nested dictionaries that are searched."""
OPTIMIZER = re.compile(r"optim|opt$")
"""Matches names of dictionaries that hold no network, although their entries may be named like its tensors."""
PARTS = 16
"""A network is filled in this many parts. The file is mapped again for each, so only one part is in memory beside the copy."""
MOST_NAMES = 20
"""Largest number of tensor names that a refusal lists."""
ZIP_START, PICKLE_START, LFS_START = b"PK\x03\x04", b"\x80", b"version https://git-lfs"
NetworkType = TypeVar("NetworkType", bound=nn.Module)


@dataclass(frozen=True)
class Contents:
    """The contents of a path, before its format is known."""

    path: Path
    settings: Mapping[str, Any] | None
    """The entries of its config.json; None for a file, or for a folder without one."""
    open: Callable[[], Mapping[str, Any]]
    """Returns the contents of the file. A large file is mapped again each time, and its tensors are read when they are used.
    Raises Refusal if it cannot be read, or if another file has replaced it."""

    @cached_property
    def tree(self) -> Mapping[str, Any]:
        """The contents of the file. Do not copy weights from it: the parts of a large file that are used stay in memory."""
        return self.open()

    @cached_property
    def networks(self) -> Mapping[str, Network]:
        """The networks in `tree`, by the names of their dictionaries."""
        return networks_in(tensor_groups(self.tree), self.path)

    def mapped(self) -> Mapping[str, Network]:
        """The networks in a new mapping, to copy weights from."""
        return networks_in(tensor_groups(self.open()), self.path)


def tensor_groups(tree: Mapping[str, Any]) -> Groups:
    """The tensors of a file, grouped by the dictionary that holds them.

    The name of a nested dictionary has the names of all levels, joined by points.
    """
    return dict(_groups(tree, "", DEEPEST))


def _groups(tree: Mapping[Any, Any], name: str, deepest: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
    tensors = {str(key): value for key, value in tree.items() if isinstance(value, Tensor)}
    if tensors:
        yield name, tensors
    for key, value in tree.items():
        if isinstance(value, Mapping) and deepest and not OPTIMIZER.match(str(key)):
            yield from _groups(value, f"{name}.{key}".removeprefix("."), deepest - 1)


def open_contents(path: Path) -> Contents:
    """The contents of `path`, a file of weights or a folder with one. Raises Refusal if there is neither."""
    if path.is_dir() and (path / CHECKPOINT_FILE).is_file() and not (path / CONFIG_FILE).is_file():
        return open_contents(path / CHECKPOINT_FILE)
    if path.is_dir():
        return Contents(path, read_object(path / CONFIG_FILE, AGAIN), _opener(path, _open_folder))
    if not path.exists():
        raise Refusal(f"{path} {absent(path)}; name a run folder, an encoder folder or a file of weights")
    if path.name in (WEIGHTS_FILE, PICKLE_FILE) and (path.parent / CONFIG_FILE).is_file():
        return open_contents(path.parent)
    if path.suffix == ONNX_ENDING:  # a graph and not a dictionary of weights; the format `onnx` refuses it
        return Contents(path, None, dict)
    if _start(path).startswith(PICKLE_START):  # files of torch before 1.6 cannot be mapped, so they are read, and only once
        tree = _open_torch(path, is_mapped=False)
        return Contents(path, None, lambda: tree)
    return Contents(path, None, _opener(path, _open_file))


def _opener(path: Path, opened: Callable[[Path], Mapping[str, Any]]) -> Callable[[], Mapping[str, Any]]:
    """A function that maps a large file again on each call. A small file is read only once."""
    before = _state(path)
    if sum(size for _, _, size, _ in before) > SMALL:
        return lambda: _unchanged(opened, path, before)
    return cache(lambda: _unchanged(opened, path, before))


def _state(path: Path) -> list[tuple[str, int, int, int]]:
    """Identifies a file, or the files of a folder. It changes if others replace them, as a running training does."""
    files = sorted(item for item in path.iterdir() if item.suffix in READ) if path.is_dir() else [path]
    return [(item.name, (seen := item.stat()).st_ino, seen.st_size, seen.st_mtime_ns) for item in files]


def _unchanged(
    opened: Callable[[Path], Mapping[str, Any]], path: Path, before: list[tuple[str, int, int, int]]
) -> Mapping[str, Any]:
    """The contents that `opened` maps. Raises Refusal if `path` has changed: a network must not mix two files."""
    try:
        tree, after = opened(path), _state(path)
    except FileNotFoundError:
        after = []
    if after != before:
        raise Refusal(f"{path} was written anew while it was read, as a training does from time to time; try again")
    return tree


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(64)


def _open_folder(folder: Path) -> Mapping[str, Any]:
    """The tensors of a folder, from one file or from the files that an index lists."""
    for name in (INDEX_FILES[0], WEIGHTS_FILE, PICKLE_FILE, INDEX_FILES[1]):
        if (folder / name).is_file():
            return _open_parts(folder, name) if name in INDEX_FILES else _open_file(folder / name)
    found = sorted(item.name for item in folder.iterdir())
    raise Refusal(
        f"{folder} lacks its weights: neither {WEIGHTS_FILE} nor {PICKLE_FILE}, whole or in parts, is there, only "
        f"{', '.join(found) or 'nothing'}; download or export it again"
    )


def _open_parts(folder: Path, index: str) -> Mapping[str, Any]:
    places = (read_object(folder / index, AGAIN) or {}).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise Refusal(f"{folder / index} has no weight_map that says which file holds which weights; download it again")
    # only the last part of each path: an index must not lead out of its folder
    files = sorted({Path(str(name)).name for name in places.values()})
    if missing := [name for name in files if not (folder / name).is_file()]:
        raise Refusal(f"{folder} lacks files that {index} lists: {', '.join(missing)}; download it again")
    return {key: value for name in files for key, value in _open_file(folder / name).items()}


def _open_file(path: Path) -> Mapping[str, Any]:
    start = _start(path)
    if not start:
        raise Refusal(f"{path} is empty; copy or download it again")
    if start.startswith(LFS_START):
        raise Refusal(f"{path} is only the pointer that Git LFS keeps in place of a large file: run `git lfs pull`")
    if start.startswith((ZIP_START, PICKLE_START)):
        return _open_torch(path, is_mapped=start.startswith(ZIP_START) and path.stat().st_size > SMALL)
    if start[8:9] == b"{":
        return _open_safetensors(path)
    raise Refusal(f"{path} is no file of weights: neither safetensors nor written by torch.save")


def _open_safetensors(path: Path) -> Mapping[str, Any]:
    try:
        with safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (it is no dictionary)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise Refusal(f"{path} is damaged or cut off ({error}); copy or download it again") from error


def _open_torch(path: Path, is_mapped: bool) -> Mapping[str, Any]:
    """Reads a file of torch.save. Only tensors and plain data are allowed; anything else is refused. Nothing is executed.

    `plain_data` lists what counts as plain data beyond torch's own list.
    """
    try:
        with torch.serialization.safe_globals(PLAIN_DATA), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about unusual pickles; real problems raise an error below
            tree = torch.load(path, map_location="cpu", weights_only=True, mmap=is_mapped)
    except pickle.UnpicklingError as error:
        # torch's own message recommends loading without this protection
        raise Refusal(_refused(path, str(error))) from None
    except Exception as error:  # a truncated or foreign file can raise anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise Refusal(f"{path} is damaged, cut off, or not written by torch.save ({reason}); download it again") from error
    if not isinstance(tree, Mapping):
        raise Refusal(f"{path} holds a {type(tree).__name__}, not a dictionary of weights; save `model.state_dict()` instead")
    return tree


def _refused(path: Path, message: str) -> str:
    if re.search(r"Unsupported operand \d+", message):
        return (
            f"{path} was refused: it is written in a protocol of pickle that torch's safe reader does not know, as by "
            "torch.save(..., pickle_protocol=4), and openjepa executes nothing that comes with weights. Where the file comes "
            "from, leave pickle_protocol out, or save its state_dict as safetensors"
        )
    found = re.search(r"(?:Unsupported (?:global|class): (?:GLOBAL )?|GLOBAL )([\w.]+)", message)
    what = (
        f"the Python object {found.group(1).rstrip('.')}"
        if found
        else "something other than what torch.save writes of plain data and tensors"
    )
    return (
        f"{path} was refused: it holds {what}, and openjepa executes nothing that comes with weights. "
        "Where the file comes from, save its state_dict alone, best as safetensors"
    )


def _only(tensor: Tensor) -> Tensor:
    return tensor


def stacked_attention(*tensors: Tensor) -> Tensor:
    """Joins the rows of queries, keys and values that a file stores separately."""
    return torch.cat(tensors)


@dataclass(frozen=True)
class WeightSource:
    """The origin of one weight."""

    keys: tuple[str, ...]
    """Keys of its tensors in the file."""
    make: Callable[..., Tensor] = _only
    """Makes the weight from these tensors."""


@dataclass(frozen=True)
class FillPlan:
    """The origin of every weight of a network."""

    sources: Mapping[str, WeightSource]
    """Sources by the name of the weight."""
    checked: frozenset[str] = field(default_factory=frozenset)
    """Keys of tensors that were checked but do not become weights: fixed positions."""


def same_names(network_names: Iterator[str] | list[str]) -> dict[str, WeightSource]:
    """The sources for a file that uses our names."""
    return {name: WeightSource((name,)) for name in network_names}


def weight_names(build: Callable[[], nn.Module]) -> list[str]:
    """The names of a network's weights."""
    return list(_without_values(build).state_dict())


def fill_network(
    build: Callable[[], NetworkType], plan: FillPlan, open_tensors: Callable[[], Mapping[str, Tensor]], where: str
) -> NetworkType:
    """Builds a network with `build` and copies its weights from a file. Returns it in evaluation mode, in fp32, on the CPU.

    `open_tensors` maps the file again. Raises Refusal if keys are missing, left over or have another shape; the message begins
    with `where` and lists them. The peak memory is that of the network, plus a sixteenth of it, plus its largest weight.
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
        del tensors  # this also frees the mapped pages
    network.load_state_dict(state, assign=True)
    return network.requires_grad_(True).eval()


def _without_values(build: Callable[[], NetworkType]) -> NetworkType:
    """A network whose weights take no memory. torch's random generator is left unchanged."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return build()


def _copy(value: Tensor, shape: torch.Size) -> Tensor:
    return torch.empty(shape, dtype=torch.float32).copy_(value)


def _parts(wanted: Mapping[str, torch.Size]) -> Iterator[list[str]]:
    """Yields the names in groups, each with about a sixteenth of all weights' elements."""
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


def _check(wanted: Mapping[str, torch.Size], plan: FillPlan, tensors: Mapping[str, Tensor], where: str) -> None:
    used = {key for source in plan.sources.values() for key in source.keys} | plan.checked
    problems = []
    if missing := sorted(used - set(tensors)):
        problems.append(f"missing {few(missing, MOST_NAMES)}")
    if extra := sorted(set(tensors) - used):
        problems.append(f"left over {few(extra, MOST_NAMES)}")
    wrong = [text for name, shape in wanted.items() if (text := _misfit(plan.sources[name], tensors, shape))]
    if wrong:
        problems.append(f"of another shape {few(wrong, MOST_NAMES)}")
    if problems:
        raise Refusal(f"{where}: {'; '.join(problems)}")


def _misfit(source: WeightSource, tensors: Mapping[str, Tensor], shape: torch.Size) -> str:
    """Keys and shapes of a weight that does not fit, in words; empty if it fits or is missing."""
    if any(key not in tensors for key in source.keys):
        return ""
    found = [tensors[key] for key in source.keys]
    try:
        # shapes only: no tensor of the file is read
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


def weights_hash(network: nn.Module) -> str:
    """Hash of all weights and their names."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
