"""The doctor on faked machines: what stands in the way is named before anything is imported."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from sfumato.engines import doctor
from sfumato.engines.doctor import Environment, version
from sfumato.engines.doctor_rules import diagnose
from sfumato.engines.doctor_states import states
from sfumato.engines.nvidia import CudaDevice, NvidiaFacts, detect_nvidia, devices
from sfumato.engines.target import CpuFacts

CPU = CpuFacts("A processor", "x86_64", 8, ("amx_bf16",))
DESKTOP = NvidiaFacts("580.95.05", "libcuda.so.1", libraries=("cudart", "cudnn"))
GPU = CudaDevice("NVIDIA GeForce RTX 4070", "sm89")
ORIN = NvidiaFacts("540.4.0", "libcuda.so.1", "R36.4.3", "/usr/lib/python3.10/dist-packages/tensorrt", ("nvinfer",))
ORIN_CPU = CpuFacts("Arm 0x41 0xd42", "aarch64", 8, ("asimd",))


def machine(packages: dict[str, str], nvidia: NvidiaFacts = DESKTOP, **changes) -> Environment:
    gpus = (GPU,) if nvidia.libcuda else ()
    fields = {"python": (3, 11), "system": "Linux", "cpu": CPU, "packages": packages, "nvidia": nvidia, "gpus": gpus}
    return Environment(**{**fields, **changes})


def state(env: Environment, name: str):
    return next(b for b in states(env) if b.name == name)


def problems(env: Environment) -> list[tuple[str, str]]:
    return [(f.level, f.subject) for f in diagnose(env)]


def test_a_sound_machine_has_nothing_to_mend():
    env = machine({"openvino": "2026.4.1", "onnxruntime": "1.31.1", "onnx": "1.23.2", "tensorrt-rtx-cu13": "1.7.1.116"})
    assert diagnose(env) == []
    assert [b.state for b in states(env)] == ["ready", "ready", "absent", "builds", "absent"]
    core = replace(env, packages={**env.packages, "cuda-core": "1.2.2"})
    assert [b.state for b in states(core)] == ["ready", "ready", "absent", "ready", "absent"]


def test_plans_run_where_there_is_a_gpu_that_the_library_knows_and_cuda_core():
    packages = {"openvino": "1", "onnx": "1.23", "cuda-core": "1.2", "tensorrt-rtx-cu13": "1.7.1", "tensorrt": "11.4.0"}
    env = machine(packages)
    assert (state(env, "tensorrt").state, state(env, "tensorrt_rtx").state) == ("ready", "ready")
    hopper = replace(env, gpus=(CudaDevice("NVIDIA H200", "sm90"),))
    assert (state(hopper, "tensorrt").state, state(hopper, "tensorrt_rtx").state) == ("ready", "builds")
    assert "NVIDIA H200 is sm90, it knows sm75" in state(hopper, "tensorrt_rtx").reason
    without = replace(env, packages={k: v for k, v in packages.items() if k != "cuda-core"})
    assert [state(without, n).mend for n in ("tensorrt", "tensorrt_rtx")] == ["pip install 'cuda-core[cu13]>=1.0'"] * 2
    blind = replace(env, gpus=())
    assert (state(blind, "tensorrt").state, state(blind, "tensorrt_rtx").state) == ("unusable", "builds")


def test_onnxruntime_on_a_gpu_needs_its_own_package_a_gpu_cudnn_and_cuda_core():
    packages = {"onnxruntime-gpu": "1.31.1", "cuda-core": "1.2"}
    assert state(machine(packages), "onnxruntime_cuda").state == "ready"
    assert (
        state(machine({"onnxruntime-gpu": "1.31.1"}), "onnxruntime_cuda").mend == "pip install 'cuda-core[cu13]>=1.0'"
    )
    for env in (
        machine(packages, NvidiaFacts()),
        machine(packages, replace(DESKTOP, libraries=())),
        machine(packages, gpus=()),
        machine({**packages, "onnxruntime": "1.31.1"}),
    ):
        assert state(env, "onnxruntime_cuda").state == "unusable"
    absent = state(machine({"onnxruntime": "1.31.1"}), "onnxruntime_cuda")
    assert absent.mend == "pip uninstall -y onnxruntime && pip install 'sfumato[cuda]'"


def test_a_device_may_have_nothing_but_tensorrt():
    env = machine({"tensorrt": "11.4.0", "cuda-core": "1.2"})
    assert ("error", "backends") not in problems(env)
    assert ("error", "backends") in problems(replace(env, gpus=()))


def test_two_onnxruntimes_are_an_error_and_the_one_for_the_gpu_is_kept():
    env = machine({"onnxruntime": "1.31.1", "onnxruntime-gpu": "1.31.1"})
    (finding,) = [f for f in diagnose(env) if f.level == "error"]
    assert finding.mend == "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu"
    assert state(env, "onnxruntime").state == "unusable"
    without = replace(env, gpus=())
    assert diagnose(without)[0].mend.endswith("pip install onnxruntime")


def test_tensorrt_11_beside_a_provider_that_wants_10():
    packages = {"onnxruntime-gpu": "1.31.1", "tensorrt": "11.4.0", "onnx": "1.23.2"}
    (finding,) = [f for f in diagnose(machine(packages)) if f.subject == "tensorrt"]
    assert "libnvinfer.so.10" in finding.problem and "<11" in finding.mend
    assert finding.level == "warning"
    assert problems(machine({**packages, "tensorrt": "10.16.1"})) == []


@pytest.mark.parametrize(("found", "wrong"), [("10.2.0", True), ("10.3.0", False), ("11.4.0", False), ("9.3", True)])
def test_tensorrt_before_10_3_is_an_error(found, wrong):
    env = machine({"openvino": "2026.4.1", "tensorrt": found})
    assert (("error", "tensorrt") in problems(env)) is wrong


def test_without_libcuda_tensorrt_is_unusable_and_rtx_still_builds():
    packages = {"openvino": "1", "onnx": "1.23", "tensorrt": "11.4.0", "tensorrt-rtx-cu13": "1.7.1"}
    env = machine(packages, NvidiaFacts())
    assert state(env, "tensorrt").state == "unusable"
    assert "docker run --gpus all" in state(env, "tensorrt").mend
    assert state(env, "tensorrt_rtx").state == "builds"
    assert ("note", "tensorrt_rtx") in problems(env)


def test_an_old_driver_is_an_error_for_tensorrt_and_a_warning_for_a_builder():
    old = replace(DESKTOP, driver="550.120")
    packages = {"openvino": "1", "onnx": "1.23", "tensorrt": "11.4.0", "tensorrt-cu13": "11.4.0"}
    env = machine({**packages, "tensorrt-rtx-cu13": "1.7.1"}, old)
    assert state(env, "tensorrt").mend == "install driver 580 or newer"
    assert ("warning", "tensorrt_rtx") in problems(env)
    assert problems(machine({"openvino": "1", "tensorrt": "10.16.1", "tensorrt-cu12": "10.16.1"}, old)) == []


def test_onnxruntime_gpu_without_driver_or_cudnn():
    env = machine({"onnxruntime-gpu": "1.31.1"}, NvidiaFacts())
    assert problems(env) == [("warning", "onnxruntime-gpu")] * 2
    assert state(env, "onnxruntime").state == "ready"


def test_a_driver_without_a_gpu_is_said():
    assert ("warning", "driver") in problems(machine({"openvino": "1"}, gpus=()))


def test_an_orin_as_jetpack_sets_it_up_builds():
    env = machine({"openvino": "1", "onnx": "1.19"}, ORIN, python=(3, 10), cpu=ORIN_CPU)
    assert (state(env, "tensorrt").state, state(env, "tensorrt").version) == ("builds", "JetPack's")
    assert [f for f in diagnose(env) if f.level != "note"] == []


def test_the_wrong_python_on_jetpack():
    env = machine({"openvino": "1", "onnx": "1.23"}, ORIN, python=(3, 12), cpu=ORIN_CPU)
    assert state(env, "tensorrt").state == "unusable"
    assert state(env, "tensorrt").mend == "python3.10 -m venv --system-site-packages .venv"


def test_wheels_of_others_on_jetpack():
    env = machine({"openvino": "1", "tensorrt": "11.4", "tensorrt-rtx-cu13": "1.7"}, ORIN, python=(3, 10))
    assert ("warning", "tensorrt") in problems(env)
    assert state(env, "tensorrt_rtx").state == "unusable"


def test_building_needs_onnx():
    env = machine({"openvino": "1", "tensorrt-rtx-cu13": "1.7.1"})
    assert state(env, "tensorrt_rtx").reason == "building needs onnx, which is not installed"


def test_an_empty_machine_is_told_where_to_begin():
    env = machine({}, NvidiaFacts())
    assert problems(env) == [("error", "backends")]
    assert {b.state for b in states(env)} == {"absent"}


@pytest.mark.parametrize(
    ("text", "want"), [("10.16.1.post1", (10, 16, 1)), ("2.13.0+cpu", (2, 13, 0)), ("11", (11,)), ("dev", (0,))]
)
def test_versions(text, want):
    assert version(text) == want


def test_a_desktop_is_read_from_its_files(tmp_path):
    folder = tmp_path / "proc/driver/nvidia"
    folder.mkdir(parents=True)
    text = (
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  (root@x)\nGCC version: 13\n"
    )
    (folder / "version").write_text(text)
    facts = detect_nvidia(tmp_path, {"cuda": "libcuda.so.1", "cudnn": "libcudnn.so.9"}.get)
    assert (facts.driver, facts.branch, facts.jetson, facts.libraries) == ("580.95.05", 580, None, ("cudnn",))
    (folder / "version").write_text(text.replace("Open Kernel Module for x86_64", "x86_64 Kernel Module"))
    assert detect_nvidia(tmp_path, lambda name: None).driver == "580.95.05"


def test_a_jetson_is_read_from_its_files(tmp_path):
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/nv_tegra_release").write_text("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic\n")
    package = tmp_path / "usr/lib/python3.10/dist-packages/tensorrt"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    facts = detect_nvidia(tmp_path, lambda name: None)
    assert (facts.jetson, facts.jetpack, facts.system_tensorrt) == ("R36.4.3", 6, str(package))


def test_a_machine_without_nvidia_has_no_facts(tmp_path):
    assert detect_nvidia(tmp_path, lambda name: None) == NvidiaFacts()
    assert devices("libthat-is-not-there.so.1") == []


def test_a_library_that_is_not_the_driver_names_no_gpu():
    assert devices("libc.so.6") == []


def test_this_machine_is_read_without_importing_a_backend():
    code = """
import sys
from sfumato.engines.doctor import environment
from sfumato.engines.doctor_rules import diagnose
from sfumato.engines.doctor_states import states
env = environment()
diagnose(env), states(env)
heavy = {"torch", "openvino", "onnxruntime", "onnx", "tensorrt", "tensorrt_rtx", "cuda"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, capture_output=True)


def test_packages_are_read_from_metadata():
    env = doctor.environment()
    assert env.packages["numpy"].count(".") >= 1
    assert json.loads(json.dumps(dict(env.packages))) == env.packages
