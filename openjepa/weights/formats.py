"""What reading weights gives, and what the reader of a format is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from openjepa.models.predictor import Predictor
from openjepa.models.vit import VisionTransformer
from openjepa.refusals import Refusal
from openjepa.settings.models import SIZES, EncoderConfig, PredictorConfig
from openjepa.weights.contents import Contents


@dataclass(frozen=True)
class Choice:
    """What only the user can say."""

    encoder: Literal["target", "context"] = "target"
    """Of a file that holds both, which one: `target` (the moving average, or teacher), `context` (the student)."""
    heads: int | None = None
    """Attention heads, where neither the file nor its width tells them."""
    predictor: bool = True
    """Whether I-JEPA's predictor is read too."""


@dataclass(frozen=True)
class Loaded:
    """Networks that were read, on the CPU, in fp32 and evaluation mode."""

    encoder: VisionTransformer
    config: EncoderConfig
    predictor: Predictor | None
    """I-JEPA's predictor, where the file holds one."""
    predictor_config: PredictorConfig | None
    what: str
    """What it is, in a few words, to be printed."""
    encoders: tuple[str, ...] = ("target",)
    """Which encoders the file holds, as `Choice.encoder` names them."""
    predictor_extra: Mapping[str, Any] = field(default_factory=dict)
    """What stands beside the predictor's settings: how masks were drawn for it."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """What the file itself says of the training: step, epoch, loss, ..."""
    notes: tuple[str, ...] = ()
    """For people: what was cut off the names in the file, and what of it was not read."""
    is_own: bool = False
    """Whether it is in openjepa's own format."""


@dataclass(frozen=True)
class Reader:
    """One format."""

    recognize: Callable[[Contents], bool]
    """Whether it is this format's, whole or damaged."""
    read: Callable[[Contents, Choice], Loaded]
    """The networks. Raises Refusal that lists what is missing or left over."""


def refuse_context(contents: Contents, choice: Choice) -> None:
    """Refusal where the context encoder is wanted of something that holds one encoder only."""
    if choice.encoder == "context":
        raise Refusal(f"encoder='context': {contents.path} holds one encoder only; leave that setting out")


def size_words(config: EncoderConfig) -> str:
    """`ViT-H/14 at 224`, or width, depth and patch where the shape has no name."""
    letters = {"tiny": "Ti", "small": "S", "base": "B", "large": "L", "huge": "H", "giant": "g"}
    names = [letters[name] for name, shape in SIZES.items() if name in letters and _is_shape(config, shape.width, shape.depth)]
    height, width = config.image_size
    size = f"{height}" if height == width else f"{height}x{width}"
    name = f"ViT-{names[0]}" if names else f"ViT of width {config.width} and depth {config.depth}, patch "
    return f"{name}/{config.patch_size} at {size}" if names else f"{name}{config.patch_size} at {size}"


def _is_shape(config: EncoderConfig, width: int, depth: int) -> bool:
    return (config.width, config.depth) == (width, depth)
