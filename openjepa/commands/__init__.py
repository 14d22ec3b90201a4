"""One function per command: parse, then call one function of a stage. torch is imported after parsing, by those who need it."""

from openjepa.commands.ablate import ablate
from openjepa.commands.bench import bench_data, bench_energy, bench_step
from openjepa.commands.convert import convert
from openjepa.commands.data import data_check, data_masks, data_scenes
from openjepa.commands.embed import embed
from openjepa.commands.evaluate import evaluate
from openjepa.commands.recipes import recipes
from openjepa.commands.search import search
from openjepa.commands.train import quickstart, report, train, visualize

__all__ = [
    "ablate",
    "bench_data",
    "bench_energy",
    "bench_step",
    "convert",
    "data_check",
    "data_masks",
    "data_scenes",
    "embed",
    "evaluate",
    "quickstart",
    "recipes",
    "report",
    "search",
    "train",
    "visualize",
]
