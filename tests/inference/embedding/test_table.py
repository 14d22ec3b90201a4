"""The tables that openjepa embed writes: which images, which features, in which form."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import openjepa
from openjepa.config import save_yaml
from openjepa.data.source import open_splits
from openjepa.inference.embedding.embed_plan import open_images
from openjepa.inference.embedding.table import TableRow, kept_mean, open_table
from openjepa.settings.run import RunConfig, RunSettings
from openjepa.settings.sources import FolderSettings, HuggingFaceSettings
from tests.helpers.embedding import CONFIG, embed, save_encoder, write_shards
from tests.helpers.images import shape_image, write_folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    write_folder(folder, 21, 40)
    shape_image(3, 64).crop((0, 0, 64, 41)).save(folder / "disk" / "wide, with a comma.png")
    return folder


def expected(encoder: Path, images: Path, rows: list[TableRow]) -> torch.Tensor:
    """The features by the Python API, image by image."""
    loaded = openjepa.load(encoder)
    return torch.cat([loaded.embed(images / row.path, precision="fp32") for row in rows])


# ---------------------------------------------------------------------------------------------------------------- rows


@pytest.mark.parametrize("ending", ["npy", "parquet"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_every_image_has_its_row(ending: str, dtype: str, encoder: Path, images: Path, tmp_path: Path) -> None:
    embedded = embed(encoder, images, tmp_path / f"x.{ending}", dtype=dtype)
    table = open_table(embedded.output)
    files = sorted(str(path.relative_to(images)) for path in images.rglob("*.png"))
    assert [row.path for row in table.rows] == files and len(files) == 22  # nothing is held out
    assert [(row.split, row.index, row.label) for row in table.rows] == [
        ("train", index, int(file.startswith("square"))) for index, file in enumerate(files)
    ]
    features = np.concatenate([block for _, block in table.blocks(6)])
    assert features.dtype == dtype and features.shape == (22, 24)
    tolerance = {"float32": 1e-5, "float16": 2e-3}[dtype]
    np.testing.assert_allclose(features, expected(encoder, images, table.rows), atol=tolerance)
    np.testing.assert_array_equal(table.features(17), features[17])
    np.testing.assert_array_equal(kept_mean(table), features.astype(np.float64).mean(axis=0).astype(np.float32))
    names = {"npy": ["x.csv", "x.json", "x.npy"], "parquet": ["x.parquet"]}[ending]
    assert sorted(path.name for path in tmp_path.iterdir()) == names  # no parts are left
    assert embedded.status == "written" and embedded.num_images == 22 and embedded.rows_by_split == {"train": 22}


@pytest.mark.parametrize("ending", ["npy", "parquet"])
def test_patches_keep_their_grid(ending: str, encoder: Path, images: Path, tmp_path: Path) -> None:
    embed(encoder, images, tmp_path / f"x.{ending}", features="patches", image_size=(32, 48))
    table = open_table(tmp_path / f"x.{ending}")
    assert table.manifest.kind == "patches" and table.manifest.shape == (4, 6, 24) and table.manifest.size == (32, 48)
    place = images / table.rows[20].path
    grid = openjepa.load(encoder).embed_patches(place, size=(32, 48), precision="fp32")[0]
    np.testing.assert_allclose(table.features(20), grid, atol=1e-5)
    features = np.concatenate([block for _, block in table.blocks(6)])
    np.testing.assert_array_equal(kept_mean(table), features.astype(np.float64).mean(axis=0).astype(np.float32))


def test_the_manifest_is_enough_to_embed_an_image_alike_and_to_find_the_images(
    encoder: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(images.parent)
    embed(encoder, FolderSettings(path=images.name), tmp_path / "x.npy", view="squash", image_size=24)
    table = open_table(tmp_path / "x.npy")
    manifest = table.manifest
    again = openjepa.load(manifest.subject, heads=manifest.heads, encoder=manifest.encoder).embed(
        images / table.rows[5].path,
        pooling=manifest.pooling,
        view=manifest.view,
        size=manifest.size,
        precision=manifest.precision,
    )
    np.testing.assert_allclose(table.features(5), again[0], atol=1e-5)
    data = FolderSettings(**manifest.data)
    assert Path(data.path).is_absolute() and manifest.class_names == ("disk", "square")
    source = open_splits(data, manifest.seed).train
    assert source.name(table.rows[5].index) == table.rows[5].path  # type: ignore[union-attr]


def test_a_table_is_the_same_whatever_decodes_the_images(encoder: Path, images: Path, tmp_path: Path) -> None:
    for name, changes in {"threads": {"threads": 2}, "workers": {"workers": 2}, "alone": {}}.items():
        embed(encoder, images, tmp_path / f"{name}.npy", **changes)
    contents = {path.read_bytes() for path in tmp_path.glob("*.npy")}
    assert len(contents) == 1


def test_batches_larger_than_parts_and_parts_larger_than_the_images(encoder: Path, images: Path, tmp_path: Path) -> None:
    sizes = [(3, 100), (100, 7), (22, 22), (7, 1)]
    for number, (part_images, batch_size) in enumerate(sizes):
        embed(encoder, images, tmp_path / f"{number}.npy", part_images=part_images, batch_size=batch_size)
    tables = [np.load(tmp_path / f"{number}.npy") for number in range(len(sizes))]
    for table in tables[1:]:
        np.testing.assert_allclose(table, tables[0], atol=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("features", ["pooled", "patches"])
def test_a_gpu_gives_the_same_table(features: str, encoder: Path, images: Path, tmp_path: Path) -> None:
    for device in ("cpu", "cuda"):
        embed(encoder, images, tmp_path / f"{device}.npy", device=device, workers=2, features=features)
    np.testing.assert_allclose(np.load(tmp_path / "cuda.npy"), np.load(tmp_path / "cpu.npy"), atol=1e-3)


# -------------------------------------------------------------------------------------------------------------- images


def test_all_means_every_image_of_every_split(encoder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    for split, number in (("train", 6), ("val", 4)):
        write_folder(folder / split, number)
    write_folder(folder / "test", 3, classes=False)  # unlabeled: of no use to probes, but images all the same
    embed(encoder, folder, tmp_path / "all.npy")
    rows = open_table(tmp_path / "all.npy").rows
    assert [(row.split, row.index) for row in rows] == [
        *(("train", index) for index in range(6)),
        *(("test", index) for index in range(4)),  # what validates is the test split of probes
        *(("test (other)", index) for index in range(3)),
    ]
    assert [row.label for row in rows if row.split == "test (other)"] == [None] * 3
    assert embed(encoder, folder, tmp_path / "test.npy", splits="test").rows_by_split == {"test": 4}
    assert embed(encoder, folder, tmp_path / "train.npy", splits="train").rows_by_split == {"train": 6}


def test_the_training_split_of_a_folder_is_that_of_the_run(encoder: Path, images: Path, tmp_path: Path) -> None:
    settings = FolderSettings(path=str(images), test_fraction=0.5)
    embed(encoder, settings, tmp_path / "x.npy", splits="test", seed=4)
    held_out = open_splits(settings, 4).test
    assert held_out is not None
    assert [row.path for row in open_table(tmp_path / "x.npy").rows] == [held_out.name(index) for index in range(len(held_out))]


def test_a_run_embeds_its_own_images_with_its_own_seed(images: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    save_encoder(run / "encoder")
    save_yaml(RunConfig(data=FolderSettings(path=str(images), image_size=32), run=RunSettings(seed=3)), run / "config.yaml")
    for subject in (run, run / "encoder"):
        output = tmp_path / f"{subject.name}.npy"
        paths = embed_own(subject, output)
        assert paths == [row.path for row in open_table(output).rows]
        assert open_table(output).manifest.seed == 3
    test = open_splits(FolderSettings(path=str(images)), 3).test
    assert test is not None and set(paths) == {test.name(index) for index in range(len(test))}


def embed_own(subject: Path, output: Path) -> list[str]:
    from openjepa.inference.embedding.embedding_run import embed_dataset
    from tests.helpers.embedding import SETTINGS

    embed_dataset(subject, None, replace(SETTINGS, splits="test"), output)
    return [row.path for row in open_table(output).rows]


def test_parquet_shards_as_a_list_and_as_a_stream_give_the_same_table(encoder: Path, images: Path, tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    folder = tmp_path / "shards"
    write_shards(folder, images, (9, 1, 12))
    listed = HuggingFaceSettings(path=str(folder))
    embed(encoder, listed, tmp_path / "list.npy")
    embed(encoder, replace(listed, streaming=True), tmp_path / "stream.npy", batch_size=4)
    tables = [open_table(tmp_path / f"{name}.npy") for name in ("list", "stream")]
    assert [(row.split, row.index, row.label) for row in tables[0].rows] == [
        (row.split, row.index, row.label) for row in tables[1].rows
    ]
    np.testing.assert_allclose(np.load(tmp_path / "list.npy"), np.load(tmp_path / "stream.npy"), atol=1e-6)
    assert "shard 2 row 11" in tables[1].rows[-1].path


def test_unlabeled_splits_of_parquet_files_are_embedded_too(encoder: Path, images: Path, tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    folder = tmp_path / "shards"
    write_shards(folder, images, (9,))
    entries = [{"bytes": path.read_bytes(), "path": path.name} for path in sorted(images.rglob("*.png"))[:2]]
    parquet.write_table(pyarrow.table({"image": entries}), folder / "test.parquet")
    found = open_images(HuggingFaceSettings(path=str(folder)), "all", 0)
    assert {name: len(source) for name, source in found.sources.items()} == {"train": 9, "test": 2}
    assert embed(encoder, HuggingFaceSettings(path=str(folder)), tmp_path / "x.npy").num_images == 11


@pytest.mark.parametrize("streaming", [False, True])
def test_parquet_files_without_a_training_split_are_embedded(
    streaming: bool, encoder: Path, images: Path, tmp_path: Path
) -> None:
    write_shards(tmp_path / "shards", images, (5,))
    (tmp_path / "shards" / "train-00000-of-00001.parquet").rename(tmp_path / "shards" / "val.parquet")
    data = HuggingFaceSettings(path=str(tmp_path / "shards"), streaming=streaming)
    table = open_table(embed(encoder, data, tmp_path / "x.npy").output)
    assert len(table) == 5 and table.manifest.data["train_split"] == "validation"
    with pytest.raises(ValueError, match="'train' is not a split"):
        embed(encoder, data, tmp_path / "y.npy", splits="train")


# --------------------------------------------------------------------------------------------------- other programs


def test_pandas_datasets_and_pyarrow_read_the_parquet_file(encoder: Path, images: Path, tmp_path: Path) -> None:
    datasets, parquet = pytest.importorskip("datasets"), pytest.importorskip("pyarrow.parquet")
    pandas = pytest.importorskip("pandas")
    for dtype in ("float16", "float32"):
        output = tmp_path / f"{dtype}.parquet"
        embed(encoder, images, output, dtype=dtype)
        features = np.concatenate([block for _, block in open_table(output).blocks(100)])
        frame = pandas.read_parquet(output)
        assert list(frame.columns) == ["path", "split", "index", "label", "features"]
        np.testing.assert_array_equal(np.stack(frame["features"]), features)
        table = parquet.read_table(output)
        np.testing.assert_array_equal(np.stack(table.column("features").to_numpy()), features)
        assert json.loads(table.schema.metadata[b"openjepa"])["shape"] == [24]
        loaded = datasets.load_dataset(
            "parquet", data_files=str(output), split="train", cache_dir=str(tmp_path / f"cache-{dtype}")
        ).with_format("numpy")
        np.testing.assert_array_equal(loaded["features"][:], features)
        assert list(loaded["path"][:]) == list(frame["path"])


def test_row_groups_are_small_and_blocks_cross_them(
    encoder: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr("openjepa.inference.embedding.parts.GROUP_ROWS", 5)  # parts have eight
    embed(encoder, images, tmp_path / "x.parquet")
    embed(encoder, images, tmp_path / "x.npy")
    metadata = parquet.read_metadata(tmp_path / "x.parquet")
    assert [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)] == [5, 5, 5, 5, 2]
    table = open_table(tmp_path / "x.parquet")
    assert [row.path for row in table.rows] == [row.path for row in open_table(tmp_path / "x.npy").rows]
    np.testing.assert_array_equal(np.concatenate([block for _, block in table.blocks(4, 3)]), np.load(tmp_path / "x.npy")[3:])


# ------------------------------------------------------------------------------------------------------------- skipped


@pytest.mark.parametrize("ending", ["npy", "parquet"])
def test_unreadable_images_have_no_row_and_are_listed(ending: str, encoder: Path, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "images", 20)
    (folder / "disk" / "0003.png").write_bytes(b"")
    (folder / "square" / "0004.png").write_bytes(b"this is a text")
    embedded = embed(encoder, folder, tmp_path / f"x.{ending}", max_skipped=0.1)
    table = open_table(embedded.output)
    assert len(table) == 18 and table.manifest.skipped == 2
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.png"))
    assert [row.path for row in table.rows] == [file for file in files if file not in ("disk/0003.png", "square/0004.png")]
    assert [files[row.index] for row in table.rows] == [row.path for row in table.rows]
    found = np.concatenate([block for _, block in table.blocks(7)])
    np.testing.assert_allclose(found, expected(encoder, folder, table.rows), atol=1e-5)
    lines = [json.loads(line) for line in (tmp_path / f"x.{ending}.skipped.jsonl").read_text().splitlines()]
    assert [(line["path"], line["split"], line["reason"]) for line in lines] == [
        ("disk/0003.png", "train", "empty file"),
        ("square/0004.png", "train", "not an image"),
    ]


def test_too_many_unreadable_images_fail_in_the_end_and_are_listed(encoder: Path, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "images", 20)
    (folder / "disk" / "0003.png").write_bytes(b"")
    output = tmp_path / "x.npy"
    with pytest.raises(
        ValueError, match=r"1 of 20 images could not be read, more than max_skipped=0\.04; .*x\.npy\.skipped\.jsonl"
    ):
        embed(encoder, folder, output, max_skipped=0.04)
    assert not output.exists() and len((tmp_path / "x.npy.skipped.jsonl").read_text().splitlines()) == 1
    embedded = embed(encoder, folder, output, max_skipped=0.05)  # nothing is computed again
    assert embedded.num_images == 0 and len(open_table(output)) == 19
    Image.new("RGB", (40, 40)).save(folder / "disk" / "0003.png")
    assert len(open_table(embed(encoder, folder, output, again=True).output)) == 20
    assert not (tmp_path / "x.npy.skipped.jsonl").exists()


def test_names_that_are_no_text_survive(encoder: Path, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "images", 3, classes=False)
    shape_image(4).save(folder / "a \r.png")
    name = b"caf\xe9 \xff,\n.png".decode(errors="surrogateescape")
    shape_image(5).save(tmp_path / "plain.png")
    (tmp_path / "plain.png").rename(folder / name)
    embed(encoder, folder, tmp_path / "x.npy")
    assert open_table(tmp_path / "x.npy").rows[-1].path == name
    assert open_table(tmp_path / "x.npy").rows[-2].path == "a \r.png"
    embed(encoder, folder, tmp_path / "x.parquet")
    assert open_table(tmp_path / "x.parquet").rows[-1].path == "caf\\xe9 \\xff,\n.png"


def test_features_that_are_not_finite_are_an_error(encoder: Path, images: Path, tmp_path: Path) -> None:
    broken = save_encoder(tmp_path / "broken")
    from safetensors.torch import load_file, save_file

    weights = load_file(broken / "model.safetensors")
    weights["norm.weight"] *= 1e6
    save_file(weights, broken / "model.safetensors")
    with pytest.raises(ValueError, match=r"features of disk/0001\.png are not finite: try --dtype float32"):
        embed(broken, images, tmp_path / "x.npy", dtype="float16")
    assert not list((tmp_path / "x.npy.parts").glob("*.features*"))
    embed(broken, images, tmp_path / "large.npy", dtype="float32")
    assert float(np.abs(np.load(tmp_path / "large.npy")).max()) > 65504
    weights["norm.weight"] *= float("inf")
    save_file(weights, broken / "model.safetensors")
    with pytest.raises(ValueError, match="probably, the weights are not finite"):
        embed(broken, images, tmp_path / "y.npy")


def test_class_tokens(images: Path, tmp_path: Path, encoder: Path) -> None:
    subject = save_encoder(tmp_path / "token", config=replace(CONFIG, class_token=True, pooling="class_token"))
    for pooling in ("own", "average", "class_token"):
        manifest = embed(subject, images, tmp_path / f"{pooling}.npy", pooling=pooling).manifest
        assert manifest.pooling == ("class_token" if pooling == "own" else pooling)
    own, average, token = (np.load(tmp_path / f"{name}.npy") for name in ("own", "average", "class_token"))
    np.testing.assert_array_equal(own, token)
    assert np.abs(own - average).max() > 0.1
    with pytest.raises(ValueError, match="--pooling class_token: this encoder has no class token"):
        embed(encoder, images, tmp_path / "x.npy", pooling="class_token")
