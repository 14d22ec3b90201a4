"""Mistakes that are found before anything is loaded. Free of torch."""

import csv
from collections.abc import Collection
from pathlib import Path

from openjepa.config import nearest
from openjepa.inference.embedding.table import COLUMNS, ENDINGS, FORMAT, parquet_manifest
from openjepa.refusals import Refusal
from openjepa.system.json_files import readable_object
from openjepa.system.packages import require_package
from openjepa.system.shell import command
from openjepa.system.whole_files import is_writable

WITHOUT_EFFECT = {
    "image_size",
    "crop_scale",
    "crop_aspect",
    "interpolation",
    "horizontal_flip",
    "pixel_mean",
    "pixel_std",
    "cache",
    "cache_size",
    "max_skipped",
    "window",
}
"""Settings of a data source that only concern training."""


def idle_settings(given: Collection[str]) -> list[str]:
    """Of the settings that are given (dotted names), those without an effect, in words."""
    idle = [name for name in sorted(given) if name.removeprefix("data.") in WITHOUT_EFFECT and name.startswith("data.")]
    instead = {
        "data.image_size": "; the size of embedded images is --image-size",
        "data.max_skipped": "; --max-skipped has one",
    }
    return [f"{name} concerns training and has no effect on features{instead.get(name, '')}" for name in idle]


def check_output(output: Path) -> None:
    """Raises Refusal where nothing, or not this, can be written to `output`; files of others are never replaced."""
    if output.suffix not in ENDINGS:
        kinds = " or ".join(ENDINGS)
        near = nearest(output.suffix, ENDINGS) if output.suffix else f"give it one, e.g. {output.name or 'features'}.npy"
        raise Refusal(f"--output {output} must end in {kinds}: {near}")
    if output.is_dir():
        raise Refusal(f"--output {output} is a folder: name a file, e.g. {command('--output', output / 'features.npy')}")
    if not output.parent.is_dir():
        raise Refusal(f"--output {output}: there is no folder {output.parent}; make it first, or name a file elsewhere")
    if not is_writable(output.parent):
        raise Refusal(f"--output {output}: nothing may be written into {output.parent.absolute()}; name a file elsewhere")
    if output.suffix == ".parquet":
        require_package("pyarrow", f"--output {output}", "name a .npy file")
    if output.suffix == ".npy":
        _check_beside(output)
    elif output.exists():
        try:
            parquet_manifest(output)
        except ValueError as error:
            raise Refusal(f"--output would be replaced, but {error}: name another file, or move that one away") from error


def _check_beside(output: Path) -> None:
    """Raises Refusal where a .csv, .json or .npy lies there that openjepa embed has not written."""
    described, listed = output.with_suffix(".json"), output.with_suffix(".csv")
    foreign = [path for path, is_ours in ((described, _describes), (listed, _lists)) if path.exists() and not is_ours(path)]
    if output.exists() and not described.exists():
        foreign.append(output)
    if foreign:
        raise Refusal(
            f"--output {output} would replace {foreign[0]}, which openjepa embed has not written: name another file, or move "
            "that one away"
        )


def _describes(path: Path) -> bool:
    return (readable_object(path) or {}).get("format") == FORMAT


def _lists(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            return next(csv.reader(file), None) == list(COLUMNS)
    except (OSError, csv.Error):
        return False
