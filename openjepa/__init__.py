"""openjepa: I-JEPA pretraining, evaluation and reports.

    import openjepa
    encoder = openjepa.load("runs/quickstart")  # or a file of published weights, a Hugging Face folder, a name on the Hub
    features = openjepa.embed("runs/quickstart", images)

Everything is imported when it is called, so that `import openjepa` costs nothing.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from openjepa.evaluation.results import Result
    from openjepa.inference.encoder import Encoder
    from openjepa.inference.pictures import Pictures
    from openjepa.settings.data import DataSettings
    from openjepa.settings.evaluation import EvaluationSettings
    from openjepa.settings.run import RunConfig

__version__ = "0.1.0"
__all__ = ["__version__", "embed", "evaluate", "load", "train"]


def load(subject: Path | str, *, encoder: Literal["target", "context"] = "target", heads: int | None = None) -> "Encoder":
    """The encoder in a run folder, an encoder folder, a file of published weights, a Hugging Face folder or a name on the Hub.

    On the CPU, in fp32 and evaluation mode; `.to("cuda")` moves it, its settings are `.config`. The format is recognized
    (docs/weights.md). Its methods: `embed`, `embed_patches`, and where I-JEPA's predictor was read too, `predict`.
    `encoder`: which one, where there are two; `heads`: of attention, where neither the file nor its width tells them. Raises
    ValueError where nothing can be read, or not all of it. Nothing in the file is executed.
    """
    from openjepa.inference.encoder import Encoder
    from openjepa.weights.loading import Choice, load_any

    return Encoder(load_any(subject, Choice(encoder=encoder, heads=heads)))


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
    """Probes of a run folder, or of whatever `load` reads (which needs `data`), beside their baselines.

    With `suite` (`paper`, `cached` or `dense`) the rows of a suite instead, on the data sets below `data_root`.
    """
    from openjepa.evaluation.running import evaluate_run
    from openjepa.evaluation.suite_running import evaluate_suite
    from openjepa.settings.evaluation import EvaluationSettings

    settings = settings or EvaluationSettings()
    if suite is None and data_root is None:
        return evaluate_run(Path(subject), settings, data)
    if suite is None or data_root is None or data is not None:
        raise ValueError("a suite needs suite and data_root, and no data")
    return evaluate_suite(Path(subject), suite, Path(data_root), settings)


def embed(subject: Path | str, images: "Pictures", batch_size: int = 64) -> "Tensor":
    """One feature vector [B, D] per image: the pooled output of the encoder in `subject`, which is whatever `load` reads.

    Images are files, PIL images, arrays or tensors of any size; each is resized and cropped as in the evaluations.
    For many calls, or more choices, `load` the encoder once and call its `embed`.
    """
    return load(subject).embed(images, batch_size=batch_size)
