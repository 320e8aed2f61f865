"""Fixtures of the engine tests: the helper module, a tiny bundle, and a cache folder of their own."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def models() -> ModuleType:
    """``models.py`` beside this file (tests are imported by path, so it has no package)."""
    spec = importlib.util.spec_from_file_location("engine_models", Path(__file__).with_name("models.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
