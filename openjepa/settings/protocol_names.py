"""Names of protocols and of their numbers as they were before, for command lines and for results on disk.

`linear` was once the name in results of the probe that is `linear-full` on the command line, and the cached probe was called
`linear-cached` there. Results of version 1 are read by these rules, so that the two are never mixed up.
"""

from collections.abc import Mapping
from typing import Any

VERSION = 2
"""Version of the results that are written."""
ALIASES: Mapping[str, str] = {"linear_full": "linear-full", "dense_linear": "dense-linear", "dense_knn": "dense-knn"}
"""Older names of protocols."""
PAPER_SUFFIX = " (paper)"
"""Ends the name of a number whose settings were chosen on the test images, if a result holds both kinds."""

_RENAMED: Mapping[str, str] = {"linear-cached": "linear", "linear": "linear-full"}
"""Numbers of version 1 that have another name today."""


def current_result(content: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON object of a result with the names of today, whatever version wrote it.

    A file that says no version, or 1, is of version 1: its `linear` is the published protocol, `linear-full`. What has not the
    expected form is left as it is.
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
    """`linear-cached (paper)` -> `linear (paper)`."""
    plain = title.removesuffix(PAPER_SUFFIX)
    return _RENAMED.get(plain, plain) + title[len(plain) :]
