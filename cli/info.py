"""``sfumato info``: what is in a bundle."""

from __future__ import annotations

import json
from typing import Any

from ..engines.binding import Binding
from ..engines.bundle import Bundle
from ..engines.engine import available_backends
from ..engines.manifest import NetworkSpec
from . import console
from .options import BundlePath, Json

__all__ = ["command"]


def command(bundle: BundlePath, as_json: Json = False) -> None:
    """Show what is in a bundle: system, networks, schedule, settings, sizes. Hashes are left to `verify`."""
    opened = Bundle.open(bundle, verify=False)
    manifest = opened.manifest
    backends = available_backends()
    if as_json:
        console.print_json({"path": str(bundle), "manifest": manifest.to_json(), "backends": backends})
        return
    total = sum(artifact.bytes for artifact in manifest.files.values())
    rows: dict[str, str] = {
        "system": manifest.system,
        "license": manifest.license,
        "size": f"{console.size(total)} in {len(manifest.files)} files",
        "producer": ", ".join(f"{k} {v}" for k, v in manifest.producer.items()),
        "assets": ", ".join(manifest.assets) or "none",
    }
    if manifest.schedule is not None:
        s = manifest.schedule
        rows["schedule"] = f"{s.betas}, {s.steps} steps, {s.start:g} to {s.end:g}, predicts {s.prediction}"
    rows |= {key: _text(value) for key, value in manifest.settings.items()}
    console.table(f"{manifest.name} ({bundle})", ["", ""], list(rows.items()))
    networks = [_network(opened, spec) for spec in manifest.networks.values()]
    console.table("networks", ["network", "inputs", "outputs", "stored in", ">size"], networks)
    console.table("backends", ["", ""], [[name, why or "ready"] for name, why in backends.items()])


def _network(bundle: Bundle, spec: NetworkSpec) -> list[str]:
    stored = sum(bundle.manifest.files[path].bytes for path in (spec.graph, *spec.weights))
    inputs, outputs = ("\n".join(_binding(b) for b in bindings) for bindings in (spec.inputs, spec.outputs))
    return [spec.name, inputs, outputs, spec.precision.default, console.size(stored)]


def _binding(binding: Binding) -> str:
    return f"{binding.name} {binding.dtype} ({', '.join(str(extent) for extent in binding.shape)})"


def _text(value: Any) -> str:
    if value is None:
        return "none"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
