"""Which vector per image is evaluated: the encoder's own, or the other one that it can give."""

from dataclasses import replace

from openjepa.checks.protocol_settings import WITHOUT_POOLING
from openjepa.evaluation.tasks import Task
from openjepa.refusals import Refusal
from openjepa.settings.evaluation import EvaluationSettings
from openjepa.settings.models import EncoderConfig


def pooled_configs(task: Task, settings: EvaluationSettings, config: EncoderConfig) -> tuple[EncoderConfig, ...]:
    """The encoder's settings with each pooling that is asked for, its own first; as they are where only patches matter.

    `both` of an encoder without a class token is the average alone. Raises Refusal where only the class token is asked for
    and there is none.
    """
    wanted = settings.pooling
    if wanted == "own" or task.maps is not None or (settings.protocols and WITHOUT_POOLING.issuperset(settings.protocols)):
        return (config,)
    if wanted == "class_token" and not config.class_token:
        raise Refusal("evaluation.pooling='class_token': this encoder has no class token; use --pooling average")
    if wanted != "both":
        return (replace(config, pooling=wanted),)
    other = replace(config, pooling="average" if config.pooling == "class_token" else "class_token")
    return (config, other) if config.class_token else (config,)


def pooled_settings(settings: EvaluationSettings, config: EncoderConfig, pooled: EncoderConfig) -> EvaluationSettings:
    """The settings of one evaluation of an encoder by the pooling of `pooled`: `own` where that is the encoder's."""
    return replace(settings, pooling="own" if pooled.pooling == config.pooling else pooled.pooling)
