"""Bundles exported once for all tests of a run."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sfumato.engines.bundle import Bundle


@pytest.fixture(scope="session")
def folder_exported(once: Any) -> Callable[[str], tuple[Path, Bundle]]:
    """A tiny pipeline as diffusers saves it, by its function's name in ``diffusers_folders``; its bundle in float32."""
    import diffusers_folders

    from sfumato.export.recipes.latent_diffusion import export

    def make(name: str, root: Path) -> None:
        root.mkdir()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks of diffusers on its own deprecations
            folder = getattr(diffusers_folders, name)(root / "folder")
        export(folder, root / "bundle", precision="fp32")

    def get(name: str) -> tuple[Path, Bundle]:
        root = once(name, lambda root: make(name, root))
        return root / "folder", Bundle.open(root / "bundle")

    return get
