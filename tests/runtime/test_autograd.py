"""Gradients by torch: what is refused, without torch and with it. `tests/export/test_gradient.py` tests equality."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sfumato.engines.bundle import Bundle
from sfumato.errors import BindingError, EngineError, NonFiniteError, ParameterError
from sfumato.runtime.gradient import open_gradient

BLOCKED = """
import sys
sys.modules["torch"] = None
from sfumato.engines.bundle import Bundle
from sfumato.errors import MissingDependency
from sfumato.runtime.gradient import open_gradient
try:
    open_gradient(Bundle.open(sys.argv[1]), "unet", backend="torch")
except MissingDependency as error:
    assert "sfumato[export]" in str(error), error
else:
    raise AssertionError("opened without torch")
"""


def test_without_torch_the_message_names_the_extra(tiny_ldm: Path) -> None:
    command = [sys.executable, "-W", "error", "-c", BLOCKED, str(tiny_ldm)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_network_without_a_loss_needs_one_named(tiny_ldm: Path) -> None:
    pytest.importorskip("torch")
    bundle = Bundle.open(tiny_ldm)
    with pytest.raises(EngineError, match="name a loss"):
        open_gradient(bundle, "unet", backend="torch")
    with pytest.raises(ParameterError, match="no loss is named"):
        open_gradient(bundle, "unet", backend="torch", loss="likeness")  # type: ignore[arg-type]
    with pytest.raises(EngineError, match="has no outputs"):
        open_gradient(bundle, "unet", backend="onnxruntime")


def test_tensors_go_in_and_out_without_numpy(tiny_ldm: Path, tmp_path: Path) -> None:
    """Whatever speaks DLPack; on a GPU these are `DeviceArray`s or tensors of any library."""
    torch = pytest.importorskip("torch")
    import tiny_p2p

    feeds = tiny_p2p.random_feeds()
    bundle = tiny_p2p.write(tiny_ldm, tmp_path / "b")
    with open_gradient(bundle, "unet_maps", backend="torch", loss="attention_maps") as gradient:
        loss, expected = gradient(**feeds)
        prediction = gradient.prediction.copy()  # type: ignore[union-attr]
        tensors = {name: torch.from_numpy(array) for name, array in feeds.items()}
        again, result = gradient(**tensors)
        assert again == loss and isinstance(result, torch.Tensor)
        np.testing.assert_array_equal(result.numpy(), expected)
        np.testing.assert_array_equal(np.asarray(gradient.prediction), prediction)
        with pytest.raises(BindingError, match="float64"):
            gradient(**(tensors | {"x": tensors["x"].double()}))
        with pytest.raises(BindingError, match="bfloat16"):
            gradient(**(tensors | {"x": tensors["x"].bfloat16()}))
        with pytest.raises(NonFiniteError) as caught:
            gradient(**(tensors | {"x": tensors["x"] * float("nan")}))
        assert caught.value.tensor in ("loss", "gradient")
