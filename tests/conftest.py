"""Fixtures of all tests: golden numbers, and a cache of their own."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

HERE = Path(__file__).parent

# Without torch (an installation with base + cpu only) what defines, exports or trains networks cannot be tested.
if importlib.util.find_spec("torch") is None:
    collect_ignore = ["export", "networks", "training"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests or exports come first: workers take whole files; a long one at the end would run alone."""
    slow = {item.path for item in items if item.get_closest_marker("slow") or HERE / "export" in item.path.parents}
    items.sort(key=lambda item: item.path not in slow)


class Goldens:
    """Numbers of the official code, in ``tests/goldens``: `goldens("x.npz")["name"]`, `goldens.path("x.ckpt")`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, name: str) -> Path:
        """The path of a file; the test fails if it is not there."""
        path = self._folder / name
        if not path.is_file():
            pytest.fail(f"{path} is missing; goldens are tracked files")
        return path

    def __call__(self, name: str) -> Mapping[str, np.ndarray[Any, np.dtype[Any]]]:
        """The arrays of an ``.npz`` file by name, read without pickle."""
        with np.load(self.path(name), allow_pickle=False) as data:
            return {key: data[key] for key in data.files}


@pytest.fixture(scope="session")
def goldens() -> Goldens:
    return Goldens(HERE / "goldens")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Compiled networks of a test run are kept in a folder of the run, shared by its tests and its subprocesses."""
    folder = tmp_path_factory.mktemp("cache")
    before = os.environ.get("SFUMATO_CACHE")
    os.environ["SFUMATO_CACHE"] = str(folder)
    yield folder
    if before is None:
        del os.environ["SFUMATO_CACHE"]
    else:
        os.environ["SFUMATO_CACHE"] = before


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """What takes long to make and is not changed, made once for all workers of a run: ``once(name, make)`` gives the
    folder of that name, into which one worker has had ``make(folder)`` write."""
    from sfumato.engines.storage import locked

    base = tmp_path_factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"

    def get(name: str, make: Callable[[Path], object]) -> Path:
        folder, done = root / name, root / f"{name}.done"
        with locked(folder):
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)  # what another worker failed at
                make(folder)
                done.touch()
        return folder

    return get


@pytest.fixture(scope="session")
def exported(goldens: Goldens, once: Any) -> Callable[[str], Any]:
    """The `Bundle` of a golden checkpoint in float32, by the checkpoint's name without ``.ckpt``."""
    from sfumato.engines.bundle import Bundle
    from sfumato.export.recipes.latent_diffusion import export

    def get(name: str) -> Bundle:
        given = {"config": goldens.path(f"{name}.yaml"), "precision": "fp32"}
        return Bundle.open(once(name, lambda folder: export(goldens.path(f"{name}.ckpt"), folder, **given)))

    return get


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A GPU for `engines.cuda` where there is none: cuda.core on host memory; gives what there is to look at."""
    import fake_cuda

    from sfumato.engines.cuda import open_cuda

    yield fake_cuda.install(monkeypatch)
    open_cuda.cache_clear()


@pytest.fixture(scope="session")
def tiny_ldm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole text-to-picture bundle of a few hundred weights (16x16 pictures); tests must not change it."""
    pytest.importorskip("onnx")
    import tiny_ldm

    out = tmp_path_factory.mktemp("bundles") / "tiny"
    tiny_ldm.write(out)
    return out


@pytest.fixture(scope="session")
def cold_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole cold-diffusion bundle of a few hundred weights (deblurring of 16x16 pictures); not to be changed."""
    return _cold(tmp_path_factory, "blur", steps=4, routine="Constant", size=5, std=1.0)


@pytest.fixture(scope="session")
def fading_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same for fading to a colour, which it generates from."""
    return _cold(tmp_path_factory, "fade", steps=4, reverse=True)


def _cold(tmp_path_factory: pytest.TempPathFactory, kind: str, **parameters: Any) -> Path:
    pytest.importorskip("onnx")
    import tiny_cold

    from sfumato.runtime.degradations import DegradationSpec
    from sfumato.runtime.systems.cold_settings import Generation

    out = tmp_path_factory.mktemp("bundles") / f"tiny-{kind}"
    generation = Generation("colour") if kind == "fade" else None
    tiny_cold.write(out, DegradationSpec.of(kind, **parameters), generation)
    return out
