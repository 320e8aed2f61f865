"""Checkpoints are read without running code, and what does not fit is named."""

from __future__ import annotations

import os
import pickle
import sys
import types
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from sfumato.errors import CheckpointError
from sfumato.networks.checkpoint import build, ema_weights, read_checkpoint, read_folder, section


class Evil:
    """Unpickling it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_is_refused_by_name_and_not_run(tmp_path: Path, zipped: bool) -> None:
    path, touched = tmp_path / "evil.ckpt", tmp_path / "touched"
    content = {"state_dict": {"a": torch.zeros(2)}, "more": Evil(touched)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"calls \w+\.system, and pickled code is never run.*convert it"):
        read_checkpoint(path)
    assert not touched.exists()


def test_classes_that_lightning_leaves_behind_do_not_stop_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "pytorch_lightning.callbacks.model_checkpoint"
    module = types.ModuleType(name)
    made = type("ModelCheckpoint", (), {"__module__": name})
    module.ModelCheckpoint = made  # type: ignore[attr-defined]
    for part in ("pytorch_lightning", "pytorch_lightning.callbacks"):
        monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
    monkeypatch.setitem(sys.modules, name, module)
    path = tmp_path / "light.ckpt"
    torch.save({"state_dict": {"a": torch.ones(2)}, "callbacks": {made: {"best": 1}}, "loop": made()}, path)
    assert read_checkpoint(path)["a"].tolist() == [1, 1]


def _raw_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"a": Evil(path)}))


def _truncated(path: Path) -> None:
    torch.save({"a": torch.zeros(100)}, path)
    path.write_bytes(path.read_bytes()[:900])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.write_bytes(b""), "not a whole torch checkpoint"),
        (lambda path: path.write_text("hello"), "not a whole torch checkpoint|not a torch checkpoint"),
        (_truncated, "not a whole torch checkpoint"),
        (_raw_pickle, r"is a pickle that calls \w+\.system, and pickled code is never run"),
        (lambda path: torch.save([1, 2], path), "holds a list, need tensors by name"),
        (lambda path: torch.save({"state_dict": 3}, path), "'state_dict' is a int"),
        (lambda path: torch.save({"epoch": 3}, path), "holds no tensors by name but epoch"),
    ],
)
def test_what_is_no_checkpoint_is_refused_with_a_reason(tmp_path: Path, make, message: str) -> None:
    path = tmp_path / "x.ckpt"
    make(path)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(path)


def test_a_broken_safetensors_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"\xff" * 64)
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        read_checkpoint(path)


def test_the_wrapper_is_opened_and_counters_are_left_out(tmp_path: Path) -> None:
    state = {"w": torch.arange(3.0), "n": 3}
    torch.save({"state_dict": state, "global_step": 7}, tmp_path / "a.ckpt")
    torch.save(state, tmp_path / "b.pt")
    save_file({"w": state["w"]}, tmp_path / "c.safetensors")
    for name in ("a.ckpt", "b.pt", "c.safetensors"):
        read = read_checkpoint(tmp_path / name)
        assert list(read) == ["w"] and torch.equal(read["w"], torch.arange(3.0))


def test_shards_of_a_folder_are_joined_and_the_plain_file_wins(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "diffusion_pytorch_model-00001-of-00002.safetensors")
    save_file({"b": torch.ones(1)}, tmp_path / "diffusion_pytorch_model-00002-of-00002.safetensors")
    save_file({"a": torch.ones(1).half()}, tmp_path / "diffusion_pytorch_model.fp16.safetensors")
    torch.save({"a": torch.ones(1)}, tmp_path / "diffusion_pytorch_model.bin")
    assert sorted(read_folder(tmp_path)) == ["a", "b"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="has no weights"):
        read_folder(tmp_path / "empty")


def test_averages_are_found_without_their_dots() -> None:
    state = {
        "model.diffusion_model.out.0.weight": torch.zeros(1),
        "model_ema.decay": torch.tensor(0.99),
        "model_ema.diffusion_modelout0weight": torch.ones(1),
    }
    averaged = ema_weights(state)
    assert averaged is not None and averaged["out.0.weight"].item() == 1
    assert ema_weights(section(state, "model.")) is None
    with pytest.raises(CheckpointError, match="incomplete: model_ema.diffusion_modelout0bias missing"):
        ema_weights({**state, "model.diffusion_model.out.0.bias": torch.zeros(1)})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_weights_of_any_float_type_are_loaded_as_float32(dtype: torch.dtype) -> None:
    state = {"weight": torch.full((3, 2), 0.5, dtype=dtype), "bias": torch.zeros(3, dtype=dtype)}
    module = build(lambda: nn.Linear(2, 3), state, "a layer")
    assert module.weight.dtype == torch.float32 and module.weight[0, 0] == 0.5
    assert not module.training and not module.weight.requires_grad


def test_missing_and_extra_keys_and_shapes_are_listed() -> None:
    def make() -> nn.Module:
        return nn.Sequential(*(nn.Linear(2, 2) for _ in range(4)))

    good = make().state_dict()
    less = {k: v for k, v in good.items() if k != "0.bias"}
    with pytest.raises(CheckpointError, match=r"1 missing: 0\.bias\); is the config its own"):
        build(make, less, "it")
    with pytest.raises(CheckpointError, match=r"8 missing: .* and 3 more; 1 extra: odd"):
        build(make, {"odd": torch.zeros(1)}, "it")
    with pytest.raises(CheckpointError, match=r"1 shapes do not fit.*0\.bias is \(3,\), need \(2,\)"):
        build(make, {**good, "0.bias": torch.zeros(3)}, "it")
    assert build(make, {**good, "loss.w": torch.zeros(1)}, "it", ignore=(r"loss\.",)) is not None


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_weights_that_are_not_finite_are_named(bad: float, dtype: torch.dtype) -> None:
    """Even one that no reference would touch, such as a row of a table."""
    state = {"weight": torch.zeros(50, 4, dtype=dtype)}
    state["weight"][31, 2] = bad
    with pytest.raises(CheckpointError, match="a table: 1 weights hold NaN or infinity: weight; the file is damaged"):
        build(lambda: nn.Embedding(50, 4), state, "a table")
