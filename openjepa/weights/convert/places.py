"""Settings as they can be published: of places on this machine only the last part. Free of torch."""

import re
from collections.abc import Mapping
from typing import Any

from openjepa.system.hub_names import hub_name

NO_NAMES = ("", ".", "..", "~")


def published(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without the folders of whoever trained; names on the Hugging Face Hub stay whole."""
    return {name: _published(value) for name, value in settings.items()}


def _published(value: Any) -> Any:
    if isinstance(value, Mapping):
        return published(value)
    if isinstance(value, list):
        return [_published(item) for item in value]
    return last_part(value) if isinstance(value, str) else value


def last_part(words: str) -> str:
    """Of a path its last part, with wildcards the folder before the first one and what follows; other words unchanged.

    No setting but a path or a name on the Hub has a slash.
    """
    if not re.search(r"[/\\]", words) or hub_name(words) is not None:
        return words
    parts = [part for part in re.split(r"[/\\]", words) if part not in NO_NAMES]
    wild = next((index for index, part in enumerate(parts) if re.search(r"[*?\[]", part)), len(parts))
    return "/".join(parts[max(0, wild - 1) :])
