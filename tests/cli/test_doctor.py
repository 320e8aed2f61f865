"""``sfumato doctor``: what it prints, and its exit status."""

from __future__ import annotations

import json

import pytest

from sfumato.cli import doctor
from sfumato.engines.doctor import Environment
from sfumato.engines.nvidia import CudaDevice, NvidiaFacts
from sfumato.engines.target import CpuFacts


@pytest.fixture
def pretend(monkeypatch):
    """Makes this a desktop with an RTX card and these packages."""

    def pretend(**packages: str) -> None:
        nvidia = NvidiaFacts("580.95.05", "libcuda.so.1")
        cpu = CpuFacts("A processor", "x86_64", 8, ())
        names = {name.replace("_", "-"): version for name, version in packages.items()}
        env = Environment((3, 11), "Linux", cpu, names, nvidia, (CudaDevice("RTX 4070", "sm89"),))
        monkeypatch.setattr(doctor, "environment", lambda: env)

    return pretend


def test_it_names_what_is_wrong_and_what_mends_it(run, pretend):
    pretend(openvino="2026.4.1", onnxruntime="1.31.1", onnxruntime_gpu="1.31.1")
    result = run("doctor")
    assert result.exit_code == 0
    assert "RTX 4070 (sm89)" in result.output
    assert "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu" in result.output
    assert "pip install 'sfumato[rtx]'" in result.output


def test_a_machine_that_runs_nothing_ends_with_1(run, pretend):
    pretend(numpy="2.4.6")
    result = run("doctor")
    assert result.exit_code == 1
    assert "mend it: pip install 'sfumato[cpu]'" in result.output


def test_as_json(run, pretend):
    pretend(openvino="2026.4.1")
    tree = json.loads(run("doctor", "--json").stdout)
    assert tree["environment"]["nvidia"]["driver"] == "580.95.05"
    assert [b["name"] for b in tree["backends"]] == [
        "openvino",
        "onnxruntime",
        "onnxruntime_cuda",
        "tensorrt_rtx",
        "tensorrt",
    ]
    assert tree["findings"][0]["subject"] == "openvino"


def test_this_machine(run):
    tree = json.loads(run("doctor", "--json").stdout)
    assert {b["state"] for b in tree["backends"]} <= {"ready", "builds", "unusable", "absent"}
