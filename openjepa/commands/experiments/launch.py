"""The command `openjepa launch`, which submits a training to a cluster."""

from collections.abc import Sequence

from openjepa.checks import check, remarks
from openjepa.commands.parsing.arguments import given_settings, is_help, normalized, options_of, parse, split_options
from openjepa.commands.train import SHORT, TrainOptions, parse_train, with_long_names
from openjepa.config import nearest_names
from openjepa.refusals import Refusal
from openjepa.settings.clusters import SlurmSettings
from openjepa.settings.run import RunConfig
from openjepa.system.console import say

LAUNCH_HELP = """Trains on the nodes of a cluster with Slurm. Takes a recipe and every option of `openjepa train`, too. All
settings are checked before anything is submitted.

The job goes back to the queue at its time limit and after a preemption, and continues its run. `openjepa runs` lists what
trains. The page docs/many-gpus.md says more, also on other schedulers.

examples:
  openjepa launch slurm ijepa-vith14 --nodes 2 --gpus-per-node 8 \\
      --time 24:00:00 --data.path /data/imagenet --print
  openjepa launch slurm gpu-224 --partition gpu --account mine \\
      --setup "module load cuda" --data.path ~/photos
  openjepa launch slurm gpu-128 --data.path ~/photos --seeds 0 1 2
  openjepa launch slurm gpu-128 --data.path ~/photos \\
      --array optim.lr=1e-3 optim.lr=3e-4 --at-once 1"""


LAUNCH_COMMON = (
    *("nodes", "gpus_per_node", "partition", "account", "time", "memory", "cpus_per_task", "setup", "logs"),
    *("seeds", "array", "print"),
)
"""The options that the help shows without --help-all, in this order."""


def launch_slurm(argv: Sequence[str], prog: str) -> None:
    """Runs `openjepa launch slurm`: submits a training, or an array of trainings, to Slurm."""
    own, words = split_options(SlurmSettings, argv)
    own += [word for word in argv if is_help([word])]
    settings = parse(SlurmSettings, own, prog, LAUNCH_HELP, SlurmSettings(), common=LAUNCH_COMMON)
    settings.check()
    _refuse_unknown(words, argv, prog)
    from openjepa.engine.run_folder import run_path
    from openjepa.system.slurm import SlurmRun, job_script, plain_name, submit, variations

    base, runs = _parsed(words), list[SlurmRun]()
    usual = run_path(base).name
    _refuse_short(settings.array, base)
    for changes in variations(settings, usual):
        config = _parsed([*words, *changes])
        check(config, settings.nodes * settings.processes(), is_model_known=config.run.init is None)
        runs.append(SlurmRun(run_path(config), (*words, *changes)))
    for remark in remarks(base, given_settings(with_long_names(words))):
        say(f"note: {remark}")
    name = settings.name or plain_name(usual)
    script = job_script(settings, name, runs)
    if settings.print:
        print(script, end="")
        return
    print(f"submitted job {submit(settings, name, script)} ({name}); its logs: {settings.logs}; its runs:")
    print("\n".join(str(run.folder) for run in runs))


def _parsed(words: Sequence[str]) -> RunConfig:
    """The settings of the run that `openjepa train` would start. Raises Refusal if an option fits no job."""
    config, options = parse_train(words, "openjepa train", "")
    if options.dry_run:
        raise Refusal("--dry-run has no effect in a job: use --print to see it, or `openjepa train` with --dry-run")
    if options.fresh:
        raise Refusal("--fresh would start a new run each time the job comes back from the queue: give a --run.name instead")
    return config


def _refuse_short(array: Sequence[str], base: RunConfig) -> None:
    """Raises Refusal for an entry of --array that names a setting without its group, such as lr=3, and names the whole."""
    known = [option.name for option in options_of(RunConfig, base)]
    for word in (word for entry in array for word in entry.split() if "=" in word):
        name = word.partition("=")[0]
        if "." not in name and not name.startswith("-") and normalized(f"--{name}") not in {*known, *SHORT}:
            whole = [item for item in known if item.rpartition(".")[2] == normalized(f"--{name}")]
            hint = f"did you mean {' or '.join(whole)}?" if whole else "write it with its group, e.g. optim.lr=1e-3"
            raise Refusal(f"--array {word}: no setting is called {name}; {hint}")


def _refuse_unknown(words: Sequence[str], argv: Sequence[str], prog: str) -> None:
    """Raises Refusal for an option without a dot that neither command has, and names the nearest of both."""
    known = {option.flag() for cls in (SlurmSettings, TrainOptions) for option in options_of(cls) if not option.metavar}
    names = {normalized(name) for name in known} | set(SHORT)
    for word in words:
        name = word.partition("=")[0]
        if word.startswith("--") and "." not in name and normalized(word) not in names:
            before = [item for item in argv[: argv.index(word)] if item.startswith("--")][-1:]
            if before == ["--sbatch"]:
                raise Refusal(f"--sbatch {word} must be written without its dashes: --sbatch {word.removeprefix('--')}")
            raise Refusal(f"unknown option {name}: {nearest_names(name, sorted(known))} (see {prog} --help)")
