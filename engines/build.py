"""Building: a network of a bundle compiled to a plan, by TensorRT or TensorRT for RTX.

Networks are strongly typed: what computes in which precision is said by the graph (see `compute_types`) and not by
flags of the builder, which TensorRT 11 no longer has.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import EngineError, ParameterError
from .binding import Profile
from .build_network import prepare_graph, prove_types, read_network
from .build_options import BuildOptions, build_precision, build_profile
from .build_progress import OnProgress, Tracker, interruptible, monitor
from .build_target import BuildTarget
from .builder_library import Api, load_library
from .builder_logger import library_logger
from .bundle import Bundle
from .engine import check_external
from .manifest import NetworkSpec
from .memory import peak_memory, reset_peak, trim
from .nvidia import devices
from .plan import Plan, PlanKey, read_plan, write_plan
from .plan_proof import prove_plan
from .precision import Precision
from .refit import weight_origins
from .storage import cache_dir, locked
from .strict import JSON
from .target import Target
from .timing import TimingCache

__all__ = ["build_plan"]

_log = logging.getLogger(__name__)


def build_plan(
    bundle: Bundle,
    network: str,
    target: BuildTarget,
    options: BuildOptions | None = None,
    *,
    on_progress: OnProgress | None = None,
    again: bool = False,
) -> Plan:
    """Build a network's plan into ``plans/`` of its bundle, or find the one that is there.

    One process builds a plan; others that want the same one wait and find it. Ctrl-C leaves nothing behind.

    Arguments:
        bundle: The bundle.
        network: Name of the network.
        target: Builder and architectures; see `parse_target`.
        options: What the plan is made for.
        on_progress: Told of every step of the builder.
        again: Build it although it is there.

    Raises:
        BundleError: The bundle has no such network, or cannot be written to.
        ParameterError: A range leaves the bundle's, or this builder has not that option.
        MissingDependency: The builder or onnx is not installed.
        EngineError: The builder refuses the graph or fails, or the plan is not of the precision that was asked.
    """
    options = options or BuildOptions()
    spec = bundle.network(network)
    profile, precision = build_profile(spec, options), build_precision(spec, options)
    api = load_library(target.kind)
    options.check(api.library)
    _check_refit(api, target, options)
    check_external(bundle, spec)
    key = PlanKey(
        network,
        bundle.digest(network),
        target.kind,
        api.version,
        target.sms,
        target.gpu,
        precision,
        profile,
        _plain(options),
    )
    folder = bundle.path / "plans" / Target(target.kind, api.short, target.arch).tag
    with locked(cache_dir() / "locks" / f"plan-{key.hash}"):
        found = folder / f"{network}-{key.hash}.plan"
        if not again and found.is_file():
            try:
                return read_plan(found)
            except EngineError as error:
                _log.info("building again: %s", error)
        trim()
        reset_peak()
        plan = _build(api, bundle, spec, target, options, key, folder, Tracker(on_progress))
        trim()  # what the builder used is free now, before the next network is read
        return plan


def _check_refit(api: Api, target: BuildTarget, options: BuildOptions) -> None:
    if not options.refit or not api.library.refit_at_gpu:
        return
    if len(target.sms) > 1:
        raise ParameterError(
            f"{api.library.title} builds plans that can be refitted for one architecture at a time, asked was "
            f"{target.arch}; write e.g. --target rtx:{target.sms[0]}"
        )
    if not devices():
        raise EngineError(
            f"{api.library.title} needs the driver to build a plan that can be refitted, and it names no GPU here; "
            "build it on the device, or build one plan for each set of weights without --refit"
        )


def _plain(options: BuildOptions) -> Mapping[str, JSON]:
    """What of the options is not said elsewhere in the key."""
    return {
        "workspace": options.workspace,
        "weight_streaming": options.weight_streaming,
        "version_compatible": options.version_compatible,
        "hardware": options.hardware,
        "effort": options.effort,
        "refit": options.refit,
    }


def _build(
    api: Api,
    bundle: Bundle,
    spec: NetworkSpec,
    target: BuildTarget,
    options: BuildOptions,
    key: PlanKey,
    folder: Path,
    tracker: Tracker,
) -> Plan:
    precision: Precision = build_precision(spec, options)
    scratch = cache_dir() / "build"
    scratch.mkdir(parents=True, exist_ok=True, mode=0o700)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix=f"{spec.name}-", dir=scratch) as temporary:
        graph, done = prepare_graph(bundle, spec, precision, Path(temporary))
        logger = library_logger(api)
        logger.forget()
        builder = api.trt.Builder(logger)
        network = read_network(api, builder, logger, graph, spec)
        halves = prove_types(network, spec, precision, done)
        origins = weight_origins(bundle, spec, done) if options.refit else {}
        del done
        config = _config(api, builder, target, options, key.profile)
        timing = TimingCache(api, target)
        timing.load(config)
        config.progress_monitor = told = monitor(api.trt, tracker)
        memory = interruptible(partial(builder.build_serialized_network, network.definition, config), tracker)
        del told
        if memory is None:
            raise EngineError(
                f"{spec.name}: {api.library.title} {api.version} cannot build it ({logger.said() or 'no reason'}); "
                "ask for less with --range or --workspace, or run this network on OpenVINO"
            )
        data = memoryview(memory)
        built: dict[str, JSON] = {
            "seconds": round(time.perf_counter() - start, 3),
            "peak_bytes": peak_memory(),
            "half_products": halves,
            "proof": prove_plan(api, logger, data, spec, precision),
            **({"weights": origins} if options.refit else {}),
        }
        timing.store(config)
        return write_plan(folder, key, data, built)


def _config(api: Api, builder: Any, target: BuildTarget, options: BuildOptions, profile: Profile) -> Any:
    config, trt = builder.create_builder_config(), api.trt
    if api.library.capabilities:
        config.num_compute_capabilities = len(target.sms)
        for index, sm in enumerate(target.sms):
            if not config.set_compute_capability(api.capability(sm), index):
                raise EngineError(f"{api.library.title} {api.version} refuses {target.arch}; name fewer architectures")
    if api.library.compiles_at_run and not options.weight_streaming:  # which allocates while it runs
        config.set_flag(api.flag("REQUIRE_USER_ALLOCATION"))
    if options.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace)
    if options.weight_streaming:
        config.set_flag(api.flag("WEIGHT_STREAMING"))
    if options.refit:
        config.set_flag(api.flag("REFIT"))
    if options.version_compatible:
        config.set_flag(api.flag("VERSION_COMPATIBLE"))
    if options.hardware != "none":
        config.hardware_compatibility_level = getattr(trt.HardwareCompatibilityLevel, options.hardware.upper())
    if options.effort is not None:
        config.builder_optimization_level = options.effort
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # names and types of layers, for the proof
    shapes = builder.create_optimization_profile()
    for name in profile.opt:
        shapes.set_shape(name, profile.min[name], profile.opt[name], profile.max[name])
    if config.add_optimization_profile(shapes) < 0:
        raise EngineError(f"{api.library.title} refuses the profile {dict(profile.min)} to {dict(profile.max)}")
    return config
