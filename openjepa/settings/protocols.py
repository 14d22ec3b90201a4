"""The protocols: one entry tells the rest of the program all that it knows of one. Their code is in openjepa.evaluation.

Also former names of protocols, and checks of an evaluation's settings before anything is loaded. Free of torch.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, is_dataclass, make_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

from openjepa.refusals import Refusal
from openjepa.settings.evaluation import EvaluationSettings, ProtocolSettings
from openjepa.settings.fields import Line, check_ranges

Group = TypeVar("Group")


@dataclass(frozen=True)
class ProtocolEntry(Line):
    """A protocol as the rest of the program knows it."""

    home: str
    """The protocol's function as `package.module:name`."""
    works_on: Literal["features", "images", "maps"]
    """The input. features: pooled features, extracted once; images: the images; maps: images with one class per pixel."""
    metric: str
    """Name of the number in tables and files."""
    summary: str
    """One line of help."""
    settings: tuple[str, ...] = ()
    """Fields of EvaluationSettings that this protocol reads but not every other does. A group stands for all of its fields."""
    groups: Mapping[str, type[Any]] = field(default_factory=dict)
    """Settings of its own: name of the group -> its frozen dataclass. The group becomes a field of `evaluation_settings()`."""
    measure: Literal["accuracy", "miou"] = "accuracy"
    """The kind of number. accuracy: share of correct predictions; miou: mean intersection over union."""
    words: str = ""
    """What the report says of the number. Empty: nothing."""
    is_published: bool = False
    """True if the I-JEPA paper has numbers of the protocol, which are compared with ours if its settings are not changed."""
    freezes: bool = True
    """False if the protocol trains the encoder."""
    pools: bool = True
    """True if the protocol works on one vector per image, so that the setting `pooling` matters."""
    is_usual: bool = False
    """True if the protocol runs when no protocols are named."""

    @property
    def own(self) -> tuple[str, ...]:
        """`settings` and `groups`: the fields of the settings that not every protocol reads."""
        return (*self.settings, *self.groups)

    @property
    def reads(self) -> tuple[str, ...]:
        """The fields of the settings that the protocol reads, including OF_FEATURES if it works on features."""
        return (*OF_FEATURES, *self.own) if self.works_on == "features" else self.own


OF_FEATURES = ("feature_dtype", "lidar_images", "lidar_views")
"""Settings that are read when features are extracted. Only protocols on features extract them."""
_LINEAR = ("weight_decays", "iterations")
_NEIGHBORS = ("neighbors", "neighbor_temperature")

PROTOCOLS: dict[str, ProtocolEntry] = {
    "linear": ProtocolEntry(
        home="openjepa.evaluation.probes.linear:evaluate_linear",
        works_on="features",
        metric="linear",
        summary="linear heads on features of the test view, without augmentation; minutes",
        settings=_LINEAR,
        words="a linear probe on features of one center view, computed once: published linear numbers, trained on augmented "
        "images, do not compare to the point",
        is_usual=True,
    ),
    "knn": ProtocolEntry(
        home="openjepa.evaluation.probes.knn:evaluate_neighbors",
        works_on="features",
        metric="k-NN",
        summary="weighted k-nearest neighbors on the same features",
        settings=_NEIGHBORS,
        is_usual=True,
    ),
    "logistic": ProtocolEntry(
        home="openjepa.evaluation.probes.logistic:evaluate_logistic",
        works_on="features",
        metric="logistic",
        summary="L2 logistic regression with a sweep (low-shot, as MSN)",
        settings=("logistic",),
        words="L2 logistic regression on features of one center view, as MSN's low-shot evaluation",
    ),
    "linear-full": ProtocolEntry(
        home="openjepa.evaluation.probes.linear_full:evaluate_linear_full",
        works_on="images",
        metric="linear-full",
        summary="the paper's probe: heads trained on augmented images; hours",
        settings=("linear_full",),
        words="the paper's linear probe: heads trained on augmented images above the frozen encoder",
        is_published=True,
    ),
    "attentive": ProtocolEntry(
        home="openjepa.evaluation.probes.attentive:evaluate_attentive",
        works_on="images",
        metric="attentive",
        summary="attentive probe: a learned query over frozen patches",
        settings=("attentive",),
        words="a learned query attends to the frozen encoder's patches",
        pools=False,
    ),
    "finetune": ProtocolEntry(
        home="openjepa.evaluation.probes.finetune:evaluate_finetune",
        works_on="images",
        metric="fine-tuned",
        summary="end-to-end fine-tuning with layer-wise decay",
        settings=("finetune",),
        words="the encoder itself is trained further on the labels",
        is_published=True,
        freezes=False,
    ),
    "dense-linear": ProtocolEntry(
        home="openjepa.evaluation.probes.dense:evaluate_dense",
        works_on="maps",
        metric="dense linear mIoU",
        summary="linear probe on single patches, no decoder",
        settings=(*_LINEAR, "dense"),
        words="a linear layer on single patches, no decoder; mean intersection over union",
        measure="miou",
        pools=False,
        is_usual=True,
    ),
    "dense-knn": ProtocolEntry(
        home="openjepa.evaluation.probes.dense:evaluate_dense",
        works_on="maps",
        metric="dense k-NN mIoU",
        summary="k-nearest neighbors of single patches, no decoder",
        settings=(*_NEIGHBORS, "dense"),
        words="votes of the nearest single patches, no decoder; mean intersection over union",
        measure="miou",
        pools=False,
        is_usual=True,
    ),
}


def published_protocols() -> tuple[ProtocolEntry, ...]:
    """The protocols that the I-JEPA paper has numbers of."""
    return tuple(entry for entry in PROTOCOLS.values() if entry.is_published)


def usual_protocols(on_maps: bool) -> tuple[str, ...]:
    """The protocols that run if none is named: those for labels of pixels if `on_maps`, else those for labels of images."""
    return tuple(name for name, entry in PROTOCOLS.items() if entry.is_usual and (entry.works_on == "maps") == on_maps)


def evaluation_settings() -> type[EvaluationSettings]:
    """EvaluationSettings with a field for each group of settings that an entry brings."""
    groups = {name: group for entry in PROTOCOLS.values() for name, group in entry.groups.items()}
    return _with_groups(tuple(groups.items())) if groups else EvaluationSettings


@cache
def _with_groups(groups: tuple[tuple[str, type[Any]], ...]) -> type[EvaluationSettings]:
    parts = [(name, group, field(default_factory=group)) for name, group in groups]
    return make_dataclass("EvaluationSettings", parts, bases=(EvaluationSettings,), frozen=True, kw_only=True)


def with_all_groups(settings: EvaluationSettings) -> EvaluationSettings:
    """The settings with the defaults of the groups that they lack."""
    whole = evaluation_settings()
    return settings if isinstance(settings, whole) else whole(**vars(settings))


def group_of(settings: EvaluationSettings, group: type[Group]) -> Group:
    """The group of settings `group`, which the entry of a protocol brings."""
    return next(value for value in vars(settings).values() if isinstance(value, group))


# ----------------------------------------------------------------------------------------------------------- checks of settings


def check_evaluation(settings: EvaluationSettings) -> None:
    """Raises Refusal if a setting of an evaluation is out of its range, or cannot work with the others."""
    check_ranges(settings, "evaluation.")
    shot = settings.low_shot
    given = [name for name in ("list", "percent", "images_per_class") if getattr(shot, name) is not None]
    if len(given) > 1:
        raise Refusal(f"evaluation.low_shot.{given[0]} and low_shot.{given[1]} both say which images are labeled: give one")
    if shot.list is not None and not Path(shot.list).expanduser().is_file():
        raise Refusal(f"evaluation.low_shot.list={shot.list!r} is no file: give a text file with one image per line")
    for group in vars(settings).values():
        if isinstance(group, ProtocolSettings):
            group.check(shot.is_set())


def evaluation_remarks(
    settings: EvaluationSettings, protocols: Collection[str], reads: Mapping[str, Collection[str]], unpooled: Collection[str]
) -> list[str]:
    """Remarks on settings that were changed but have no effect on an evaluation by `protocols`.

    `reads`: for every existing protocol, the settings and groups that it reads, without those that all protocols read.
    `unpooled`: the protocols that learn from patches, not from one vector per image.
    """
    usual = type(settings)()
    heeded = {name for protocol in protocols for name in reads[protocol]}
    words = []
    for name, value in vars(usual).items():
        readers = [protocol for protocol, names in reads.items() if name in names]
        if readers and name not in heeded and getattr(settings, name) != value:
            shown = f"{name}.*" if is_dataclass(value) else name
            words.append(f"{shown} has no effect: the protocol {' or '.join(readers)} is not run (--protocols)")
    shot = settings.low_shot
    if shot.seed and (not shot.is_set() or shot.list is not None):
        words.append("low_shot.seed has no effect without low_shot.percent or low_shot.images_per_class")
    if settings.lidar_views != usual.lidar_views and settings.lidar_images is None:
        words.append("lidar_views has no effect without lidar_images")
    if settings.pooling != usual.pooling and set(unpooled).issuperset(protocols):
        words.append(f"pooling has no effect: protocols on patches ({', '.join(unpooled)}) pool nothing")
    groups = [group for group in vars(settings).values() if isinstance(group, ProtocolSettings)]
    return [*words, *(remark for group in groups for remark in group.remarks())]


# ----------------------------------------------------------------------------------------------------------------- former names


RESULT_VERSION = 2
"""Version of results that are written today."""
ALIASES: Mapping[str, str] = {"linear_full": "linear-full", "dense_linear": "dense-linear", "dense_knn": "dense-knn"}
"""Current name of each former name of a protocol."""
PAPER_SUFFIX = " (paper)"
"""End of the name of a number whose settings were chosen on the test images, if a result holds both kinds."""

_RENAMED: Mapping[str, str] = {"linear-cached": "linear", "linear": "linear-full"}
"""Current name of each number of version 1 that has another name today."""


def current_result(content: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON object of a result, with current names. `content`: the object as any version wrote it.

    A file with version 1 or without a version is of version 1: its `linear` is the published protocol, `linear-full`. Entries
    of an unexpected form are left unchanged.
    """
    version = content.get("version")
    if isinstance(version, int) and version >= RESULT_VERSION:
        return dict(content)
    current = dict(content) | {"version": RESULT_VERSION}
    if isinstance(subjects := content.get("subjects"), Mapping):
        current["subjects"] = {name: _current_subject(numbers) for name, numbers in subjects.items()}
    for part, key in (("heads", "metric"), ("published", "protocol")):
        if isinstance(listed := content.get(part), list):
            current[part] = [_renamed_entry(item, key) for item in listed]
    settings = content.get("settings")
    if isinstance(settings, Mapping) and isinstance(protocols := settings.get("protocols"), list):
        current["settings"] = {**settings, "protocols": [ALIASES.get(str(name), name) for name in protocols]}
    return current


def _current_subject(numbers: Any) -> Any:
    metrics = numbers.get("metrics") if isinstance(numbers, Mapping) else None
    if not isinstance(metrics, Mapping):
        return numbers
    return {**numbers, "metrics": {_renamed(str(name)): metric for name, metric in metrics.items()}}


def _renamed_entry(item: Any, key: str) -> Any:
    return {**item, key: _renamed(item[key])} if isinstance(item, Mapping) and isinstance(item.get(key), str) else item


def _renamed(title: str) -> str:
    """The current name of a number of version 1: `linear-cached (paper)` -> `linear (paper)`."""
    plain = title.removesuffix(PAPER_SUFFIX)
    return _RENAMED.get(plain, plain) + title[len(plain) :]
