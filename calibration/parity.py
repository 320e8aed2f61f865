"""Parity: every network on every backend against the outputs that torch gave at export."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, TypeAlias, cast

import numpy as np

from ..engines.backends import automatic_plan
from ..engines.binding import Array
from ..engines.builder_library import LIBRARIES
from ..engines.bundle import Bundle
from ..engines.engine import Backend, available_backends, open_engine
from ..engines.manifest import NetworkSpec
from ..engines.precision import Precision
from ..engines.strict import JSON
from ..errors import BundleError, ParameterError, SfumatoError

__all__ = ["BundleReport", "Deviation", "NetworkReport", "compare", "stored_reference", "verify_bundle"]

Status: TypeAlias = Literal["passed", "failed", "unchecked", "error"]


@dataclass(frozen=True)
class Deviation:
    """How far arrays are from their reference; the worst of several.

    Arguments:
        max_abs: Largest absolute difference.
        relative: ‖a - b‖₂ / ‖b‖₂ with b the reference.
        cosine: a · b / (‖a‖₂ ‖b‖₂).
        finite: Neither holds NaN or infinity. If False the other numbers are NaN.
    """

    max_abs: float
    relative: float
    cosine: float
    finite: bool


@dataclass(frozen=True)
class NetworkReport:
    """One network on one backend.

    Arguments:
        network: Name of the network.
        backend: Name of the backend, or "" where none was run.
        precision: What the backend computed in, None where none was run.
        tolerance: Largest relative deviation that the manifest allows in that precision, None if it has none.
        status: "passed" or "failed"; "unchecked" without a reference, tolerance or backend; "error" if it did
            not run.
        reason: Why it did not pass, "" if it did.
        deviation: What was measured, None if nothing was.
    """

    network: str
    backend: str
    precision: Precision | None
    tolerance: float | None
    status: Status
    reason: str
    deviation: Deviation | None

    @property
    def passed(self) -> bool:
        return self.status == "passed"


@dataclass(frozen=True)
class BundleReport:
    """Every network of a bundle on every backend that was asked.

    Arguments:
        bundle: Path of the bundle.
        verified: The SHA-256 of every file was checked.
        rows: One for each network and backend.
    """

    bundle: str
    verified: bool
    rows: tuple[NetworkReport, ...]

    @property
    def passed(self) -> bool:
        """Every row passed, and there is one. A network that could not be checked has not passed."""
        return bool(self.rows) and all(row.passed for row in self.rows)

    def to_json(self) -> dict[str, JSON]:
        """The report as a JSON object; numbers that are not finite are null."""
        rows = [{**asdict(row), "passed": row.passed} for row in self.rows]
        tree = {"bundle": self.bundle, "verified": self.verified, "passed": self.passed, "networks": rows}
        return cast("dict[str, JSON]", _finite_json(tree))


def compare(results: Mapping[str, Array], references: Mapping[str, Array]) -> Deviation:
    """The worst deviation of `results` from `references`, by name, computed in float64.

    Raises:
        ParameterError: A name is missing or a shape differs.
    """
    deviations: list[Deviation] = []
    for name, reference in references.items():
        if name not in results:
            raise ParameterError(f"no result is named {name!r}, there are {', '.join(results)}; compare equal names")
        result = results[name]
        if result.shape != reference.shape:
            raise ParameterError(
                f"{name!r} has shape {result.shape}, its reference {reference.shape}; compare equal shapes"
            )
        deviations.append(_deviation(result.astype(np.float64).ravel(), reference.astype(np.float64).ravel()))
    if not all(d.finite for d in deviations):
        return Deviation(math.nan, math.nan, math.nan, finite=False)
    return Deviation(
        max_abs=max((d.max_abs for d in deviations), default=0.0),
        relative=max((d.relative for d in deviations), default=0.0),
        cosine=min((d.cosine for d in deviations), default=1.0),
        finite=True,
    )


def verify_bundle(
    bundle: Bundle,
    backends: Sequence[Backend] | None = None,
    *,
    precision: Precision | None = None,
    threads: int | None = None,
) -> BundleReport:
    """Run every network of a bundle on its stored inputs and hold the outputs against the stored ones.

    Arguments:
        bundle: The bundle; open it with ``verify=True`` to have its hashes checked too.
        backends: Those to run; None is all that work here, TensorRT where the bundle has a plan for this GPU.
        precision: What to compute in; None is each backend's default for each network.
        threads: Threads, None for one a core.
    """
    asked = backends is not None
    if backends is None:
        backends = [cast("Backend", name) for name, reason in available_backends().items() if reason is None]
    rows: list[NetworkReport] = []
    for spec in bundle.manifest.networks.values():
        chosen: list[Backend] = [name for name in backends if asked or _runs(bundle, spec.name, name, precision)]
        reason = ""
        if spec.reference is None:
            reason = "the bundle stores no reference for it; export it again"
        elif not backends:
            reason = "no backend is installed; run: pip install 'sfumato[cpu]'"
        elif not chosen:
            reason = f"the bundle has no plan of it for this GPU; run: sfumato build {bundle.path}"
        if reason:
            rows.append(NetworkReport(spec.name, "", None, None, "unchecked", reason, None))
        else:
            rows += [_verify(bundle, spec, backend, precision, threads) for backend in chosen]
    return BundleReport(str(bundle.path), bundle.verified, tuple(rows))


def _runs(bundle: Bundle, network: str, backend: str, precision: Precision | None) -> bool:
    """Whether a backend has all it needs: plans are optional in a bundle, and may be another GPU's."""
    if backend not in LIBRARIES:
        return True
    found = automatic_plan(bundle, network, precision)
    return found is not None and found[0] == backend


def _verify(
    bundle: Bundle, spec: NetworkSpec, backend: Backend, precision: Precision | None, threads: int | None
) -> NetworkReport:
    name = spec.name
    used = precision
    limit: float | None = None
    try:
        feeds, references = stored_reference(bundle, spec)
        with open_engine(bundle, name, backend=backend, precision=precision, threads=threads) as engine:
            backend, used = cast("Backend", engine.backend), engine.precision
            limit = spec.tolerance.get(used)
            deviation = compare(engine(**feeds), references)
    except SfumatoError as error:
        return NetworkReport(name, backend, used, limit, "error", str(error), None)
    status: Status = "failed"
    if not deviation.finite:
        reason = "its outputs hold NaN or infinity"
    elif limit is None:
        known = ", ".join(spec.tolerance) or "none"
        status, reason = "unchecked", f"the manifest gives no tolerance for {used}, it has {known}; export it again"
    elif deviation.relative > limit:
        reason = f"relative error {deviation.relative:.2e} exceeds the manifest's {limit:.2e} for {used}"
    else:
        status, reason = "passed", ""
    return NetworkReport(name, backend, used, limit, status, reason, deviation)


def stored_reference(bundle: Bundle, spec: NetworkSpec) -> tuple[dict[str, Array], dict[str, Array]]:
    """The inputs that a bundle stores for a network, and what torch gave for them at export.

    Raises:
        BundleError: It stores none, or not those of the network.
    """
    if spec.reference is None:
        raise BundleError(f"{spec.name}: the bundle stores no reference for it; export it again")
    tensors = bundle.tensors(spec.reference)
    expected = {f"in/{b.name}" for b in spec.inputs} | {f"out/{b.name}" for b in spec.outputs}
    if tensors.keys() != expected:
        raise BundleError(
            f"{spec.name}: its reference {spec.reference!r} holds {', '.join(sorted(tensors)) or 'nothing'}, "
            f"its bindings are {', '.join(sorted(expected))}; export it again"
        )
    feeds = {b.name: tensors[f"in/{b.name}"] for b in spec.inputs}
    references = {b.name: tensors[f"out/{b.name}"] for b in spec.outputs}
    return feeds, references


def _deviation(result: Array, reference: Array) -> Deviation:
    if not (np.isfinite(result).all() and np.isfinite(reference).all()):
        return Deviation(math.nan, math.nan, math.nan, finite=False)
    if result.size == 0:
        return Deviation(0.0, 0.0, 1.0, finite=True)
    difference = result - reference
    error, norm, own = (float(np.linalg.norm(v)) for v in (difference, reference, result))
    relative = 0.0 if error == 0 else error / norm if norm else math.inf
    cosine = 1.0 if error == 0 else float(result @ reference) / (own * norm) if own and norm else 0.0
    return Deviation(float(np.abs(difference).max()), relative, cosine, finite=True)


def _finite_json(value: object) -> object:
    if isinstance(value, dict):
        return {key: _finite_json(item) for key, item in cast("dict[str, object]", value).items()}
    if isinstance(value, (list, tuple)):
        return [_finite_json(item) for item in cast("Sequence[object]", value)]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
