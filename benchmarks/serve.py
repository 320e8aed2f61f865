"""The child's side of `workers.Worker`: hold one variant, answer its questions until standard input ends."""

from __future__ import annotations

import json
import os
import sys
from typing import Any


def variant(kind: str, threads: int) -> Any:
    """The object that answers for `kind`; heavy libraries come with it, so that each child loads only its own."""
    match kind:
        case "sfumato" | "onnxruntime":
            from steps import EngineStep

            return EngineStep("openvino" if kind == "sfumato" else kind)
        case "torch_fp32" | "torch_bf16" | "torch_bf16_compiled":
            from steps import TorchStep

            return TorchStep(bf16="bf16" in kind, compiled=kind.endswith("compiled"), threads=threads)
        case "run_sfumato":
            from runs import SfumatoRun

            return SfumatoRun()
        case "run_fp32" | "run_bf16":
            from runs import DiffusersRun

            return DiffusersRun(bf16=kind.endswith("bf16"), threads=threads)
        case "cold_sfumato":
            from cold_runs import SfumatoCold

            return SfumatoCold()
        case "cold_torch":
            from cold_runs import TorchColdRun

            return TorchColdRun(threads)
        case "cold_make":
            from cold_runs import ColdMaker

            return ColdMaker()
        case "p2p_sfumato":
            from pix2pix_runs import SfumatoEdit

            return SfumatoEdit()
        case "p2p_fp32" | "p2p_bf16":
            from pix2pix_runs import TorchEdit

            return TorchEdit(bf16=kind.endswith("bf16"), threads=threads)
        case "p2p_make":
            import pix2pix_runs

            return pix2pix_runs.Maker()
        case "make":
            from models import Maker

            return Maker()
        case "gradient_engine" | "gradient_torch" | "gradient_export":
            import gradient_parts

            parts = {
                "gradient_engine": gradient_parts.EngineGradients,
                "gradient_torch": gradient_parts.TorchGradients,
                "gradient_export": gradient_parts.Exporter,
            }
            return parts[kind]()
        case _:
            raise ValueError(f"no variant is called {kind!r}")


def main() -> None:
    """Read questions, write answers."""
    kind, pipe, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    served: Any = None
    with os.fdopen(pipe, "w", buffering=1) as answers:
        for line in sys.stdin:
            request = json.loads(line)
            try:
                served = served or variant(kind, threads)
                reply = {"answer": getattr(served, request["question"])(**request["arguments"])}
            except Exception as error:
                import traceback

                traceback.print_exc()
                reply = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
            answers.write(json.dumps(reply) + "\n")


if __name__ == "__main__":
    main()
