"""One call of Cold Diffusion: batches, degrading, restoring, measuring, timings."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

import numpy as np

from ...engines.binding import Array
from ...engines.strict import JSON
from ...errors import ParameterError
from ..cold_generation import generate
from ..degradation import Degradation, check_severity, degrade
from ..restoration import EngineRestorer, Restoration, restore
from ..restoration import Stage as Step
from ..rng import TorchGenerator
from .base import OnStep, Progress, SfumatoWarning
from .cold_result import Quality, Restored, quality
from .cold_start import Starts
from .timings import TimedEngine, Timings

if TYPE_CHECKING:
    from .cold_diffusion import ColdDiffusion

__all__ = ["Algorithm", "Call", "Job", "check_seed"]

Algorithm: TypeAlias = Literal[1, 2]

_UNKNOWN = ("snow", "fade")
"""Degradations that draw what cannot be seen in their result."""


def check_seed(seed: int) -> int:
    """`seed`, if it is one."""
    TorchGenerator(seed)  # refuses what is none
    return int(seed)


@dataclass(frozen=True, eq=False)
class Job:
    """One picture to restore.

    Arguments:
        picture: uint8 (H, W, 3), clean or degraded.
        seed: Of what is drawn for it.
        degraded: Which of both it is.
        original: uint8 (H, W, 3) to measure by, or None.
        end: The second picture as the network sees it, float32 (1, C, H, W), or None.
        mask: bool (H, W), True where the picture may change, or None for all.
        offsets: Where the hole is, (1, 2), or None.
    """

    picture: Array
    seed: int
    degraded: bool
    original: Array | None = None
    end: Array | None = None
    mask: Array | None = None
    offsets: Array | None = None


class Call:
    """A call in progress; its options are checked here.

    Arguments:
        system: The system.
        severity: Where restorations start, None for T.
        algorithm: 1 or 2, None for the bundle's.
        official: The original's numbering.
        keep: Keep stages.
        on_step: The caller's.
    """

    def __init__(
        self,
        system: ColdDiffusion,
        severity: int | None,
        algorithm: int | None,
        *,
        official: bool = False,
        keep: bool = False,
        on_step: OnStep | None = None,
    ) -> None:
        self.system, self.settings = system, system.settings
        spec = self.settings.degradation
        if severity is not None and (isinstance(severity, bool) or not isinstance(severity, Integral)):
            raise ParameterError(f"severity is {severity!r}, need a whole number from 0 to {spec.steps}")
        self.severity = check_severity(spec.steps if severity is None else severity, spec.steps)
        chosen = self.settings.algorithm if algorithm is None else algorithm
        if chosen not in (1, 2):
            raise ParameterError(f"algorithm is {algorithm!r}; the paper has 1 and 2")
        self.algorithm: Algorithm = 1 if chosen == 1 else 2
        if official and spec.kind not in ("snow", "decolor"):
            raise ParameterError(f"official numbering is of snow and decolor, this is {spec.kind}; leave it out")
        self.official, self.keep, self._on_step = official, keep, on_step
        self.timings = Timings()
        self._began = perf_counter()
        self._network = EngineRestorer(TimedEngine(system.engine(), self.timings))
        self._done, self._total = 0, 0

    def restore(self, jobs: Sequence[Job], batch_size: int | None) -> list[Restored]:
        """Degrade where needed and restore every job, those of one size and one degradation together."""
        batches = self._batches(jobs, batch_size)
        self._total = len(batches) * self.severity
        made: list[Restored] = []
        for rows in batches:
            made += self._restore([jobs[row] for row in rows], rows)
        return self._timed(made)

    def generate(self, begin: Starts, seed: int, batch_size: int | None) -> list[Restored]:
        """Restore every start."""
        plan, spec = self.settings.generation, self.settings.degradation
        assert plan is not None
        if self.severity < 1:
            raise ParameterError(f"severity is 0, generation starts from 1 … {spec.steps}; pass one of these")
        count, size = len(begin.pictures), cast("tuple[int, int]", begin.pictures.shape[2:])
        most = self.system.most(size, batch_size)
        parts = [range(i, min(i + most, count)) for i in range(0, count, most)]
        self._total = len(parts) * self.severity
        made: list[Restored] = []
        for rows in parts:
            part = begin.rows(rows.start, rows.stop)
            shape = cast("tuple[int, int, int, int]", part.pictures.shape)
            if spec.fixed:
                degradation = self.system.degradation(shape)
            else:
                estimated = spec.kind == "noise" and bool(spec.parameters["estimated"])
                degradation = spec.build(shape, end=None if estimated else part.end, bare=estimated)
            result = generate(
                self._network,
                degradation,
                part.pictures,
                t=self.severity,
                algorithm=self.algorithm,
                noise=part.noise,
                remove_noise=plan.remove_noise,
                degrade_start=part.degrade,
                keep=self.keep,
                on_step=self._observer(rows),
            )
            told: dict[str, JSON] = {"verb": "generate", "start": plan.start}
            made += self._results(result, [Job(np.empty(0), seed + row, True) for row in rows], told)
        return self._timed(made)

    def _restore(self, jobs: Sequence[Job], rows: range) -> list[Restored]:
        spec, first = self.settings.degradation, jobs[0]
        x = self.system.pictures.to_network(np.stack([job.picture for job in jobs]))
        shape = cast("tuple[int, int, int, int]", x.shape)
        x_t, undo = x, self._degradation(shape, first)
        if not first.degraded:
            x_t = degrade(undo, x, self.severity, quantised=self.settings.quantised and self.severity > 0)
            if spec.mixes and spec.parameters["estimated"]:
                undo = spec.build(shape, bare=True)
        result = restore(
            self._network,
            undo,
            x_t,
            t=self.severity,
            algorithm=self.algorithm,
            official=self.official,
            keep=self.keep,
            on_step=self._observer(rows),
        )
        return self._results(result, jobs, {"verb": "restore", "degraded": first.degraded})

    def _degradation(self, shape: tuple[int, int, int, int], job: Job) -> Degradation:
        spec = self.settings.degradation
        if spec.fixed:
            return self.system.degradation(shape)
        if spec.mixes and job.degraded and job.end is None:
            return spec.build(shape, bare=True)  # the end is estimated
        if spec.kind == "inpaint" and job.degraded and job.offsets is None:
            raise ParameterError(
                "the picture has its hole already, and holes of this bundle lie anywhere; pass mask=PICTURE, white "
                "where it is"
            )
        return spec.build(shape, TorchGenerator(job.seed), end=job.end, offsets=job.offsets)

    def _batches(self, jobs: Sequence[Job], batch_size: int | None) -> list[range]:
        """Neighbours of one size go together where nothing is drawn or given for one alone."""
        parts: list[range] = []
        for row, job in enumerate(jobs):
            last = parts[-1] if parts else range(0)
            size = cast("tuple[int, int]", job.picture.shape[:2])
            alike = bool(parts) and jobs[last.start].picture.shape == job.picture.shape
            if alike and self.settings.degradation.fixed and len(last) < self.system.most(size, batch_size):
                parts[-1] = range(last.start, row + 1)
            else:
                self.system.most(size, batch_size)  # refuses a senseless number
                parts.append(range(row, row + 1))
        return parts

    def _results(self, result: Restoration, jobs: Sequence[Job], told: dict[str, JSON]) -> list[Restored]:
        start, direct, image = (self.system.pictures.from_network(x) for x in (result.x_t, result.direct, result.image))
        fixed = self.settings.degradation.fixed
        stages = [self.system.pictures.from_network(stage.x0) for stage in result.stages]
        made = []
        for row, job in enumerate(jobs):
            restored, notes = image[row], tuple[str, ...]()
            if job.mask is not None:
                restored = np.where(job.mask[..., None], restored, job.picture)
                notes = () if job.mask.any() else ("the mask has no white, so nothing is restored",)
            if job.degraded and job.picture.size and self.settings.degradation.kind in _UNKNOWN and not fixed:
                notes += ("what was drawn for the degraded picture is not known; what the seed draws is taken for it",)
            measured: dict[str, Quality] = {}
            if job.original is not None:
                shown = {"degraded": start[row], "direct": direct[row], "restored": restored}
                measured = {name: quality(picture, job.original) for name, picture in shown.items()}
            made.append(
                Restored(
                    image=np.ascontiguousarray(restored),
                    seed=job.seed,
                    parameters=self._parameters(job, restored, told),
                    warnings=notes,
                    original=job.original,
                    degraded=start[row],
                    direct=direct[row],
                    stages=tuple(stage[row] for stage in stages),
                    severity=self.severity,
                    quality=measured,
                )
            )
        return made

    def _timed(self, made: list[Restored]) -> list[Restored]:
        """The results with the timings of the whole call; what was done other than asked is told now."""
        self.timings.add("total", perf_counter() - self._began)
        timings = self.timings.summary()
        for note in dict.fromkeys(text for one in made for text in one.warnings):
            warnings.warn(note, SfumatoWarning, stacklevel=4)
        return [replace(one, timings=timings) for one in made]

    def _observer(self, rows: range) -> Callable[[Step], Any]:
        def observe(step: Step) -> Any:
            self._done += 1
            if self._on_step is None:
                return None
            return self._on_step(
                Progress(
                    index=self._done - 1,
                    total=self._total,
                    t=step.t,
                    s=step.t - 1,
                    images=rows,
                    x=step.x,
                    x0=step.x0,
                    project=self.system.pictures.from_network,
                    decoder=self.system.pictures.from_network,
                )
            )

        return observe

    def _parameters(self, job: Job, image: Array, told: dict[str, JSON]) -> dict[str, JSON]:
        engine = self.system.engine()
        return {
            "system": self.system.manifest.system,
            "model": self.system.manifest.name,
            "seed": job.seed,
            "severity": int(self.severity),
            "algorithm": self.algorithm,
            "official": self.official,
            "size": [int(image.shape[0]), int(image.shape[1])],
            "backend": engine.backend,
            "precision": engine.precision,
            **told,
        }
