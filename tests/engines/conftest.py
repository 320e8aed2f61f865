"""Fixtures of the engine tests: the helper module, a tiny bundle, and a cache folder of their own."""

from __future__ import annotations

import gc
import shutil
from pathlib import Path
from types import ModuleType

import engine_models
import fake_nvidia
import pytest


@pytest.fixture(scope="session")
def models() -> ModuleType:
    """The module of the tiny networks."""
    return engine_models


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache folder for this test alone."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("SFUMATO_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def pristine(models, tmp_path_factory) -> Path:
    """A tiny bundle, written once; tests must not touch it."""
    folder = tmp_path_factory.mktemp("pristine")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SFUMATO_CACHE", str(folder / "cache"))
        models.write_tiny(folder / "tiny")
    return folder / "tiny"


@pytest.fixture
def tiny(pristine, tmp_path) -> Path:
    """A copy of the tiny bundle that a test may damage."""
    return Path(shutil.copytree(pristine, tmp_path / "tiny"))


@pytest.fixture(params=["tensorrt", "tensorrt_rtx"])
def kind(request) -> str:
    """A library that runs plans."""
    return request.param


@pytest.fixture
def trt(kind):
    """The fake module of that library, on a machine with a fake GPU."""
    with fake_nvidia.machine(kind) as module:
        yield module
        gc.collect()
