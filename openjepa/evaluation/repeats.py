"""One task with every seed that is asked for: what evaluations of a data set and rows of a suite share."""

from collections.abc import Mapping
from dataclasses import replace

from openjepa.checks import nearest_multiple
from openjepa.config import to_dict
from openjepa.data.source import Splits
from openjepa.evaluation.results import Result, over_seeds
from openjepa.evaluation.subject import Subject, baselines
from openjepa.evaluation.task_run import KnownComponents, Subjects, evaluate_task
from openjepa.evaluation.tasks import TASKS
from openjepa.models.vit import VisionTransformer
from openjepa.refusals import Refusal
from openjepa.settings.evaluation import EvaluationSettings
from openjepa.settings.models import EncoderConfig
from openjepa.settings.sources import height_and_width
from openjepa.system.progress import Say


def blank_result(task: str, subject: Subject, settings: EvaluationSettings, splits: Splits | str) -> Result:
    """A Result without numbers. `splits`: the data, or in words why it is not there."""
    which = settings.encoder if subject.kind == "run" else "external"
    return Result(
        task,
        TASKS[task].title,
        subject.kind,
        which,
        settings.selection,
        settings=to_dict(settings),
        data="" if isinstance(splits, str) else splits.description,
        data_name="" if subject.data is None else subject.data.name(),
        skipped=splits if isinstance(splits, str) else None,
        masks_mode=subject.masks_mode,
        step=subject.step,
    )


def evaluate_seeds(
    blank: Result,
    splits: Splits,
    subject: Subject,
    encoder: VisionTransformer,
    config: EncoderConfig,
    settings: EvaluationSettings,
    known: KnownComponents,
    say: Say,
    benchmark: str = "",
) -> Result:
    """`blank` with numbers; written after every protocol, so that an interruption keeps what is done."""
    folder = subject.output / "eval"
    outcomes = []
    for number in range(settings.seeds):
        seed = settings.seed + number
        networks: Mapping[str, VisionTransformer] = {"encoder": encoder}
        if "untrained" in settings.baselines:
            own = subject.seed if number == 0 else seed
            networks = {**networks, **baselines(subject, config, own, number == 0)}
        size = view_size(settings, config)
        subjects = Subjects(
            networks, config, "pixels" in settings.baselines, size, folder / "features", subject.predictor_folder
        )
        # axes of the untrained encoder belong to one seed
        axes = known if settings.seeds == 1 else {}
        own_settings = replace(settings, seed=seed, low_shot=replace(settings.low_shot, seed=settings.low_shot.seed + number))
        words = f"seed {seed}: " if settings.seeds > 1 else ""
        outcomes.append(
            evaluate_task(
                blank,
                splits,
                subjects,
                own_settings,
                axes,
                benchmark,
                say=lambda text, words=words: say(words + text),  # type: ignore[misc]
                keep=(lambda result: result.write_partial(folder)) if settings.seeds == 1 else None,
            )
        )
    result = over_seeds(outcomes)
    result.write(folder)
    return result


def view_size(settings: EvaluationSettings, config: EncoderConfig) -> tuple[int, int]:
    """Height and width of the views. Raises Refusal where the encoder's patches do not divide them."""
    size = settings.image_size or config.image_size
    height, width = height_and_width(size)
    patch = config.patch_size
    if height % patch or width % patch:
        near = " ".join(str(nearest_multiple(side, patch)) for side in dict.fromkeys((height, width)))
        raise Refusal(f"image_size={size} is not divisible by the encoder's patch size {patch}; image_size={near} is")
    return height, width
