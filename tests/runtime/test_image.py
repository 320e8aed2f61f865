"""Pictures of every kind are read to RGB, written whole or not at all, and the same twice."""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sfumato.errors import ImageError
from sfumato.runtime import image as pictures
from sfumato.runtime import pixels

RGB = np.random.default_rng(0).integers(0, 256, (9, 13, 3)).astype(np.uint8)


def png(image: Image.Image, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, options.pop("format", "PNG"), **options)
    return out.getvalue()


def test_a_path_its_bytes_and_its_array_are_one_picture(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(RGB).save(path)
    for source in (path, str(path), path.read_bytes(), RGB):
        got = pictures.read(source)
        assert np.array_equal(got, RGB) and got.flags.c_contiguous and got.flags.owndata and got.flags.writeable
    assert not np.may_share_memory(pictures.read(RGB), RGB)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr"])
def test_modes_become_rgb(mode: str) -> None:
    image = Image.fromarray(RGB).convert(mode)
    data = png(image, format="TIFF" if mode in ("CMYK", "YCbCr") else "PNG")
    assert np.abs(pictures.read(data).astype(int) - np.asarray(image.convert("RGB"))).max() <= 1


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P"])
def test_transparency_is_laid_over_white(mode: str) -> None:
    rgba = np.dstack([RGB, np.zeros(RGB.shape[:2], np.uint8)])
    rgba[:4, :, 3] = 255
    if mode == "P":
        image = Image.fromarray(np.where(rgba[..., 3] > 0, 1, 0).astype(np.uint8)).convert("P")
        image.putpalette([9, 9, 9, 0, 0, 0] + [0] * 762)
        image.info["transparency"] = 0
        data = png(image, transparency=0)
    elif mode == "PA":
        data = png(Image.fromarray(rgba).convert("PA"), format="TIFF") if False else png(Image.fromarray(rgba))
    else:
        data = png(Image.fromarray(rgba).convert(mode))
    got = pictures.read(data)
    assert (got[4:] == 255).all() and (got[:4] != 255).any()


def test_half_transparency_is_mixed_with_rounding() -> None:
    rgba = np.array([[[0, 100, 255, 128]]], np.uint8)
    expected = np.rint(rgba[..., :3] * (128 / 255) + 255 * (127 / 255))
    assert np.array_equal(pictures.read(rgba), expected)
    assert np.array_equal(pictures.read(png(Image.fromarray(rgba))), expected)


def test_sixteen_bits_are_rounded_not_clipped() -> None:
    gray = np.array([[0, 128, 129, 257, 32768, 65535]], np.uint16)
    expected = np.rint(gray / 257)[..., None].repeat(3, axis=2)
    assert np.array_equal(pictures.read(gray), expected)
    assert np.array_equal(pictures.read(png(Image.fromarray(gray))), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_the_picture(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    got = pictures.read(png(Image.fromarray(RGB), exif=exif))
    turned = {
        1: RGB,
        2: RGB[:, ::-1],
        3: RGB[::-1, ::-1],
        4: RGB[::-1],
        5: RGB.swapaxes(0, 1),
        6: np.rot90(RGB, -1),
        7: np.rot90(RGB, 2).swapaxes(0, 1),
        8: np.rot90(RGB),
    }
    assert np.array_equal(got, turned[orientation])


def test_one_pixel_and_the_first_frame_of_an_animation() -> None:
    assert pictures.read(png(Image.new("RGB", (1, 1), (1, 2, 3)))).tolist() == [[[1, 2, 3]]]
    frames = [Image.new("RGB", (4, 4), color) for color in ((255, 0, 0), (0, 255, 0))]
    data = png(frames[0], format="GIF", save_all=True, append_images=frames[1:])
    assert pictures.read(data)[0, 0].tolist() == [255, 0, 0]


BROKEN: list[tuple[Any, str]] = [
    (b"", "is not a picture"),
    (b"hello", "is not a picture"),
    (png(Image.fromarray(RGB))[:80], "cannot be read as a picture|not a picture"),
    ("missing.png", "does not exist; pass the path of a picture"),
    (".", "is a folder"),
    (np.zeros((0, 4, 3), np.uint8), r"this is \(0, 4, 3\)"),
    (np.zeros((4, 4, 2), np.uint8), r"this is \(4, 4, 2\)"),
    (np.zeros((4, 4, 3), np.float32), "uint8 or uint16, this is float32"),
    (png(Image.fromarray(np.zeros((4, 4), np.float32)), format="TIFF"), "floating-point"),
]


@pytest.mark.parametrize(("source", "message"), BROKEN)
def test_what_is_no_picture_says_why(source: Any, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        pictures.read(source)


def test_huge_pictures_are_refused_by_their_header() -> None:
    with pytest.raises(ImageError, match=r"has 13x9 = 117 pixels, at most 100 are read; shrink it"):
        pictures.read(png(Image.fromarray(RGB)), max_pixels=100)
    with pytest.raises(ImageError, match="at most 100 are read"):
        pictures.read(RGB, max_pixels=100)
    # The IHDR of a PNG that would unfold to 30 GB; Pillow's own guard speaks first.
    bomb = bytearray(png(Image.new("1", (8, 8))))
    bomb[16:24] = (100_000).to_bytes(4, "big") * 2
    import zlib

    bomb[29:33] = zlib.crc32(bytes(bomb[12:29])).to_bytes(4, "big")
    with pytest.raises(ImageError, match="larger than any picture read|pixels"):
        pictures.read(bytes(bomb))


def test_a_mask_is_true_where_it_is_bright() -> None:
    gray = np.array([[0, 127, 128, 255]], np.uint8)
    assert pictures.read_mask(gray).tolist() == [[False, False, True, True]]
    assert pictures.read_mask(gray, (2, 2)).tolist() == [[False, True]] * 2
    own = np.array([[True, False]])
    assert np.array_equal(pictures.read_mask(own), own) and pictures.read_mask(own) is not own


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_written_pictures_come_back_with_their_parameters(tmp_path: Path, suffix: str) -> None:
    smooth = np.linspace(0, 255, 64 * 64 * 3).reshape(64, 64, 3).astype(np.uint8)
    for parameters in ({"prompt": "a red apple", "seed": 1}, {"prompt": "リンゴ 🍎"}):
        path = tmp_path / f"a{suffix}"
        pictures.write(path, smooth, parameters)
        assert np.abs(pictures.read(path).astype(int) - smooth).max() <= (0 if suffix == ".png" else 40)
        assert pictures.read_parameters(path) == ({} if suffix == ".webp" else parameters)
    assert pictures.read_parameters(png(Image.fromarray(RGB))) == {}


def test_parameters_that_are_no_json_object_are_none() -> None:
    for text in ("{", "[1]", "[" * 100_000, "steps: 20"):
        info = PngInfo()
        info.add_text("parameters", text)
        assert pictures.read_parameters(png(Image.fromarray(RGB), pnginfo=info)) == {}


def test_the_same_picture_and_parameters_give_the_same_bytes() -> None:
    a = pictures.encode(RGB, {"b": 1, "a": [2, "ä"]})
    assert a == pictures.encode(RGB.copy(), {"a": [2, "ä"], "b": 1})
    assert a != pictures.encode(RGB, {"b": 2, "a": [2, "ä"]})


def test_what_cannot_be_written_says_why_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ImageError, match=r"no format has the suffix '.bmp'; use .png"):
        pictures.write(tmp_path / "a.bmp", RGB)
    with pytest.raises(ImageError, match="choose a folder you may write to"):
        pictures.write(tmp_path / "missing" / "a.png", RGB)
    for bad in (RGB.astype(np.float32), RGB[..., 0], RGB[:0]):
        with pytest.raises(ImageError, match=r"a picture is uint8 \(H, W, 3\)"):
            pictures.write(tmp_path / "a.png", bad)

    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(ImageError, match="No space left.*free space there"):
        pictures.write(tmp_path / "a.png", RGB)
    assert list(tmp_path.iterdir()) == []


def test_a_written_picture_may_be_read_by_others(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        pictures.write(tmp_path / "a.png", RGB)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.png").stat().st_mode) == 0o644


def test_resize_is_lanczos_and_keeps_constants() -> None:
    flat = np.full((5, 7, 3), 93, np.uint8)
    assert (pictures.resize(flat, (16, 3)) == 93).all() and pictures.resize(flat, (16, 3)).shape == (16, 3, 3)
    assert pictures.resize(flat, (5, 7)) is flat
    with pytest.raises(ImageError, match="0x4"):
        pictures.resize(flat, (0, 4))


def test_contact_sheets_hold_every_picture_and_any_caption() -> None:
    images = [np.full((8, 8, 3), i * 40, np.uint8) for i in range(5)]
    sheet = pictures.contact_sheet(images, gap=2)
    assert sheet.shape == (2 * 10 + 2, 3 * 10 + 2, 3)
    assert sheet[3, 3, 0] == 0 and sheet[13, 13, 0] == 160 and sheet[13, 25, 0] == 255
    captioned = pictures.contact_sheet(images, captions=["red", "リンゴ", "", "a" * 99, "\n"], columns=2)
    assert captioned.shape[1] == 2 * 12 + 4 and (captioned < 128).any()
    assert pictures.contact_sheet([np.zeros((40, 80, 3), np.uint8)], cell=(10, 10), gap=0).shape == (10, 10, 3)
    with pytest.raises(ImageError, match="none were given"):
        pictures.contact_sheet([])
    with pytest.raises(ImageError, match="5 pictures and 1 captions"):
        pictures.contact_sheet(images, captions=["x"])


def test_float_and_back_is_the_same_picture() -> None:
    x = pixels.to_float(RGB)
    assert x.shape == (1, 3, 9, 13) and x.dtype == np.float32 and -1 <= x.min() and x.max() <= 1
    assert np.array_equal(x[0, 1, 2, 3], np.float32(RGB[2, 3, 1]) / np.float32(255) * np.float32(2) - np.float32(1))
    assert np.array_equal(pixels.from_float(x)[0], RGB)
    every = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    assert np.array_equal(pixels.from_float(pixels.to_float(every))[0], every)


def test_rounding_and_the_official_truncation() -> None:
    x = ((np.array([[10.2, 10.7, -3, 300]]) / 255) * 2 - 1).astype(np.float32)[None, None].repeat(3, axis=1)
    assert pixels.from_float(x)[0, 0, :, 0].tolist() == [10, 11, 0, 255]
    assert pixels.from_float(x, official=True)[0, 0, :, 0].tolist() == [10, 10, 0, 255]
    untouched = x.copy()
    pixels.from_float(x)
    assert np.array_equal(x, untouched)


def test_masks_resize_as_torch_does() -> None:
    torch = pytest.importorskip("torch")
    mask = np.random.default_rng(3).integers(0, 2, (1, 1, 33, 50)).astype(np.float32)
    for size in ((16, 25), (7, 9), (66, 51)):
        theirs = torch.nn.functional.interpolate(torch.from_numpy(mask), size=size).numpy()
        assert np.array_equal(pixels.resize_mask(mask, size), theirs)
