"""The guidance benchmarks: what their page says, and quick runs of both."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def report(module):
    return module("report")


def timed(fastest: float, ratio: float) -> dict[str, float]:
    return {"fastest": fastest, "median": fastest, "n": 3, "ratio": ratio}


def test_an_edit_is_judged_by_step_whole_and_memory(report, tmp_path):
    ours = {"precision": "bf16", "inversion": timed(0.2, 5.0), "guidance": timed(1.5, 6.0), "peak": 4e9, "memory": 0.4}
    ours["edit"] = {"seconds": 90.0, "whole": True, "ratio": 5.5}
    theirs = {"precision": "float32", "inversion": timed(1, 1), "guidance": timed(9, 1), "peak": 1e10, "memory": 1.0}
    theirs["edit"] = {"seconds": 495.0, "whole": False, "ratio": 1.0}
    variants = {"p2p_sfumato": ours, "p2p_fp32": theirs, "p2p_bf16": {"failed": "too | large"}}
    part = {"steps": 50, "timed": {"inversion": 10, "guided": 4}, "variants": variants}
    results = report.Results(tmp_path, quick=False)
    results.update("pix2pix", {"32": part})
    page = results.path.with_suffix(".md").read_text()
    assert "pix2pix-zero, 50 steps, 32x32 latents" in page
    assert "≈ 495.0 / 1.00x" in page and "90.0 / 5.50x" in page and "4.00 / 0.40x" in page and "too / large" in page
    goals = {goal.name: (goal.measured, goal.met) for goal in results.goals()}
    where = "pix2pix-zero, 50 steps, 32x32 latents"
    assert goals == {
        f"guidance step, {where}": ("6.00x", True),
        f"whole edit, {where}": ("5.50x", True),
        f"peak memory, {where}": ("0.40x", True),
    }
    assert "torch made 4 guided steps of 50" in page


def test_gradients_by_form_reach_the_page(report, tmp_path):
    joint = {"precision": "bf16", "load": 3.0, "warm_up": 9.0, "peak": 5e9, "error": 0.02, "cosine": 0.9998}
    variants = {"torch_fp32": {**joint, "precision": "fp32"}, "joint": {**joint, **timed(1.2, 4.5)}}
    variants["split"] = {"failed": "no memory"}
    results = report.Results(tmp_path, quick=False)
    part = {"title": "attention maps", "predicted": 4.6e9, "turns": False, "variants": variants}
    results.update("gradient", {"sd": part})
    page = results.path.with_suffix(".md").read_text()
    for text in ("A gradient: attention maps", "4.50x", "1200 / 1200 (n = 3)", "2.00 %", "no memory", "take 4.60 GB"):
        assert text in page
    assert "not in turns" in page


def quick(script: str, out: Path, *options: str) -> dict:
    """The results of a quick run."""
    for name in ("torch", "diffusers", "transformers", "onnxruntime", "openvino"):
        pytest.importorskip(name)
    command = [sys.executable, BENCHMARKS / script, "--quick", "--rounds", "1", "--out", out, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "failed" not in done.stdout, done.stdout + done.stderr
    (path,) = out.glob("*-quick.json")
    return json.loads(path.read_text())


@pytest.mark.slow
def test_a_quick_run_of_pix2pix_zero_measures_every_part(tmp_path):
    part = quick("pix2pix_zero.py", tmp_path)["pix2pix"]["16"]
    assert set(part["variants"]) == {"p2p_sfumato", "p2p_fp32", "p2p_bf16"}
    for variant in part["variants"].values():
        assert variant["inversion"]["ratio"] > 0 and variant["guidance"]["ratio"] > 0
        assert variant["edit"]["whole"] and variant["edit"]["ratio"] > 0 and variant["memory"] > 0


@pytest.mark.slow
def test_a_quick_run_of_gradients_holds_every_form_against_autograd(tmp_path):
    part = quick("gradient.py", tmp_path, "--cases", "pixel")["gradient"]["pixel"]
    forms = {"torch_fp32", "torch_bf16", "joint", "recomputed", "split", "joint_fp32", "joint_onnxruntime"}
    assert set(part["variants"]) == forms
    for name, variant in part["variants"].items():
        assert variant["ratio"] > 0 and variant["peak"] > 0
        assert variant.get("error", 0) < (0.01 if name.endswith(("fp32", "onnxruntime")) else 0.15)
