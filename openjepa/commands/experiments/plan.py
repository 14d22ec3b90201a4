"""The command `openjepa plan`: what a run needs on several numbers of GPUs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

from openjepa.commands.parsing.arguments import Unprefixed
from openjepa.commands.train import TRAIN_COMMON, TrainOptions, parse_run
from openjepa.refusals import Refusal
from openjepa.settings.experiments import PlanSettings
from openjepa.settings.fields import as_option, check_ranges

PLAN_HELP = """What a run needs on GPUs that you do not have yet: FLOPs, memory, bytes sent, time, images/s and CPU cores.
Takes every option of `openjepa train`. Needs neither the images nor a GPU.

examples:
  openjepa plan ijepa-vith14 --preset paper --gpus 16 64 256 --gpu h200
  openjepa plan gpu-224 --images 200000 --gpus 1 --gpu rtx4090
  openjepa plan ijepa-vitg16 --images 14197122 --gpus 64 --gpu a100-80 \\
      --run.recompute --parallel.strategy fsdp2 --json"""
PLAN_COMMON = (
    *("gpus", "gpu", "gpus_per_node", "images", "mfu", "bandwidth", "decode_rate", "json"),
    *("parallel.strategy", "parallel.reduce_precision", "run.recompute", "run.precision", "optim.microbatch_size"),
    *(name for name in TRAIN_COMMON if name not in ("run.name", "run.device", "dry_run", "fresh")),
)
"""The options that the help shows without --help-all, in this order."""


@dataclass(frozen=True, kw_only=True)
class PlanOptions(TrainOptions):
    """The arguments of `openjepa plan`: those of `openjepa train`, and the GPUs."""

    plan: Annotated[PlanSettings, Unprefixed] = field(default_factory=PlanSettings)


def plan(argv: Sequence[str], prog: str) -> None:
    """Runs `openjepa plan`: plans a run."""
    config, options = parse_run(PlanOptions, argv, prog, PLAN_HELP, common=PLAN_COMMON)
    check_ranges(options.plan, said=as_option)
    if len(options.plan.bandwidth) not in (0, 2):
        given = " ".join(f"{value:g}" for value in options.plan.bandwidth)
        raise Refusal(f"--bandwidth {given} must be two numbers, within a node and to other nodes, e.g. --bandwidth 450 50")
    from openjepa.experiments.plan_tables import plan_as_json, print_run_plan
    from openjepa.experiments.run_plan import make_run_plan
    from openjepa.training.init import settled

    config, _ = settled(config, (), fresh=True)
    made = make_run_plan(config, options.plan)
    if options.plan.json:
        print(plan_as_json(made))
    else:
        print_run_plan(made)
