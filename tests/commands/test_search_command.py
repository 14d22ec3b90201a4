"""openjepa search on images, as its users call it: queries, regions, lists, pictures, and what goes wrong."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import openjepa
from openjepa.cli import main
from openjepa.data.views import resize
from openjepa.settings.sources import FolderSettings
from tests.helpers.feature_tables import embed_source, save_encoder, write_table
from tests.helpers.images import shape_image

NUMBER = 14


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos with near-duplicates, an encoder, and tables of pooled features and of patches."""
    folder = tmp_path_factory.mktemp("search")
    for split, numbers in (("train", range(NUMBER - 4)), ("val", range(NUMBER - 4, NUMBER))):
        for number in numbers:
            place = folder / "photos" / split / ("disk" if number % 2 else "square")
            place.mkdir(parents=True, exist_ok=True)
            shape_image(number, 48).save(place / f"{number:02d}.png")
    shape_image(3, 48).save(folder / "photos/val/disk/copy.png")  # of train/disk/03.png, byte for byte
    shape_image(4, 48).resize((40, 40)).save(folder / "photos/train/square/small.png")
    save_encoder(folder)
    data = FolderSettings(path=str(folder / "photos"))
    embed_source(folder / "x.npy", folder, data, splits=("train", "test"))
    embed_source(folder / "x.parquet", folder, data, splits=("train", "test"))
    embed_source(folder / "p.npy", folder, data, kind="patches", splits=("train", "test"))
    return folder


@pytest.fixture
def work(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory."""
    monkeypatch.chdir(tmp_path)
    return made


def lines(capsys: pytest.CaptureFixture[str], *argv: object) -> list[dict[str, Any]]:
    """What `openjepa search ... --json` prints."""
    main(["search", *map(str, argv), "--json", "--device", "cpu"])
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def error_of(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    """The one message with which a command ends that cannot work."""
    with pytest.raises(SystemExit) as stopped:
        main(["search", *map(str, argv)])
    assert stopped.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("table", ["x.npy", "x.parquet", "p.npy"])
def test_an_image_of_the_table_finds_itself_and_its_copy(table: str, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = lines(capsys, work / table, "--image", work / "photos/train/disk/03.png", "--top", 3)
    assert [item["path"] for item in found[:2]] == ["disk/03.png", "disk/copy.png"]
    assert [item["cosine"] for item in found[:2]] == pytest.approx([1, 1], abs=1e-4)
    assert found[0]["split"] == "train" and found[1]["split"] == "test" and found[2]["cosine"] < 0.9999
    assert [item["rank"] for item in found] == [1, 2, 3] and found[0]["label"] == 0
    with Image.open("neighbors.png") as picture:
        assert picture.width > 4 * 168 and picture.height > 168


@pytest.mark.parametrize("kind", ["pooled", "patches"])
def test_an_image_is_seen_as_those_of_the_table_were(
    kind: str, work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = embed_source(tmp_path / "s.npy", work, FolderSettings(path=str(work / "photos")), kind=kind, view="squash")
    (found,) = lines(capsys, table, "--image", work / "photos/train/disk/03.png", "--top", 1, "--no-picture")
    assert found["path"] == "disk/03.png" and found["cosine"] == pytest.approx(1, abs=1e-5)


def test_several_queries_are_answered_one_after_the_other(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = [work / "photos/train/disk/03.png", work / "photos/val/square/12.png"]
    found = lines(capsys, work / "x.npy", "--image", *images, "--row", 2, "square/04.png", "--top", 2)
    assert [item["rank"] for item in found] == [1, 2] * 4
    assert found[0]["query"] == str(images[0]) and found[2]["query"] == str(images[1])
    rows = read_csv(work / "x.csv")
    assert found[4]["query"] == f"row 2: {rows[2]['path']}"
    assert all(item["row"] != 2 for item in found[4:6])
    assert found[6]["path"] == "square/small.png"


def test_a_row_is_no_neighbor_of_itself_unless_kept(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert lines(capsys, work / "x.npy", "--row", 5, "--top", 99)[-1]["rank"] == NUMBER + 1
    kept = lines(capsys, work / "x.npy", "--row", 5, "--top", 99, "--keep-self")
    assert len(kept) == NUMBER + 2 and kept[0]["row"] == 5 and kept[0]["cosine"] == pytest.approx(1)


def test_a_region_is_the_average_of_its_patches_in_all_of_the_image(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = work / "wide.png"
    Image.fromarray(np.hstack([np.asarray(shape_image(number, 48)) for number in (3, 6)])).save(image)
    patches = openjepa.load(work).embed_patches(image, view="whole", precision="fp32")[0]
    assert patches.shape[:2] == (4, 8)
    query = patches[1:3, 4:7].reshape(-1, 48).double().mean(dim=0)  # the patches whose centers lie inside
    stored = torch.from_numpy(np.load(work / "x.npy")).double()
    expected = torch.cosine_similarity(stored, query[None]).sort(descending=True, stable=True)
    in_fractions = lines(capsys, work / "x.npy", "--image", image, "--region", 0.5, 0.25, 0.375, 0.5, "--top", 5)
    in_pixels = lines(capsys, work / "x.npy", "--image", image, "--region", 48, 12, 36, 24, "--top", 5)
    assert in_fractions == in_pixels
    assert [item["row"] for item in in_fractions] == expected.indices[:5].tolist()
    assert [item["cosine"] for item in in_fractions] == pytest.approx(expected.values[:5].tolist(), abs=1e-5)


def test_a_region_in_a_table_of_patches_is_compared_with_windows(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    region = ("--region", 0.25, 0, 0.5, 0.75)
    found = lines(capsys, work / "p.npy", "--row", "disk/03.png", *region, "--keep-self", "--top", 4)
    stored = torch.from_numpy(np.load(work / "p.npy")).double()
    means = stored.mean(dim=0)
    with Image.open(work / "photos/train/disk/03.png") as picture:
        resized = resize(torch.from_numpy(np.asarray(picture).copy()), (37, 37), "bicubic")  # 256/224 of 32 pixels
    view = resized[:, :32, 2:34].permute(1, 2, 0).numpy()  # the region's middle is its middle, as far as the image goes
    patches = openjepa.load(work).embed_patches(view, view="squash", precision="fp32")[0].double()
    query = (patches - means)[0:3, 1:3].mean(dim=(0, 1))
    assert len(found) == 4 and found[0]["patches"][2:] == [3, 2]  # rows and columns of the 4 x 4 patches
    for item in found:
        top, left = item["patches"][:2]
        window = (stored[item["row"]] - means)[top : top + 3, left : left + 2].mean(dim=(0, 1))
        assert item["cosine"] == pytest.approx(float(torch.cosine_similarity(window, query, dim=0)), abs=1e-4)
    with Image.open("neighbors.png") as picture:
        orange = np.abs(np.asarray(picture)[..., :3].astype(int) - (0xE8, 0xA3, 0x3D)).sum(axis=2) < 30
    assert orange.sum() > 4 * 100  # the frames of four places


def test_a_region_in_the_middle_finds_itself(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ("--row", "square/04.png", "--region", 0.3, 0.3, 0.4, 0.4, "--keep-self", "--top", 1, "--no-picture")
    (found,) = lines(capsys, work / "p.npy", *argv)
    assert found["path"] == "square/04.png" and found["patches"] == [1, 1, 2, 2]
    assert found["cosine"] == pytest.approx(1, abs=1e-4)


def test_near_duplicates_are_listed_and_nothing_is_deleted(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(path for path in work.rglob("*"))
    main(["search", str(work / "x.npy"), "--duplicates", "--threshold", "0.9999", "--output", "lists", "--device", "cpu"])
    printed = capsys.readouterr().out
    assert "2 groups of near-duplicates, 4 of 16 images: 2 could go, 1 of them the same file" in printed
    assert "1 group with images of more than one split" in printed and "disk/copy.png (test)" in printed
    rows = read_csv(Path("lists/duplicates.csv"))
    assert [(row["group"], row["keep"], row["path"], row["duplicate_of"], row["identical"]) for row in rows] == [
        ("1", "yes", "disk/03.png", "", ""),
        ("1", "no", "disk/copy.png", "disk/03.png", "yes"),
        ("2", "yes", "square/04.png", "", ""),
        ("2", "no", "square/small.png", "square/04.png", "no"),
    ]
    assert (rows[2]["width"], rows[3]["width"]) == ("48", "40")
    assert rows[1]["duplicate_of_row"] == rows[0]["row"] and rows[0]["duplicate_of_row"] == ""
    assert sorted(path.name for path in Path("lists").iterdir()) == ["duplicates.csv", "duplicates.png"]
    assert sorted(path for path in work.rglob("*")) == before


def test_sizes_count_without_pictures_and_are_said_to_be_unknown_without_images(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ("--duplicates", "--threshold", 0.9999, "--no-picture")
    found = lines(capsys, work / "x.npy", *argv)
    assert [(item["path"], item["width"], item["identical"]) for item in found[:2]] == [
        ("disk/03.png", 48, None),
        ("disk/copy.png", 48, "yes"),
    ]
    for ending in (".npy", ".csv", ".json"):
        shutil.copy(work / f"x{ending}", tmp_path / f"x{ending}")
    (tmp_path / "x.json").write_text((tmp_path / "x.json").read_text().replace("photos", "gone"))
    main(["search", "x.npy", *map(str, argv)])
    output = capsys.readouterr()
    assert "which near-duplicate is the largest is not known" in output.err
    assert "2 could go\n" in output.out
    assert {row["identical"] for row in read_csv(Path("duplicates.csv"))} == {""}


def test_a_threshold_that_most_pairs_are_above_is_remarked(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_table(Path("y.npy"), np.random.default_rng(0).normal(size=(20, 8)).astype(np.float32) * 0.01 + 1)
    main(["search", "y.npy", "--duplicates", "--no-picture", "--max-pairs", "5"])
    output = capsys.readouterr()
    assert "more than one of 100 pairs drawn at random have a cosine of 0.98 or more" in output.err
    assert "more pairs than --max-pairs are alike enough" in output.out and "one of 100 above 1.00 (not centered)" in output.out
    main(["search", "y.npy", "--duplicates", "--no-picture", "--center", "yes"])
    output = capsys.readouterr()
    assert "no near-duplicates" in output.out and "drawn at random have" not in output.err


def test_no_duplicates_are_said_to_be_none(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_table(Path("y.npy"), np.eye(5, dtype=np.float32))
    main(["search", "y.npy", "--duplicates", "--no-picture"])
    assert "no near-duplicates: no two of 5 images have a cosine of 0.98 or more" in capsys.readouterr().out
    assert Path("duplicates.csv").read_text().startswith("group,keep,path") and not Path("duplicates.png").exists()


def test_outliers_come_first_and_a_number_may_be_left_out(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = np.ones((30, 8), dtype=np.float32) + np.random.default_rng(0).normal(size=(30, 8)).astype(np.float32) * 0.1
    values[11] = [-1, 1, -1, 1, -1, 1, -1, 1]
    write_table(Path("y.npy"), values)
    main(["search", "y.npy", "--outliers", "--neighbors", "5", "--no-picture"])
    rows = read_csv(Path("outliers.csv"))
    assert len(rows) == 30 and rows[0]["row"] == "11" and rows[0]["path"] == "11.png"
    assert float(rows[0]["distance"]) > 0.9 > 0.1 > float(rows[1]["distance"])
    capsys.readouterr()
    found = lines(capsys, "y.npy", "--outliers", 2, "--neighbors", 5, "--no-picture")
    assert [(item["rank"], item["list"]) for item in found] == [(1, "outliers"), (2, "outliers")]


def test_without_its_images_a_table_is_searched_all_the_same(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for ending in (".npy", ".csv", ".json"):
        shutil.copy(work / f"x{ending}", tmp_path / f"x{ending}")
    text = (tmp_path / "x.json").read_text()
    (tmp_path / "x.json").write_text(text.replace("photos", "gone"))
    main(["search", "x.npy", "--row", "0", "--device", "cpu"])
    output = capsys.readouterr()
    assert "nearest to row 0" in output.out and "note: no pictures: the images of x.npy cannot be found any more" in output.err
    assert not Path("neighbors.png").exists()
    main(["search", "x.npy", "--row", "0", "--data-path", str(work / "photos")])
    assert Path("neighbors.png").exists()
    assert "--region of --row 0 needs its image" in error_of(
        capsys, "x.npy", "--row", 0, "--region", 0, 0, 1, 1, "--data-path", "gone"
    )


def test_images_are_found_by_name_where_others_were_added(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from openjepa.inference.embedding.table import open_table
    from openjepa.inference.search.gallery import open_gallery

    shutil.copytree(work / "photos", tmp_path / "photos")
    shape_image(50, 48).save(tmp_path / "photos/train/disk/00.png")
    (tmp_path / "photos/train/square/04.png").unlink()
    table = open_table(work / "x.npy")
    gallery = open_gallery(table, str(tmp_path / "photos"))
    for row in table.rows:
        if row.path == "square/04.png":
            assert gallery.thumbnail(row) is None and gallery.file(row) is None
        else:
            name = {"train": "train", "test": "val"}[row.split]
            expected = np.asarray(Image.open(work / "photos" / name / row.path))
            np.testing.assert_array_equal(gallery.pixels(row), expected)


def test_another_encoder_is_refused(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = work / "photos/train/disk/03.png"
    save_encoder(tmp_path / "other", seed=1)
    message = error_of(capsys, work / "x.npy", "--image", image, "--subject", tmp_path / "other")
    assert "other has other weights than those that made" in message and "--subject" in message
    message = error_of(capsys, work / "x.npy", "--image", image, "--subject", tmp_path / "none")
    assert "the encoder that made" in message and "cannot be read" in message


@pytest.mark.parametrize(
    ("region", "message"),
    [
        (("0.5", "0.5", "0.6", "0.2"), "--region 0.5 0.5 0.6 0.2 (fractions of the image: left, top, width, height) leaves"),
        (("0", "0", "49", "20"), "--region 0 0 49 20 (pixels: left, top, width, height) leaves"),
        (("0.5", "0.5", "0", "0.2"), "--region 0.5 0.5 0 0.2 is empty"),
        (("nan", "0", "0.5", "0.5"), "--region nan must be a finite number"),
        (("0.1", "0.1", "0.5", "0.1"), "2.00 patches wide and 0.40 high"),
    ],
)
def test_regions_that_cannot_be_are_refused(
    region: tuple[str, ...], message: str, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = work / "photos/train/disk/03.png"
    assert message in error_of(capsys, work / "x.npy", "--image", image, "--region", *region)
    assert not Path("neighbors.png").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "what is looked for? Give --image PATH or --row N, or --duplicates or --outliers"),
        (["--row", "0", "--duplicates"], "one at a time"),
        (["--row", "0", "--top", "0"], "--top 0 must be at least 1"),
        (["--row", "0", "1", "--region", "0", "0", "1", "1"], "give exactly one --image or --row"),
        (["--row", "0", "--threshold", "0.9"], "--threshold has no effect without --duplicates"),
        (["--duplicates", "--threshold", "95"], "--threshold 95.0 must be a cosine, from -1 to 1"),
        (["--duplicates", "--approximate"], "--approximate has no effect without --image or --row"),
        (["--duplicates", "--output", "x.png"], "name a folder for them"),
        (["--row", "0", "--output", "x.jpg"], "--output x.jpg must end in .png"),
        (["--row", "16"], "--row 16 is not in"),
        (["--row", "03.png"], "did you mean 'disk/03.png'?"),
        (["--image", "none.png"], "--image none.png is not there"),
        (["--image", "text.png"], "text.png cannot be embedded"),
        (["--image", "text.png", "--device", "tpu"], "--device='tpu' is unknown"),
        (["--row", "0", "--tops", "3"], "unknown option --tops: did you mean '--top'?"),
    ],
)
def test_what_cannot_work_is_refused(
    argv: list[str], message: str, work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.png").write_text("no image")
    assert message in error_of(capsys, work / "x.npy", *argv)
    assert [path.name for path in tmp_path.iterdir()] == ["text.png"]


def test_tables_that_are_none_are_refused(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def message(name: str) -> str:
        return error_of(capsys, name, "--row", 0)

    assert "missing.npy cannot be searched: it is not there" in message("missing.npy")
    assert ". is a folder: name a file of features" in message(".")
    Path("half.npy.parts").mkdir()
    assert "it is not finished" in message("half.npy")
    shutil.copy(work / "x.npy", "alone.npy")
    assert "alone.npy lacks alone.json and alone.csv beside it" in message("alone.npy")
    for ending in (".csv", ".json"):
        shutil.copy(work / f"x{ending}", f"alone{ending}")
    Path("alone.npy").write_bytes((work / "x.npy").read_bytes()[:-100])
    assert "alone.npy is damaged or cut off" in message("alone.npy")
    np.save("alone.npy", np.ones((3, 48), np.float16))
    assert "describe float16 [16, 48]" in message("alone.npy")
    Path("text.txt").write_text("text")
    assert "text.txt is no file of features" in message("text.txt")
    Path("cut.parquet").write_bytes((work / "x.parquet").read_bytes()[:-100])
    assert "cut.parquet" in message("cut.parquet")
    write_table(Path("empty.npy"), np.ones((0, 4), np.float16))
    assert "empty.npy holds no images" in message("empty.npy")
    values = np.ones((4, 4), np.float16)
    values[2] = np.nan
    write_table(Path("nan.npy"), values)
    assert "row 2 (2.png) are not finite" in message("nan.npy")


def test_features_without_a_direction_are_remarked(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_table(Path("same.npy"), np.tile(np.arange(1, 9), (120, 1)).astype(np.float16))
    main(["search", "same.npy", "--row", "0", "--no-picture"])
    assert "every cosine to row 0: 0.png is 0, so the order means nothing" in capsys.readouterr().err
    main(["search", "same.npy", "--row", "0", "--no-picture", "--center", "no"])
    assert "every cosine" not in capsys.readouterr().err


def test_the_only_image_has_no_neighbors(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_table(Path("one.npy"), np.ones((1, 4), np.float16))
    assert lines(capsys, "one.npy", "--row", 0, "--no-picture") == []
    main(["search", "one.npy", "--duplicates", "--outliers", "5", "--no-picture"])
    assert "no near-duplicates" in capsys.readouterr().out
