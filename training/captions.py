"""Captions of the emoji pictures: templates, plain backgrounds by name, which pictures may be mirrored."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from . import emoji
from .emoji import Emoji

BACKGROUNDS = {
    "white": (255, 255, 255),
    "black": (24, 24, 27),
    "gray": (160, 165, 170),
    "red": (214, 58, 58),
    "orange": (245, 150, 60),
    "yellow": (250, 214, 80),
    "green": (92, 176, 96),
    "light blue": (150, 205, 245),
    "blue": (58, 108, 214),
    "purple": (146, 92, 196),
    "pink": (246, 170, 196),
    "brown": (138, 96, 70),
}
# A mirrored picture must still be what its words say.
_HANDED = re.compile(
    r"\b(left|right|leftwards|rightwards|east|west|clock|clockwise|watch|calendar|number|sign|abc|check|"
    r"question|button|arrow|symbol|flag|chart|card|tile|musical|currency|dollar|euro|pound|yen|id|sos|"
    r"back|soon|end|zzz|hundred|percent|copyright|registered|trade)\b"
)


@dataclass(frozen=True)
class Example:
    """One training picture: which emoji, on what, mirrored or not, and the caption that says so."""

    index: int
    background: str
    mirrored: bool
    caption: str


def caption(picture: Emoji, background: str = "white", *, article: bool = False) -> str:
    """The words of a picture, e.g. "a red apple on a pink background, flat"."""
    words, comma, style = picture.caption.partition(", ")
    if article:
        words = f"{'an' if words[0] in 'aeiou' else 'a'} {words}"
    if background != "white":
        words = f"{words} on a {background} background"
    return words + comma + style


def examples(pictures: list[Emoji], rng: np.random.Generator, *, coloured: int = 2) -> list[Example]:
    """Two white versions of every picture (mirrored where that keeps the meaning) and some coloured."""
    names = list(BACKGROUNDS)[1:]
    rows = list[Example]()
    for index, picture in enumerate(pictures):
        mirrorable = not _HANDED.search(picture.name.replace("-", " "))
        for version in range(2):
            text = caption(picture, article=version == 1)
            rows.append(Example(index, "white", mirrorable and version == 1, text))
        for name in rng.choice(names, coloured, replace=False):
            mirrored = mirrorable and bool(rng.random() < 0.5)
            text = caption(picture, str(name), article=bool(rng.random() < 0.5))
            rows.append(Example(index, str(name), mirrored, text))
    return rows


def render(pictures: list[Emoji], rows: list[Example]) -> np.ndarray:
    """Examples as float32 (B, 3, H, W) in [-1, 1]."""
    rgba = np.stack([pictures[r.index].rgba[:, :: -1 if r.mirrored else 1] for r in rows])
    return emoji.over(rgba, np.array([BACKGROUNDS[r.background] for r in rows]))
