"""torch's gradients of arrays on a real GPU: where x lies is where they are computed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sfumato.engines.cuda import DeviceArray, open_cuda
from sfumato.errors import EngineError, MissingDependency
from sfumato.runtime.gradient import open_gradient

pytestmark = pytest.mark.gpu


def test_arrays_on_the_gpu_stay_there(tiny_ldm: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this torch has no CUDA")
    try:
        cuda = open_cuda()
    except (EngineError, MissingDependency) as error:
        pytest.skip(str(error))
    import tiny_p2p

    feeds = tiny_p2p.random_feeds()
    bundle, stream = tiny_p2p.write(tiny_ldm, tmp_path / "b"), cuda.stream()
    with open_gradient(bundle, "unet_maps", backend="torch", loss="attention_maps") as gradient:
        loss, expected = gradient(**feeds)
        sent = {name: cuda.upload(array, stream) for name, array in feeds.items()}
        stream.synchronize()
        again, result = gradient(**sent)
        assert isinstance(result, DeviceArray)
        np.testing.assert_allclose(result.numpy(stream), expected, rtol=1e-4, atol=1e-5)
        assert again == pytest.approx(loss, rel=1e-4)
        mixed, tensor = gradient(**(feeds | {"x": torch.from_numpy(feeds["x"]).cuda()}))
        assert tensor.is_cuda and mixed == pytest.approx(loss, rel=1e-4)
