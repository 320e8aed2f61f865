"""The GPU check's results: ``gpu.json`` and a page beside it, written again after every part."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markdown_table import table
from report import machine

from sfumato.engines.doctor import Environment

__all__ = ["GpuResults"]

PARTS = {
    "plans": "Plans",
    "parity": "Parity",
    "polygraphy": "Polygraphy's Comparator",
    "latency": "Latency",
    "unet": "Latency of Stable Diffusion 1.5's UNet",
    "tests": "Tests that need a GPU",
}
COLUMNS = {
    "plans": ("bundle", "network", "backend", "precision", "state", "seconds", "bytes", "reason"),
    "parity": ("bundle", "network", "variant", "against_cpu", "against_torch", "limit", "status", "reason"),
    "polygraphy": ("bundle", "network", "variant", "limit", "status", "reason"),
    "latency": ("bundle", "network", "variant", "fastest_ms", "median_ms", "n", "failed"),
    "unet": ("network", "variant", "fastest_ms", "median_ms", "n", "warm_up_s", "failed"),
    "tests": ("command", "status", "summary"),
}
BAD = ("failed", "error")


class GpuResults:
    """Parts by name, each a list of rows; on disk after every `update`.

    Arguments:
        path: The JSON file; the page goes beside it.
        env: What the doctor found.
        dry: Nothing ran on a GPU: say so on the page.
    """

    def __init__(self, path: Path, env: Environment, *, dry: bool) -> None:
        self.path = path
        gpus = [f"{gpu.name} ({gpu.sm})" for gpu in env.gpus]
        self.data: dict[str, Any] = {
            "date": datetime.date.today().isoformat(),
            "dry_run": dry,
            "machine": machine() | {"gpus": gpus, "driver": env.nvidia.driver},
            "versions": {"sfumato": importlib.metadata.version("sfumato"), **env.packages},
            "parts": {},
        }

    def update(self, part: str, rows: Sequence[dict[str, Any]]) -> None:
        """Put `rows` in the place of a part and write both files."""
        self.data["parts"][part] = list(rows)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(_plain(self.data), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        for path, content in ((self.path, text), (self.path.with_suffix(".md"), self.page())):
            temporary = path.with_name(f".{path.name}.tmp")
            temporary.write_text(content)
            temporary.replace(path)

    @property
    def failures(self) -> list[str]:
        """One line for everything that failed."""
        found: list[str] = []
        for part, rows in self.data["parts"].items():
            for row in rows:
                if row.get("status") in BAD or row.get("state") in BAD or row.get("failed"):
                    where = " ".join(str(row[k]) for k in ("bundle", "network", "backend", "variant") if row.get(k))
                    why = row.get("reason") or row.get("failed") or row.get("summary") or ""
                    found.append(f"{part}: {where}: {why}")
        return found

    def page(self) -> str:
        """The page."""
        facts = self.data["machine"]
        gpus = ", ".join(facts["gpus"]) or "no GPU"
        lines = [f"# {gpus}", ""]
        if self.data["dry_run"]:
            lines += ["**A dry run: nothing here ran on a GPU, and no number says anything about one.**", ""]
        versions = ", ".join(f"{name} {found}" for name, found in self.data["versions"].items())
        lines += [
            f"{facts['class']}, driver {facts['driver'] or 'none'}, Python {facts['python']}, {self.data['date']}."
        ]
        lines += ["", versions + ".", ""]
        lines += [
            "Deviations are relative L2 errors, the worst of several calls; variants were timed in turns, with",
            "",
        ]
        lines[-2] += " inputs and outputs on the GPU, so ratios within a table count."
        for part, rows in self.data["parts"].items():
            head = [c for c in COLUMNS[part] if any(row.get(c) not in (None, "") for row in rows)]
            lines += table(PARTS[part], head, [[_cell(row.get(column)) for column in head] for row in rows])
        if self.failures:
            lines += ["## What failed", "", *(f"- {line}" for line in self.failures), ""]
        return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _plain(value: Any) -> Any:
    """Floats at five digits, null where not finite: JSON has no NaN."""
    if isinstance(value, float):
        return float(f"{value:.5g}") if abs(value) < float("inf") else None
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
