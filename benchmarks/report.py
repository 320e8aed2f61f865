"""Results: one JSON file and one Markdown page for each class of machine, written again after every part."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import re
from pathlib import Path
from typing import Any

from goals import Goal, judge
from tables import page
from workers import physical_cores

__all__ = ["Results", "default_folder", "machine"]

LIBRARIES = ("openvino", "onnxruntime", "torch", "diffusers", "transformers", "numpy")
HERE = Path(__file__).resolve().parent


def default_folder(quick: bool) -> Path:
    """Where results go: beside this file, or out of the way where the networks are tiny."""
    return HERE.parent / "out" / "benchmarks" if quick else HERE / "results"


def machine() -> dict[str, Any]:
    """The class of this machine ("2-core x86-64, AMX") and what it stands for."""
    from sfumato.engines.target import detect

    facts = detect()
    best = next((name for flag, name in _EXTENSIONS if flag in facts.flags), None)
    name = f"{physical_cores()}-core {facts.machine.replace('x86_64', 'x86-64')}"
    return {
        "class": f"{name}, {best}" if best else name,
        "processor": facts.model,
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "flags": list(facts.flags),
        "python": platform.python_version(),
    }


_EXTENSIONS = (
    ("amx_bf16", "AMX"),
    ("avx512_bf16", "AVX512_BF16"),
    ("avx512f", "AVX512"),
    ("avx2", "AVX2"),
    ("bf16", "BF16"),
    ("asimdhp", "FP16"),
    ("asimd", "NEON"),
)
"""What makes a processor fast at this, best first."""


class Results:
    """Sections by name, on disk after every `update`; sections of an earlier run that this one lacks are kept.

    Arguments:
        folder: Where to write ``<class>.json`` and ``<class>.md``.
        quick: The networks were tiny: say so, and judge nothing.
    """

    def __init__(self, folder: Path, *, quick: bool) -> None:
        facts = machine()
        stem = re.sub(r"[^a-z0-9]+", "-", facts["class"].lower()).strip("-") + ("-quick" if quick else "")
        self.path = folder / f"{stem}.json"
        self._quick = quick
        self.data: dict[str, Any] = json.loads(self.path.read_text()) if self.path.is_file() else {}
        self.data |= {
            "date": datetime.date.today().isoformat(),
            "quick": quick,
            "machine": facts,
            "versions": {name: _version(name) for name in ("sfumato", *LIBRARIES)},
        }

    def update(self, section: str, value: dict[str, Any]) -> None:
        """Put `value` in the place of `section` and write both files."""
        self.data[section] = value
        self.data["goals"] = [goal.to_json() for goal in self.goals()]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        for path, text in (
            (self.path, json.dumps(_rounded(self.data), indent=1, ensure_ascii=False) + "\n"),
            (self.path.with_suffix(".md"), self.markdown()),
        ):
            temporary = path.with_name(f".{path.name}.tmp")
            temporary.write_text(text)
            temporary.replace(path)

    def goals(self) -> list[Goal]:
        """Every goal that the sections so far allow to judge; none of tiny networks."""
        return [] if self._quick else judge(self.data)

    def markdown(self) -> str:
        """The page."""
        return page(self.data, self.goals())


def _version(name: str) -> str:
    if name == "sfumato":
        import sfumato

        return sfumato.__version__
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _rounded(value: Any) -> Any:
    """Floats at five significant digits: more would be noise in a tracked file."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, (list, tuple)) else value
