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
        case "make":
            from models import Maker

            return Maker()
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
