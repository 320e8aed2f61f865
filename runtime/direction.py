"""Edit directions: the mean difference between the text states of two lists of sentences.

References:
    Parmar et al., "Zero-shot Image-to-Image Translation" (pix2pix-zero), 2023, section 3.2,
    https://arxiv.org/abs/2302.03027
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..engines.binding import Array
from ..engines.storage import atomic_write
from ..errors import BundleError, DirectionError, NonFiniteError
from .torch_file import read_tensor_file

__all__ = ["Direction", "between", "mean_states", "read_embedding"]

_KEYS = ("encoder", "sentences", "source", "target")


@dataclass(frozen=True, eq=False)
class Direction:
    """A difference to add to a prompt's states, at every token position, those of start and padding included.

    Arguments:
        delta: float32 (1, tokens, D), not normalised.
        source: What it leads from, for people.
        target: What it leads to.
        encoder: Digest of the text encoder that it was made with, "" where that is not known.
        sentences: How many were averaged on either side; 0 where that is not known.
    """

    delta: Array
    source: str = ""
    target: str = ""
    encoder: str = ""
    sentences: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        if not isinstance(self.delta, np.ndarray):
            raise DirectionError(
                f"a direction is of type {type(self.delta).__name__}, need a NumPy array, float32 (1, tokens, width); "
                "make it with `sfumato direction`"
            )
        if self.delta.dtype != np.float32 or self.delta.ndim != 3 or len(self.delta) != 1 or not self.delta.size:
            raise DirectionError(
                f"a direction is {self.delta.dtype} {self.delta.shape}, need float32 (1, tokens, width); "
                "make it with `sfumato direction`"
            )
        if not np.isfinite(self.delta).all():
            raise DirectionError("a direction holds NaN or infinity; make it again")

    @property
    def name(self) -> str:
        """ "cat → dog"."""
        return f"{self.source or '?'} → {self.target or '?'}"

    def fit(self, shape: tuple[int, int], encoder: str) -> Array:
        """`delta`, if it belongs to a text encoder.

        Arguments:
            shape: Tokens and width of the encoder's states.
            encoder: Its digest.

        Raises:
            DirectionError: It was made with another encoder.
        """
        if self.delta.shape[1:] != shape:
            raise DirectionError(
                f"the direction {self.name} has {self.delta.shape[1]} tokens of width {self.delta.shape[2]}, the "
                f"bundle's text encoder gives {shape[0]} of {shape[1]}; make it again with this bundle: "
                "sfumato direction"
            )
        if self.encoder and encoder and self.encoder != encoder:
            raise DirectionError(
                f"the direction {self.name} was made with text encoder {self.encoder[:12]}, the bundle's is "
                f"{encoder[:12]}; make it again with this bundle: sfumato direction"
            )
        return self.delta

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write an ``.npz`` file: ``delta``, and what else is known as JSON under ``about``."""
        about = {
            "encoder": self.encoder,
            "sentences": list(self.sentences),
            "source": self.source,
            "target": self.target,
        }
        file = io.BytesIO()
        np.savez(file, delta=self.delta, about=np.array(json.dumps(about, ensure_ascii=False)))
        try:
            atomic_write(Path(path), file.getvalue())
        except BundleError as error:
            raise DirectionError(str(error)) from error.__cause__

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Direction:
        """Read what `save` wrote; nothing in the file is run.

        Raises:
            DirectionError: It is another kind of file, or a broken one.
        """
        if not isinstance(path, (str, os.PathLike)):
            raise DirectionError(
                f"a direction is given as {type(path).__name__}, need a Direction, or the path of its .npz file; "
                "make one with `sfumato direction`"
            )
        where = os.fsdecode(path)
        if where.endswith((".pt", ".pth")):
            raise DirectionError(
                f"{where}: holds one side of a direction; join two: "
                "sfumato direction BUNDLE --source cat.pt --target dog.pt -o cat2dog.npz"
            )
        try:
            with np.load(where, allow_pickle=False) as data:
                found = {name: data[name] for name in data.files}
            about: Any = json.loads(str(found["about"]))
            if sorted(about) != list(_KEYS) or len(about["sentences"]) != 2:
                raise ValueError(f"about holds {', '.join(map(str, about))}")
            counts = int(about["sentences"][0]), int(about["sentences"][1])
            return cls(found["delta"], str(about["source"]), str(about["target"]), str(about["encoder"]), counts)
        except OSError as error:
            raise DirectionError(f"{where}: cannot be read ({error.strerror or error}); pass an .npz file") from error
        except DirectionError as error:
            raise DirectionError(f"{where}: {error}") from error
        except Exception as error:  # NumPy and zipfile raise many kinds
            if not zipfile.is_zipfile(where):  # NumPy then speaks of pickles, which nobody meant
                raise DirectionError(
                    f"{where}: is not an .npz of sfumato direction, or is cut short; make one with `sfumato direction`"
                ) from error
            raise DirectionError(
                f"{where}: is no edit direction ({type(error).__name__}: {error}); make one with `sfumato direction`"
            ) from error


def between(
    source: Array,
    target: Array,
    *,
    labels: tuple[str, str] = ("", ""),
    encoder: str = "",
    sentences: tuple[int, int] | None = None,
) -> Direction:
    """mean(target) - mean(source) over sentences, position by position.

    Arguments:
        source: float (n, tokens, D), a stack of states or one mean.
        target: float (m, tokens, D).
        labels: For people.
        encoder: Digest of the text encoder.
        sentences: How many were averaged; by default n and m.
    """
    if source.ndim != 3 or target.ndim != 3 or source.shape[1:] != target.shape[1:] or not len(source) * len(target):
        raise DirectionError(
            f"source states are {source.shape}, target states {target.shape}; "
            "need (n, tokens, width) and (m, tokens, width) of one encoder"
        )
    delta = target.mean(axis=0, dtype=np.float64) - source.mean(axis=0, dtype=np.float64)
    counts = (len(source), len(target)) if sentences is None else sentences
    return Direction(delta[None].astype(np.float32), *labels, encoder, counts)


def mean_states(
    encode: Callable[[list[str]], Array],
    sentences: Sequence[str],
    *,
    batch: int = 16,
    on_progress: Callable[[int], Any] | None = None,
) -> Array:
    """Mean states of many sentences, float32 (1, tokens, D), without holding more than a batch of them.

    Arguments:
        encode: `batch` sentences -> states (batch, tokens, D); always called with as many, the last are repeated, so
            that engines compile one shape.
        sentences: One or more.
        batch: How many at once.
        on_progress: Told how many are done.

    Raises:
        NonFiniteError: The encoder made NaN or infinity.
    """
    if not sentences:
        raise DirectionError("there is no sentence to average; pass one or more")
    total: Array | None = None
    for begin in range(0, len(sentences), batch):
        part = list(sentences[begin : begin + batch])
        states = encode(part + [part[-1]] * (batch - len(part)))[: len(part)]
        if not np.isfinite(states).all():
            raise NonFiniteError("text_encoder", None, "context")
        summed = states.sum(axis=0, dtype=np.float64)
        total = summed if total is None else total + summed
        if on_progress is not None:
            on_progress(begin + len(part))
    assert total is not None
    return np.asarray((total / len(sentences))[None].astype(np.float32))


def read_embedding(path: Path | str) -> Array:
    """States that the authors' ``make_edit_direction`` saved as ``.pt``: float32 (n, tokens, D) or (1, tokens, D).

    Raises:
        CheckpointError: The file is not of torch, or asks for more than tensors.
        DirectionError: It holds something else.
    """
    value = read_tensor_file(path)
    if not isinstance(value, np.ndarray) or value.dtype.kind != "f" or value.ndim not in (2, 3) or not value.size:
        shown = f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
        raise DirectionError(f"{path}: holds {shown}, need embeddings (n, tokens, width); is it of pix2pix-zero?")
    states: Array = np.asarray(value, dtype=np.float32)
    return states[None] if states.ndim == 2 else states
