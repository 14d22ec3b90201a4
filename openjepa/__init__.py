"""openjepa: I-JEPA pretraining, evaluation and reports.

    import openjepa
    encoder = openjepa.load("runs/quickstart/encoder")
    features = openjepa.embed("runs/quickstart/encoder", images)

Everything is imported when it is called, so that `import openjepa` costs nothing.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from openjepa.evaluation.results import Result
    from openjepa.models.vit import VisionTransformer
    from openjepa.settings.data import DataSettings
    from openjepa.settings.evaluation import EvaluationSettings
    from openjepa.settings.run import RunConfig

__version__ = "0.1.0"
__all__ = ["__version__", "embed", "evaluate", "load", "train"]


def load(folder: Path | str) -> "VisionTransformer":
    """The encoder of a run folder or of an encoder folder, on the CPU in evaluation mode."""
    from openjepa.weights.native import load_encoder

    return load_encoder(_encoder_folder(Path(folder)))[0]


def train(config: "RunConfig", fresh: bool = False) -> Path:
    """Pretrains an encoder; returns the run folder. The same settings continue an interrupted run."""
    from openjepa.training.loop import train as run

    folder = run(config, fresh=fresh)
    assert folder is not None  # only a dry run has none
    return folder


def evaluate(
    subject: Path | str,
    settings: "EvaluationSettings | None" = None,
    data: "DataSettings | None" = None,
    *,
    suite: str | None = None,
    data_root: Path | str | None = None,
) -> "list[Result]":
    """Probes of a run folder or an encoder folder (which needs `data`) beside their baselines.

    With `suite` (`paper`, `cached` or `dense`) the rows of a suite instead, on the data sets below `data_root`.
    """
    from openjepa.evaluation.running import evaluate_run, evaluate_suite
    from openjepa.settings.evaluation import EvaluationSettings

    settings = settings or EvaluationSettings()
    if suite is None and data_root is None:
        return evaluate_run(Path(subject), settings, data)
    if suite is None or data_root is None or data is not None:
        raise ValueError("a suite needs suite and data_root, and no data")
    return evaluate_suite(Path(subject), suite, Path(data_root), settings)


def embed(subject: Path | str, images: "Sequence[Path | str | Image]", batch_size: int = 64) -> "Tensor":
    """One feature vector [B, D] per image: the pooled output of the encoder in `subject`, a run folder or an encoder folder.

    Images are files or PIL images; each is resized and cropped as in the evaluations.
    """
    from openjepa.evaluation.embedding import embed_images

    return embed_images(_encoder_folder(Path(subject)), images, batch_size)


def _encoder_folder(folder: Path) -> Path:
    folder = folder.expanduser()
    return folder / "encoder" if (folder / "encoder").is_dir() else folder
