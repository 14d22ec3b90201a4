"""The command `openjepa convert`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from openjepa.commands.parsing.arguments import check_evaluated, is_help, option_value, parse, require
from openjepa.config import nearest
from openjepa.refusals import Refusal
from openjepa.settings.inference import ConvertSettings
from openjepa.weights import OUTPUTS

if TYPE_CHECKING:
    from openjepa.weights.convert.conversion import Conversion

CONVERT_HELP = """The weights of a run, or of any encoder that is read,
as a folder for other programs: weights, settings, a model card (README.md), and I-JEPA's predictor if the format has a
place for it. What was written is read back and compared before the folder appears.

formats (--to):
{formats}

examples:
  openjepa convert runs/cpu-64-default-photos --to transformers
  openjepa convert runs/mine --to onnx --dtype float16 --license apache-2.0
  openjepa convert IN1K-vit.h.14-300e.pth.tar --to transformers \\
      --image-size 448 --output ijepa-h14-448
  openjepa convert facebook/ijepa_vith14_1k --to timm"""


def convert(argv: Sequence[str], prog: str) -> None:
    """Runs `openjepa convert`: converts weights."""
    argv = require(ConvertSettings, argv, "a run folder, an encoder folder or a file of weights", prog)
    to = option_value(argv, "to")
    if to is not None and to not in OUTPUTS and not is_help(argv):
        raise Refusal(f"--to {to} does not exist: {nearest(to, OUTPUTS)}")
    lines = "\n".join(f"  {name:<14}{item.summary}" for name, item in OUTPUTS.items())
    settings = parse(ConvertSettings, argv, prog, CONVERT_HELP.format(formats=lines), ConvertSettings())
    if settings.to is None:
        raise Refusal(f"{prog} needs --to with a format: {', '.join(OUTPUTS)}")
    if not (settings.subject / "encoder" / "config.json").is_file():
        check_evaluated(settings.subject.expanduser())
    from openjepa.system.console import say
    from openjepa.weights.convert.conversion import convert as run

    _print(run(settings, say))


def _print(done: "Conversion") -> None:
    """Prints what was read and written, how it was checked, and how to load the result."""
    from rich.filesize import decimal

    from openjepa.system.console import plain_console
    from openjepa.weights.convert.card import loading

    console = plain_console()
    shown = _shown(done.folder)
    console.print(f"{done.what} -> {shown}", style="bold", soft_wrap=True)
    files = sorted(path for path in done.folder.rglob("*") if path.is_file())
    for path in files:
        console.print(f"  {decimal(path.stat().st_size):>9}  {path.relative_to(done.folder)}")
    for check in done.checks:
        console.print(f"checked: {check.words()}", style="green", soft_wrap=True)
    for remark in done.remarks:
        console.print(f"note: {remark}", style="yellow", soft_wrap=True)
    library, code = loading(done.to, shown, done.config, done.model)[-1]
    console.print(f"\nto load it with {library}:", style="bold")
    for line in code.splitlines():
        console.print(f"  {line}", soft_wrap=True)
    console.print(f"\nLook through {shown}/README.md before you publish it: it says what is known of data and training.")


def _shown(folder: Path) -> str:
    """`folder` as the user would write it: relative to the working directory, if it is inside."""
    return str(folder.relative_to(Path.cwd())) if folder.is_relative_to(Path.cwd()) else str(folder)
