"""Cross-attention guidance: an edit led along a direction while its attention maps keep to those of a reference.

Reference and edit are sampled in lock-step, so that one step's maps are all that is ever held.

References:
    Parmar, Singh, Zhang, Li, Lu, Zhu, "Zero-shot Image-to-Image Translation" (pix2pix-zero), 2023, section 3.3, eq. 5
    and algorithm 1, https://arxiv.org/abs/2302.03027
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, cast, get_args

import numpy as np

from ..engines.binding import Array
from ..engines.engine import Engine, check_finite
from ..errors import Cancelled, ParameterError
from .denoiser import Parametrization, Prediction, PredictionKind
from .sampler import Sampler
from .schedule import Schedule

__all__ = ["AttentionEdit", "EditStep", "Guide", "Kept", "check_guidance"]

Kept: TypeAlias = Literal["negative", "shared"]
"""Which latent goes on after a step: the optimised copy of the negative branch, or one that both branches share."""


def check_guidance(scale: float, amount: float, kept: str) -> None:
    """Raise `ParameterError` for options that `AttentionEdit` does not take; see there."""
    if not 1 < scale < np.inf:
        raise ParameterError(
            f"guidance scale is {scale:g}, the edit direction is added to the conditional half, which at 1 and below "
            "is not used: nothing would change; pass a scale above 1, 5 is usual"
        )
    if not 0 <= amount <= float(np.finfo(np.float32).max):  # infinite times a gradient of 0 would be NaN
        raise ParameterError(
            f"the amount of attention guidance is {amount:g}, need 0 or more that float32 holds; 0.1 is usual"
        )
    if kept not in get_args(Kept):
        raise ParameterError(f"kept is {kept!r}, need {' or '.join(get_args(Kept))}; pass one of these")


class Guide(Protocol):
    """The gradient of the attention loss: see `runtime.gradient.Gradient`."""

    def __call__(self, x: Array, **condition: Any) -> tuple[float, Array]:
        """Loss and its gradient by x (B, C, h, w), given ``t``, ``context`` and ``reference_NN``."""
        ...


@dataclass(frozen=True)
class EditStep:
    """Where an edit stands after a step. **Later steps overwrite the arrays: copy what you keep.**

    Arguments:
        index: Number of the step, from 0.
        total: Number of steps.
        t: Timestep index of the step.
        s: Timestep index that both stand at now.
        reference: float32 (1, C, h, w), the reference at s.
        x: float32 (1, C, h, w), the edit at s.
        prediction: The guided prediction of the edit at t.
        loss: The attention loss before the step on it; 0 where there was none.
        before: float32 (2, C, h, w), both copies of the edit before the step on the loss.
        gradient: float32 (2, C, h, w), of the loss by both copies; None where there was none.
        after: float32 (2, C, h, w), both copies after it.
    """

    index: int
    total: int
    t: float
    s: float
    reference: Array
    x: Array
    prediction: Prediction
    loss: float
    before: Array
    gradient: Array | None
    after: Array


class AttentionEdit:
    """pix2pix-zero's two passes, interleaved. Engines and conditions are fixed, `run` makes one edit.

    At each step t, with the conditions E = [negative, caption] and E' = [negative, caption + direction]:

    1. reference: predict at x_ref under E, keep the maps M_ref, DDIM step;
    2. X = [x, x]; X <- X - amount dL/dX, L = sum over layers of the mean over rows and heads of ||M(X, E') - M_ref||²;
    3. predict at X under E', e = e_u + scale (e_c - e_u);
    4. x <- X[0], DDIM step with e.

    Both copies are optimised on their own and **the negative branch's is kept**, as the authors' code does; the caption
    copy only changes this step's prediction. ``kept="shared"`` moves one latent by the sum of both gradients instead.

    Where negative and caption are equal (real pictures), both rows of the reference are one computation: it runs once.

    Arguments:
        unet: The network ``unet``; ``unet_maps`` does as well.
        maps: The network ``unet_maps``: prediction and ``map_NN``.
        guide: Gradient of the attention loss; None only with an amount of 0.
        schedule: What the UNet was trained with.
        prediction: What it outputs.
        context: float32 (2, tokens, D), E.
        delta: float32 (1, tokens, D), the direction.
        scale: Guidance scale above 1.
        amount: lambda_xa, the length of a step on the loss; 0 leaves the guidance out.
        kept: See `Kept`.
        apart: Take the gradient of one row at a time, for half the memory; the sum is the same. Predictions are made of
            as many rows as those of the reference, so that one network compiled once can be both `unet` and `maps`.

    Raises:
        ParameterError: An option is out of range.
    """

    def __init__(
        self,
        unet: Engine,
        maps: Engine,
        guide: Guide | None,
        schedule: Schedule,
        prediction: PredictionKind = "eps",
        *,
        context: Array,
        delta: Array,
        scale: float = 5.0,
        amount: float = 0.1,
        kept: Kept = "negative",
        apart: bool = False,
    ) -> None:
        check_guidance(scale, amount, kept)
        if context.ndim != 3 or len(context) != 2 or delta.shape != (1, *context.shape[1:]):
            raise ParameterError(
                f"context has shape {context.shape} and the direction {delta.shape}; "
                "need (2, tokens, width), negative first, and (1, tokens, width)"
            )
        if guide is None and amount:
            raise ParameterError(f"the amount of attention guidance is {amount} and there is no gradient; pass one")
        self.unet, self.maps, self.guide = unet, maps, guide
        self.schedule = schedule
        self.scale, self.amount, self.kept, self.apart = float(scale), float(amount), kept, apart
        self._kind: PredictionKind = prediction
        context = np.ascontiguousarray(context, dtype=np.float32)
        self._alike = bool(np.array_equal(context[0], context[1]))
        self._reference = context[:1] if self._alike else context
        self._edited = context.copy()
        self._edited[1:] += delta
        self._doubled: dict[str, Array] = {}  # the one row's maps twice, in memory that every step writes again

    def run(
        self,
        x: Array,
        timesteps: Any,
        sampler: Sampler,
        *,
        on_step: Callable[[EditStep], Any] | None = None,
    ) -> tuple[Array, Array]:
        """Reference and edit from one start.

        Arguments:
            x: float32 (1, C, h, w) at the first timestep: an inverted picture, or noise; left unchanged.
            timesteps: Timestep indices (n,), descending.
            sampler: A rule without noise; the authors' is ``DDIM(schedule, final=0)``.
            on_step: Called after every step; returning False (not None) stops the run.

        Returns:
            The reference and the edit after the last step, float32 (1, C, h, w) each.

        Raises:
            ParameterError: x or the sampler do not fit, or the guidance diverges (names the step).
            NonFiniteError: A network made NaN or infinity (names it, the step and the tensor).
            Cancelled: `on_step` returned False.
        """
        if x.dtype != np.float32 or x.ndim != 4 or len(x) != 1:
            raise ParameterError(f"x is {x.dtype} {x.shape}, need float32 (1, C, h, w); edit pictures one by one")
        runs = sampler.plan(timesteps), sampler.plan(timesteps)
        if any(rule.needs_noise for rule in runs[0].rules):
            raise ParameterError(f"{type(sampler).__name__} adds noise, which no inversion undoes; use DDIM at eta 0")
        solve = Parametrization(self.schedule, self._kind), Parametrization(self.schedule, self._kind)
        check_finite(self.unet.spec.name, None, x=x)
        reference = edited = x
        copies = np.empty((2, *x.shape[1:]), dtype=np.float32)
        predicted = np.empty_like(copies)
        mixed = np.empty_like(x), np.empty_like(x)
        for index, (t, s) in enumerate(runs[0]):
            with np.errstate(over="ignore", invalid="ignore"):  # what overflows is found and named below
                outputs = self._look(reference, t, index)
                raw = self._mix(outputs["prediction"], mixed[0])
                # At once: the prediction is the network's own memory, and `unet` may be the same network.
                reference = runs[0].step(reference, t, s, solve[0](raw, reference, t))
                np.copyto(copies, edited)
                start = copies.copy() if on_step is not None else copies
                loss, gradient = self._lead(copies, outputs, t, index)
                raw = self._mix(self._predict(copies, t, index, predicted), mixed[1])
                here = copies[:1]
                prediction = solve[1](raw, here, t)
                edited = runs[1].step(here, t, s, prediction)
            check_finite(self.unet.spec.name, index, reference=reference, x=edited)
            if on_step is not None:
                step = EditStep(index, len(runs[0]), t, s, reference, edited, prediction, loss, start, gradient, copies)
                if on_step(step) is False:
                    raise Cancelled(f"stopped by on_step after step {index + 1} of {len(runs[0])}")
        return reference, edited

    def _look(self, x: Array, t: float, index: int) -> dict[str, Array]:
        """Prediction and maps of the reference, one row where both are alike."""
        rows = len(self._reference)
        fed = x if rows == 1 else np.repeat(x, rows, axis=0)
        outputs = self.maps(x=fed, t=np.full(rows, t, dtype=np.float32), context=self._reference)
        check_finite(self.maps.spec.name, index, prediction=outputs["prediction"])
        return outputs

    def _predict(self, copies: Array, t: float, index: int, out: Array) -> Array:
        count = len(self._reference) if self.apart else 2
        for start in range(0, 2, count):
            rows = slice(start, start + count)
            outputs = self.unet(x=copies[rows], t=np.full(count, t, dtype=np.float32), context=self._edited[rows])
            check_finite(self.unet.spec.name, index, prediction=outputs["prediction"])
            if count == 2:
                return outputs["prediction"]
            out[rows] = outputs["prediction"]
        return out

    def _mix(self, rows: Array, out: Array) -> Array:
        """e_u + scale (e_c - e_u) of what the network outputs; one row stands for both."""
        if len(rows) == 1:
            return rows
        np.subtract(rows[1:], rows[:1], out=out)
        np.multiply(out, self.scale, out=out)
        return np.add(rows[:1], out, out=out)

    def _lead(self, copies: Array, outputs: Mapping[str, Array], t: float, index: int) -> tuple[float, Array | None]:
        """One step of both copies against the loss, in place."""
        if self.guide is None or self.amount == 0:
            return 0.0, None
        references = {f"reference{name[3:]}": m for name, m in outputs.items() if name.startswith("map_")}
        parts = [slice(0, 1), slice(1, 2)] if self.apart else [slice(0, 2)]
        loss, gradient = 0.0, np.zeros_like(copies)
        if index == 0 and self.apart:
            parts = parts[1:]  # the negative copy is still the reference itself, where the loss has its minimum
        for rows in parts:
            own = {name: self._rows(name, m, rows) for name, m in references.items()}
            value, part = _call(self.guide, copies[rows], t, index, context=self._edited[rows], **own)
            check_finite("unet_gradient", index, loss=np.asarray(value), gradient=part)
            # The published loss is a mean over the rows of both copies.
            share = (rows.stop - rows.start) / 2
            loss += float(value) * share
            np.multiply(part, share, out=gradient[rows])
        if index == 0:
            gradient[0] = 0
        if self.kept == "shared":
            gradient[:] = gradient.sum(axis=0)
        self._check_length(copies, gradient, t, index)
        copies -= np.float32(self.amount) * gradient
        return loss, gradient

    def _rows(self, name: str, reference: Array, rows: slice) -> Array:
        if len(reference) == 2:
            return reference[rows]
        if rows.stop - rows.start == 1:
            return reference
        shape = (2, *reference.shape[1:])
        doubled = self._doubled.get(name)
        if doubled is None or doubled.shape != shape:
            doubled = self._doubled[name] = np.empty(shape, dtype=reference.dtype)
        np.copyto(doubled, reference)
        return doubled

    def _check_length(self, copies: Array, gradient: Array, t: float, index: int) -> None:
        moved = self.amount * float(np.sqrt(np.square(gradient, dtype=np.float64).sum()))
        whole = float(np.sqrt(np.square(copies, dtype=np.float64).sum()))
        if moved > whole:
            raise ParameterError(
                f"attention guidance diverges at step {index} (t = {t:g}): with an amount of {self.amount:g} it moves "
                f"the latent by {moved / whole:.3g} times its own length; pass a smaller one, such as "
                f"{self.amount * 0.1 * whole / moved:.1g}"
            )


def _call(guide: Guide, x: Array, t: float, index: int, **feeds: Array) -> tuple[float, Array]:
    if hasattr(guide, "step"):
        cast(Any, guide).step = index  # named in its own NonFiniteError
    return guide(np.ascontiguousarray(x), t=t, **feeds)
