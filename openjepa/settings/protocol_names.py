"""Former names of protocols and of their numbers, for command lines and for results on disk.

In results of version 1, `linear` names the probe that is `linear-full` today, and `linear-cached` names today's `linear`. Such
results are read by these rules, so that the two are never confused.
"""

from collections.abc import Mapping
from typing import Any

VERSION = 2
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
    if isinstance(version, int) and version >= VERSION:
        return dict(content)
    current = dict(content) | {"version": VERSION}
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
