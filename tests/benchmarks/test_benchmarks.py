"""The benchmark's own machinery: turns, groups, goals, results, and a quick run of the whole."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def worker(module, monkeypatch, tmp_path):
    """A worker whose variant is the given class body."""

    def make(body: str):
        workers = module("workers")
        served = tmp_path / "variant"
        served.mkdir(exist_ok=True)
        source = (BENCHMARKS / "serve.py").read_text()
        (served / "serve.py").write_text(
            source.replace(
                'case "make":',
                'case "test":\n            from given import Given\n\n            return Given()\n        case "make":',
            )
        )
        (served / "given.py").write_text("class Given:\n" + textwrap.indent(textwrap.dedent(body), "    "))
        monkeypatch.setattr(workers, "HERE", served)
        return workers.Worker("test", tmp_path / "log", 1)

    return make


def test_a_worker_answers_and_tells_its_memory(worker):
    with worker("def double(self, x):\n    print('noise on stdout')\n    return 2 * x") as held:
        assert held.ask("double", x=21) == 42
        assert held.ask("double", watch=True, x=[1]) == [1, 1]
        memory = held.memory()
        assert memory["peak"] >= memory["now"] > 1 << 20
        assert held.cpu_seconds() >= 0


def test_a_worker_survives_an_error_and_its_message_arrives(module, worker):
    body = """
    def fail(self):
        raise ValueError("two facts disagree")
    def fine(self):
        return 1
    """
    with worker(body) as held:
        with pytest.raises(module("workers").WorkerFailed, match="ValueError: two facts disagree"):
            held.ask("fail")
        assert held.ask("fine") == 1


def test_a_worker_that_dies_or_is_slow_is_reported_and_ended(module, worker):
    failed = module("workers").WorkerFailed
    body = """
    def die(self):
        import os, sys
        print("last words", file=sys.stderr, flush=True)
        os._exit(3)
    def sleep(self):
        import time
        time.sleep(60)
    """
    with worker(body) as held:
        with pytest.raises(failed, match=r"exit status 3\); last words"):
            held.ask("die")
        with pytest.raises(failed, match="not running|ended its process"):
            held.ask("die")
    with worker(body) as held:
        with pytest.raises(failed, match="more than 0 s and was stopped"):
            held.ask("sleep", limit=0.2)
        held.close()


def test_variants_that_do_not_fit_together_are_split_with_the_anchor_in_each_group(module):
    groups = module("bench").groups
    need = {"a": 4.0, "b": 4.0, "c": 4.0, "d": 4.0}
    assert groups("abcd", need, 20) == [["a", "b", "c", "d"]]
    assert groups("abcd", need, 13.5) == [["a", "b", "c"], ["a", "d"]]
    assert groups("abcd", need, 1) == [["a", "b"], ["a", "c"], ["a", "d"]]


def step(ratio: float, **more):
    return {"precision": "bf16", "load": 1, "warm_up": 1, "fastest": 1, "median": 1, "n": 3, "ratio": ratio, **more}


def results(**ratios: float):
    variants = {"sfumato": step(1.0), **{name: step(ratio) for name, ratio in ratios.items()}}
    return {"steps": {"32": {"rounds": 3, "variants": variants}}}


def test_the_goal_is_held_against_the_best_torch_variant_that_ran(module):
    judge = module("goals").judge
    data = results(torch_fp32=6.0, torch_bf16=2.0, onnxruntime=1.2)
    data["steps"]["32"]["variants"]["torch_bf16_compiled"] = {"failed": "no compiler"}
    first, second = judge(data)
    assert first.met and first.measured == "6.00x" and "3.0x its fp32" in first.why
    assert second.met and second.measured == "2.00x" and "not measured: torch_bf16_compiled" in second.why
    assert not judge(results(torch_fp32=4.9, torch_bf16_compiled=1.2))[0].met
    assert not judge(results(torch_fp32=4.9, torch_bf16_compiled=1.2))[1].met


def test_memory_counts_even_of_a_run_cut_short_and_its_goal_says_so(module):
    ours = {"steps": 20, "peak": 3e9, "anonymous_peak": 2e9, "fastest": 10.0}
    ours |= {"outside_library": 0.02, "outside_engines": 0.001}
    theirs = {"steps": 3, "peak": 4e9, "anonymous_peak": 3e9}
    share, memory = module("goals").judge(
        {"runs": {"64": {"steps": 20, "variants": {"run_sfumato": ours, "run_fp32": theirs}}}}
    )
    assert not share.met and share.measured == "2.00 %" and "200.0 ms" in share.why
    assert not memory.met and memory.measured == "0.75x" and "diffusers ran 3 steps" in memory.why


def test_every_section_reaches_the_page_and_a_later_run_keeps_what_it_does_not_measure(module, tmp_path):
    report = module("report")
    first = report.Results(tmp_path, quick=False)
    first.update("export", {"seconds": 80.0, "peak": 9e9, "anonymous_peak": 7e9, "checkpoint": 2e9, "bundle": 2e9})
    second = report.Results(tmp_path, quick=False)
    second.update("imports", {"fastest": 0.01, "median": 0.02, "n": 7, "heavy": [], "info_heavy": ["torch"]})
    failed = {"failed": "ValueError: a | b"}
    steps = {
        "rounds": 3,
        "idle": 0.01,
        "variants": {"sfumato": step(1.0, error=0.02), "torch_fp32": step(6.0), "onnxruntime": failed},
    }
    second.update("steps", {"32": steps})
    run = {
        "steps": 20,
        "load": 1.0,
        "warm_up": 2.0,
        "peak": 3e9,
        "anonymous_peak": 2e9,
        "fastest": 9.0,
        "n": 2,
        "ratio": 1.0,
    }
    runs = {"run_sfumato": {**run, "outside_library": 0.001, "outside_engines": 0.0005}, "run_fp32": failed}
    second.update("runs", {"32": {"steps": 20, "variants": runs}})
    page = second.path.with_suffix(".md").read_text()
    for part in (
        "Goals",
        "One step, 32x32",
        "Prompt to picture, 20 steps",
        "Export",
        "Imports",
        "ValueError: a / b",
        "**missed**",
    ):
        assert part in page
    stored = json.loads(second.path.read_text())
    assert {goal["name"]: goal["met"] for goal in stored["goals"]} == {
        "step, 32x32 latents, against diffusers fp32": True,
        "step, 32x32 latents, against the best torch variant": True,
        "outside engine calls, 20 steps, 32x32 latents": True,
        "import sfumato": True,
        "sfumato info": False,
        "export": True,
        "export, peak memory": False,
    }
    assert "-core" in stored["machine"]["class"] and not list(tmp_path.glob(".*"))


def test_cold_diffusion_is_judged_end_to_end_and_by_what_degrading_costs(module, tmp_path):
    ours = {"precision": "bf16", "steps": 200, "fastest": 10.5, "median": 11.0, "n": 3, "ratio": 1.0, "network": 10.0}
    theirs = {**ours, "precision": "fp32", "fastest": 63.0, "median": 64.0, "ratio": 6.0, "network": 50.0, "peak": 2e9}
    part = {"side": 128, "steps": 200, "weights": 56.6, "rounds": 3, "difference": 0.4}
    part["variants"] = {"cold_sfumato": ours, "cold_torch": theirs}
    share, speed = module("goals").judge({"cold": part})
    assert share.met and share.measured == "5.0 %" and "500 ms beside 10.0 s" in share.why
    assert speed.met and speed.measured == "6.00x" and "5.0x in the network alone" in speed.why
    results = module("report").Results(tmp_path, quick=False)
    results.update("cold", part)
    page = results.path.with_suffix(".md").read_text()
    assert "Cold Diffusion, 200 steps, 128 pixels, 56.6 million weights" in page and "differ by 0.40 of 255" in page
    part["variants"]["cold_torch"] = {"failed": "no torch"}
    results.update("cold", part)
    assert [goal.name for goal in results.goals()] == ["degradations, Cold Diffusion, 200 steps, 128 pixels"]


@pytest.mark.slow
def test_a_quick_run_of_cold_diffusion_gives_the_same_picture_on_both_sides(tmp_path):
    for name in ("torch", "onnxruntime", "openvino"):
        pytest.importorskip(name)
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "cold_diffusion.py", "--quick", "--rounds", "2", "--out", tmp_path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("*-quick.json")
    part = json.loads(path.read_text())["cold"]
    assert set(part["variants"]) == {"cold_sfumato", "cold_torch"} and part["difference"] < 3
    assert all(0 < v["network"] < v["fastest"] and v["n"] == 2 for v in part["variants"].values())


@pytest.mark.slow
def test_a_quick_run_measures_every_part(tmp_path):
    for name in ("torch", "diffusers", "transformers", "onnxruntime", "openvino"):
        pytest.importorskip(name)
    options = ["--quick", "--latents", "8", "--rounds", "2", "--steps", "2", "--minutes", "9"]
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "latent_diffusion.py", *options, "--work", tmp_path / "work", "--out", tmp_path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "failed" not in done.stdout, done.stdout + done.stderr
    (path,) = tmp_path.glob("*-quick.json")
    data = json.loads(path.read_text())
    variants = data["steps"]["8"]["variants"]
    assert set(variants) == {"sfumato", "onnxruntime", "torch_fp32", "torch_bf16"}
    assert variants["onnxruntime"]["error"] < 1e-3 and variants["sfumato"]["error"] < 0.1
    assert all(variant["n"] == 2 and variant["ratio"] > 0 for variant in variants.values())
    runs = data["runs"]["8"]["variants"]
    assert 0 < runs["run_sfumato"]["outside_engines"] < 1 and runs["run_fp32"]["peak"] > runs["run_sfumato"]["peak"]
    assert data["imports"]["info_heavy"] == [] and data["export"]["peak"] > 0
