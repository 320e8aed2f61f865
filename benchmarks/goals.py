"""Goals: what was promised, held against what was measured, each with the reason that the numbers give."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Goal", "judge"]

TORCH = ("torch_fp32", "torch_bf16", "torch_bf16_compiled")


@dataclass(frozen=True)
class Goal:
    """One promise.

    Arguments:
        name: What is promised.
        bound: The bound, as text.
        measured: The number, as text.
        met: Whether it holds.
        why: One line.
    """

    name: str
    bound: str
    measured: str
    met: bool
    why: str

    def to_json(self) -> dict[str, Any]:
        """For the results file."""
        return asdict(self)


def judge(data: dict[str, Any]) -> list[Goal]:
    """The goals that the sections of a results file allow to judge."""
    steps = [goal for latents, part in data.get("steps", {}).items() for goal in _steps(latents, part)]
    runs = [goal for latents, part in data.get("runs", {}).items() for goal in _runs(latents, part)]
    rest = (*_imports(data.get("imports", {})), *_export(data.get("export", {})), *_cold(data.get("cold", {})))
    edits = [goal for latents, part in data.get("pix2pix", {}).items() for goal in _pix2pix(latents, part)]
    return [*steps, *runs, *rest, *edits]


def _steps(latents: str, part: dict[str, Any]) -> Iterator[Goal]:
    ratios = {name: v["ratio"] for name, v in part["variants"].items() if "ratio" in v}
    if "torch_fp32" in ratios:
        ratio = ratios["torch_fp32"]
        bf16 = f"; torch's own bf16 is {ratio / ratios['torch_bf16']:.1f}x its fp32" if "torch_bf16" in ratios else ""
        ours = part["variants"]["sfumato"].get("precision", "?")
        why = f"sfumato computes in {ours} here{bf16}"
        yield Goal(
            f"step, {latents}x{latents} latents, against diffusers fp32", "≥ 5x", f"{ratio:.2f}x", ratio >= 5, why
        )
    best = min((name for name in TORCH if name in ratios), key=lambda name: ratios[name], default=None)
    if best is not None:
        absent = [name for name in TORCH if name not in ratios]
        why = f"the best torch variant is {best}" + (f"; not measured: {', '.join(absent)}" if absent else "")
        name = f"step, {latents}x{latents} latents, against the best torch variant"
        yield Goal(name, "≥ 1.5x", f"{ratios[best]:.2f}x", ratios[best] >= 1.5, why)


def _runs(latents: str, part: dict[str, Any]) -> Iterator[Goal]:
    ours = part["variants"].get("run_sfumato", {})
    where = f"{part['steps']} steps, {latents}x{latents} latents"
    if "outside_library" in ours:
        share = ours["outside_library"]
        why = (
            f"everything but OpenVINO's own calls, {1e3 * share * ours['fastest']:.1f} ms of the run; "
            f"{100 * ours['outside_engines']:.2f} % outside sfumato's engine calls"
        )
        yield Goal(f"outside engine calls, {where}", "≤ 1 %", f"{100 * share:.2f} %", share <= 0.01, why)
    for name in ("run_fp32", "run_bf16"):
        theirs = part["variants"].get(name, {})
        if "peak" not in ours or "peak" not in theirs:
            continue
        ratio = ours["peak"] / theirs["peak"]
        anonymous = f"{_gb(ours['anonymous_peak'])} against {_gb(theirs['anonymous_peak'])} without mapped files"
        fewer = f"; diffusers ran {theirs['steps']} steps" if theirs["steps"] != part["steps"] else ""
        why = f"{_gb(ours['peak'])} against {_gb(theirs['peak'])}; {anonymous}{fewer}"
        title = f"peak memory, {where}, against diffusers {name.removeprefix('run_')}"
        yield Goal(title, "≤ 0.7x", f"{ratio:.2f}x", ratio <= 0.7, why)


def _imports(part: dict[str, Any]) -> Iterator[Goal]:
    if "fastest" in part:
        seconds = part["fastest"]
        why = f"fastest of {part['n']}, median {part['median']:.3f} s; heavy packages: {_names(part['heavy'])}"
        met = seconds <= 0.15 and not part["heavy"]
        yield Goal("import sfumato", "≤ 0.15 s, nothing heavy", f"{seconds:.3f} s", met, why)
    if "info_heavy" in part:
        heavy = part["info_heavy"]
        why = "the manifest is read with the standard library and NumPy" if not heavy else "imported on the way"
        yield Goal("sfumato info", "nothing heavy", _names(heavy), not heavy, why)


def _export(part: dict[str, Any]) -> Iterator[Goal]:
    if "seconds" in part:
        why = (
            f"{_gb(part['checkpoint'])} of checkpoint to {_gb(part['bundle'])} of bundle, checks against torch included"
        )
        yield Goal("export", "≤ 90 s", f"{part['seconds']:.0f} s", part["seconds"] <= 90, why)
        why = f"{_gb(part['anonymous_peak'])} without mapped files"
        yield Goal("export, peak memory", "< 8 GB", _gb(part["peak"]), part["peak"] < 8e9, why)


def _cold(part: dict[str, Any]) -> Iterator[Goal]:
    ours, theirs = (part.get("variants", {}).get(f"cold_{name}", {}) for name in ("sfumato", "torch"))
    where = f"Cold Diffusion, {part.get('steps')} steps, {part.get('side')} pixels"
    if "network" in ours:
        share = ours["fastest"] / ours["network"] - 1
        why = f"{1e3 * (ours['fastest'] - ours['network']):.0f} ms beside {ours['network']:.1f} s in the engine"
        yield Goal(f"degradations, {where}", "≤ 10 % of the engine", f"{100 * share:.1f} %", share <= 0.1, why)
    if "ratio" in theirs and "network" in ours:
        ratio, alone = theirs["ratio"], theirs["network"] / ours["network"]
        why = f"{alone:.1f}x in the network alone; the authors' way degrades T² times; sfumato computes in "
        yield Goal(f"{where}, against torch fp32", "≥ 4x", f"{ratio:.2f}x", ratio >= 4, why + ours["precision"])


def _pix2pix(latents: str, part: dict[str, Any]) -> Iterator[Goal]:
    ours, theirs = (part.get("variants", {}).get(f"p2p_{name}", {}) for name in ("sfumato", "fp32"))
    where = f"pix2pix-zero, {part['steps']} steps, {latents}x{latents} latents"
    if "ratio" in ours.get("guidance", {}):
        ratio = ours["guidance"]["ratio"]
        bf16 = part["variants"].get("p2p_bf16", {}).get("guidance", {}).get("ratio")
        why = f"sfumato computes in {ours['precision']}" + (f"; torch's own bf16 is {bf16:.1f}x" if bf16 else "")
        yield Goal(f"guidance step, {where}", "≥ 4x torch fp32", f"{ratio:.2f}x", ratio >= 4, why)
    if "ratio" in ours.get("edit", {}):
        ratio = ours["edit"]["ratio"]
        why = "" if theirs["edit"]["whole"] else f"torch made {part['timed']['guided']} guided steps of {part['steps']}"
        yield Goal(f"whole edit, {where}", "≥ 4x torch fp32", f"{ratio:.2f}x", ratio >= 4, why)
        share = ours["memory"]
        why = f"{_gb(ours['peak'])} against {_gb(theirs['peak'])}"
        yield Goal(f"peak memory, {where}", "≤ 0.5x of torch fp32", f"{share:.2f}x", share <= 0.5, why)


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f} GB"


def _names(names: list[str]) -> str:
    return ", ".join(names) or "none"
