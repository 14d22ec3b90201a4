"""The command `openjepa search`."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from openjepa.commands.parsing.arguments import check_output_file, check_output_folder, is_value, parse, require
from openjepa.refusals import Refusal
from openjepa.settings.inference import LISTED_OUTLIERS, SearchSettings

SEARCH_HELP = """The nearest images to an image, to a part of one, or to an image of the
table; or near-duplicates and outliers, to clean a data set. FEATURES: the .npy or .parquet file that `openjepa embed` wrote.

Neighbors are listed in the terminal and drawn in neighbors.png; --duplicates and --outliers write lists (.csv) and contact
sheets (.png) into the working directory, or into the folder --output. Nothing is deleted.

examples:
  openjepa search photos.npy --image cat.jpg
  openjepa search photos.npy --image street.jpg --region 0.6 0.4 0.2 0.3
  openjepa search photos.npy --row 12 345 --top 20 --output neighbors.png
  openjepa search photos.npy --duplicates --outliers 50 --output cleaning
  openjepa search photos.npy --image cat.jpg --approximate

--approximate makes an index, for tables of millions of images."""


def search(argv: Sequence[str], prog: str) -> None:
    """Runs `openjepa search`: searches a table of features."""
    defaults = SearchSettings()
    given = require(SearchSettings, with_number_of_outliers(argv), "a file of features", prog)
    settings = parse(SearchSettings, given, prog, SEARCH_HELP, defaults)
    settings.check()
    if settings.cleans():
        _clean(settings)
    else:
        _find(settings)


def with_number_of_outliers(argv: Sequence[str]) -> list[str]:
    """`argv` with LISTED_OUTLIERS inserted after an `--outliers` that has no number."""
    given = []
    for position, word in enumerate(argv):
        given.append(word)
        follows = argv[position + 1] if position + 1 < len(argv) else "--"
        if word == "--outliers" and not is_value(follows, int):
            given.append(str(LISTED_OUTLIERS))
    return given


def _find(settings: SearchSettings) -> None:
    output = settings.output or Path("neighbors.png")
    if settings.picture:
        check_output_file(output, ".png", any_ending=False)
    from openjepa.inference.search.printing import answer_lines, print_answers
    from openjepa.inference.search.search_run import draw_neighbors, find_neighbors
    from openjepa.system.console import say

    answers = find_neighbors(settings, say)
    _print_lines(answer_lines(answers)) if settings.json else print_answers(answers)
    if settings.picture and answers.opened.gallery is not None:
        _draw(lambda: [draw_neighbors(answers, output)])


def _clean(settings: SearchSettings) -> None:
    folder = settings.output or Path()
    if folder.suffix.lower() in (".png", ".csv"):
        raise Refusal(f"--output {folder}: --duplicates and --outliers write several files; name a folder for them")
    check_output_folder(folder)
    from openjepa.inference.search.cleaning import draw_lists, find_to_clean, write_lists
    from openjepa.inference.search.printing import cleaning_lines, print_cleaning
    from openjepa.system.console import say

    found = find_to_clean(settings, say)
    written = write_lists(found, folder)
    _print_lines(cleaning_lines(found)) if settings.json else print_cleaning(found)
    for path in written:
        say(str(path))
    if settings.picture and found.opened.gallery is not None:
        _draw(lambda: draw_lists(found, folder))


def _draw(drawn: Callable[[], Iterable[Path]]) -> None:
    """Draws pictures and prints their paths. Without matplotlib it only says so, because the answers are still of use."""
    from openjepa.system.console import say

    try:
        for path in drawn():
            say(str(path))
    except ValueError as error:
        say(f"note: no pictures: {error}")


def _print_lines(lines: Iterable[str]) -> None:
    for line in lines:
        print(line)
