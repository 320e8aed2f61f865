"""Tables: the Markdown page of a results file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from goals import Goal
from markdown_table import table
from tables_guidance import gradient, pix2pix

__all__ = ["LABELS", "page"]

LABELS = {
    "sfumato": "**sfumato, OpenVINO**",
    "onnxruntime": "sfumato, ONNX Runtime",
    "torch_fp32": "diffusers, torch",
    "torch_bf16": "diffusers, torch, channels last",
    "torch_bf16_compiled": "diffusers, torch.compile, channels last, frozen",
    "run_sfumato": "**sfumato, OpenVINO**",
    "run_fp32": "diffusers pipeline, fp32",
    "run_bf16": "diffusers pipeline, bf16",
    "cold_sfumato": "**sfumato, OpenVINO**",
    "cold_torch": "the authors' way, torch",
}


def page(data: dict[str, Any], goals: Sequence[Goal]) -> str:
    """The whole page."""
    facts = data["machine"]
    lines = [
        f"# {facts['class']}",
        "",
        f"{facts['processor']}, {facts['memory_gb']} GB, Python {facts['python']}, {data['date']}. "
        + ", ".join(f"{name} {version}" for name, version in data["versions"].items())
        + ".",
        "",
        "Variants answered in turns within one run, so only the ratios are claimed; seconds are for orientation.",
        "",
    ]
    if data["quick"]:
        lines += ["**Tiny networks: this page says that the benchmark runs, and nothing else.**", ""]
    if goals:
        rows = [(g.name, g.bound, g.measured, "met" if g.met else "**missed**", g.why) for g in goals]
        lines += table("Goals", ("goal", "bound", "measured", "", "why"), rows)
    for latents, part in data.get("steps", {}).items():
        lines += _steps(latents, part)
    for latents, part in data.get("runs", {}).items():
        lines += _runs(latents, part)
    lines += _export(data.get("export", {})) + _imports(data.get("imports", {})) + _cold(data.get("cold", {}))
    lines += gradient(data.get("gradient", {})) + pix2pix(data.get("pix2pix", {}))
    if data.get("notes"):
        lines += ["## Notes", "", *(f"- {note}" for note in data["notes"]), ""]
    return "\n".join(lines)


def _steps(latents: str, part: dict[str, Any]) -> list[str]:
    rows = [
        (LABELS[name], *(f"failed: {v['failed']}" if i == 4 else "" for i in range(6)))
        if "failed" in v
        else (
            LABELS[name],
            v["precision"],
            f"{v['ratio']:.2f}x" if "ratio" in v else "",
            f"{v['ratio_of_medians']:.2f}x" if "ratio_of_medians" in v else "",
            f"{1e3 * v['fastest']:.0f} / {1e3 * v['median']:.0f} (n = {v['n']})",
            f"{100 * v['error']:.2f} %" if "error" in v else "",
            f"{v['load']:.0f} + {v['warm_up']:.0f}",
        )
        for name, v in part["variants"].items()
    ]
    head = (
        "variant",
        "computes in",
        "time / sfumato's",
        "by medians",
        "ms, fastest / median",
        "L2 error",
        "load + warm-up, s",
    )
    title = f"One step, {latents}x{latents} latents, batch 2"
    idle = f"Waiting workers used {100 * part['idle']:.1f} % of the processor meanwhile. " if "idle" in part else ""
    note = f"{idle}L2 error: relative to diffusers in fp32 on the same input."
    return [*table(title, head, rows), note, ""]


def _runs(latents: str, part: dict[str, Any]) -> list[str]:
    ours = part["variants"].get("run_sfumato", {})
    rows = []
    for name, v in part["variants"].items():
        if "failed" in v:
            rows.append((LABELS[name], "", "", f"failed: {v['failed']}", "", "", ""))
            continue
        rows.append(
            (
                LABELS[name],
                str(v["steps"]),
                f"{v['ratio']:.2f}x" if "ratio" in v else "",
                f"{v['fastest']:.2f} (n = {v['n']})",
                f"{ours['peak'] / v['peak']:.2f}x" if "peak" in ours and name != "run_sfumato" else "",
                f"{v['peak'] / 1e9:.2f} / {v['anonymous_peak'] / 1e9:.2f}",
                f"{v['load']:.1f} + {v['warm_up']:.1f}",
            )
        )
    head = (
        *("variant", "steps", "time / sfumato's", "s, fastest"),
        *("sfumato's peak / its", "peak GB, all / without mapped files", "load + first step, s"),
    )
    title = f"Prompt to picture, {part['steps']} steps, {latents}x{latents} latents, guidance 7.5"
    lines = table(title, head, rows)
    if "outside_library" in ours:
        lines += [
            f"Of sfumato's run {100 * ours['outside_library']:.2f} % lies outside OpenVINO's calls and "
            f"{100 * ours['outside_engines']:.2f} % outside sfumato's engine calls.",
            "",
        ]
    return lines


def _export(part: dict[str, Any]) -> list[str]:
    if not part:
        return []
    if "failed" in part:
        return ["## Export", "", f"Failed: {part['failed']}", ""]
    row = (
        f"{part['seconds']:.1f}",
        f"{part['peak'] / 1e9:.2f} / {part['anonymous_peak'] / 1e9:.2f}",
        f"{part['checkpoint'] / 1e9:.2f}",
        f"{part['bundle'] / 1e9:.2f}",
    )
    head = ("s", "peak GB, all / without mapped files", "checkpoint GB", "bundle GB")
    return table("Export of the diffusers folder", head, [row])


def _imports(part: dict[str, Any]) -> list[str]:
    if not part:
        return []
    if "failed" in part:
        return ["## Imports", "", f"Failed: {part['failed']}", ""]
    heavy = ", ".join(part["heavy"]) or "none"
    info = ", ".join(part["info_heavy"]) or "none" if "info_heavy" in part else "not measured"
    row = (f"{1e3 * part['fastest']:.0f} / {1e3 * part['median']:.0f} (n = {part['n']})", heavy, info)
    return table("Imports", ("import sfumato, ms, fastest / median", "heavy packages", "with `sfumato info`"), [row])


def _cold(part: dict[str, Any]) -> list[str]:
    if not part:
        return []
    rows = [
        (LABELS[name], "", "", f"failed: {v['failed']}", "", "")
        if "failed" in v
        else (
            LABELS[name],
            v["precision"],
            f"{v['ratio']:.2f}x" if "ratio" in v else "",
            f"{v['fastest']:.2f} / {v['median']:.2f} (n = {v['n']})" if "fastest" in v else "",
            f"{v['network']:.2f}" if "network" in v else "",
            f"{v['peak'] / 1e9:.2f}" if "peak" in v else "",
        )
        for name, v in part["variants"].items()
    ]
    head = ("variant", "computes in", "time / sfumato's", "s, fastest / median", "of it network, s", "peak GB")
    size = f"{part['weights']:.1f} million weights"
    lines = table(f"Cold Diffusion, {part['steps']} steps, {part['side']} pixels, {size}", head, rows)
    if "difference" in part:
        lines += [f"The two restored pictures differ by {part['difference']:.2f} of 255 (root mean square).", ""]
    return lines
