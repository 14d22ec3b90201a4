"""The same pixels in every form, and what is no image; batches of mixed shapes keep their order."""

import io
import os
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngImageFile
from torch import Tensor

from openjepa.data.decode import decode_image
from openjepa.inference import images as preparing
from openjepa.inference.images import View, batches, pixels_of, separate
from tests.helpers.images import shape_image

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)
GRAY = PIXELS[:, :, 0]


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def channels_first(array: Any) -> Any:
    return np.ascontiguousarray(np.moveaxis(array, 2, 0))


FORMS: dict[str, Any] = {
    "bytes": encoded(Image.fromarray(PIXELS)),
    "PIL": Image.fromarray(PIXELS),
    "array": PIXELS,
    "array, channels first": channels_first(PIXELS),
    "array, backwards": PIXELS[::-1].copy()[::-1],
    "array, float64": PIXELS / 255,
    "array, float16": (PIXELS / 255).astype(np.float16),
    "array, big-endian": (PIXELS / 255).astype(">f4"),
    "array, a little beyond": np.where(PIXELS == 255, 1.0005, np.where(PIXELS == 0, -0.0005, PIXELS / 255)),
    "tensor": torch.from_numpy(channels_first(PIXELS)),
    "tensor, channels last": torch.from_numpy(PIXELS),
    "tensor, float32": torch.from_numpy(channels_first(PIXELS)) / 255,
    "tensor, bfloat16 of few levels": None,
    "tensor with gradient": (torch.from_numpy(channels_first(PIXELS)) / 255).requires_grad_(),
}


@pytest.mark.parametrize("name", FORMS)
def test_one_image_in_every_form(name: str) -> None:
    form, expected = FORMS[name], torch.from_numpy(PIXELS)
    if form is None:  # eight bits of precision hold these
        expected = expected // 64 * 64
        form = (expected.permute(2, 0, 1) / 255).bfloat16()
        assert (pixels_of(form).int() - expected.int()).abs().max() <= 1
        return
    assert torch.equal(pixels_of(form), expected)


def test_a_read_only_array_is_no_reason_for_a_warning() -> None:
    array = PIXELS.copy()
    array.flags.writeable = False
    assert torch.equal(pixels_of(array), torch.from_numpy(PIXELS))


@pytest.mark.parametrize("form", ["array", "array, one channel", "tensor", "tensor [1, h, w]", "PIL", "PNG"])
def test_gray_images(form: str) -> None:
    forms: dict[str, Any] = {
        "array": GRAY,
        "array, one channel": GRAY[..., None],
        "tensor": torch.from_numpy(GRAY.copy()),
        "tensor [1, h, w]": torch.from_numpy(GRAY.copy())[None],
        "PIL": Image.fromarray(GRAY),
        "PNG": encoded(Image.fromarray(GRAY)),
    }
    assert torch.equal(pixels_of(forms[form]), torch.from_numpy(GRAY.copy())[..., None].expand(-1, -1, 3))


def images_of_pillow() -> dict[str, tuple[Image.Image, str, dict[str, Any]]]:
    """Images, and as what they are written to a file."""
    alpha = np.random.default_rng(1).integers(0, 256, (12, 20, 1), dtype=np.uint8)
    rgba = Image.fromarray(np.concatenate([PIXELS, alpha], axis=2))
    indexed = Image.fromarray(PIXELS).quantize(16)
    wide = Image.fromarray(np.random.default_rng(2).integers(0, 65536, (12, 20), dtype=np.uint16))
    turned = Image.fromarray(PIXELS)
    turned.getexif()[0x0112] = 6
    return {
        "RGBA": (rgba, "PNG", {}),
        "LA": (rgba.convert("LA"), "PNG", {}),
        "palette": (indexed, "PNG", {}),
        "16 bits": (wide, "PNG", {}),
        "1 bit": (Image.fromarray(GRAY > 99), "PNG", {}),
        "CMYK": (Image.fromarray(PIXELS).convert("CMYK"), "TIFF", {}),
        "turned": (turned, "PNG", {"exif": turned.getexif()}),
    }


@pytest.mark.parametrize("name", images_of_pillow())
def test_images_of_pillow_are_treated_as_their_files_are(name: str) -> None:
    image, kind, options = images_of_pillow()[name]
    data = encoded(image, kind, **options)
    expected = torch.from_numpy(decode_image(data))
    assert torch.equal(pixels_of(image), expected), "made in memory"
    assert torch.equal(pixels_of(Image.open(io.BytesIO(data))), expected), "opened, and not read yet"
    assert name == "CMYK" or not torch.equal(expected, torch.from_numpy(PIXELS)), "Pillow gives CMYK back as it was"
    if name == "turned":
        assert torch.equal(expected, torch.from_numpy(np.rot90(PIXELS, -1).copy()))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 5, 4), np.uint8), r"shape \[4, 5, 4\]: one end must be 3 .*alpha: give a PIL image"),
        (np.zeros((5, 6, 7), np.uint8), r"shape \[5, 6, 7\]: one end must be 3 channels \(RGB\) or 1 \(gray\)$"),
        (np.zeros((0, 5, 3), np.uint8), "holds no pixels"),
        (np.zeros((4, 5, 3), np.int64), "int64 numbers: give uint8 levels, or floats"),
        (np.zeros((4, 5, 3), np.uint16), "uint16 numbers"),
        (np.zeros((4, 5, 3), bool), "bool numbers"),
        (np.zeros((4, 5, 3), object), "an array of object"),
        (np.full((4, 5, 3), 1.2), r"floats from 1.2 to 1.2: give uint8 levels or floats in \[0, 1\]"),
        (np.full((4, 5, 3), np.nan), "floats from nan to nan"),
        (torch.zeros(3), r"shape \[3\]: give"),
        (Image.new("RGB", (0, 3)), "a PIL image of mode RGB cannot be used: 0 x 3 pixels"),
        (Image.new("F", (2, 3)), "PIL image of mode F cannot be used: floating-point pixels"),
        (b"", "given as bytes cannot be embedded: empty file"),
        (b"text", "given as bytes cannot be embedded: not an image"),
        (Path("absent.jpg"), r"absent\.jpg cannot be embedded: No such file"),
        ("~/absent.jpg", "absent.jpg cannot be embedded: No such file"),
        ("https://a.b/c.jpg", "https://a.b/c.jpg is an address: download the image first"),
        (os.curdir, r"is a folder: give its files, such as sorted\(Path\('\.'\)\.rglob"),
        (7, "an image cannot be of type int: give a path, a PIL image, an array or a tensor"),
        (None, "cannot be of type NoneType"),
    ],
)
def test_what_is_no_image(image: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pixels_of(image)


def test_a_damaged_file_that_pillow_opened_is_an_error() -> None:
    whole = encoded(shape_image(0, 64))
    with pytest.raises(ValueError, match="mode RGB cannot be used: damaged PNG"):
        pixels_of(Image.open(io.BytesIO(whole[: len(whole) // 2])))


def test_one_or_many() -> None:
    several = torch.zeros(3, 3, 8, 9, dtype=torch.uint8)
    assert [len(list(separate(item))) for item in ("a.jpg", Path("a.jpg"), PIXELS, GRAY, several, several.numpy())] == [
        1, 1, 1, 1, 3, 3,
    ]  # fmt: skip
    assert list(separate(np.array(["a.jpg", "b.jpg"], dtype=object))) == ["a.jpg", "b.jpg"]
    assert [type(item) for item in separate(np.array(["a.jpg", "b.jpg"]))] == [str, str]
    generator = (name for name in ["a.jpg", "b.jpg"])
    assert separate(generator) is generator
    wrong: list[Any] = [torch.zeros(2, 2, 3, 8, 8), 7, None, {"image": "a.jpg"}, {"a.jpg", "b.jpg"}]
    for item in wrong:
        with pytest.raises(ValueError, match=r"images (cannot be|have the shape)"):
            separate(item)


# ------------------------------------------------------------------------------------------------------------- views


@pytest.mark.parametrize("name", ["crop", "squash"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 400), (400, 1), (3, 2), (5000, 7), (33, 31)])
def test_images_of_any_shape(name: Any, shape: tuple[int, int]) -> None:
    view = View(name, (32, 48), 16).of(torch.full((*shape, 3), 77, dtype=torch.uint8))
    assert view.shape == (3, 32, 48) and view.eq(77).all()


def test_whole_images_keep_their_shape_to_a_patch() -> None:
    view = View("whole", (32, 48), 16)
    shapes = {(10, 10): (32, 32), (1, 1): (32, 32), (10, 25): (32, 80), (70, 20): (112, 32), (10, 12): (32, 32)}
    for shape, expected in shapes.items():
        assert view.of(torch.zeros(*shape, 3, dtype=torch.uint8)).shape[1:] == expected
    with pytest.raises(ValueError, match=r"of an image of 9000 x 1 pixels would have 36,000 patches, more than 16,384"):
        view.of(torch.zeros(1, 9000, 3, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("center", (32, 32), "view='center' is not known: use 'crop', 'squash' or 'whole'"),
        ("crop", (30, 32), "the patch size 16 of the encoder does not divide size=30x32: use size=32 32$"),
        ("whole", (32, 225), "does not divide size=32x225: use size=32 224$"),
        ("crop", (10, 32), "does not divide size=10x32: use size=16 32$"),
        ("crop", (0, 32), "size=0x32: use size=16 32$"),
        ("crop", (-16, 32), "size=-16x32: use size=16 32$"),
    ],
)
def test_views_that_cannot_be(name: Any, size: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        View(name, size, 16)


# ----------------------------------------------------------------------------------------------------------- batches

SQUASH = View("squash", (16, 16), 16)
WHOLE = View("whole", (16, 16), 16)


def levels(count: int, shapes: int = 1) -> list[np.ndarray[Any, Any]]:
    """Image i is all of level i; their shapes take turns."""
    return [np.full((16, 16 * (1 + number % shapes), 3), number, np.uint8) for number in range(count)]


def seen(found: list[tuple[list[int], Tensor]]) -> list[int]:
    """The numbers, after a look at the pixels that they stand for."""
    for numbers, pixels in found:
        assert pixels[:, 0, 0, 0].tolist() == numbers
    return [number for numbers, _ in found for number in numbers]


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 23])
def test_batches_of_one_shape_are_in_order(threads: int, count: int) -> None:
    found = list(batches(levels(count), SQUASH, 4, threads))
    assert seen(found) == list(range(count))
    assert [len(numbers) for numbers, _ in found] == [4] * (count // 4) + [count % 4] * (count % 4 > 0)


@pytest.mark.parametrize("threads", [1, 3])
def test_batches_of_several_shapes_are_full(threads: int) -> None:
    found = list(batches(levels(23, shapes=3), WHOLE, 4, threads))
    assert sorted(seen(found)) == list(range(23))
    assert sorted(len(numbers) for numbers, _ in found) == [3, 4, 4, 4, 4, 4]
    assert all(len({number % 3 for number in numbers}) == 1 for numbers, _ in found)


def test_of_many_shapes_few_images_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparing, "MAX_SHAPES", 3)
    taken: list[int] = []
    images = levels(40, shapes=20)

    def watched() -> Iterator[Any]:
        for number, image in enumerate(images):
            taken.append(number)
            yield image

    given = 0
    for numbers, _ in batches(watched(), WHOLE, 4, 1):
        assert len(taken) - given <= 3 * 4 + 1
        given += len(numbers)
    assert given == 40


def test_a_generator_is_taken_a_batch_ahead() -> None:
    taken = 0

    def endless() -> Iterator[Any]:
        nonlocal taken
        while True:
            taken += 1
            yield PIXELS

    source = batches(endless(), SQUASH, 4, 2)
    next(source)
    assert 4 <= taken <= 4 + 4 + 1
    source.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("openjepa-images")]


def test_an_open_file_may_stand_in_the_list_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow reads it when it is first needed: by one thread, because several at once would break it."""
    shape_image(3, 200).save(tmp_path / "image.png")
    image, readers = Image.open(tmp_path / "image.png"), set()
    real = PngImageFile.load

    def watched(self: PngImageFile) -> Any:
        readers.add(threading.current_thread())
        return real(self)

    monkeypatch.setattr(PngImageFile, "load", watched)
    (found,) = batches([image] * 16, SQUASH, 16, 4)
    assert (found[1] == found[1][0]).all() and readers == {threading.main_thread()}


@pytest.mark.parametrize("threads", [1, 3])
def test_errors_say_which_image(threads: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="image 5: an image has the shape"):
        list(batches([*levels(5), np.zeros((2, 2, 2), np.uint8), *levels(9)], SQUASH, 4, threads))
    (tmp_path / "b.jpg").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"^\S+b\.jpg cannot be embedded: not an image"):
        list(batches([*levels(5), tmp_path / "b.jpg"], SQUASH, 4, threads))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("openjepa-images")]


def test_threads_leave_the_filters_of_warnings_as_they_were(tmp_path: Path) -> None:
    """Decoding silences Pillow with warnings.catch_warnings, which two threads can leave in a wrong state."""
    files = []
    for number in range(24):
        files.append(tmp_path / f"{number}.png")
        shape_image(number, 40).save(files[-1])
    before = list(warnings.filters)
    for _ in range(5):
        list(batches(files, SQUASH, 8, 4))
        assert warnings.filters == before
