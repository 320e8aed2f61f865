"""Conditions of latent diffusion: prompts, labels, layout tokens and segmentations as what the UNet takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...engines.binding import Array
from ...engines.engine import Engine, check_finite
from ...engines.strict import JSON
from ...errors import ParameterError, PromptError
from ..tokenizer import Tokenizer
from .latent_settings import LatentDiffusionSettings

__all__ = ["Condition", "ConditionEncoder", "Given", "segmentation_size"]


@dataclass(frozen=True)
class Given:
    """What the caller conditions on; at most one is not None, `negative_prompt` goes with `prompt`."""

    prompt: str | Sequence[str] | None = None
    negative_prompt: str | Sequence[str] = ""
    label: int | Sequence[int] | None = None
    tokens: Any = None
    segmentation: Any = None


@dataclass(frozen=True, eq=False)
class Condition:
    """The condition of every picture of a call.

    Arguments:
        images: How many pictures.
        name: Input of the UNet that takes it, "context" or "y"; None without one.
        rows: (images, …), a row for each picture.
        null: (images, …), their unconditional or negative counterparts, where there are any.
        concat: float32 (1 or images, C, h, w), channels to append to x.
        told: For each picture what it was conditioned on, JSON.
        warnings: What was done other than asked.
    """

    images: int
    name: str | None = None
    rows: Array | None = None
    null: Array | None = None
    concat: Array | None = None
    told: Sequence[Mapping[str, JSON]] = field(default_factory=list)
    warnings: tuple[str, ...] = ()

    def feeds(self, rows: range, *, guided: bool) -> dict[str, Array]:
        """The UNet's conditions for some of the pictures; with `guided` the unconditional rows come first."""
        if self.name is None or self.rows is None:
            return {}
        part = self.rows[rows.start : rows.stop]
        if not guided:
            return {self.name: np.array(part)}
        assert self.null is not None
        return {self.name: np.concatenate([self.null[rows.start : rows.stop], part])}

    def channels(self, rows: range) -> Array | None:
        """The channels to append to x for some of the pictures."""
        if self.concat is None or len(self.concat) == 1:
            return self.concat
        return self.concat[rows.start : rows.stop]


class ConditionEncoder:
    """Encodes conditions with the bundle's networks.

    Arguments:
        settings: Task, conditioning and limits.
        engine: Opens "text_encoder", "class_embedder" or "spatial_rescaler", on use.
        tokenizer: Opens the bundle's tokenizer, on use.
    """

    def __init__(
        self,
        settings: LatentDiffusionSettings,
        engine: Callable[[str], Engine],
        tokenizer: Callable[[], Tokenizer],
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._tokenizer = tokenizer

    def __call__(self, given: Given, *, repeat: int, guided: bool) -> Condition:
        """The condition of ``repeat`` pictures for everything given.

        Raises:
            ParameterError: What is given is not what the bundle's task takes, or it cannot be guided and should be.
            PromptError: A prompt is not text.
        """
        task = self._settings.task
        takes = {"class": "label", "layout": "tokens", "semantic": "segmentation"}.get(task)
        takes = "prompt" if self._settings.prompted else takes
        for name in ("prompt", "label", "tokens", "segmentation"):
            if name != takes and getattr(given, name) is not None:
                raise ParameterError(
                    f"the bundle's task is {task!r} and a {name} was given; pass {takes or 'neither prompt nor label'}"
                )
        if takes is not None and getattr(given, takes) is None:
            raise ParameterError(f"the bundle's task is {task!r} and no {takes} was given; pass {takes}=…")
        can_guide = takes == "prompt" or (task == "class" and self._settings.null_class is not None)
        if guided and not can_guide:
            raise ParameterError(
                f"guidance needs an unconditional counterpart, which the task {task!r} of this bundle has not; "
                "pass guidance_scale=1"
            )
        if takes == "prompt":
            return self._text(given, repeat, guided)
        if task == "class":
            return self._class(given.label, repeat, guided)
        if task == "layout":
            return self._layout(given.tokens, repeat)
        if task == "semantic":
            return self._semantic(given.segmentation, repeat)
        return Condition(repeat, told=[{}] * repeat)

    def _text(self, given: Given, repeat: int, guided: bool) -> Condition:
        prompts = _texts("prompt", given.prompt)
        negatives = _texts("negative_prompt", given.negative_prompt)
        if len(negatives) == 1:
            negatives *= len(prompts)
        if len(negatives) != len(prompts):
            raise ParameterError(
                f"{len(negatives)} negative prompts for {len(prompts)} prompts; pass one, or one for each prompt"
            )
        wanted = [*prompts, *(negatives if guided else ())]
        unique = list(dict.fromkeys(wanted))
        tokens = self._tokenizer()(unique)
        warnings = tokens.notes
        strange = dict.fromkeys(word for words in tokens.unknown for word in words)
        if strange:
            warnings.append(f"the bundle's vocabulary does not have {', '.join(map(repr, strange))}; say it in words")
        if not guided and any(negatives):
            warnings.append("a negative prompt has no effect at guidance_scale 1 and below")
        table = self._encode(tokens.ids, tokens.mask)
        rows = table[[unique.index(prompt) for prompt in prompts for _ in range(repeat)]]
        null = table[[unique.index(text) for text in negatives for _ in range(repeat)]] if guided else None
        told: list[Mapping[str, JSON]] = [
            {"prompt": prompt, "negative_prompt": negative if guided else ""}
            for prompt, negative in zip(prompts, negatives, strict=True)
            for _ in range(repeat)
        ]
        return Condition(len(rows), "context", rows, null, told=told, warnings=tuple(warnings))

    def _encode(self, ids: Array, mask: Array | None) -> Array:
        """Contexts (N, tokens, D) of ids (N, tokens), one row a call so that only one shape is ever compiled."""
        engine = self._engine("text_encoder")
        masked = any(binding.name == "attention_mask" for binding in engine.spec.inputs)
        table: Array | None = None
        for row in range(len(ids)):
            feeds = {"input_ids": ids[row : row + 1]}
            if masked:
                feeds["attention_mask"] = np.ones_like(feeds["input_ids"]) if mask is None else mask[row : row + 1]
            context = engine(**feeds)["context"]
            check_finite("text_encoder", None, context=context)
            if table is None:
                table = np.empty((len(ids), *context.shape[1:]), dtype=np.float32)
            table[row] = context[0]
        assert table is not None
        return table

    def _class(self, label: Any, repeat: int, guided: bool) -> Condition:
        null_class = self._settings.null_class
        labels = list(label) if isinstance(label, (list, tuple, range, np.ndarray)) else [label]
        for item in labels:
            whole = isinstance(item, (int, np.integer)) and not isinstance(item, bool)
            # Published models put the null class last; engines would read past the table without a word.
            if not whole or item < 0 or (null_class and item > null_class):
                limit = f"0 to {null_class}" if null_class else "0 or more"
                raise ParameterError(f"label is {item!r}, need a whole number, {limit}; pass such a one")
        if not labels:
            raise ParameterError("label is an empty list; pass one or more")
        ids = np.repeat(np.array(labels, dtype=np.int64), repeat)
        nulls = np.full_like(ids, null_class) if guided else None
        told: list[Mapping[str, JSON]] = [{"label": int(item)} for item in ids]
        if self._settings.conditioning == "adm":
            return Condition(len(ids), "y", ids, nulls, told=told)
        rows = self._embed(ids)
        return Condition(len(ids), "context", rows, None if nulls is None else self._embed(nulls), told=told)

    def _embed(self, ids: Array) -> Array:
        engine = self._engine("class_embedder")
        unique, index = np.unique(ids, return_inverse=True)
        table = np.concatenate([engine(y=unique[i : i + 1])["context"].copy() for i in range(len(unique))])
        return np.asarray(table[index])

    def _layout(self, tokens: Any, repeat: int) -> Condition:
        ids = np.atleast_2d(np.asarray(tokens))
        limit = self._settings.max_tokens
        if ids.ndim != 2 or ids.dtype.kind not in "iu" or ids.shape[1] != limit or not len(ids) or ids.min() < 0:
            raise ParameterError(
                f"layout tokens are {ids.dtype} {ids.shape}, need whole numbers ({limit},) or (N, {limit}); "
                "pass object categories and box corners as the model was trained with"
            )
        rows = np.repeat(self._encode(ids.astype(np.int64), None), repeat, axis=0)
        told: list[Mapping[str, JSON]] = [{"tokens": [int(i) for i in row]} for row in ids for _ in range(repeat)]
        return Condition(len(rows), "context", rows, told=told)

    def _semantic(self, segmentation: Any, repeat: int) -> Condition:
        engine = self._engine("spatial_rescaler")
        binding = engine.spec.inputs[0]
        classes = int(binding.shape[1])
        one_hot = np.asarray(segmentation)
        if one_hot.ndim == 2 and one_hot.dtype.kind in "iu":
            if one_hot.size and not 0 <= int(one_hot.min()) <= int(one_hot.max()) < classes:
                raise ParameterError(
                    f"the segmentation holds classes {one_hot.min()} to {one_hot.max()}, "
                    f"the bundle knows 0 to {classes - 1}; pass class indices"
                )
            one_hot = (np.arange(classes)[:, None, None] == one_hot).astype(np.float32)
        if one_hot.ndim != 3 or one_hot.shape[0] != classes:
            raise ParameterError(
                f"the segmentation has shape {one_hot.shape}, need class indices (H, W) or float ({classes}, H, W)"
            )
        feeds = {binding.name: np.ascontiguousarray(one_hot[None], dtype=np.float32)}
        output = next(iter(engine(**feeds).values())).copy()
        return Condition(repeat, concat=output, told=[{}] * repeat)


def segmentation_size(segmentation: Any, size: tuple[int, int] | None) -> tuple[int, int] | None:
    """The size of the picture that a segmentation (…, H, W) describes; `ParameterError` if `size` is another."""
    try:
        shape = np.shape(segmentation)[-2:]
    except ValueError as error:
        raise ParameterError(f"the segmentation is no array ({error}); pass class indices (H, W)") from error
    if size is None:
        return shape if len(shape) == 2 else None
    if len(shape) == 2 and np.shape(size) == (2,) and tuple(size) != shape:
        raise ParameterError(
            f"size is height {size[0]} and width {size[1]}, the segmentation {shape[0]}x{shape[1]}; leave size out"
        )
    return size


def _texts(name: str, value: Any) -> list[str]:
    if isinstance(value, (bytes, bytearray)) or not isinstance(value, (str, Sequence)):
        raise PromptError(f"{name} is a {type(value).__name__}, need text or a list of texts; pass a str")
    texts: list[Any] = [value] if isinstance(value, str) else list(value)
    if not texts:
        raise ParameterError(f"{name} is an empty list; pass one or more, '' for none")
    for text in texts:
        if not isinstance(text, str):
            raise PromptError(f"{name} holds a {type(text).__name__}, need texts; pass a list of str")
    return texts
