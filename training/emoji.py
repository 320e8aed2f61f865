"""Captioned emoji pictures rendered from the Noto and Fluent icon sets, and random batches of them.

Sources (npm): ``@iconify-json/noto`` (Apache-2.0) and ``@iconify-json/fluent-emoji-flat`` (MIT). Icons
are SVG bodies under a name, and the name is the caption. Skin tones are left out everywhere; the
text-to-picture model is trained on pictures of things alone: no people, faces, signs and flags, and
none that no caption of a few words tells apart.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import MissingDependency

SETS = ("noto", "fluent-emoji-flat")
NPM_PACKAGES = ("@iconify-json/noto@1.2.9", "@iconify-json/fluent-emoji-flat@1.2.6")
# Words that end captions of the flat set, so that the two styles can be asked for by name.
STYLE = {"noto": "", "fluent-emoji-flat": "flat"}
THINGS = ("Activities", "Animals & Nature", "Food & Drink", "Objects", "Travel & Places")
_TONE = re.compile(r"-(light|medium-light|medium|medium-dark|dark)(-skin-tone)?(-|$)")
_UNTOLD = re.compile(
    r"^(letter|digit|keycap|japanese|input|family|kiss|couple|people|left-facing-fist|right-facing-fist|\d+$)"
    r"|facing-right$|oclock$|thirty$|-button$|^(man|woman|person)-.*-hair$|hand-?(s|wards)?-.*-hand"
)


@dataclass(frozen=True)
class Emoji:
    """One picture: uint8 (size, size, 4) RGBA with straight alpha, and its words."""

    set: str
    name: str
    rgba: np.ndarray
    category: str = ""

    @property
    def caption(self) -> str:
        """Its name as words, with the style's word behind a comma for the flat set."""
        words = self.name.replace("-", " ")
        return f"{words}, {STYLE[self.set]}" if STYLE[self.set] else words

    @property
    def held_out(self) -> bool:
        """True for 5 % of the names, the same in both sets; chosen by a hash of the name."""
        return hashlib.sha256(self.name.encode()).digest()[0] < 13


def _render(body: str, extent: int, size: int) -> np.ndarray:
    try:
        import resvg_py
    except ImportError as error:
        raise MissingDependency("resvg_py", "train", "drawing the emoji") from error

    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="0 0 {extent} {extent}" width="{extent}" height="{extent}">{body}</svg>'
    )
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=2 * size, height=2 * size))
    rgba = np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"), dtype=np.float32) / 255.0
    alpha = rgba[..., 3:]
    # Average premultiplied colours, else transparent neighbours darken the edges.
    packed = np.concatenate([rgba[..., :3] * alpha, alpha], axis=-1)
    packed = packed.reshape(size, 2, size, 2, 4).mean(axis=(1, 3))
    colour = packed[..., :3] / np.maximum(packed[..., 3:], 1e-6)
    straight = np.concatenate([colour, packed[..., 3:]], axis=-1)
    return (straight * 255.0 + 0.5).clip(0, 255).astype(np.uint8)


def load(root: Path, *, size: int = 64) -> list[Emoji]:
    """Renders every icon without skin tone; cached as ``emoji-<size>.npz`` beside the packages.

    Arguments:
        root: Folder in which ``npm install`` put ``node_modules`` with both packages.

    Raises:
        FileNotFoundError: The packages are not there; the message holds the npm command.
    """
    cache = root / f"emoji-{size}.npz"
    if cache.exists():
        with np.load(cache) as data:
            rows = zip(data["sets"], data["names"], data["pixels"], data["categories"], strict=True)
            return [Emoji(str(s), str(n), p, str(c)) for s, n, p, c in rows]
    emoji = [
        Emoji(set_name, name, _render(icon["body"], extent, size), category)
        for set_name in SETS
        for name, icon, extent, category in _icons(root, set_name)
    ]
    np.savez_compressed(
        cache,
        sets=np.array([e.set for e in emoji]),
        names=np.array([e.name for e in emoji]),
        pixels=np.stack([e.rgba for e in emoji]),
        categories=np.array([e.category for e in emoji]),
    )
    return emoji


def _icons(root: Path, set_name: str) -> list[tuple[str, dict[str, Any], int, str]]:
    folder = root / "node_modules" / "@iconify-json" / set_name
    path = folder / "icons.json"
    if not path.exists():
        packages = " ".join(NPM_PACKAGES)
        raise FileNotFoundError(f"{path} is missing; run: npm install --prefix {root} {packages}")
    icons = json.loads(path.read_text())
    extent = int(icons["width"])
    metadata = json.loads((folder / "metadata.json").read_text())
    category = {name: c for c, names in metadata["categories"].items() for name in names}
    return [
        (name, icon, extent, category.get(name, "")) for name, icon in icons["icons"].items() if not _TONE.search(name)
    ]


def tellable(emoji: list[Emoji]) -> list[Emoji]:
    """Leaves out pictures that differ by gender alone, families, letters, clocks and signs of text."""
    names = {(e.set, e.name) for e in emoji}

    def twin(e: Emoji) -> bool:
        head, _, tail = e.name.partition("-")
        if head not in ("man", "woman") or not tail:
            return False
        return (e.set, f"person-{tail}") in names or (e.set, tail) in names

    return [e for e in emoji if not _UNTOLD.search(e.name) and not twin(e)]


def things(emoji: list[Emoji]) -> list[Emoji]:
    """What the text-to-picture model is trained on: tellable pictures of animals, food, objects, places, sports."""
    return [e for e in tellable(emoji) if e.category in THINGS]


def over(rgba: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Composites uint8 RGBA (B, H, W, 4) over colours (B, 3) in [0, 255] -> float32 (B, 3, H, W) in [-1, 1]."""
    alpha = rgba[..., 3:].astype(np.float32) / 255.0
    mixed = rgba[..., :3] * alpha + background[:, None, None, :].astype(np.float32) * (1 - alpha)
    return np.ascontiguousarray(mixed.transpose(0, 3, 1, 2)) / 127.5 - 1.0


def batch(
    pixels: np.ndarray, size: int, rng: np.random.Generator, *, recolour: float = 0.3, white: float = 0.5
) -> np.ndarray:
    """Random pictures, flipped, shifted and recoloured, over plain backgrounds: (B, 3, H, W) in [-1, 1].

    Arguments:
        pixels: uint8 RGBA (N, H, W, 4).
        size: B.
        rng: Draws.
        recolour: Share of pictures whose channels change places.
        white: Share of white backgrounds; the others have any colour.
    """
    rows = pixels[rng.integers(len(pixels), size=size)].copy()
    for row in rows:
        shift = rng.integers(-6, 7, size=2)
        row[...] = np.roll(row, tuple(shift), axis=(0, 1))
        if rng.random() < 0.5:
            row[...] = row[:, ::-1]
        if rng.random() < recolour:
            row[..., :3] = row[..., rng.permutation(3)]
    background = np.where(rng.random((size, 1)) < white, 255, rng.integers(0, 256, (size, 3)))
    return over(rows, background)
