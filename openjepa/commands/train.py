"""The command `openjepa train`: its options, and the run that they describe by a recipe, a file or starting weights."""

import os
from collections.abc import Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, TypeVar

import tyro

from openjepa.checks import check, remarks, value_problems
from openjepa.commands.parsing.arguments import (
    given_settings,
    is_help,
    normalized,
    option_value,
    parse,
    positionals_first,
    select_component,
    unless_help,
)
from openjepa.commands.recipes import recipe_groups
from openjepa.config import flatten, load_run_config, load_yaml, read_object
from openjepa.recipes import RECIPES, kept_by_file, load_recipe
from openjepa.records import read_summary
from openjepa.refusals import Refusal
from openjepa.settings.masks import MaskSettings, MultiblockSettings
from openjepa.settings.methods import IJepaSettings, MethodSettings
from openjepa.settings.models import ModelSettings
from openjepa.settings.run import (
    CHOICES,
    MonitorSettings,
    OptimizationSettings,
    ParallelSettings,
    RunConfig,
    RunSettings,
    SystemSettings,
)
from openjepa.settings.sources import DataSettings, FolderSettings, HuggingFaceSettings
from openjepa.system.console import absent, command, hub_name, say
from openjepa.system.machine import is_first_process, launched

TRAIN_HELP = """Trains an encoder on your images. The same command continues an interrupted run.

examples:
  openjepa train cpu-64 --data.path ~/photos
  openjepa train gpu-128 --data.path ~/photos --model.size base --dry-run
  openjepa train cpu-64 --data.source huggingface --data.path owner/name
  openjepa train ijepa-vitb16 --preset paper --data.path ~/imagenet
  openjepa train --config runs/cpu-64-default-photos/config.yaml
  openjepa train --init runs/cpu-64-default-photos --data.path ~/others

recipes (what each is: openjepa recipes; all settings: openjepa recipes NAME):
{recipes}

Every setting of a recipe can be changed. The defaults below are those of {shown}."""

TRAIN_DETAILS = """components (their options are shown when chosen before --help or --help-all):
{choices}

starting from weights instead of random ones (a run, a file of published weights, a Hugging Face folder, ...):
  openjepa train --init runs/cpu-64-default-photos --data.path ~/other-photos
  openjepa train gpu-224 --init IN1K-vit.h.14-300e.pth.tar \\
      --data.path ~/photos --optim.lr 1e-4 --dry-run
  openjepa train dino-gpu-224 --init dino_vits16_pretrain.pth \\
      --data.path ~/photos --optim.lr 1e-4

The model's settings follow the weights; rate and length are the recipe's. For weights of long training a lower --optim.lr
is the usual caution; the evaluation shows the weights of the start beside the result. More in docs/continue.md."""


TRAIN_COMMON = (
    *("data.path", "data.source", "data.image_size", "model.size", "method.name", "run.init"),
    *("optim.total_steps", "optim.batch_size", "optim.lr", "run.name", "run.device"),
    *("preset", "config", "dry_run", "fresh"),
)
"""The options that the help shows without --help-all, in this order."""
SHOWN_RECIPE = "cpu-64"
"""Recipe whose settings the help of `openjepa train` shows as defaults, if none is given."""
_GROUPS = ("data", "model", "masks", "method", "optim", "run", "parallel", "monitor", "system")
SHORT = ("init", "init_encoder", "init_heads")
"""Options of `openjepa train` that may be written without `run.`"""
_PREDICTOR = ("method.predictor_width", "method.predictor_depth", "method.predictor_heads", "method.predictor_pass")
_OWN = ("model.resampling_offset", *_PREDICTOR)
"""Settings that may differ from the weights that `run.init` names."""
_OVERRULED = {
    "optim.epochs": ("optim.total_steps",),
    "optim.warmup_epochs": ("optim.warmup_steps",),
    "optim.warmup_share": ("optim.warmup_epochs", "optim.warmup_steps"),
}
"""Settings, and those that override each of them. If the command line gives only the weaker setting, the others are dropped."""


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """The arguments of `openjepa train`: the run, and every setting of it."""

    recipe: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="[RECIPE]")] = ""
    """Named run to start from."""
    preset: str | None = None
    """Preset of the recipe. None: its first."""
    config: Path | None = None
    """Start from this `config.yaml` (or the run folder that holds it) instead of a recipe."""
    dry_run: bool = False
    """Check the settings, print what the run would need, and stop."""
    fresh: bool = False
    """Start in a new folder even if the run exists."""
    data: DataSettings = field(default_factory=FolderSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    masks: MaskSettings = field(default_factory=MultiblockSettings)
    method: MethodSettings = field(default_factory=IJepaSettings)
    optim: OptimizationSettings = field(default_factory=OptimizationSettings)
    run: RunSettings = field(default_factory=RunSettings)
    parallel: ParallelSettings = field(default_factory=ParallelSettings)
    monitor: MonitorSettings = field(default_factory=MonitorSettings)
    system: SystemSettings = field(default_factory=SystemSettings)


OptionsOfRun = TypeVar("OptionsOfRun", bound=TrainOptions)


def train(argv: Sequence[str], prog: str) -> None:
    """Runs `openjepa train`: pretrains an encoder."""
    config, options = parse_train(argv, prog, *(_train_help(argv) if is_help(argv) else ("", "")))
    is_first = is_first_process()
    before = options.config or (Path(config.run.init) if config.run.init and not options.recipe else None)
    if before is not None and is_first:
        _note_kept(before, config)
    # a model that follows from weights is known only after they are read
    check(config, launched(), is_model_known=config.run.init is None)
    given = given_settings(with_long_names(argv))
    for remark in remarks(config, given) if is_first else ():
        say(f"note: {remark}")
    from openjepa.training.loop import train as train_run

    given |= decided_by_file(options.config, config.run.init)
    folder = train_run(config, fresh=options.fresh, dry_run=options.dry_run, given=given)
    if folder is not None and is_first:
        labeled = read_summary(read_object(folder / "summary.json") or {}).labeled is not False
        print(f"next: {command('openjepa', 'evaluate' if labeled else 'visualize', folder)}")


def _train_help(argv: Sequence[str]) -> tuple[str, str]:
    """The help of the command, and the text that --help-all adds."""
    recipes = [f"  {title:<24}{', '.join(names)}" for title, names in recipe_groups().items()]
    file = option_value(argv, "config")
    is_file = file is not None and unless_help(argv, lambda: bool(load_run_config(file)), lambda: False)
    shown = next((name for name in argv if name in RECIPES), "the file" if is_file else SHOWN_RECIPE)
    choices = [f"  --{name}.{choice.field} {' | '.join(choice.options)}" for name, choice in CHOICES.items()]
    return TRAIN_HELP.format(recipes="\n".join(recipes), shown=shown), TRAIN_DETAILS.format(choices="\n".join(choices))


def _note_kept(file: Path, config: RunConfig) -> None:
    """Notes settings of `file` that stay although settings they depend on have changed, with the values that would follow now.

    Says nothing if values are impossible: `check` refuses them, and nothing can be derived from them.
    """
    from openjepa.system.console import say

    said = load_run_config(file)
    if value_problems(said) or value_problems(config):
        return
    if follows := kept_by_file(said, config):
        options = " ".join(f"--{name.replace('_', '-')} {_option_value(value)}" for name, value in follows.items())
        say(f"note: what {file} says stays; to follow the changed settings, give {options}")


def _option_value(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def parse_train(argv: Sequence[str], prog: str, description: str, details: str = "") -> tuple[RunConfig, TrainOptions]:
    """`parse_run` for `openjepa train` itself."""
    return parse_run(TrainOptions, argv, prog, description, details)


def parse_run(
    options_type: type[OptionsOfRun],
    argv: Sequence[str],
    prog: str,
    description: str,
    details: str = "",
    common: Sequence[str] = TRAIN_COMMON,
) -> tuple[RunConfig, OptionsOfRun]:
    """The settings of the run that the options of `openjepa train` describe, and the other options of a command.

    `options_type`: TrainOptions or, for another command, a dataclass that adds its own options. `common`: the options that help
    shows without --help-all. Prints help and exits if `argv` asks for it. Derived settings are None until
    `openjepa.settings.derived.resolve`. Raises Refusal if an option, a recipe or a file cannot be used.
    """
    argv = with_long_names(argv)
    argv = positionals_first(options_type, argv, is_needed=not {"config", "run.init"} & given_settings(argv))
    start = unless_help(argv, lambda: _starting_point(argv), lambda: load_recipe(SHOWN_RECIPE))
    config = without_overruled(select_components(start, argv), given_settings(argv))
    defaults = options_type(**{name: getattr(config, name) for name in _GROUPS})
    options = parse(options_type, argv, prog, description, defaults, details, common)
    options = replace(options, data=_uncached_stream(options.data, given_settings(argv)))
    return replace(start, **{name: getattr(options, name) for name in _GROUPS}), options


def _uncached_stream(data: DataSettings, given: Set[str]) -> DataSettings:
    """`data` without its cache, which no stream can have, if `given` has `data.streaming` but not `data.cache`."""
    is_stream = isinstance(data, HuggingFaceSettings) and data.streaming
    return replace(data, cache="none") if is_stream and "data.streaming" in given and "data.cache" not in given else data


def with_long_names(argv: Sequence[str]) -> list[str]:
    """`argv` with short options replaced by long ones: `--init X` becomes `--run.init X`."""
    return [f"--run.{item.lstrip('-')}" if item.startswith("--") and normalized(item) in SHORT else item for item in argv]


def decided_by_file(file: Path | None, init: str | None) -> set[str]:
    """Dotted names of the settings for which `file` (from --config) decides, even if the weights `init` differ.

    Empty unless `file` names the same weights. Its run is then repeated with the predictor that it had.
    """
    if file is None or init is None:
        return set()
    said = flatten(load_yaml(file / "config.yaml" if file.is_dir() else file))
    is_same = os.path.expanduser(str(said.get("run.init"))) == init  # noqa: PTH111  (a name on the Hub is no path)
    return {name for name in _OWN if name in said} if is_same else set()


def _starting_point(argv: Sequence[str]) -> RunConfig:
    """The recipe or the file that `argv` names; else the run whose weights are the start, with a new folder."""
    file, preset, init = (option_value(argv, name) for name in ("config", "preset", "run.init"))
    if file is not None and not Path(file).expanduser().exists():
        raise Refusal(f"--config {file} {absent(file, hub=False)}")
    name = argv[0] if argv and not argv[0].startswith("-") else None
    if file is not None:
        if name is not None or preset is not None:
            raise Refusal(f"--config {file} says it all: leave out the recipe and the preset")
        return load_run_config(file)
    if name is not None:
        return load_recipe(name, preset)
    if init is not None and hub_name(init) is None and not Path(init).expanduser().exists():
        raise Refusal(f"--init {init} {absent(init)}")
    if init is not None and (Path(init).expanduser() / "config.yaml").is_file():
        before = load_run_config(init)
        own = RunSettings(seed=before.run.seed, device=before.run.device, precision=before.run.precision)
        return replace(before, run=replace(own, compile=before.run.compile))
    if init is not None:
        raise Refusal(f"--init {init} is no run that says its settings: give a recipe with it (openjepa recipes lists them)")
    raise Refusal("which run? Give a recipe (openjepa recipes lists them), or --config FILE, or --init RUN")


def select_components(config: RunConfig, argv: Sequence[str]) -> RunConfig:
    """`config` with the components that `argv` chooses."""
    chosen = {name: select_component(getattr(config, name), name, argv) for name in CHOICES}
    return replace(config, **chosen)


def without_overruled(config: RunConfig, given: Set[str]) -> RunConfig:
    """`config` without its steps if `given` has epochs, because steps would override them. The same for the warm-up."""
    dropped = {name for weak, strong in _OVERRULED.items() if weak in given and not given & set(strong) for name in strong}
    return replace(config, optim=replace(config.optim, **{name.removeprefix("optim."): None for name in dropped}))  # type: ignore[arg-type]
