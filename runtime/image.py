"""Pictures: files, bytes and arrays to uint8 (H, W, 3) RGB and back; masks, contact sheets, PNG metadata.

The only file that meets Pillow, inside functions. What needs no Pillow is in `pixels`.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import warnings
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np

from ..engines.binding import Array
from ..engines.storage import atomic_write
from ..engines.strict import JSON
from ..errors import BundleError, ImageError, MissingDependency
from .pixels import MAX_PIXELS, check_size, eight_bits, from_array, from_float, over_white, resize_mask, to_float

if TYPE_CHECKING:
    from PIL import Image

__all__ = [
    "MAX_PIXELS",
    "Source",
    "contact_sheet",
    "encode",
    "from_float",
    "read",
    "read_mask",
    "read_parameters",
    "resize",
    "resize_mask",
    "to_float",
    "write",
]

Source: TypeAlias = "str | os.PathLike[str] | bytes | Array"
"""Where a picture comes from: a path, the bytes of a file, or an array."""

_KEYWORD = "parameters"
_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}


def read(source: Source, *, max_pixels: int = MAX_PIXELS) -> Array:
    """A picture as RGB.

    Palettes, grayscale, CMYK and 16 bits become 8-bit RGB; 16 bits of gray are rounded, of colour Pillow keeps the
    upper 8. The EXIF orientation is applied; transparency is laid over white; of an animation the first frame is taken.
    Colour profiles are not applied.

    Arguments:
        source: A path, the bytes of a file, or a uint8 or uint16 array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4).
        max_pixels: Most pixels (H · W).

    Returns:
        uint8 (H, W, 3), contiguous and the caller's own.

    Raises:
        ImageError: It is missing, not a picture, truncated, too large, empty, or of floating-point pixels.
    """
    if isinstance(source, np.ndarray):
        return from_array(source, max_pixels)
    with _opened(source, max_pixels) as (image, label):
        return _rgb(image, label)


def read_mask(source: Source, size: tuple[int, int] | None = None, *, max_pixels: int = MAX_PIXELS) -> Array:
    """A mask: white (brightness above one half) is the part to repaint.

    Arguments:
        source: As for `read`; transparency counts as white. A bool array is taken as it is.
        size: Height and width to bring it to (nearest neighbour); None keeps its own.

    Returns:
        bool (H, W), True = repaint.
    """
    if isinstance(source, np.ndarray) and source.dtype == np.bool_ and source.ndim == 2:
        mask = source.copy()
    else:
        mask = read(source, max_pixels=max_pixels).astype(np.uint16).sum(axis=2) > 382
    return mask if size is None or mask.shape == size else resize_mask(mask, size)


def write(path: str | os.PathLike[str], image: Array, parameters: Mapping[str, JSON] | None = None) -> None:
    """Write a picture atomically; the format follows the suffix (.png, .jpg, .jpeg, .webp).

    The same picture and parameters give the same bytes: nothing of time or place is written.

    Arguments:
        path: File to write or replace.
        image: uint8 (H, W, 3).
        parameters: What made it, JSON; in PNG as the text chunk "parameters" (iTXt, or tEXt where it is ASCII), in JPEG
            as its comment. WebP holds none.

    Raises:
        ImageError: The suffix is unknown, the folder is missing or full, or the picture is not uint8 (H, W, 3).
    """
    path = Path(path)
    if path.suffix.lower() not in _FORMATS:
        raise ImageError(f"{path}: no format has the suffix {path.suffix!r}; use {', '.join(_FORMATS)}")
    data = encode(image, parameters, format=_FORMATS[path.suffix.lower()])
    try:
        atomic_write(path, data)
    except BundleError as error:
        raise ImageError(str(error)) from error


def encode(image: Array, parameters: Mapping[str, JSON] | None = None, *, format: str = "PNG") -> bytes:
    """The bytes of a picture file ("PNG", "JPEG" or "WEBP"); see `write`."""
    picture = _picture(image)
    text = None if parameters is None else json.dumps(parameters, sort_keys=True, ensure_ascii=False)
    out = io.BytesIO()
    if format == "PNG":
        from PIL.PngImagePlugin import PngInfo

        info = PngInfo()
        if text is not None and text.isascii():
            info.add_text(_KEYWORD, text)
        elif text is not None:
            info.add_itxt(_KEYWORD, text)
        picture.save(out, "PNG", compress_level=6, pnginfo=info)
    elif format == "JPEG":
        picture.save(out, "JPEG", quality=95, subsampling=0, comment=text or "")
    else:
        picture.save(out, format, quality=95)
    return out.getvalue()


def read_parameters(source: str | os.PathLike[str] | bytes) -> dict[str, JSON]:
    """The parameters that `write` left in a PNG or JPEG; empty if there are none."""
    with _opened(source, MAX_PIXELS) as (image, _):
        found = image.info.get(_KEYWORD, image.info.get("comment", "{}"))
    try:
        value = json.loads(found)
    except (ValueError, RecursionError):
        return {}
    return cast("dict[str, JSON]", value) if isinstance(value, dict) else {}


def resize(image: Array, size: tuple[int, int], *, bicubic: bool = False) -> Array:
    """uint8 (H, W, 3) brought to height and width `size` with Pillow's Lanczos filter, or its bicubic one."""
    if image.shape[:2] == tuple(size):
        return image
    if min(size) < 1:
        raise ImageError(f"a picture cannot be resized to {size[0]}x{size[1]}; height and width must be 1 or more")
    filters = _pil().Resampling
    return np.array(_picture(image).resize((size[1], size[0]), filters.BICUBIC if bicubic else filters.LANCZOS))


def contact_sheet(
    images: Sequence[Array],
    *,
    captions: Sequence[str] | None = None,
    columns: int | None = None,
    gap: int = 4,
    cell: tuple[int, int] | None = None,
) -> Array:
    """Pictures on a white grid, left to right and top to bottom.

    Arguments:
        images: uint8 (H, W, 3) each; larger ones than the cell are shrunk, smaller ones stand in its middle.
        captions: A line under each, cut to the width of the cell.
        columns: Pictures in a row; by default a nearly square grid.
        gap: Pixels between and around pictures.
        cell: Height and width of a picture's place; by default the largest height and width.

    Returns:
        uint8 (H, W, 3).
    """
    if not len(images):
        raise ImageError("a contact sheet needs pictures, none were given; pass one or more")
    if captions is not None and len(captions) != len(images):
        raise ImageError(f"a contact sheet has {len(images)} pictures and {len(captions)} captions; pass as many")
    count = len(images)
    columns = min(count, columns or math.ceil(math.sqrt(count)))
    rows = math.ceil(count / columns)
    height, width = cell or (max(i.shape[0] for i in images), max(i.shape[1] for i in images))
    line = 14 if captions is not None else 0
    sheet = _pil().new("RGB", (columns * (width + gap) + gap, rows * (height + line + gap) + gap), (255, 255, 255))
    for index, image in enumerate(images):
        top = gap + (index // columns) * (height + line + gap)
        left = gap + (index % columns) * (width + gap)
        scale = min(1.0, height / image.shape[0], width / image.shape[1])
        fitted = resize(image, (max(1, int(image.shape[0] * scale)), max(1, int(image.shape[1] * scale))))
        sheet.paste(_picture(fitted), (left + (width - fitted.shape[1]) // 2, top + (height - fitted.shape[0]) // 2))
        if captions is not None:
            _caption(sheet, captions[index], left, top + height, width)
    return np.array(sheet)


def _caption(sheet: Image.Image, text: str, left: int, top: int, width: int) -> None:
    from PIL import ImageDraw, ImageFont

    draw = ImageDraw.Draw(sheet)
    try:
        font: Any = ImageFont.load_default(size=10)
    except (TypeError, OSError):  # Pillow built without FreeType: the bitmap font, which knows Latin-1 only
        font = ImageFont.load_default()
        text = text.encode("latin-1", "replace").decode("latin-1")
    text = " ".join(text.split())
    kept = text
    while kept and draw.textlength(kept if kept == text else kept + "...", font=font) > width:
        kept = kept[:-1]
    draw.text((left, top + 1), kept if kept == text else kept + "...", fill=(32, 32, 32), font=font)


def _pil() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingDependency("PIL", "cpu", "reading and writing pictures") from error
    return Image


def _picture(image: Array) -> Image.Image:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ImageError(f"a picture is uint8 (H, W, 3), this is {image.dtype} {image.shape}; use from_float")
    return cast("Image.Image", _pil().fromarray(np.ascontiguousarray(image)))


@contextlib.contextmanager
def _opened(source: str | os.PathLike[str] | bytes, max_pixels: int) -> Generator[tuple[Image.Image, str]]:
    """Pillow's picture of a path or of bytes, with its size checked; whatever Pillow raises becomes `ImageError`."""
    pil = _pil()
    label = "the picture" if isinstance(source, bytes) else os.fspath(source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pil.DecompressionBombWarning)
            warnings.filterwarnings("ignore", category=UserWarning, module="PIL")
            with pil.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
                check_size(image.size[0], image.size[1], max_pixels, label)
                yield image, label
    except FileNotFoundError as error:
        raise ImageError(f"{label}: does not exist; pass the path of a picture") from error
    except (pil.DecompressionBombError, pil.DecompressionBombWarning) as error:
        raise ImageError(f"{label}: is larger than any picture read ({max_pixels} pixels); shrink it") from error
    except pil.UnidentifiedImageError as error:
        raise ImageError(f"{label}: is not a picture in a format that Pillow reads; pass PNG, JPEG, WebP …") from error
    except ImageError:
        raise
    except IsADirectoryError as error:
        raise ImageError(f"{label}: is a folder; pass the path of a picture") from error
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, TypeError, ArithmeticError) as error:
        raise ImageError(f"{label}: cannot be read as a picture ({error}); is it cut short or damaged?") from error


def _rgb(image: Image.Image, label: str) -> Array:
    from PIL import ImageOps

    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode in ("F", "I;16S"):
        raise ImageError(f"{label}: has floating-point or signed pixels ({image.mode}); make it 8 or 16 bits first")
    if image.mode.startswith("I"):  # 16 bits, under any of Pillow's names for them
        gray = np.clip(np.asarray(image), 0, 65535).astype(np.uint16)
        return np.array(np.broadcast_to(eight_bits(gray)[..., None], (*gray.shape, 3)))
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        return over_white(np.asarray(image.convert("RGBA")))
    return np.array(image.convert("RGB"))
