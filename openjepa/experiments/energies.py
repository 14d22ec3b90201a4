"""Energies of compatible pairs (x and y of one image) and of incompatible pairs under a run's method (I-JEPA, section 2).

A method is an energy. It should be low if x and y belong together and higher otherwise (LeCun 2022). In a collapsed method the
energy is the same for every pair: a flat landscape. Does a method tell the pairs apart, and has it collapsed?
"""

import json
import math
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from rich.table import Table
from torch import Tensor

from openjepa.config import load_run_config
from openjepa.data.source import ListSource, Splits, open_splits
from openjepa.engine.checkpoint import latest_checkpoint, load_weights, read_state
from openjepa.engine.device import autocast, resolve_device, resolve_precision, set_threads
from openjepa.engine.run_folder import environment
from openjepa.masks import MASKS
from openjepa.masks.sampler import MaskSampler
from openjepa.measures.verdicts import EnergyStatistics, tells_apart
from openjepa.methods.base import Method
from openjepa.records import Energy, Histogram
from openjepa.refusals import Refusal
from openjepa.schedules import Progress
from openjepa.seeds import derive
from openjepa.settings.experiments import EnergyBench
from openjepa.settings.fields import as_option, check_ranges
from openjepa.settings.run import RunConfig
from openjepa.system.console import command, plain_console
from openjepa.system.shared_files import whole_file
from openjepa.training.monitor import draw_batches
from openjepa.training.startup import build_method, default_view, training_length
from openjepa.types import Batch

BINS = 40
"""Number of bars of each histogram."""
BEFORE, AFTER = "untrained", "trained"


def measure_energy(options: EnergyBench) -> Energy:
    """The command `openjepa bench energy`: measures, prints, and writes `<run>/energy.json`."""
    result = bench_energy(options)
    with whole_file(options.run / "energy.json") as file:
        file.write_text(json.dumps(asdict(result), indent=1) + "\n")
    print_energy(result)
    return result


def bench_energy(options: EnergyBench) -> Energy:
    """Measures the energies of all pairs in groups of images, before training and at the run's latest checkpoint.

    Views and masks are drawn as in training, from seeds that training never uses. They are the same before and after
    training, as is the progress given to the method, on which temperatures may depend. Raises Refusal if the run has no usable
    checkpoint.
    """
    check_ranges(options, said=as_option)
    run = options.run
    config, found = load_run_config(run), latest_checkpoint(run / "checkpoints")
    if found is None:
        raise Refusal(
            f"{run} has no checkpoint that can be used, and energies need the whole method, not only its encoder: train it "
            f"first ({command('openjepa', 'train', '--config', run / 'config.yaml')})"
        )
    device = resolve_device(options.device)
    precision = resolve_precision(config.run.precision, device)
    set_threads(options.threads)
    view = default_view(config.data)
    sampler = MASKS[config.masks.strategy].load()(config.masks, config.model.grid(view.size))
    method = build_method(config, view, sampler).to(device).eval()
    splits = open_splits(config.data, config.run.seed)
    shown, split = _held_out(splits)
    batches = _groups(config, method, sampler, shown, options)
    progress = _progress(config, splits, read_state(found).step)
    energies = {BEFORE: energies_of(method, batches, progress, config, device, precision)}
    state = load_weights(found, method)
    energies[AFTER] = energies_of(method, batches, progress, config, device, precision)
    where = environment(device, precision)
    return replace(
        compared_energies(energies[BEFORE], energies[AFTER]),
        step=state.step,
        images_seen=state.images_seen,
        method=config.method.name,
        images=len(batches) * len(batches[0].sample_ids),
        group=len(batches[0].sample_ids),
        split=split,
        data=splits.description,
        masks=sampler.name,
        device=where.device_name,
        precision=precision,
        commit=where.commit,
        date=where.started,
    )


def compared_energies(untrained: Float[Tensor, "G B B"], trained: Float[Tensor, "G B B"]) -> Energy:
    """Statistics and histograms of the energies before and after training, and their verdict."""
    before, after = energy_statistics(untrained), energy_statistics(trained)
    flat = is_flat(after, before)
    apart = not flat and tells_apart(after.auc, after.auc_error)
    return Energy(
        flat=flat,
        tells_apart=apart,
        verdict=_landscape_in_words(after, flat, apart),
        untrained=before,
        trained=after,
        histograms={BEFORE: _histogram(untrained), AFTER: _histogram(trained)},
    )


def _landscape_in_words(trained: EnergyStatistics, flat: bool, apart: bool) -> str:
    if flat:
        return (
            f"The landscape is flat: collapsed. Energies vary by less than {FLAT:.0%} of their scale before or after training."
        )
    if not apart:
        return "The landscape is not flat, but compatible pairs have no lower energy than others."
    return f"Not flat: the compatible pair has the lower energy in {trained.auc:.1%} of the comparisons."


@torch.no_grad()
def energies_of(
    method: Method, batches: list[Batch], progress: Progress, config: RunConfig, device: torch.device, precision: str
) -> Float[Tensor, "G B B"]:
    """Energies of all pairs within each batch, in fp32 on the CPU. Raises Refusal if the method has no energies."""
    matrices = []
    for batch in batches:
        on_device = batch.to(device).normalized(config.data.pixel_mean, config.data.pixel_std)
        with autocast(device, precision):
            energies = method.energies(on_device, progress)
        if energies is None:
            raise Refusal(f"method.name={config.method.name} has no energies to compare: nothing can be said of its landscape")
        matrices.append(energies.float().cpu())
    return torch.stack(matrices)


def _held_out(splits: Splits) -> tuple[Splits, str]:
    """The splits with the test images as training images, if there are at least two; and the name of the split used."""
    if splits.test is not None and len(splits.test) > 1:
        return replace(splits, train=splits.test), "test"
    return splits, "training"


def _groups(config: RunConfig, method: Method, sampler: MaskSampler, splits: Splits, options: EnergyBench) -> list[Batch]:
    source = splits.train
    size = min(options.batch_size, options.images, len(source) if isinstance(source, ListSource) else options.batch_size)
    number = options.images // size * size
    inputs = replace(method.inputs(), contexts=1)
    batches = draw_batches(config, inputs, sampler, splits, number, size, derive("order", config.run.seed, -2))
    if not batches or size < 2:
        raise Refusal(f"data.path holds fewer images than a group of {max(2, size)}: lower --batch-size, or add images")
    return batches


def _progress(config: RunConfig, splits: Splits, step: int) -> Progress:
    total_steps, steps_per_epoch = training_length(config.optim, splits.train)
    return Progress(step, total_steps, steps_per_epoch, config.optim.schedule_stretch)


def _histogram(energies: Float[Tensor, "G B B"]) -> Histogram:
    values = energies.double()
    low, high = float(values.min()), float(values.max())
    edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
    pairs = (values.diagonal(dim1=1, dim2=2).flatten(), incompatible(values))
    shares = (np.histogram(item.numpy(), edges)[0] / len(item) for item in pairs)
    return Histogram(_rounded(edges), *map(_rounded, shares))


def _rounded(values: Any) -> list[float]:
    return [float(f"{value:.6g}") for value in values]


def print_energy(result: Energy) -> None:
    """Prints the result."""
    assert result.untrained is not None and result.trained is not None
    console = plain_console()
    table = Table("", BEFORE, AFTER, title=f"energies of {result.images} {result.split} images in groups of {result.group}")
    rows = (
        ("compatible pairs", "compatible", ".4g"),
        ("incompatible pairs", "incompatible", ".4g"),
        ("gap, relative", "gap", ".3f"),
        ("compatible is lower (AUC)", "auc", ".3f"),
        (f"nearest is its own (chance {result.trained.chance:.3f})", "top1", ".3f"),
        ("standard deviation / mean", "relative_std", ".4g"),
    )
    for title, name, form in rows:
        table.add_row(title, *(format(getattr(item, name), form) for item in (result.untrained, result.trained)))
    console.print(table)
    console.print(f"{result.verdict} (method {result.method}, step {result.step})")


# ------------------------------------------------------------------------------------------------------- statistics of energies


FLAT = 0.01
"""Energies form a flat landscape if they vary by less than this share of their scale."""


def energy_statistics(energies: Float[Tensor, "G B B"]) -> EnergyStatistics:
    """Statistics of G groups of B images. Rows are images of x, columns images of y; compatible pairs are on the diagonal.

    Raises Refusal if a group has fewer than 2 images, or if energies are not finite.
    """
    num_groups, size, _ = energies.shape
    if size < 2:
        raise Refusal(f"energies need at least 2 images to form incompatible pairs; got {size}")
    values = energies.detach().double().cpu()
    if not values.isfinite().all():
        raise Refusal("some energies are not finite: the method's weights or its temperatures are broken")
    own = values.diagonal(dim1=1, dim2=2)  # [G, B]
    others = incompatible(values).view(num_groups, size, size - 1)
    wins = (own[..., None] < others).double() + 0.5 * (own[..., None] == others).double()
    shares = wins.mean(dim=2).flatten()  # one for each x
    ties = (others == own[..., None]).sum(dim=2)
    top = (own <= others.min(dim=2).values).double() / (1 + ties)
    other, std, mean = others.mean(), values.std(correction=0), values.mean()
    return EnergyStatistics(
        compatible=float(own.mean()),
        incompatible=float(other),
        gap=_ratio(float(other - own.mean()), float(other)),
        auc=float(shares.mean()),
        auc_error=float(shares.std()) / math.sqrt(len(shares)),
        top1=float(top.mean()),
        chance=1 / size,
        std=float(std),
        relative_std=_ratio(float(std), float(mean.abs())),
    )


def incompatible(energies: Float[Tensor, "G B B"]) -> Float[Tensor, " pairs"]:
    """The energies off the diagonal, group by group and row by row."""
    size = energies.shape[-1]
    off_diagonal: Bool[Tensor, "B B"] = ~torch.eye(size, dtype=torch.bool, device=energies.device)
    return energies[:, off_diagonal].flatten()


def is_flat(trained: EnergyStatistics, untrained: EnergyStatistics) -> bool:
    """True if training has collapsed: energies vary by less than 1 % of their scale.

    The scale is the larger mean, of before and after training. A method whose energies all fell to nearly 0 is therefore flat,
    however much the remaining energies vary in proportion.
    """
    scale = max(abs(item.compatible) + abs(item.incompatible) for item in (trained, untrained)) / 2
    return trained.std <= FLAT * scale


def _ratio(value: float, scale: float) -> float:
    return value / scale if scale else 0.0
