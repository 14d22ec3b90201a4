"""openjepa: I-JEPA pretraining, evaluation and reports.

    import openjepa
    encoder = openjepa.load("runs/quickstart")  # or a file of published weights, a Hugging Face folder, a name on the Hub
    features = encoder.embed(["a.jpg", "b.jpg"])  # [2, D]

    run = openjepa.train(openjepa.load_recipe("quickstart"))
    results = openjepa.evaluate(run)

docs/python.md shows everything. Each name is imported when it is first used, so that `import openjepa` costs nothing.
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
    from openjepa.recipes import load_recipe
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
    "EvaluationSettings",
    "PatchBox",
    "Picture",
    "Pictures",
    "Prediction",
    "Refusal",
    "RunConfig",
    "__version__",
    "embed",
    "evaluate",
    "load",
    "load_recipe",
    "train",
]

_HOMES = {
    "BlockPrediction": "openjepa.inference.prediction",
    "Encoder": "openjepa.inference.encoder",
    "EncoderOutput": "openjepa.types",
    "EvaluationSettings": "openjepa.settings.evaluation",
    "PatchBox": "openjepa.inference.areas",
    "Picture": "openjepa.inference.images",
    "Pictures": "openjepa.inference.images",
    "Prediction": "openjepa.inference.prediction",
    "RunConfig": "openjepa.settings.run",
    "load_recipe": "openjepa.recipes",
}
"""The module of each public name that is not defined here."""

if not TYPE_CHECKING:  # with __getattr__, a type checker would accept any name

    def __getattr__(name: str) -> object:
        """Imports a public name when it is first used."""
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(_HOMES[name]), name)

    def __dir__() -> list[str]:
        """All names that are defined here or can be imported."""
        return sorted({*globals(), *_HOMES})


def load(subject: Path | str, *, encoder: Literal["target", "context"] = "target", heads: int | None = None) -> "Encoder":
    """Reads the encoder of a run folder, an encoder folder, a file of published weights, a Hugging Face folder or the Hub.

    The encoder is on the CPU, in fp32 and in evaluation mode. `.to("cuda")` moves it, and `.config` has its settings. It offers
    `embed` and `embed_patches`, and `predict` if I-JEPA's predictor was read with it.

    `subject`: a path, or a name such as "facebook/ijepa_vith14_1k", also with "hf:" before it (needs huggingface_hub). The
    format is recognized, never asked for: docs/weights.md lists all formats.
    `encoder`: which encoder to read if there are two. `target` is the moving average (the teacher in DINO and iBOT), which the
    papers evaluate. `context` is the one that was trained by gradients (the student). Runs keep it with
    `method.export_context_encoder`, and released checkpoints hold it.
    `heads`: number of attention heads. It is needed only if neither the file nor the width of the network tells it.

    Raises Refusal if nothing can be read, if keys are missing or left over (it lists them), or if the file does not offer the
    choice. Nothing in the file is executed.
    """
    from openjepa.inference.encoder import Encoder
    from openjepa.weights.formats import WeightsChoice, load_any

    if encoder not in ("target", "context"):
        raise Refusal(f"encoder={encoder!r} is not known: use 'target' or 'context'")
    return Encoder(load_any(subject, WeightsChoice(encoder=encoder, heads=heads)))


def train(config: "RunConfig", fresh: bool = False) -> Path:
    """Trains an encoder and returns its run folder.

    `config`: result of `load_recipe`. Change its settings with `dataclasses.replace`.
    `fresh`: starts a new run folder. Without it, the same settings continue an interrupted run.
    """
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
    """Probes an encoder and its baselines. Returns one result per task, and writes each to the folder `eval`.

    `subject`: a run folder, or anything else that `load` reads.
    `settings`: which probes to run and how. None: the defaults.
    `data`: the images. None: those of the run. It is required if `subject` is not a run.
    `suite`: `paper`, `cached` or `dense`. Evaluates the rows of that suite on the data sets below `data_root`.
    """
    from openjepa.evaluation.evaluation_run import evaluate_run
    from openjepa.evaluation.suite_run import evaluate_suite
    from openjepa.settings.evaluation import EvaluationSettings

    settings = settings or EvaluationSettings()
    if suite is None and data_root is None:
        return evaluate_run(Path(subject), settings, data)
    if suite is None or data_root is None or data is not None:
        raise Refusal("a suite needs suite and data_root, and no data")
    return evaluate_suite(Path(subject), suite, Path(data_root), settings)


def embed(subject: Path | str, images: "Pictures", batch_size: int = 64) -> "Tensor":
    """Returns one feature vector per image, [B, D] in fp32: the pooled output of the encoder.

    `subject`: whatever `load` reads.
    `images`: one or many paths, PIL images, arrays or tensors of any size. Each is resized and cropped as in the evaluations.

    For several calls, or more options, `load` the encoder once and call its `embed`. The command `openjepa embed` embeds a
    whole data set.
    """
    from openjepa.inference.encoder import Encoder
    from openjepa.weights.formats import WeightsChoice, load_any

    return Encoder(load_any(subject, WeightsChoice(predictor=False))).embed(images, batch_size=batch_size)
