"""Tables of the guidance benchmarks: gradients by form, and pix2pix-zero beside the official data flow."""

from __future__ import annotations

from typing import Any

from markdown_table import table

__all__ = ["gradient", "pix2pix"]

LABELS = {
    "joint": "**one engine (joint)**",
    "recomputed": "one engine, blocks recomputed",
    "split": "two engines (split): the network, then vᵀJ",
    "joint_fp32": "one engine",
    "joint_onnxruntime": "one engine, ONNX Runtime",
    "torch_fp32": "autograd, torch",
    "torch_bf16": "autograd, torch",
    "p2p_sfumato": "**sfumato, OpenVINO**",
    "p2p_fp32": "the official data flow, torch and diffusers",
    "p2p_bf16": "the official data flow, torch and diffusers",
}


def gradient(parts: dict[str, Any]) -> list[str]:
    """A table for every case of `gradient.py`."""
    lines: list[str] = []
    head = (
        *("variant", "computes in", "times as fast as autograd in fp32", "ms, fastest / median", "peak GB"),
        *("error", "cosine", "load + first calls, s"),
    )
    for part in parts.values():
        rows = [
            (LABELS[name], "", f"failed: {v['failed']}", "", "", "", "", "")
            if "failed" in v
            else (
                LABELS[name],
                v["precision"],
                f"{v['ratio']:.2f}x" if "ratio" in v else "",
                f"{1e3 * v['fastest']:.0f} / {1e3 * v['median']:.0f} (n = {v['n']})" if "fastest" in v else "",
                f"{v['peak'] / 1e9:.2f}",
                f"{100 * v['error']:.2f} %" if "error" in v else "",
                f"{v['cosine']:.4f}" if "cosine" in v else "",
                f"{v['load']:.0f} + {v['warm_up']:.0f}",
            )
            for name, v in part["variants"].items()
        ]
        lines += table(f"A gradient: {part['title']}", head, rows)
        predicted = f"{part['predicted'] / 1e9:.2f} GB at most on OpenVINO"
        turns = "Each variant was timed in turns with autograd in fp32."
        if not part["turns"]:
            turns = "Autograd in fp32 does not fit beside the others here; it was timed before them, not in turns."
        lines += [f"The joint form was expected to take {predicted}. {turns}", ""]
    return lines


def pix2pix(parts: dict[str, Any]) -> list[str]:
    """A table for every size of `pix2pix_zero.py`."""
    lines: list[str] = []
    head = (
        *("variant", "computes in", "inversion step, ms / times fp32", "guidance step, ms / times fp32"),
        *("whole edit, s / times fp32", "peak GB / share of fp32"),
    )
    for latents, part in parts.items():
        rows = []
        for name, v in part["variants"].items():
            if "failed" in v:
                rows.append((LABELS[name], "", "", f"failed: {v['failed']}", "", ""))
                continue
            cells = [_times(v.get(p)) for p in ("inversion", "guidance")]
            if "edit" in v:
                sign = "" if v["edit"]["whole"] else "≈ "
                cells.append(f"{sign}{v['edit']['seconds']:.1f} / {v['edit'].get('ratio', 0):.2f}x")
                sign = "≈ " if v["edit"].get("unheld") else ""
                cells.append(f"{sign}{v['peak'] / 1e9:.2f} / {v.get('memory', 0):.2f}x")
            else:
                cells += [f"failed: {v.get('edit_failed', 'not measured')}", ""]
            rows.append((LABELS[name], v["precision"], *cells))
        lines += table(f"pix2pix-zero, {part['steps']} steps, {latents}x{latents} latents", head, rows)
        note = "From latent to latents. A guidance step is one of both passes: reference, gradient, prediction."
        if not all(v["edit"]["whole"] for v in part["variants"].values() if "edit" in v):
            steps, timed = part["steps"], part["timed"]
            referred = timed.get("reference", steps)
            note += (
                f" ≈: {timed['inversion']} steps of inversion, {referred} of the reference and {timed['guided']} guided"
                f" ones were made of {steps}, and their times multiplied up."
            )
            if referred < steps:
                note += f" The maps of the other {steps - referred} steps of the reference are counted, not measured."
        note += " Peak memory is that of a process that made one edit."
        if not part.get("turns", True):
            note += " torch in fp32 does not fit beside the others here; it was timed before them, not in turns."
        lines += [note, ""]
    return lines


def _times(timed: dict[str, float] | None) -> str:
    """Milliseconds of a part, and how many times as fast as in fp32."""
    if timed is None:
        return "not measured"
    return f"{1e3 * timed['fastest']:.0f} / {timed.get('ratio', 0):.2f}x"
