"""TASKS: what is predicted from which labels. Free of torch, so that the command line can list it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from openjepa.data.source import ListSource, Splits
from openjepa.evaluation import PROTOCOLS, usual_protocols
from openjepa.refusals import Refusal

Labels = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Of the training split and of the test split, one per record."""


@dataclass(frozen=True)
class Task:
    """One row of the table: labels on images. Independent of how they are predicted."""

    title: str
    """For tables."""
    labels: Callable[[Splits], Labels | str]
    """The labels of both splits, or in words why this data has none."""
    fit: Literal["crop", "squash"]
    """How an image becomes the view that is evaluated: center crop, or the whole image resized to the size."""
    maps: str | None = None
    """Which label maps it is about (Splits.label_maps); None: it is about one label per image."""


def _own_labels(splits: Splits) -> Labels | str:
    if not isinstance(splits.train, ListSource):
        return "probes need a list of images with labels, not a stream: set data.streaming=false"
    if splits.train.labels is None:
        return "the images have no labels (class folders, a label column, or scenes are needed)"
    if splits.test is None or splits.test.labels is None:
        return (
            "there is no labeled test split: give one, or hold out a part of each class that has two images or more with "
            "--data.test-fraction 0.2 (an encoder that was trained on all images has seen that part, too)"
        )
    return splits.train.labels, splits.test.labels


def _scene_labels(name: str) -> Callable[[Splits], Labels | str]:
    def labels(splits: Splits) -> Labels | str:
        if name not in splits.extra_labels:
            return f"the data has no `{name}` labels: only scenes in CLEVR's format do"
        if splits.test is None:
            return "there is no test split"
        return splits.extra_labels[name]

    return labels


def _map_labels(name: str) -> Callable[[Splits], Labels | str]:
    """Where pixels are labeled, an image as a whole is of one class: 0."""

    def labels(splits: Splits) -> Labels | str:
        if name not in splits.label_maps:
            return (
                f"the data has no maps of `{name}`: only scenes with instance masks do (packaged or rendered; not CLEVR v1.0)"
            )
        train, test = splits.train, splits.test
        assert isinstance(train, ListSource) and test is not None
        return np.zeros(len(train), np.int64), np.zeros(len(test), np.int64)

    return labels


TASKS: dict[str, Task] = {
    "classification": Task("Classification", _own_labels, "crop"),
    "clevr_count": Task("Clevr/Count", _scene_labels("count"), "squash"),
    "clevr_dist": Task("Clevr/Dist", _scene_labels("distance"), "squash"),
    "scene_shapes": Task("Scenes/shape of patches", _map_labels("shape"), "squash", maps="shape"),
    "scene_colors": Task("Scenes/color of patches", _map_labels("color"), "squash", maps="color"),
}


def fitting_protocols(task: Task, protocols: Sequence[str]) -> tuple[str, ...]:
    """The protocols that work on the task's kind of labels, each once. If none is asked for, the usual ones."""
    on_maps = task.maps is not None
    fits = [name for name in protocols or usual_protocols(on_maps) if (PROTOCOLS[name].works_on == "maps") == on_maps]
    return tuple(dict.fromkeys(fits))


def chosen_tasks(names: tuple[str, ...], splits: Splits) -> tuple[str, ...]:
    """The tasks asked for; where none is, all that the data has labels for (`classification` if it has none).

    Scenes' own labels are one of their two tasks, so that `classification` is not repeated there. Tasks on label maps take
    minutes and are done only where they are named.
    """
    for name in names:
        if name not in TASKS:
            raise Refusal(f"tasks={name!r} is unknown; use {', '.join(TASKS)}")
    if names:
        return names
    able = tuple(name for name, task in TASKS.items() if task.maps is None and not isinstance(task.labels(splits), str))
    scenes = tuple(name for name in able if name != "classification")
    return scenes or ("classification",)
