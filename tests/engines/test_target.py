from __future__ import annotations

import pytest

import sfumato.engines.target as target
from sfumato.engines.target import CpuFacts, Target, cpu_precision, detect

XEON = """processor\t: 0
cpu family\t: 6
model\t\t: 143
model name\t: Intel(R) Xeon(R) Platinum 8480
stepping\t: 8
flags\t\t: fpu avx2 avx512f avx512_bf16 amx_tile amx_bf16

processor\t: 1
flags\t\t: fpu
"""
PI = "processor\t: 0\nFeatures\t: fp asimd asimddp\nCPU implementer\t: 0x41\nCPU part\t: 0xd0b\n"


@pytest.mark.parametrize(
    ("made", "tag"),
    [
        (Target("openvino", "2026.4", "cpu"), "cpu-openvino2026.4"),
        (Target("tensorrt", "10.3", "sm87"), "sm87-trt10.3"),
        (Target("tensorrt_rtx", "1.7", "sm89"), "sm89-rtx1.7"),
    ],
)
def test_tags(made, tag):
    assert made.tag == tag


def test_x86_facts():
    facts = target._facts(XEON)
    assert facts.model == "Intel(R) Xeon(R) Platinum 8480 6/143/8"
    assert facts.flags == ("amx_bf16", "amx_tile", "avx2", "avx512_bf16", "avx512f")
    assert cpu_precision(facts) == "bf16"


def test_arm_facts():
    facts = target._facts(PI)
    assert facts.model == "Arm 0x41 0xd0b"
    assert facts.flags == ("asimd", "asimddp")
    assert cpu_precision(facts) == "fp32"


def test_without_cpuinfo_there_are_still_facts():
    facts = target._facts("")
    assert facts.cores >= 1
    assert facts.flags == ()
    assert cpu_precision(facts) == "fp32"


def test_this_processor_is_known_and_keys_differ_by_flags():
    assert detect().cores >= 1
    assert detect().machine
    assert CpuFacts("m", "x86_64", 1, ("avx2",)).key != CpuFacts("m", "x86_64", 1, ()).key
