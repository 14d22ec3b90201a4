"""JPEG files that every viewer opens are read, if all of their pixels are there; damaged and cut-off ones are not."""

import io
import time
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from openjepa.data.decode import DecodeError, decode_image, image_size
from tests.helpers.jpeg_files import after, lossless, photo, saved, segment

PHOTO = photo()
PLAIN = saved(PHOTO)
KINDS: dict[str, bytes] = {
    "baseline": PLAIN,
    "progressive": saved(PHOTO, progressive=True),
    "restarts": saved(PHOTO, restart_marker_blocks=2),
    "gray": saved(PHOTO[:, :, 0], "L"),
    "CMYK": saved(np.concatenate([PHOTO, PHOTO[:, :, :1]], axis=2), "CMYK"),
}


def version(data: bytes, number: bytes) -> bytes:
    at = data.index(b"JFIF\0") + 5
    return data[:at] + number + data[at + 2 :]


def scan_words(data: bytes) -> bytes:
    end = after(data, 0xDA)
    return data[: end - 3] + b"\0\0\0" + data[end:]


def adobe_color(data: bytes) -> bytes:
    """Without JFIF, which would say what the colors are."""
    return data[:2] + segment(0xEE, b"Adobe\0d\0\0\0\0\x09") + data[after(data, 0xE0) :]


def with_profile(data: bytes, *numbers: int) -> bytes:
    """With the parts of these numbers of a color profile that has three."""
    parts = b"".join(segment(0xE2, b"ICC_PROFILE\0" + bytes([number, 3]) + bytes(40)) for number in numbers)
    return data[: after(data, 0xE0)] + parts + data[after(data, 0xE0) :]


ODD: dict[str, Callable[[bytes], bytes]] = {
    "JFIF 0.00": lambda data: version(data, b"\0\0"),
    "JFIF 2.01": lambda data: version(data, b"\2\1"),
    "99 zeros before the end": lambda data: data[:-2] + bytes(99) + data[-2:],
    "fill of 0xff before the end": lambda data: data[:-2] + b"\xff" * 99 + data[-2:],
    "fill of spaces before the end": lambda data: data[:-2] + b" " * 1000 + data[-2:],
    "one odd byte before the end": lambda data: data[:-2] + b"\x7f" + data[-2:],
    "bytes between segments": lambda data: data[: after(data, 0xE0)] + bytes(50) + b"camera" + data[after(data, 0xE0) :],
    "bytes before the scan": lambda data: data[: after(data, 0xC4)] + b"\x01\x02\x03" + data[after(data, 0xC4) :],
    "bytes after the end": lambda data: data + b"more",
    "no end marker": lambda data: data[:-2],
    "half an end marker": lambda data: data[:-1],
    "two of three parts of a profile": lambda data: with_profile(data, 1, 2),
    "a part of a profile alone": lambda data: with_profile(data, 3),
    "a part of a profile twice": lambda data: with_profile(data, 2, 2),
    "parts of a profile that no number has": lambda data: with_profile(data, 0, 9),
    "several of these": lambda data: ODD["99 zeros before the end"](ODD["bytes between segments"](version(data, b"\0\0"))),
}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "CMYK"])
def test_odd_files_have_the_pixels_of_the_plain_one(kind: str, name: str) -> None:
    data = ODD[name](KINDS[kind])
    assert data != KINDS[kind]
    np.testing.assert_array_equal(decode_image(data), decode_image(KINDS[kind]))
    assert image_size(data) == (48, 64)


@pytest.mark.parametrize("change", [scan_words, adobe_color])
@pytest.mark.parametrize("kind", ["baseline", "restarts"])
def test_words_that_libjpeg_warns_of(kind: str, change: Callable[[bytes], bytes]) -> None:
    data = change(KINDS[kind])
    np.testing.assert_array_equal(decode_image(data), decode_image(KINDS[kind]))
    assert image_size(data) == (48, 64)


@pytest.mark.parametrize("name", ODD)
def test_reduced_decoding_reads_the_same_files(name: str) -> None:
    large = saved(np.asarray(Image.fromarray(PHOTO).resize((512, 384), Image.Resampling.BILINEAR)))
    reduced = decode_image(ODD[name](large), 96)
    assert reduced.shape == (96, 128, 3)
    np.testing.assert_array_equal(reduced, decode_image(large, 96))


def test_odd_files_are_turned_too() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    plain = saved(PHOTO, exif=exif)
    for change in (lambda data: data[:-2] + bytes(99) + data[-2:], lambda data: data[:2] + bytes(7) + data[2:]):
        assert image_size(change(plain)) == (64, 48)
        np.testing.assert_array_equal(decode_image(change(plain)), decode_image(plain))


@pytest.mark.parametrize("has_end", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_files_cut_off_anywhere_stay_refused(kind: str, has_end: bool) -> None:
    """In the header, in the middle, and in each of the last 60 bytes; also if something closed them with an end marker."""
    data = KINDS[kind]
    start = after(data, 0xDA)
    places = {*range(2, start, 37), *range(start, len(data) - 60, 61), *range(len(data) - 60, len(data) - 2)}
    places -= {place for place in places if has_end and kind == "progressive" and data[place : place + 1] == b"\xff"}
    refused = 0
    for place in sorted(places):
        try:
            pixels = decode_image(data[:place] + (b"\xff\xd9" if has_end else b""))
        except DecodeError:
            refused += 1
            continue
        # a last byte may be padding alone: then nothing is missing
        np.testing.assert_array_equal(pixels, decode_image(data), err_msg=str(place))
    assert refused >= len(places) - 1


def test_a_progressive_file_that_ends_between_scans_is_refused() -> None:
    """All of its scans are whole; those that follow are missing."""
    data = KINDS["progressive"]
    ends = [at for at in range(len(data) - 1) if data[at : at + 2] == b"\xff\xc4" and at > after(data, 0xDA)]
    assert len(ends) >= 5
    for end in ends:
        with pytest.raises(DecodeError, match="JPEG"):
            decode_image(data[:end])


@pytest.mark.parametrize("kind", ["baseline", "restarts", "gray"])
def test_a_zeroed_tail_is_no_fill(kind: str) -> None:
    """A download that was given its whole length and not finished: zeros may be read as pixels."""
    data = KINDS[kind]
    start = after(data, 0xDA)
    for place in range(start, len(data) - 2, 23):
        with pytest.raises(DecodeError, match="damaged JPEG"):
            decode_image(data[:place] + bytes(len(data) - place))
        with pytest.raises(DecodeError, match="damaged JPEG"):
            decode_image(data[:place] + bytes(5000) + b"\xff\xd9")


@pytest.mark.parametrize("kind", ["baseline", "progressive", "restarts"])
def test_what_libjpeg_notices_of_damage_stays_refused(kind: str) -> None:
    """Random changes in the middle: where the strict decoder fails, the mended file must not pass.

    An odd byte before the end is all that damage may be taken for: about one of 200.
    """
    import simplejpeg

    data, rng = KINDS[kind], np.random.default_rng(0)
    start = after(data, 0xDA)
    noticed = passed = 0
    for trial in range(300):
        hurt = bytearray(data)
        place = int(rng.integers(start, len(data) - 8))
        if trial % 3 == 0:
            hurt[place] ^= 1 << int(rng.integers(8))
        elif trial % 3 == 1:
            del hurt[place : place + int(rng.integers(1, 40))]
        else:
            length = min(int(rng.integers(1, 200)), len(data) - 2 - place)
            hurt[place : place + length] = bytes(length)
        try:
            simplejpeg.decode_jpeg(bytes(hurt))
        except ValueError:
            noticed += 1
            passed += is_read(bytes(hurt))
    assert noticed > 60 and passed <= 2


def is_read(data: bytes) -> bool:
    try:
        decode_image(data)
    except DecodeError:
        return False
    return True


def test_other_bytes_before_the_end_are_taken_for_damage() -> None:
    """What a scan that is damaged in its middle leaves looks the same."""
    rest = np.random.default_rng(1).integers(0, 255, 60, np.uint8).tobytes()
    with pytest.raises(DecodeError, match=r"damaged JPEG: .*extraneous"):
        decode_image(PLAIN[:-2] + rest + PLAIN[-2:])


@pytest.mark.parametrize("shape", [(24, 40), (24, 40, 3), (9, 7, 3)])
def test_lossless_files_keep_every_pixel(shape: tuple[int, ...]) -> None:
    pixels: NDArray[np.uint8] = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    data = lossless(pixels)
    expected = pixels if pixels.ndim == 3 else np.repeat(pixels[:, :, None], 3, axis=2)
    np.testing.assert_array_equal(decode_image(data), expected)
    # reduced decoding of these would write beyond the memory
    np.testing.assert_array_equal(decode_image(data, 4), expected)
    assert image_size(data) == shape[:2]
    for cut in (1, 3, 10, 40):
        with pytest.raises(DecodeError, match="damaged JPEG"):
            decode_image(data[: -2 - cut])
        with pytest.raises(DecodeError, match="damaged JPEG"):
            decode_image(data[: -2 - cut] + b"\xff\xd9")


def test_lossless_files_in_other_colors_are_refused_with_the_reason() -> None:
    data = lossless(np.zeros((8, 8, 3), np.uint8), names=b"\1\2\3", jfif=True)
    for read in (decode_image, image_size):
        with pytest.raises(DecodeError, match="lossless JPEG in YCbCr, which cannot be read: save it as RGB or gray"):
            read(data)


@pytest.mark.parametrize("bits", [12, 16])
def test_more_bits_are_refused_with_the_reason(bits: int) -> None:
    at = PLAIN.index(b"\xff\xc0")
    data = PLAIN[:at] + b"\xff\xc1" + PLAIN[at + 2 : at + 4] + bytes([bits]) + PLAIN[at + 5 :]
    for read in (decode_image, image_size):
        with pytest.raises(DecodeError, match=f"JPEG of {bits} bits per channel"):
            read(data)


def test_unknown_colors_are_refused_with_the_reason() -> None:
    start = PLAIN.index(b"\xff\xc0")
    two = PLAIN[: start + 9] + b"\x02" + PLAIN[start + 10 : start + 16] + PLAIN[start + 19 :]
    data = two[: start + 2] + b"\0\x0e" + two[start + 4 :]
    for read in (decode_image, image_size):
        with pytest.raises(DecodeError, match="JPEG of 2 channels"):
            read(data)


def test_cmyk_is_read_as_by_pillow_and_strictly() -> None:
    data = KINDS["CMYK"]
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(decode_image(data), expected)
    assert decode_image(data, 12).shape == (12, 16, 3)


def test_changed_bytes_anywhere_give_pixels_or_a_reason() -> None:
    rng = np.random.default_rng(0)
    for kind in ("baseline", "progressive"):
        for trial in range(300):
            data = bytearray(KINDS[kind])
            place = int(rng.integers(2, 700 if trial % 2 else len(data)))
            if trial % 3 == 0:
                data[place] = int(rng.integers(256))
            elif trial % 3 == 1:
                del data[place : place + int(rng.integers(1, 30))]
            else:
                data[place:place] = rng.integers(0, 256, 20, np.uint8).tobytes()
            for read in (decode_image, image_size):
                try:
                    read(bytes(data))
                except DecodeError as error:
                    assert str(error)


RUN = b"\xff" * 1_000_000
RUNS: dict[str, tuple[Callable[[bytes], bytes], bool]] = {
    "after the start": (lambda data: data[:2] + RUN + data[2:], True),
    "between segments": (lambda data: data[: after(data, 0xE0)] + RUN + data[after(data, 0xE0) :], True),
    "before the scan": (lambda data: data[: after(data, 0xC4)] + RUN + data[after(data, 0xC4) :], True),
    "before the end": (lambda data: data[:-2] + RUN + data[-2:], True),
    "after the end": (lambda data: data + RUN, True),
    "in place of the second half": (lambda data: data[: len(data) // 2] + RUN, False),
    "in place of all but the start": (lambda data: data[:2] + RUN, False),
    "zeros between them": (lambda data: data[: len(data) // 2] + b"\xff\0\xff" * 300_000, False),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_megabyte_of_fill_costs_no_time(name: str) -> None:
    change, is_whole = RUNS[name]
    data = change(PLAIN)
    began = time.perf_counter()
    for read in (decode_image, image_size):
        try:
            read(data)
        except DecodeError:
            assert not is_whole
    assert time.perf_counter() - began < 2
    if is_whole:
        np.testing.assert_array_equal(decode_image(data), decode_image(PLAIN))
