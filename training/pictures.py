"""Pictures to train and test on: the emoji, or a folder of photographs cropped as Cold Diffusion's code crops them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from . import emoji

__all__ = ["SUFFIXES", "EmojiPictures", "FolderPictures", "Pictures", "held_out"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


class Pictures(Protocol):
    """A set of pictures in two parts, one to train on and one held out."""

    def draw(self, size: int, rng: np.random.Generator) -> np.ndarray:
        """A random, augmented batch to train on, float32 (size, 3, H, W) in [-1, 1]."""
        ...

    def unseen(self) -> np.ndarray:
        """The pictures that are held out, float32 (N, 3, H, W) in [-1, 1]."""
        ...


def held_out(name: str, share: float = 0.0625) -> bool:
    """True for this share of names, chosen by a hash; every `emoji.Emoji.held_out` is among a sixteenth."""
    return hashlib.sha256(name.encode()).digest()[0] < 256 * share


class EmojiPictures:
    """Emoji over plain backgrounds, mostly white; those held out are over white.

    Arguments:
        root: Folder in which ``npm install`` put the packages; see `emoji.load`.
        size: Side in pixels.
        recolour: Share of training pictures whose channels change places; 0 where colour itself is learned.
        white: Share of white backgrounds.
    """

    def __init__(self, root: Path, size: int = 64, *, recolour: float = 0.3, white: float = 0.7) -> None:
        pictures = emoji.load(root, size=size)
        self._recolour, self._white = recolour, white
        self.seen = np.stack([e.rgba for e in pictures if not held_out(e.name)])
        self._unseen = np.stack([e.rgba for e in pictures if held_out(e.name)])

    def draw(self, size: int, rng: np.random.Generator) -> np.ndarray:
        """See `Pictures`."""
        return emoji.batch(self.seen, size, rng, recolour=self._recolour, white=self._white)

    def unseen(self) -> np.ndarray:
        """See `Pictures`."""
        return emoji.over(self._unseen, np.full((len(self._unseen), 3), 255))


class FolderPictures:
    """Picture files of a folder: shorter side to ``int(1.12 size)``, a random crop and flip; held out: the centre.

    Arguments:
        root: Searched through; a sixteenth of the files by name is held out.
        size: Side in pixels.
        flip: Whether mirrored pictures are pictures too.

    Raises:
        FileNotFoundError: There is no such folder, or fewer than two pictures are left for either part.
    """

    def __init__(self, root: Path, size: int = 64, *, flip: bool = True) -> None:
        self._size, self._flip = size, flip
        if not root.is_dir():
            raise FileNotFoundError(f"{root} is not a folder; pass one that holds pictures")
        paths = sorted(p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES)
        held = [p for p in paths if held_out(p.name)]
        if len(held) < 2 or len(paths) - len(held) < 2:
            raise FileNotFoundError(f"{root} holds {len(paths)} pictures, {len(held)} of them held out; add pictures")
        self._seen = [_enlarged(p, int(1.12 * size)) for p in paths if p not in set(held)]
        self._held = [_enlarged(p, size) for p in held]

    def draw(self, size: int, rng: np.random.Generator) -> np.ndarray:
        """See `Pictures`."""
        crops = []
        for index in rng.integers(len(self._seen), size=size):
            picture = self._seen[index]
            top, left = (int(rng.integers(extent - self._size + 1)) for extent in picture.shape[:2])
            crop = picture[top : top + self._size, left : left + self._size]
            crops.append(crop[:, ::-1] if self._flip and rng.random() < 0.5 else crop)
        return _floats(crops)

    def unseen(self) -> np.ndarray:
        """See `Pictures`."""
        crops = []
        for picture in self._held:
            top, left = ((extent - self._size) // 2 for extent in picture.shape[:2])
            crops.append(picture[top : top + self._size, left : left + self._size])
        return _floats(crops)


def _enlarged(path: Path, side: int) -> np.ndarray:
    with Image.open(path) as image:
        rgb = image.convert("RGB")
    scale = side / min(rgb.size)
    width, height = (max(side, round(extent * scale)) for extent in rgb.size)
    return np.asarray(rgb.resize((width, height), Image.Resampling.BILINEAR))


def _floats(crops: list[np.ndarray]) -> np.ndarray:
    stacked = np.stack(crops).astype(np.float32).transpose(0, 3, 1, 2)
    return np.ascontiguousarray(stacked) / np.float32(127.5) - np.float32(1)
