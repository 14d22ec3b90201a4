"""ABLATIONS: named comparisons of runs that differ in a few settings, with the numbers that papers report. Free of torch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import yaml

from openjepa.config import from_dict, nearest_names, to_dict
from openjepa.recipes.matched import with_method
from openjepa.refusals import Refusal
from openjepa.settings.masks import MASKS
from openjepa.settings.methods import METHODS
from openjepa.settings.run import CHOICES, RunConfig


@dataclass(frozen=True)
class Share:
    """A setting as a share of a size of the encoder, so that one ablation suits encoders of all sizes."""

    of: Literal["width", "depth"]
    share: float

    def of_encoder(self, config: RunConfig) -> int:
        """The value for the encoder of `config`, at least 1."""
        shape = config.model.shape()
        return max(1, round(self.share * (shape.width if self.of == "width" else shape.depth)))


@dataclass(frozen=True)
class Layers:
    """Blocks of the encoder that are spread evenly from `after` of its depth to its last block."""

    number: int
    after: float = 0.0

    def of_encoder(self, config: RunConfig) -> tuple[int, ...]:
        """Their numbers, the first block is 1. Fewer than `number` if the encoder has fewer blocks there."""
        depth = config.model.shape().depth
        places = (self.after + (1 - self.after) * part / self.number for part in range(1, self.number + 1))
        return tuple(sorted({max(1, round(depth * place)) for place in places}))


Changes = Mapping[str, object]
"""Dotted names of settings, with their values. `masks.strategy` also sets the defaults of that strategy, and `method.name`
makes the matched run of that method."""


@dataclass(frozen=True)
class Variant:
    """One row of an ablation."""

    title: str
    """Its name in tables and pictures."""
    changes: Changes = field(default_factory=dict)
    """What differs from the base run of the ablation."""
    published: float | None = None
    """The number in the paper's table, in %. None if the paper has no such row."""


Variants = Mapping[str, Variant]


@dataclass(frozen=True)
class Ablation:
    """One comparison of runs. The other rows are compared with the first.

    The first row's time is that of the table at equal time, and its encoder before training is the untrained encoder.
    """

    title: str
    """Heading of the tables."""
    column: str
    """Heading of the column with the names, e.g. `method`."""
    variants: Variants | Callable[[], Variants]
    """Its rows by name. A run is named after its row, so that ablations with one base share the runs of equal rows."""
    base: str = "cpu-32"
    """Recipe of the runs, unless another one is asked for."""
    common: Changes = field(default_factory=dict)
    """What all rows change in the recipe."""
    source: str = ""
    """Where the published numbers stand, and what they are."""

    @property
    def rows(self) -> Variants:
        """The rows by name."""
        return self.variants if isinstance(self.variants, Mapping) else self.variants()

    @property
    def first(self) -> str:
        """Name of the row with which the others are compared."""
        return next(iter(self.rows))

    def published(self) -> dict[str, float]:
        """The published numbers by row, in %."""
        return {row: item.published for row, item in self.rows.items() if item.published is not None}


BASE = "base"
"""Name of the row that has the settings of the base run. Ablations with one base share its runs."""
MULTI_BLOCK: Changes = {
    "masks.strategy": "multiblock",
    "masks.mode": "unbiased",
    "masks.num_targets": 4,
    "masks.target_scale": (0.15, 0.2),
    "masks.context_scale": (0.85, 1.0),
    "masks.context_cut": "smallest",
    "masks.context_ratio": 0.25,
}
"""The paper's masks. The cut to the smallest context of a batch is the released one, without its bias. The context is thus the
smaller, the more and the larger the targets are; `context_ratio` has no effect."""
I_JEPA = "I-JEPA (arXiv 2301.08243)"
_SHORT_BASE = "ViT-B/16, 300 epochs, linear probe with 1 % of the labels"


def _methods() -> Variants:
    return {name: Variant(name, {"method.name": name}) for name in METHODS}


ABLATIONS = {
    "methods": Ablation("Methods in the same trainer, each with its own masks, crops and rates", "method", _methods),
    "masks": Ablation(
        "Mask strategies",
        "masks",
        {
            BASE: Variant("multi-block", {}, 54.2),
            "rasterized": Variant("rasterized", {"masks.strategy": "rasterized"}, 15.5),
            "block": Variant("block", {"masks.strategy": "block"}, 20.2),
            "random": Variant("random", {"masks.strategy": "random_targets"}, 17.6),
            "inverse-block": Variant("inverse block", {"masks.strategy": "inverse_block"}),
        },
        common=MULTI_BLOCK,
        source=f"{I_JEPA}, Table 6: {_SHORT_BASE}",
    ),
    "target-space": Ablation(
        "Space of the targets",
        "targets",
        {
            BASE: Variant("target encoder's output", {}, 66.9),
            "pixels": Variant("pixels", {"method.target_space": "pixels"}, 40.7),
            "pixels-first": Variant("pixels, then the output", {"method.target_space": "pixels_then_features"}),
        },
        common=MULTI_BLOCK,
        source=f"{I_JEPA}, Table 7: ViT-L/16, 500 and 800 epochs, linear probe with 1 % of the labels",
    ),
    "target-scale": Ablation(
        "Size of the target blocks",
        "targets, share of the patches",
        {
            BASE: Variant("0.15 to 0.2", {}, 54.2),
            "target-0.075-0.2": Variant("0.075 to 0.2", {"masks.target_scale": (0.075, 0.2)}, 19.2),
            "target-0.1-0.2": Variant("0.1 to 0.2", {"masks.target_scale": (0.1, 0.2)}, 39.2),
            "target-0.125-0.2": Variant("0.125 to 0.2", {"masks.target_scale": (0.125, 0.2)}, 42.4),
            "target-0.2-0.25": Variant("0.2 to 0.25", {"masks.target_scale": (0.2, 0.25)}, 38.9),
            "target-0.2-0.3": Variant("0.2 to 0.3", {"masks.target_scale": (0.2, 0.3)}, 33.6),
        },
        common=MULTI_BLOCK,
        source=f"{I_JEPA}, Table 8: {_SHORT_BASE}",
    ),
    "context-scale": Ablation(
        "Size of the context block",
        "context, share of the patches",
        {
            BASE: Variant("0.85 to 1", {}, 54.2),
            "context-0.75-1": Variant("0.75 to 1", {"masks.context_scale": (0.75, 1.0)}, 49.3),
            "context-0.65-1": Variant("0.65 to 1", {"masks.context_scale": (0.65, 1.0)}, 47.1),
            "context-0.4-1": Variant("0.4 to 1", {"masks.context_scale": (0.4, 1.0)}, 31.2),
        },
        common=MULTI_BLOCK,
        source=f"{I_JEPA}, Table 9: {_SHORT_BASE}",
    ),
    "num-targets": Ablation(
        "Number of target blocks",
        "target blocks",
        {
            BASE: Variant("4", {}, 54.2),
            "targets-3": Variant("3", {"masks.num_targets": 3}, 48.5),
            "targets-2": Variant("2", {"masks.num_targets": 2}, 22.0),
            "targets-1": Variant("1", {"masks.num_targets": 1}, 9.0),
        },
        common=MULTI_BLOCK,
        source=f"{I_JEPA}, Table 10: {_SHORT_BASE}",
    ),
    "target-masking": Ablation(
        "Targets masked at the target encoder's output or input",
        "masked",
        {
            BASE: Variant("output", {}, 67.3),
            "masked-input": Variant("input", {"method.target_masking": "input"}, 56.1),
        },
        common=MULTI_BLOCK,
        source=f"{I_JEPA}, Table 11: ViT-H/16, 300 epochs, linear probe with 1 % of the labels",
    ),
    "predictor-depth": Ablation(
        "Depth of the predictor",
        "blocks of the predictor, as a share of the encoder's",
        {
            "predictor-half-deep": Variant("1/2", {"method.predictor_depth": Share("depth", 1 / 2)}, 66.9),
            "predictor-quarter-deep": Variant("1/4", {"method.predictor_depth": Share("depth", 1 / 4)}, 64.0),
        },
        common=MULTI_BLOCK,
        source=f"{I_JEPA}, Table 12: 12 and 6 blocks beside 24 of ViT-L/16, 500 epochs, linear probe with 1 % of the labels",
    ),
    "weight-decay": Ablation(
        "Weight decay that rises or stays",
        "weight decay",
        {
            "decay-rises": Variant(
                "0.04 to 0.4",
                {"optim.weight_decay": 0.04, "optim.final_weight_decay": 0.4, "optim.weight_decay_schedule": "linear"},
                77.8,
            ),
            "decay-constant": Variant("0.05", {"optim.weight_decay": 0.05, "optim.weight_decay_schedule": "constant"}, 76.4),
        },
        common=MULTI_BLOCK,
        source=f"{I_JEPA}, Table 13: ViT-L/16, 600 epochs, linear probe (fine-tuned on 1 % of the labels: 69.4 and 70.7)",
    ),
    "predictor-width": Ablation(
        "Width of the predictor",
        "width of the predictor, as a share of the encoder's",
        {
            "predictor-narrow": Variant("3/8", {"method.predictor_width": Share("width", 3 / 8)}, 70.7),
            "predictor-wide": Variant("1", {"method.predictor_width": Share("width", 1)}, 68.4),
        },
        common=MULTI_BLOCK,
        source=f"{I_JEPA}, Table 14: widths 384 and 1024 beside 1024 of ViT-L/16, 600 epochs, fine-tuned on 1 % of the labels",
    ),
    "contexts": Ablation(
        "Contexts per image and pass of the target encoder",
        "contexts",
        {
            BASE: Variant("1"),
            "contexts-2": Variant("2", {"method.contexts": 2}),
            "contexts-4": Variant("4", {"method.contexts": 4}),
            "contexts-8": Variant("8", {"method.contexts": 8}),
        },
    ),
    "target-layers": Ablation(
        "Layers of the target encoder that are predicted",
        "layers",
        {
            BASE: Variant("its output"),
            "layers-4": Variant("4, concatenated", {"method.target_layers": Layers(4)}),
            "layers-4-averaged": Variant(
                "4, averaged", {"method.target_layers": Layers(4), "method.target_layers_join": "averaged"}
            ),
            "layers-upper-averaged": Variant(
                "4 of the upper half, averaged",
                {"method.target_layers": Layers(4, after=1 / 2), "method.target_layers_join": "averaged"},
            ),
        },
    ),
    "ema": Ablation(
        "Momentum of the target encoder",
        "momentum",
        {
            BASE: Variant("1 - 100 / steps to 1"),
            "ema-paper": Variant("0.996 to 1 (paper)", {"method.ema_start": 0.996, "method.ema_end": 1.0}),
            "ema-memory": Variant("1 - 10 / steps to 1", {"method.ema_memory": 0.1}),
            "ema-end-0.999": Variant("1 - 100 / steps to 0.999", {"method.ema_end": 0.999}),
            "ema-0.99": Variant("0.99", {"method.ema_start": 0.99, "method.ema_end": 0.99}),
        },
        common={"method.ema_start": None, "method.ema_end": 1.0},
    ),
    "regularizers": Ablation(
        "Terms that keep the features of images apart",
        "term",
        {
            BASE: Variant("none"),
            "vicreg": Variant("VICReg (C-JEPA)", {"method.regularizer": "vicreg"}),
            "sigreg": Variant("SIGReg (LeJEPA)", {"method.regularizer": "sigreg"}),
        },
    ),
}
"""By name, in the order of the paper's tables. Those without published numbers go beyond the paper."""


def ablation_named(name: str) -> Ablation:
    """The ablation `name`. Raises Refusal if it does not exist."""
    if name not in ABLATIONS:
        raise Refusal(f"ablation {name!r} does not exist: {nearest_names(name, ABLATIONS)}")
    return ABLATIONS[name]


def ablation_rows(name: str, config: RunConfig, chosen: tuple[str, ...] = ()) -> dict[str, RunConfig]:
    """The runs of an ablation by row, made from the base run. `chosen`: only these rows and the first; empty: all.

    Raises Refusal if the ablation or a row does not exist.
    """
    ablation = ablation_named(name)
    if unknown := [row for row in chosen if row not in ablation.rows]:
        raise Refusal(f"--rows {unknown[0]} does not exist in the ablation {name}: {nearest_names(unknown[0], ablation.rows)}")
    rows = {row: item for row, item in ablation.rows.items() if not chosen or row in (ablation.first, *chosen)}
    return {row: with_changes(config, item.changes) for row, item in rows.items()}


def parsed_changes(words: Sequence[str], option: str = "--set") -> dict[str, object]:
    """The changes that `words` such as optim.lr=1e-3 or masks.target_scale=[0.1,0.2] stand for.

    Values are read as YAML. Raises Refusal if a word is no setting with a value.
    """
    found = {}
    for word in words:
        name, sign, value = word.partition("=")
        if not sign or "." not in name:
            raise Refusal(f"{option} {word!r} must be a setting as name=value, e.g. {option} optim.lr=1e-3")
        try:
            found[name.replace("-", "_")] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise Refusal(f"{option} {word!r}: the value cannot be read; lists are written as [0.1, 0.2]") from None
    return found


def with_changes(config: RunConfig, changes: Changes) -> RunConfig:
    """`config` with other values of some settings. Raises Refusal if a setting does not exist or cannot have its value."""
    method, strategy = changes.get("method.name"), changes.get("masks.strategy")
    if isinstance(method, str):
        config = with_method(config, method)
    if isinstance(strategy, str) and strategy in MASKS and strategy != config.masks.strategy:
        config = replace(config, masks=MASKS[strategy].settings(strategy=strategy, group_size=config.masks.group_size))
    content = to_dict(config)
    for name, value in changes.items():
        group, _, setting = name.partition(".")
        if not isinstance(content.get(group), dict):
            raise Refusal(f"unknown setting {name}: write it with its group, e.g. optim.lr")
        content[group][setting] = value.of_encoder(config) if isinstance(value, Share | Layers) else value
    return from_dict(RunConfig, content, CHOICES)
