"""`load` opens what it knows and says why not."""

from __future__ import annotations

from pathlib import Path

import pytest

import sfumato
from sfumato.engines.binding import Binding, Dimension
from sfumato.engines.bundle import write_bundle
from sfumato.engines.manifest import Manifest, NetworkSpec, ScheduleSpec
from sfumato.engines.strict import JSON
from sfumato.errors import BundleError, ManifestError
from sfumato.runtime.systems.latent_settings import LatentDiffusionSettings

SETTINGS = LatentDiffusionSettings("unconditional", "none", 4, 2, 1.0, "kl", (16, 16), 4)


def bundle(path: Path, **change: object) -> Path:
    z = Binding("z", "float32", ("batch", 4, "height", "width"))
    dims = {name: Dimension(1, 1, 8) for name in ("batch", "height", "width")}
    networks = {name: NetworkSpec(name, "g.onnx", (), (z,), (z,), dims) for name in ("unet", "vae_decoder")}
    fields: dict[str, object] = {
        "system": "latent-diffusion",
        "name": "tiny",
        "license": "CC0-1.0",
        "producer": {},
        "networks": networks,
        "schedule": ScheduleSpec("scaled_linear", 1000, 0.00085, 0.012, "eps"),
        "settings": SETTINGS.to_json(),
        **change,
    }
    write_bundle(path, Manifest(**fields), {"g.onnx": b"graph"})  # type: ignore[arg-type]
    return path


def test_a_bundle_opens_without_opening_its_networks(tmp_path: Path) -> None:
    with sfumato.load(bundle(tmp_path / "b")) as system:
        assert system.verbs == ("generate",) and system.manifest.name == "tiny"


def test_what_is_no_bundle_of_ours_says_why(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="does not exist"):
        sfumato.load(tmp_path / "missing")
    with pytest.raises(ManifestError, match=r"\$.system: is 'warp-drive', this sfumato runs 'latent-diffusion'"):
        sfumato.load(bundle(tmp_path / "a", system="warp-drive"))
    with pytest.raises(ManifestError, match=r"\$.schedule: is null"):
        sfumato.load(bundle(tmp_path / "b", schedule=None))
    settings: dict[str, JSON] = {**SETTINGS.to_json(), "speed": 9}
    with pytest.raises(ManifestError, match=r"\$.settings: has an unknown key 'speed'"):
        sfumato.load(bundle(tmp_path / "c", settings=settings))
    with pytest.raises(ManifestError, match=r"\$.networks: lacks 'unet'"):
        sfumato.load(bundle(tmp_path / "d", networks={}))
