"""Command-line arguments -> settings. No torch here.

A union of dataclasses cannot be chosen anew once it has a default, so the choice of each component (`--data.source`,
`--masks.strategy`, `--method.name`) is read first and selects its dataclass; then tyro parses everything over those defaults.
"""

import os
import sys
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

from openjepa.commands.parsing.help import help_text
from openjepa.commands.parsing.options import normalized, options_of, positionals_first
from openjepa.config import expand_home, flatten, load_run_config, load_yaml, nearest
from openjepa.recipes import load_recipe
from openjepa.refusals import Refusal
from openjepa.settings.evaluation import EvaluationSettings
from openjepa.settings.experiments import AblationSettings
from openjepa.settings.inference import EmbedSettings
from openjepa.settings.masks import MaskSettings, MultiblockSettings
from openjepa.settings.methods import IJepaSettings, MethodSettings
from openjepa.settings.models import ModelSettings
from openjepa.settings.ranges import as_option, check_ranges
from openjepa.settings.run import CHOICES, MonitorSettings, OptimizationSettings, RunConfig, RunSettings, SystemSettings
from openjepa.settings.sources import DataSettings, FolderSettings
from openjepa.system.shell import absent, hub_name

OptionsType = TypeVar("OptionsType")
Loaded = TypeVar("Loaded")


Unprefixed = tyro.conf.arg(name="")
"""For a group of settings whose options carry no prefix."""


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """The arguments of `openjepa train`: which run, and every setting of it."""

    recipe: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="[RECIPE]")] = ""
    """Named run to start from."""
    preset: str | None = None
    """Variant of the recipe. None: its first."""
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
    monitor: MonitorSettings = field(default_factory=MonitorSettings)
    system: SystemSettings = field(default_factory=SystemSettings)


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """The arguments of `openjepa evaluate`."""

    subject: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN|ENCODER")] = Path()
    """Run folder, encoder folder, file of published weights, Hugging Face folder, or name on the Hub."""
    suite: str | None = None
    """Evaluate on the rows of a suite instead of the run's own images: `paper`, `cached` or `dense` (see above)."""
    data_root: str | None = None
    """Folder that holds one folder per data set, as their archives unpack (see above). Needed by --suite."""
    again: bool = False
    """Compute rows of a suite anew that were finished before with the same weights, settings and data."""
    evaluation: Annotated[EvaluationSettings, Unprefixed] = field(default_factory=EvaluationSettings)
    data: DataSettings = field(default_factory=FolderSettings)


@dataclass(frozen=True, kw_only=True)
class EmbedOptions:
    """The arguments of `openjepa embed`."""

    subject: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN|ENCODER")] = Path()
    """Run folder, encoder folder, file of published weights, Hugging Face folder, or name on the Hub."""
    output: Path = Path("features.npy")
    """The table: X.npy (the images in X.csv, how it was made in X.json) or X.parquet (all in one file)."""
    again: bool = False
    """Start over where there is a table, or parts of one."""
    embedding: Annotated[EmbedSettings, Unprefixed] = field(default_factory=EmbedSettings)
    data: DataSettings = field(default_factory=FolderSettings)


SHOWN_RECIPE = "cpu-64"
"""Whose settings the help of `openjepa train` shows as defaults, if no recipe is given."""
ALL = "--help-all"
"""Asks for every option."""
COMMON: dict[type[Any], tuple[str, ...]] = {
    TrainOptions: (
        *("data.path", "data.source", "data.image_size", "model.size", "method.name", "run.init"),
        *("optim.total_steps", "optim.batch_size", "optim.lr", "run.name", "run.device"),
        *("preset", "config", "dry_run", "fresh"),
    ),
    EvaluateOptions: (
        *("data.path", "data.source", "tasks", "protocols", "suite", "data_root", "again", "selection", "seeds"),
        *("image_size", "neighbors", "max_train_images", "encoder", "device", "workers"),
    ),
    EmbedOptions: (
        *("data.path", "data.source", "output", "again", "features", "splits", "image_size", "encoder", "dtype"),
        *("batch_size", "device", "workers"),
    ),
    AblationSettings: (
        *("data.path", "data.source", "recipe", "rows", "images", "seconds", "seeds", "probe_images", "output"),
        *("dry_run", "device", "system.threads"),
    ),
}
"""The options that the help of a long command shows, in this order; of other commands all."""
_GROUPS = ("data", "model", "masks", "method", "optim", "run", "monitor", "system")
SHORT = ("init", "init_encoder", "init_heads")
"""Options of `openjepa train` that may leave out `run.`"""
_OWN = ("model.resampling_offset", "method.predictor_width", "method.predictor_depth", "method.predictor_heads")
"""Settings that may differ from the weights that `run.init` names."""
_OVERRULED = {
    "optim.epochs": ("optim.total_steps",),
    "optim.warmup_epochs": ("optim.warmup_steps",),
    "optim.warmup_share": ("optim.warmup_epochs", "optim.warmup_steps"),
}
"""Settings that override the first; who gives only the first on the command line means it."""


def parse_train(argv: Sequence[str], prog: str, description: str, details: str = "") -> tuple[RunConfig, TrainOptions]:
    """The settings of `openjepa train ...`, and its other options. Raises Refusal; prints help and exits where asked to.

    Settings that follow others are None until `openjepa.settings.derived.resolve`.
    """
    argv = with_long_names(argv)
    argv = positionals_first(TrainOptions, argv, is_needed=not {"config", "run.init"} & given_settings(argv))
    start = unless_help(argv, lambda: _starting_point(argv), lambda: load_recipe(SHOWN_RECIPE))
    config = without_overruled(select_components(start, argv), given_settings(argv))
    defaults = TrainOptions(**{name: getattr(config, name) for name in _GROUPS})
    options = parse(TrainOptions, argv, prog, description, defaults, details)
    return replace(start, **{name: getattr(options, name) for name in _GROUPS}), options


def parse_evaluate(
    argv: Sequence[str], prog: str, description: str, details: str = "", check: Callable[[Path], object] = Path
) -> tuple[EvaluateOptions, DataSettings | None]:
    """The options of `openjepa evaluate`, and its data settings if any is given (else the run's own are meant).

    Given data settings override those of the run's `config.yaml`, where there is one. `check` refuses a subject before the
    options are read, which depend on its data.
    """
    argv = require(EvaluateOptions, argv, "a run folder or the folder of an encoder", prog)
    subject = _subject(argv, check)
    data: DataSettings = FolderSettings()
    if subject is not None and (subject / "config.yaml").exists():
        data = unless_help(argv, lambda: load_run_config(subject).data, FolderSettings)
    defaults = EvaluateOptions(data=select_component(data, "data", argv))
    options = parse(EvaluateOptions, argv, prog, description, defaults, details)
    given = any(item.startswith("--") and normalized(item).startswith("data.") for item in argv)
    return options, options.data if given else None


def parse_embed(
    argv: Sequence[str], prog: str, description: str, check: Callable[[Path], object] = Path
) -> tuple[EmbedOptions, DataSettings | None]:
    """The options of `openjepa embed`, and its data settings if any is given (else the run's own are meant).

    A path or a source that is given means other images, opened with plain settings; other data settings change the run's own.
    `check` refuses a subject before the options are read, which depend on its data.
    """
    argv = require(EmbedOptions, argv, "a run folder or an encoder", prog)
    given = given_settings(argv)
    subject = _subject(argv, check)
    data: DataSettings = FolderSettings()
    if subject is not None and (subject / "config.yaml").exists() and not given & {"data.path", "data.source"}:
        data = unless_help(argv, lambda: load_run_config(subject).data, FolderSettings)
    defaults = EmbedOptions(data=select_component(data, "data", argv))
    options = parse(EmbedOptions, argv, prog, description, defaults)
    return options, options.data if any(name.startswith("data.") for name in given) else None


def _subject(argv: Sequence[str], check: Callable[[Path], object]) -> Path | None:
    """The run or encoder in front, which `check` may refuse unless help is asked for; None if there is none."""
    if argv[0].startswith("-"):
        return None
    path = Path(argv[0]).expanduser()
    if not is_help(argv):
        check(path)
    return path


def with_long_names(argv: Sequence[str]) -> list[str]:
    """`--init X` -> `--run.init X`, and so on."""
    return [f"--run.{item.lstrip('-')}" if item.startswith("--") and normalized(item) in SHORT else item for item in argv]


def given_settings(argv: Sequence[str]) -> set[str]:
    """Dotted names of the settings that `argv` sets itself; of a switch, whichever way it is set."""
    names = {normalized(item) for item in with_long_names(argv) if item.startswith("--")}
    return {".".join(part.removeprefix("no_") for part in name.split(".")) for name in names}


def decided_by_file(file: Path | None, init: str | None) -> set[str]:
    """Dotted names of the settings that may differ from the weights `init`, as `file` (of --config), which names these, says.

    So its run is repeated with the predictor that it had.
    """
    if file is None or init is None:
        return set()
    said = flatten(load_yaml(file / "config.yaml" if file.is_dir() else file))
    is_same = os.path.expanduser(str(said.get("run.init"))) == init  # noqa: PTH111  (a name on the Hub is no path)
    return {name for name in _OWN if name in said} if is_same else set()


def require(cls: type[Any], argv: Sequence[str], what: str, prog: str) -> list[str]:
    """`argv` with the words in front that are no options of `cls`; Refusal if it has none and asks for no help."""
    ordered = positionals_first(cls, argv)
    if is_help(ordered) or (ordered and not ordered[0].startswith("-")):
        return ordered
    raise Refusal(f"{prog} needs {what} (see {prog} --help)")


def is_help(argv: Sequence[str]) -> bool:
    """Whether help is asked for."""
    return not {"--help", "-h", ALL}.isdisjoint(argv)


def unless_help(argv: Sequence[str], load: Callable[[], Loaded], shown: Callable[[], Loaded]) -> Loaded:
    """What `load` returns; if it is refused and `argv` asks for help, which is given in any case, what `shown` returns."""
    try:
        return load()
    except Refusal:
        if is_help(argv):
            return shown()
        raise


def _starting_point(argv: Sequence[str]) -> RunConfig:
    """The recipe or the file that `argv` names, or else the run whose weights are to start it, in a folder of its own."""
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


def option_value(argv: Sequence[str], name: str) -> str | None:
    """Value of the option `name` (dotted, with underscores) in `argv`, the last one that is given; None where it is not."""
    found = None
    for position, item in enumerate(argv):
        if not item.startswith("--") or normalized(item) != name:
            continue
        if "=" in item:
            found = item.split("=", maxsplit=1)[1]
        elif position + 1 < len(argv):
            found = argv[position + 1]
    return found


def without_choices(argv: Sequence[str]) -> list[str]:
    """`argv` without the choices of components, which are read before tyro sees the rest (the last of several counts)."""
    names = {f"{component}.{choice.field}" for component, choice in CHOICES.items()}
    kept, position = [], 0
    while position < len(argv):
        chooses = argv[position].startswith("--") and normalized(argv[position]) in names
        if not chooses:
            kept.append(argv[position])
        position += 1 if not chooses or "=" in argv[position] else 2
    return kept


def select_component(settings: Any, component: str, argv: Sequence[str]) -> Any:
    """`settings`, or those of another choice of `component` that `argv` names, with the common fields carried over."""
    choice = CHOICES[component]
    option = f"{component}.{choice.field}"
    name = option_value(argv, option)
    if name is None and option in map(normalized, argv):
        raise Refusal(f"--{option} needs a value: one of {', '.join(choice.options)}")
    if name is None or name == getattr(settings, choice.field):
        return settings
    if name not in choice.options:
        raise Refusal(f"--{option} {name} does not exist: {nearest(name, choice.options)}")
    cls = choice.options[name]
    common = {item.name for item in fields(choice.base)} - {choice.field}
    return cls(**{item: getattr(settings, item) for item in common})


def select_components(config: RunConfig, argv: Sequence[str]) -> RunConfig:
    """`config` with the components that `argv` chooses."""
    chosen = {name: select_component(getattr(config, name), name, argv) for name in CHOICES}
    return replace(config, **chosen)


def without_overruled(config: RunConfig, given: Set[str]) -> RunConfig:
    """Without the steps of a recipe or a file if epochs are `given`, which they would overrule; the same for the warm-up."""
    dropped = {name for weak, strong in _OVERRULED.items() if weak in given and not given & set(strong) for name in strong}
    return replace(config, optim=replace(config.optim, **{name.removeprefix("optim."): None for name in dropped}))  # type: ignore[arg-type]


def parse(
    cls: type[OptionsType], argv: Sequence[str], prog: str, description: str, default: OptionsType, details: str = ""
) -> OptionsType:
    """tyro over `default`, with our own error for an unknown option: it names the nearest one. Expands `~`.

    Prints help and exits if asked to. `description`: what it says of the command; `details`: what else with --help-all.
    """
    if is_help(argv):
        chosen = [name for name, choice in CHOICES.items() if f"{name}.{choice.field}" in map(normalized, argv)]
        text = "\n\n".join(filter(None, (description, details if ALL in argv else "")))
        print(help_text(prog, text, default, () if ALL in argv else COMMON.get(cls, ()), chosen))
        sys.exit(0)
    options, unknown = tyro.cli(cls, args=without_choices(argv), prog=prog, default=default, return_unknown_args=True)
    for item in unknown:
        if item.startswith("-"):
            name = item.split("=", maxsplit=1)[0]
            raise Refusal(f"unknown option {name}: {nearest(name, option_names(default))} (see {prog} --help)")
    if unknown:
        raise Refusal(f"{prog} does not know what to do with {unknown[0]!r}{_about_switches(unknown[0], argv, prog)}")
    check_ranges(options, said=as_option, groups=False)  # groups are checked with what they are used for
    return expand_home(options)


def _about_switches(item: str, argv: Sequence[str], prog: str) -> str:
    """What to write instead of `--model.class-token False`; else where help is."""
    before = argv[argv.index(item) - 1] if item in argv[1:] else ""
    if item.lower() not in ("true", "false") or not before.startswith("--"):
        return f" (see {prog} --help)"
    group, dot, name = before.removeprefix("--").rpartition(".")
    name = name.removeprefix("no-")
    return f": a setting that is on or off takes no value; write --{group}{dot}{name} or --{group}{dot}no-{name}"


def option_names(options: object) -> list[str]:
    """Every option that `parse` takes for this dataclass; positional arguments are none."""
    return [option.flag() for option in options_of(type(options), options) if not option.metavar]
