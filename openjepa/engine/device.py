"""Chooses device, precision and threads, which no other module does, and runs an encoder on images on its device."""

import ctypes
import os
import platform
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TypeVar

import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor

from openjepa.models.vit import VisionTransformer
from openjepa.operators import has_bf16_products
from openjepa.refusals import Refusal
from openjepa.settings.models import EncoderConfig
from openjepa.system.machine import launched, local_processes, local_rank, part_words, total_memory
from openjepa.types import EncoderOutput, normalize

Output = TypeVar("Output")

CPU_PATCHES = 2048
"""Patches per forward and CPU thread. They fit into the caches: one thread was 1.3 to 1.8 times as fast as with 16,384."""
BATCH = 256
CPU_BATCH = 32
"""Images per forward on a CPU. They fit the caches: a nano encoder at 64 px took 0.7 (fp32) or 0.83 (bf16) of the time."""


def resolve_device(name: str, setting: str = "run.device") -> torch.device:
    """The device called `name`; `auto` is cuda, else mps (not for several processes), else cpu.

    Of several processes that torchrun started, each gets the GPU with its number on its machine. Raises Refusal, naming
    `setting`, if the device is missing.
    """
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    processes = launched()
    if name == "auto":
        name = "cuda" if available["cuda"] else "mps" if available["mps"] and processes == 1 else "cpu"
    if name == "cuda" and available["cuda"] and processes > 1:
        name = f"cuda:{local_rank()}"
    kind, _, number = name.partition(":")
    if kind not in available or (":" in name and not (kind == "cuda" and number.isdecimal())):
        raise Refusal(f"{setting}={name!r} is unknown; use auto, cpu, cuda, cuda:N or mps")
    if number and processes > 1 and int(number) != local_rank():
        raise Refusal(f"{setting}={name!r} puts {processes} processes on one GPU: set {setting}=cuda, and each gets its own")
    if not available[kind]:
        usable = ", ".join(key for key, there in available.items() if there)
        raise Refusal(f"{setting}={name!r} is not available on this machine; available: {usable}")
    device = torch.device(name)
    if device.type == "cuda" and device.index is not None and device.index >= torch.cuda.device_count():
        more = f", and torchrun started process {device.index} on it" if processes > 1 else ""
        raise Refusal(f"{setting}={name!r} is not there: this machine has cuda:0 to cuda:{torch.cuda.device_count() - 1}{more}")
    return device


def supports_bf16(device: torch.device) -> bool:
    """True if bf16 matrix products run in hardware (on a CPU: AVX-512 bf16 or AMX)."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        return has_bf16_products()
    return False


def resolve_precision(precision: str, device: torch.device) -> str:
    """The precision for `device`: `bf16` or `fp32`. `auto` is bf16 if the hardware has it."""
    if precision == "auto":
        return "bf16" if supports_bf16(device) else "fp32"
    return precision


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Autocast to bf16 if `precision` (auto, bf16, fp32) says so; otherwise does nothing."""
    if resolve_precision(precision, device) == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Copies to `device` without blocking the host. Pins the host's memory first if the device is a GPU."""
    is_pageable = device.type == "cuda" and values.device.type == "cpu" and not values.is_pinned()
    return (values.pin_memory() if is_pageable else values).to(device, non_blocking=True)


def encode(
    network: Callable[[Float[Tensor, "B 3 h w"]], Output],
    images: UInt8[Tensor, "B 3 h w"],
    config: EncoderConfig,
    device: torch.device,
    precision: str,
) -> Output:
    """The output of `network` for images. `device`: that of the network. The images may be on another one.

    `config`: says how the images are normalized. `precision`: auto, bf16 or fp32. The caller decides about gradients.
    """
    pixels = normalize(to_device(images, device), config.pixel_mean, config.pixel_std)
    with autocast(device, precision):
        return network(pixels)


def in_caches(images: UInt8[Tensor, "B 3 h w"], patch_size: int, device: torch.device) -> tuple[UInt8[Tensor, "b 3 h w"], ...]:
    """Splits the images into parts. On a CPU the patches of a part fit into the caches. Other devices get one part."""
    if device.type != "cpu":
        return (images,)
    patches = (images.shape[2] // patch_size) * (images.shape[3] // patch_size)
    return torch.split(images, max(1, torch.get_num_threads() * CPU_PATCHES // patches))


@torch.no_grad()
def pooled_features(
    encoder: VisionTransformer,
    config: EncoderConfig,
    images: UInt8[Tensor, "B 3 h w"],
    device: torch.device,
    precision: str,
) -> Float[Tensor, "B D"]:
    """One vector per image, pooled as `config` says, in fp32 on the CPU. `encoder`: must be on `device` already.

    No paths are dropped, even if the encoder is in training mode.
    """
    training = encoder.training
    encoder.eval()
    pooled = [torch.empty(0, config.width)]
    for part in torch.split(images, CPU_BATCH if device.type == "cpu" else BATCH):
        output: EncoderOutput = encode(encoder, part, config, device, precision)
        pooled.append(output.pooled(config.pooling).cpu())
    encoder.train(training)
    return torch.cat(pooled)


def synchronize(device: torch.device) -> None:
    """Waits until `device` has finished its work. On a CPU there is nothing to wait for.

    Every timing of work on a device goes through here, because calls to GPUs of all makers return before the work is done.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    elif device.type == "xpu":
        torch.xpu.synchronize(device)


@contextmanager
def keep_random_state(device: torch.device) -> Iterator[None]:
    """At the end of the block, restores torch's random generators of the CPU and of `device`."""
    state = torch.mps.get_rng_state() if device.type == "mps" else None
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            if state is not None:
                torch.mps.set_rng_state(state)


def seed_generator(device: torch.device, seed: int) -> None:
    """Seeds only torch's generator of `device`, whereas torch.manual_seed seeds the generators of all GPUs."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


def set_threads(threads: int | None) -> int:
    """Sets torch's number of CPU threads. `threads`: None keeps torch's choice. Returns the number in use."""
    if threads is not None:
        torch.set_num_threads(threads)
    return torch.get_num_threads()


def keep_freed_memory() -> None:
    """Makes glibc keep freed memory for the next step. Does nothing with another C library.

    Otherwise every large activation is returned to the system and comes back as zeroed pages: about 2 % of a step on a CPU.
    """
    library = ctypes.CDLL(None)
    if platform.system() == "Linux" and hasattr(library, "mallopt"):
        trim_threshold, mmap_threshold = -1, -3  # numbers of glibc's malloc.h
        library.mallopt(mmap_threshold, 32 * 2**20)  # the largest value that glibc accepts
        library.mallopt(trim_threshold, 2**31 - 1)


def device_name(device: torch.device) -> str:
    """Name of the hardware of `device`."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpu_info = Path("/proc/cpuinfo")
    if cpu_info.exists():
        for line in cpu_info.read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.split(':', 1)[1].strip()} ({os.cpu_count()} cores)"
    return f"{platform.processor() or platform.machine()} ({os.cpu_count()} cores)"


def memory_limit(device: torch.device) -> int:
    """Total bytes of memory of the device. On a CPU: the bytes that this process may use, its part of those of the machine."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return total_memory() // local_processes()


def of_memory(device: torch.device) -> str:
    """Words behind the number that `memory_limit` gives: empty unless it is one of several parts of the machine's memory."""
    return "" if device.type == "cuda" else part_words(local_processes())


def peak_memory(device: torch.device) -> int:
    """Largest number of bytes that this process has held so far (GPU: allocated on the device; CPU: resident)."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    import resource  # not on every platform, and only needed here

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024


@contextmanager
def thread_pool(number: int, purpose: str) -> Iterator[ThreadPoolExecutor]:
    """A pool of `number` threads, named after `purpose`. At the end, started work is finished and waiting work is dropped."""
    pool = ThreadPoolExecutor(number, thread_name_prefix=f"openjepa-{purpose}")
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class Moving:
    """Rows that are being copied to the CPU while the device goes on."""

    def __init__(self, rows: Shaped[Tensor, "B *shape"]) -> None:
        """Starts the copy. Rows that are on the CPU already are not copied."""
        is_cuda = rows.device.type == "cuda"
        self._event = torch.cuda.Event() if is_cuda else None  # type: ignore[no-untyped-call]  # torch has no types for it
        if self._event is None:
            self._rows = rows
        else:
            self._rows = torch.empty(rows.shape, dtype=rows.dtype, pin_memory=True)
            self._rows.copy_(rows, non_blocking=True)
            # of the rows' own GPU, which need not be the current one
            self._event.record(torch.cuda.current_stream(rows.device))

    def arrived(self) -> Shaped[Tensor, "B *shape"]:
        """The rows on the CPU. Waits until they have arrived."""
        if self._event is not None:
            self._event.synchronize()
        return self._rows.cpu()
