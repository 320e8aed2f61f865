"""Sentences about a thing: lists from a file, and from a grammar of captions.

An edit direction is a difference of mean text states, and a mean wants many sentences that differ in everything but
the thing. The authors recommend about a thousand, written by a language model; a grammar does nearly as well.

References:
    Parmar et al., "Zero-shot Image-to-Image Translation", 2023, section 3.2, https://arxiv.org/abs/2302.03027
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Sequence
from numbers import Integral
from pathlib import Path

from ..errors import ParameterError, PromptError

__all__ = ["MAX_SENTENCES", "check_count", "clean_sentences", "from_grammar", "read_sentences"]

MAX_SENTENCES = 20_000

_VIEWS = (
    "{a}",
    "a photo of {a}",
    "a picture of {a}",
    "a close-up of {a}",
    "a drawing of {a}",
    "a painting of {a}",
    "a bright photo of {a}",
    "a blurry photo of {a}",
    "an old picture of {a}",
    "someone looking at {a}",
)
_QUALITIES = (
    "",
    "small",
    "large",
    "new",
    "old",
    "pretty",
    "plain",
    "colorful",
    "dark",
    "bright",
    "strange",
    "famous",
    "single",
    "clean",
    "dusty",
    "shiny",
)
_PLACES = (
    "",
    "on a white background",
    "on a table",
    "in a garden",
    "in the snow",
    "at the beach",
    "in front of a house",
    "in a room",
    "at night",
    "in the morning light",
    "beside a tree",
    "on a city street",
)
_ARTICLES = ("a", "an", "the", "some", "my", "your", "his", "her", "its", "our", "their", "this", "that")


def from_grammar(word: str, count: int = 500, *, templates: Sequence[str] = (), seed: int = 0) -> list[str]:
    """Captions of a thing, all different, **the same choices for every word**, so that two lists differ in it alone.

    Arguments:
        word: The thing, e.g. "cat", "red apple", "the moon".
        count: How many, 1 or more; fewer are returned where the grammar has fewer.
        templates: Sentences with ``{}`` for the thing, or ``{a}`` for it with an article; by default the built-in
            grammar of 1920.
        seed: Which of them.
    """
    word = _thing(word)
    check_count(count)
    if templates:
        lines = list(dict.fromkeys(_template(template) for template in templates))
    else:
        parts = itertools.product(_VIEWS, _QUALITIES, _PLACES)
        lines = [f"{_qualified(view, quality)} {place}".strip() for view, quality, place in parts]
    if count < len(lines):
        # The bare word leads, whatever is drawn beside it.
        lines = [lines[0], *random.Random(seed).sample(lines[1:], count - 1)]
    return [_fill(line, word) for line in lines]


def read_sentences(path: Path | str) -> list[str]:
    """The sentences of a UTF-8 text file, one a line; empty lines and lines that begin with "#" are left out.

    Raises:
        PromptError: It cannot be read, is not text, or holds none or too many.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise PromptError(f"{path}: cannot be read ({error.strerror or error}); pass a text file") from error
    except UnicodeDecodeError as error:
        raise PromptError(f"{path}: is not UTF-8 text (byte {error.start}); pass one sentence a line") from error
    lines = [line.strip() for line in text.splitlines()]
    found = [line for line in lines if line and not line.startswith("#")]
    if not 1 <= len(found) <= MAX_SENTENCES:
        raise PromptError(f"{path}: holds {len(found)} sentences, need 1 to {MAX_SENTENCES}; write one a line")
    return found


def clean_sentences(text: str) -> list[str]:
    """The sentences of what a language model wrote: one a line, without numbers, bullets, quotes and stops.

    Half characters (lone surrogates), which JSON may spell and no file or tokenizer takes, are dropped.
    """
    text = text.encode("utf-8", "ignore").decode("utf-8")
    found = []
    for line in text.splitlines():
        line = re.sub(r"^\s*(?:[-*•]|\(?\d+\s*[.):\]]?)\s*", "", line)
        line = re.sub(r"\d", "", line).strip().strip("\"'“”‘’`*").rstrip(".! ").strip()
        if line and not line.endswith(":"):
            found.append(line)
    return list(dict.fromkeys(found))


def check_count(count: int) -> None:
    """Raise `ParameterError` unless `count` is a number of sentences that may be asked for."""
    if isinstance(count, bool) or not isinstance(count, Integral) or not 1 <= int(count) <= MAX_SENTENCES:
        raise ParameterError(f"count is {count!r}, need 1 to {MAX_SENTENCES} sentences; 500 is usual")


def _thing(word: str) -> str:
    if not isinstance(word, str):
        raise PromptError(f"a word is a {type(word).__name__}, need text; pass a str")
    word = " ".join(word.split())
    if not word or "{" in word or "}" in word:
        raise PromptError(f"the word is {word!r}, need the name of a thing; pass such as 'cat' or 'red apple'")
    return word


def _template(template: str) -> str:
    line = template.strip()
    if line.count("{") != 1 or not ("{}" in line or "{a}" in line):
        raise PromptError(f"the template {template!r} has no single {{}} or {{a}} for the thing; write '{{}} at night'")
    return line


def _qualified(view: str, quality: str) -> str:
    return view.replace("{a}", f"{{a|{quality}}}") if quality else view


def _fill(line: str, word: str) -> str:
    def thing(match: re.Match[str]) -> str:
        if match[0] == "{}":
            return word
        quality = match[1] or ""
        first, _, rest = word.partition(" ")
        if rest and first.lower() in _ARTICLES:
            return f"{first} {quality} {rest}" if quality else word
        words = f"{quality} {word}".strip()
        return f"{'an' if words[0].lower() in 'aeiou' else 'a'} {words}"

    return re.sub(r"\{(?:a(?:\|([^}]*))?)?\}", thing, line)
