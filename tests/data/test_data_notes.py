"""What of a data set is not used is said by every command that opens it, also by those that do not print its description."""

from pathlib import Path

import pytest

from openjepa.cli import main
from openjepa.data.source import open_splits
from openjepa.evaluation.evaluation_run import evaluate_run
from openjepa.settings.evaluation import EvaluationSettings
from openjepa.settings.run import RunConfig
from openjepa.settings.sources import DataSettings, FolderSettings, HuggingFaceSettings
from openjepa.visualization.neighbors import choose_images
from tests.helpers.embedding import save_encoder
from tests.helpers.images import shape_image
from tests.helpers.tables import offline as offline
from tests.helpers.tables import write_parquet

RECYCLED = "1 service folder of another program left out (#recycle)"
UNUSED = {"folder": "images in no split that is used: 1 in val", "huggingface": "splits that are not used: validation"}

pytestmark = pytest.mark.usefixtures("offline")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(params=["folder", "huggingface"])
def data(request: pytest.FixtureRequest, tmp_path: Path) -> DataSettings:
    """Eight training and four test images, two beside them in a service folder, and an unlabeled split that is not used."""
    root = tmp_path / "my data"
    if request.param == "huggingface":
        for place, seeds in (("train.parquet", range(8)), ("test.parquet", range(4)), ("#recycle/train.parquet", range(2))):
            write_parquet(root / place, seeds)
        write_parquet(root / "val.parquet", range(1))
        return HuggingFaceSettings(path=str(root), image_size=32)
    for split, seeds in (("train", range(8)), ("test", range(4)), ("#recycle", range(2)), ("val", range(1))):
        for seed in seeds:
            file = root / split / ("" if split == "val" else "ab"[seed % 2]) / f"{seed}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            shape_image(seed, 32).save(file)
    return FolderSettings(path=str(root), image_size=32)


def test_the_description_says_it(data: DataSettings) -> None:
    splits = open_splits(data, 0)
    assert splits.not_used == (UNUSED[data.source], RECYCLED)
    assert all(f"; {what}" in splits.description for what in splits.not_used)


def test_evaluate_says_it(data: DataSettings, encoder: Path) -> None:
    said: list[str] = []
    settings = EvaluationSettings(protocols=("knn",), neighbors=(1,), device="cpu", baselines=())
    evaluate_run(encoder, settings, data, said.append)
    assert {f"note: {UNUSED[data.source]}", f"note: {RECYCLED}"} <= set(said)


@pytest.mark.parametrize("splits", ["all", "train"])
def test_embed_says_it(
    data: DataSettings, encoder: Path, splits: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--data.source", data.source, "--data.path", str(getattr(data, "path", ""))]
    output = ["--output", str(tmp_path / "x.npy"), "--splits", splits, "--device", "cpu", "--threads", "1"]
    main(["embed", str(encoder), *given, *output])
    lines = capsys.readouterr().err.splitlines()
    assert f"note: {RECYCLED}" in lines
    assert (f"note: {UNUSED[data.source]}" in lines) == (splits == "train"), "with all splits it is used"


def test_visualize_says_it(data: DataSettings) -> None:
    with pytest.warns(UserWarning) as said:
        choose_images(RunConfig(data=data), (32, 32), 2, 4, seed=0)
    assert {str(warning.message) for warning in said} == {UNUSED[data.source], RECYCLED}
