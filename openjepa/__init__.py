"""openjepa: I-JEPA pretraining, evaluation and reports.

    import openjepa
    encoder = openjepa.load("runs/quickstart")  # or a file of published weights, a Hugging Face folder, a name on the Hub
    features = encoder.embed(["a.jpg", "b.jpg"])  # [2, D]

docs/python.md shows all of it. Everything is imported when it is used, so that `import openjepa` costs nothing.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from openjepa.refusals import Refusal

if TYPE_CHECKING:
    from torch import Tensor

    from openjepa.inference.areas import PatchBox
    from openjepa.inference.encoder import Encoder
    from openjepa.inference.images import Picture, Pictures
    from openjepa.inference.prediction import BlockPrediction, Prediction
    from openjepa.records import Result
    from openjepa.settings.evaluation import EvaluationSettings
    from openjepa.settings.run import RunConfig
    from openjepa.settings.sources import DataSettings
    from openjepa.types import EncoderOutput

__version__ = "0.1.0"
__all__ = [
    "BlockPrediction",
    "Encoder",
    "EncoderOutput",
    "PatchBox",
    "Picture",
    "Pictures",
    "Prediction",
    "Refusal",
    "__version__",
    "embed",
    "evaluate",
    "load",
    "train",
]

_HOMES = {
    "BlockPrediction": "openjepa.inference.prediction",
    "Encoder": "openjepa.inference.encoder",
    "EncoderOutput": "openjepa.types",
    "PatchBox": "openjepa.inference.areas",
    "Picture": "openjepa.inference.images",
    "Pictures": "openjepa.inference.images",
    "Prediction": "openjepa.inference.prediction",
}
"""Where the public types stand."""

if not TYPE_CHECKING:  # a type checker would take any name for known

    def __getattr__(name: str) -> object:
        """Imports a public type when it is first asked for."""
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(_HOMES[name]), name)

    def __dir__() -> list[str]:
        """What is there or can be imported."""
        return sorted({*globals(), *_HOMES})


def load(subject: Path | str, *, encoder: Literal["target", "context"] = "target", heads: int | None = None) -> "Encoder":
    """The encoder in a run folder, an encoder folder, a file of published weights, a Hugging Face folder or a name on the Hub.

    It is on the CPU, in fp32 and evaluation mode; `.to("cuda")` moves it, its settings are `.config`, and it does `embed`,
    `embed_patches`, and where I-JEPA's predictor was read with it, `predict`.

    `subject`: a path, or a name such as "facebook/ijepa_vith14_1k", also with "hf:" before it (needs huggingface_hub). The
    format is recognized, never asked for: docs/weights.md lists all of them.
    `encoder`: which one, where there are two. `target`, the moving average (DINO, iBOT: the teacher), is what the papers
    evaluate; `context` is the one that was trained by gradients (the student). Runs keep it with
    `method.export_context_encoder`, released checkpoints hold it.
    `heads`: number of attention heads, needed only where neither the file nor the width of the network tells it.

    Raises Refusal where nothing can be read, where keys are missing or left over (it lists them), and for a choice that the
    file does not offer. Nothing in the file is executed.
    """
    from openjepa.inference.encoder import Encoder
    from openjepa.weights.formats import Choice, load_any

    if encoder not in ("target", "context"):
        raise Refusal(f"encoder={encoder!r} is not known: use 'target' or 'context'")
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
    from openjepa.evaluation.dataset_run import evaluate_run
    from openjepa.evaluation.suite_run import evaluate_suite
    from openjepa.settings.evaluation import EvaluationSettings

    settings = settings or EvaluationSettings()
    if suite is None and data_root is None:
        return evaluate_run(Path(subject), settings, data)
    if suite is None or data_root is None or data is not None:
        raise Refusal("a suite needs suite and data_root, and no data")
    return evaluate_suite(Path(subject), suite, Path(data_root), settings)


def embed(subject: Path | str, images: "Pictures", batch_size: int = 64) -> "Tensor":
    """One feature vector [B, D] per image, in fp32: the pooled output of the encoder in `subject`, whatever `load` reads.

    `images`: paths, PIL images, arrays or tensors of any size, one or many; each is resized and cropped as in the evaluations.
    For several calls, or more choices, `load` the encoder once and call its `embed`; for a whole data set there is the
    command `openjepa embed`.
    """
    from openjepa.inference.encoder import Encoder
    from openjepa.weights.formats import Choice, load_any

    return Encoder(load_any(subject, Choice(predictor=False))).embed(images, batch_size=batch_size)
