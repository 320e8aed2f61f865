"""Imports: what `import sfumato` costs and what `sfumato info` drags in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

__all__ = ["measure_imports"]

HEAVY = (
    *("torch", "torchvision", "diffusers", "transformers", "onnx", "onnxscript", "onnxruntime", "openvino"),
    *("tensorrt", "tensorrt_rtx", "cuda", "PIL", "scipy", "tokenizers", "safetensors"),
)
"""Packages that neither of the two may load."""

_IMPORT = """
import sys, time
begin = time.perf_counter()
import sfumato
seconds = time.perf_counter() - begin
import json
print(json.dumps({"seconds": seconds, "modules": sorted({name.partition(".")[0] for name in sys.modules})}))
"""
_INFO = """
import atexit, json, sys
output, bundle = sys.argv[1:]
@atexit.register
def report():
    with open(output, "w") as file:
        json.dump(sorted({name.partition(".")[0] for name in sys.modules}), file)
from sfumato.cli import main
sys.argv = ["sfumato", "info", bundle, "--json"]
main()
"""


def measure_imports(bundle: Path | None, rounds: int = 7) -> dict[str, Any]:
    """Seconds of `import sfumato` in fresh interpreters, and the heavy packages that it and `sfumato info` load.

    Arguments:
        bundle: What to show with `sfumato info`; None leaves that out.
        rounds: Interpreters to start.
    """
    runs = [json.loads(_python(_IMPORT)) for _ in range(rounds)]
    seconds = [run["seconds"] for run in runs]
    result: dict[str, Any] = {
        "fastest": min(seconds),
        "median": median(seconds),
        "n": rounds,
        "heavy": _heavy(runs[0]["modules"]),
    }
    if bundle is not None:
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "modules.json"
            _python(_INFO, str(output), str(bundle))
            result["info_heavy"] = _heavy(json.loads(output.read_text()))
    return result


def _heavy(modules: list[str]) -> list[str]:
    return [name for name in HEAVY if name in modules]


def _python(code: str, *arguments: str) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONSTARTUP"}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        timeout=120,
    )
    if done.returncode != 0:
        raise RuntimeError((done.stderr.strip().splitlines() or ["it failed without a word"])[-1][:300])
    return done.stdout
