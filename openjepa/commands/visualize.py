"""The command `openjepa visualize`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from openjepa.commands.parsing.arguments import check_subject, parse, require
from openjepa.settings.fields import NOT_NEGATIVE, between

VISUALIZE_HELP = """Masks on images, PCA maps of patch features, nearest neighbors before and
after training, as pictures.

example:
  openjepa visualize runs/cpu-64-default-photos"""


@dataclass(frozen=True, kw_only=True)
class VisualizeOptions:
    """The arguments of `openjepa visualize`."""

    subject: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")] = Path()
    """Run folder."""
    num_images: Annotated[int, between(1, 24)] = 8
    """Number of images in each picture (1 to 24)."""
    seed: Annotated[int, NOT_NEGATIVE] = 0
    """Seed of the choice of images."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `mps`."""


def visualize(argv: Sequence[str], prog: str) -> None:
    """Runs `openjepa visualize`: draws the pictures of a run."""
    options = parse(VisualizeOptions, require(VisualizeOptions, argv, "RUN", prog), prog, VISUALIZE_HELP, VisualizeOptions())
    check_subject(options.subject, "config.yaml")
    from openjepa.visualization import visualize_run

    for path in visualize_run(options.subject, options.num_images, options.seed, options.device):
        print(path)
