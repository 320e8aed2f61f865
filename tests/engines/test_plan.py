"""Plans on disk: receipts, and the reasons for which a plan is refused before it is opened."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from sfumato.engines.bundle import Bundle
from sfumato.engines.plan import PlanKey, find_plans, preflight, read_plan, write_plan
from sfumato.errors import EngineError

RUNS = {"builder": "tensorrt_rtx", "version": "1.7.1.116", "sm": "sm89"}


@pytest.fixture
def opened(tiny):
    return Bundle.open(tiny)


@pytest.fixture
def key(opened):
    spec, digest = opened.network("unet"), opened.digest("unet")
    return PlanKey("unet", digest, "tensorrt_rtx", "1.7.1.116", ("sm86", "sm89"), "", "fp16", spec.profile, {})


@pytest.fixture
def plan(opened, key):
    return write_plan(opened.path / "plans" / "sm86+sm89-rtx1.7", key, b"a plan" * 100, {"seconds": 1.0})


def test_a_plan_is_found_read_and_passed(opened, key, plan):
    assert find_plans(opened, "unet") == [plan.path]
    assert find_plans(opened, "class_embedder") == []
    again = preflight(plan.path, opened, "unet", **RUNS)
    assert (again.sha256, again.bytes, again.key) == (plan.sha256, 600, json.loads(json.dumps(key.to_json())))
    assert (plan.fresh, again.fresh) == (True, False)


def test_a_bundle_with_plans_still_opens(opened, plan):
    Bundle.open(opened.path)


def test_a_truncated_plan_is_refused(plan):
    plan.path.write_bytes(plan.path.read_bytes()[:-1])
    with pytest.raises(EngineError, match="has 599 bytes, its receipt says 600: it was cut short"):
        read_plan(plan.path)


def test_an_altered_plan_is_refused(plan):
    plan.path.write_bytes(b"b" + plan.path.read_bytes()[1:])
    with pytest.raises(EngineError, match="was altered"):
        read_plan(plan.path)


@pytest.mark.parametrize("damage", [None, b"", b"{", b"[]", b'{"key": {}}'])
def test_a_plan_without_a_whole_receipt_is_none(plan, damage):
    receipt = plan.path.with_suffix(".json")
    receipt.unlink() if damage is None else receipt.write_bytes(damage)
    with pytest.raises(EngineError, match="no readable receipt"):
        read_plan(plan.path)


def test_a_receipt_without_a_plan_is_none(plan):
    plan.path.unlink()
    with pytest.raises(EngineError, match="cannot be read"):
        read_plan(plan.path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"sm": "sm120"}, r"was built for sm86\+sm89, this GPU is sm120"),
        ({"version": "1.8.0.1"}, "was built by tensorrt_rtx 1.7.1.116, installed is 1.8.0.1"),
        ({"builder": "tensorrt"}, "would be run by tensorrt"),
    ],
)
def test_a_plan_for_something_else_is_refused_with_the_reason(opened, plan, change, reason):
    with pytest.raises(EngineError, match=reason):
        preflight(plan.path, opened, "unet", **{**RUNS, **change})


def test_a_plan_of_another_network_or_bundle_is_refused(opened, models, plan, tmp_path):
    with pytest.raises(EngineError, match="is of network 'unet', asked was 'class_embedder'"):
        preflight(plan.path, opened, "class_embedder", **RUNS)
    other = models.write_tiny(tmp_path / "other", weight=models.WEIGHT + 1)
    with pytest.raises(EngineError, match="was built from other weights"):
        preflight(plan.path, other, "unet", **RUNS)


def test_compatible_plans_run_on_more(opened, key):
    folder = opened.path / "plans" / "x"
    wide = replace(key, builder="tensorrt", version="10.3.0", sms=("sm86",))
    plan = write_plan(folder, replace(wide, options={"version_compatible": True, "hardware": "ampere_plus"}), b"x", {})
    runs = {"builder": "tensorrt", "sm": "sm120"}
    preflight(plan.path, opened, "unet", version="10.16.1", **runs)
    for version in ("10.2.0", "11.4.0"):
        with pytest.raises(EngineError, match=f"installed is {version}"):
            preflight(plan.path, opened, "unet", version=version, **runs)
    with pytest.raises(EngineError, match="this GPU is sm75"):
        preflight(plan.path, opened, "unet", version="10.3.0", builder="tensorrt", sm="sm75")


def test_every_part_of_the_key_counts(key):
    changed = [
        replace(key, **change)
        for change in (
            {"network": "vae"},
            {"digest": "0" * 64},
            {"builder": "tensorrt"},
            {"version": "1.7.2"},
            {"sms": ("sm86",)},
            {"gpu": "RTX 4070"},
            {"precision": "bf16"},
            {"profile": replace(key.profile, max={"x": (9, 4, 16, 16), "t": (9,)})},
            {"options": {"workspace": 1 << 30}},
            {"form": 2},
        )
    ]
    assert len({key.hash, *(k.hash for k in changed)}) == 11
