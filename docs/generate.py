"""Writes the pages that follow from the code, and the pages of the site.

python -m docs.generate                    # writes docs/recipes.md, layers in docs/architecture.md, docs/clusters/train.sbatch
python -m docs.generate --site FOLDER      # writes all pages as the site shows them
"""

import argparse
import ast
import os
import re
import shutil
from pathlib import Path

from docs.layers import LAYERS
from openjepa.commands.recipes import recipe_groups
from openjepa.recipes import RECIPES, load_recipe
from openjepa.settings.clusters import SlurmSettings
from openjepa.system.slurm import SlurmRun, job_script

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
SITE_PAGES = {"README.md": "index.md", "docs/results/README.md": "results.md", "benchmarks/results/README.md": "timings.md"}
"""Pages of the site that have another name in the repository; every other page is a file docs/*.md."""
LETTERS = {"tiny": "Ti", "small": "S", "base": "B", "large": "L", "huge": "H", "giant": "g"}
LINK = re.compile(r"(?P<before>!?\[(?P<words>[^\]]*)\]\(|<img src=\")(?P<target>[^)\"\s]+)(?P<after>[)\"])")
CODE = re.compile(r"(^```.*?^```$)", re.DOTALL | re.MULTILINE)
LAYERS_BEGIN = "<!-- layers: written by `make docs` from docs/layers.py and the first sentence of each part -->"
LAYERS_END = "<!-- end of layers -->"
RECIPES_HEAD = """# Recipes

<!-- Written by `make docs`: change the recipes, not this page. -->

`openjepa train NAME` starts from a recipe, and every setting can be changed. `openjepa recipes NAME` prints one with all its
settings and says where its values come from.

- **Presets** are versions of a recipe. The first is the default; `--preset` chooses another. `official` has the values of the
  released code, `paper` those of the paper, if the two differ ([fidelity](fidelity.md)). `official` of a small recipe keeps
  encoder, predictor, data and images seen, and takes the released code's initialization, masks and rates.
- **Small recipes** (`default`) are given in steps, so a run takes as long on 2,000 images as on 200,000. `--optim.epochs`
  replaces the steps. In the recipes for one GPU the masks are the paper's; those recipes are not measured yet.
- **Encoders** are named by size and patch: B/16 is a ViT-B with patches of 16 x 16 pixels. `nano` is ours: 4 blocks of width
  128.
"""


def recipes_page() -> str:
    """The text of docs/recipes.md: one table for each purpose and method."""
    parts = [RECIPES_HEAD]
    for title, names in recipe_groups().items():
        source = load_recipe(names[0]).method.paper
        paper = source.title.replace(f"arXiv {source.arxiv}", f"[arXiv {source.arxiv}](https://arxiv.org/abs/{source.arxiv})")
        head = [f"## {title[0].upper()}{title[1:]}", "", paper, "", "| recipe | what it is | encoder | presets | length |"]
        parts.append("\n".join([*head, "|---|---|---|---|---|", *map(_recipe_row, names)]) + "\n")
    return "\n".join(parts)


def _recipe_row(name: str) -> str:
    config, recipe = load_recipe(name), RECIPES[name]
    encoder = f"{LETTERS.get(config.model.size, config.model.size)}/{config.model.patch_size}"
    steps = config.optim.total_steps
    length = f"{config.optim.epochs:g} epochs" if steps is None else f"{steps * config.optim.batch_size:,} images"
    presets = ", ".join(f"`{preset}`" for preset in recipe.presets)
    return f"| `{name}` | {recipe.summary()} | {encoder} | {presets} | {length} |"


def architecture_page() -> str:
    """The text of docs/architecture.md, with the layers as docs/layers.py and the docstrings of the parts say them now."""
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    head, begin, rest = text.partition(LAYERS_BEGIN)
    _, end, tail = rest.partition(LAYERS_END)
    layers = "\n\n".join(
        "\n".join(f"{part:<22}{_first_sentence(part)}" for part in layer) for layer in LAYERS if layer != ("__main__",)
    )
    return f"{head}{begin}\n```\n{layers}\n```\n{end}{tail}"


def _first_sentence(part: str) -> str:
    folder = ROOT / "openjepa" / part
    file = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
    words = " ".join((ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").split())
    return re.split(r"(?<=\.) ", words)[0]


def slurm_script() -> str:
    """The text of docs/clusters/train.sbatch: a job of two nodes, as `openjepa launch slurm --print` shows it."""
    setup = ("module load cuda", "source ~/openjepa/bin/activate")
    settings = SlurmSettings(nodes=2, gpus_per_node=8, time="24:00:00", partition="gpu", setup=setup, python="python")
    words = ("ijepa-vith14", "--data.path", "/data/imagenet")
    return job_script(settings, "ijepa-vith14", [SlurmRun(Path("runs/ijepa-vith14"), words)])


GENERATED = {"recipes.md": recipes_page, "architecture.md": architecture_page, "clusters/train.sbatch": slurm_script}
"""The files in docs/ that follow from the code."""


def pages() -> dict[str, str]:
    """The pages of the site: path in the repository, and path in the site."""
    return SITE_PAGES | {f"docs/{path.name}": path.name for path in sorted(DOCS.glob("*.md"))}


def site_text(page: str) -> str:
    """The text of a page with links as the site needs them.

    A link to a file that the site does not show becomes its words, with the path in the repository behind them.
    """
    parts = CODE.split((ROOT / page).read_text(encoding="utf-8"))
    return "".join(
        part if number % 2 else LINK.sub(lambda link: _site_link(page, link), part) for number, part in enumerate(parts)
    )


def _site_link(page: str, link: re.Match[str]) -> str:
    target, _, anchor = link["target"].partition("#")
    if "://" in target or not target:
        return link[0]
    path = os.path.normpath(Path(page).parent / target)
    known = pages()
    shown = next((known[name] for name in (path, f"{path}/README.md") if name in known), None)
    if shown is None and path.startswith("docs/images/"):
        shown = path.removeprefix("docs/")
    if shown is None:
        return f"{link['words']} (`{path}`)" if link["words"] not in (path, f"`{path}`") else f"`{path}`"
    return f"{link['before']}{shown}{'#' * bool(anchor)}{anchor}{link['after']}"


def write_site(folder: Path) -> None:
    """Writes the pages of the site, their pictures and their style below `folder`, which is emptied first."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(DOCS / "images", folder / "images")
    shutil.copy(DOCS / "site.css", folder)
    for page, name in pages().items():
        (folder / name).write_text(site_text(page), encoding="utf-8")


def main() -> None:
    """Writes the generated pages, or with --site those of the site."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--site", type=Path, help="folder for the pages of the site")
    folder = parser.parse_args().site
    if folder is not None:
        write_site(folder)
        return
    for name, text in GENERATED.items():
        (DOCS / name).write_text(text(), encoding="utf-8")


if __name__ == "__main__":
    main()
