"""pix2pix-zero through an exported bundle: every golden of the official code, by engine and by autograd."""

from __future__ import annotations

import warnings
from contextlib import closing
from dataclasses import replace

import numpy as np
import p2p_folder
import pytest
from p2p import NAMES, SCHEDULE, close

import sfumato
from sfumato.engines.bundle import Bundle, BundleWriter
from sfumato.engines.engine import open_engine
from sfumato.errors import ExportError
from sfumato.export.recipes.pix2pix_zero import export
from sfumato.runtime.attention_guidance import AttentionEdit
from sfumato.runtime.denoiser import EngineDenoiser
from sfumato.runtime.gradient import open_gradient
from sfumato.runtime.image import from_float
from sfumato.runtime.inversion import diffusers_climbs, invert, official_climbs
from sfumato.runtime.regularization import NoiseRegularizer
from sfumato.runtime.sampler import DDIM, sample
from sfumato.runtime.systems.base import SfumatoWarning
from sfumato.runtime.systems.latent_settings import LatentDiffusionSettings
from sfumato.runtime.systems.pix2pix_settings import Pix2PixZeroSettings


def replay(values):
    left = iter(values)
    return lambda *_: int(next(left))


@pytest.fixture(scope="session")
def bundle(goldens, tmp_path_factory) -> Bundle:
    root = tmp_path_factory.mktemp("pix2pix")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # remarks of diffusers on its own deprecations
        p2p_folder.write(goldens, root / "folder")
        return export(root / "folder", root / "bundle", precision="fp32", settings=Pix2PixZeroSettings(steps=5))


@pytest.fixture(scope="session")
def engine(bundle):
    opened = {}

    def get(name):
        if name not in opened:
            opened[name] = open_engine(bundle, name, backend="onnxruntime", threads=1)
        return opened[name]

    yield get
    for one in opened.values():
        one.close()


@pytest.fixture(params=["onnxruntime", "torch"])
def gradient(request, bundle):
    with closing(open_gradient(bundle, "unet_gradient", backend=request.param, threads=1)) as opened:
        yield opened


def test_weights_are_stored_once(bundle):
    networks = bundle.manifest.networks
    assert networks["unet_maps"].weights == ("unet.weights",)
    assert "unet.weights" in networks["unet_gradient"].weights
    own = [bundle.file(path).stat().st_size for path in networks["unet_gradient"].weights if path != "unet.weights"]
    assert sum(own) < 0.1 * bundle.file("unet.weights").stat().st_size
    assert bundle.manifest.system == "latent-diffusion"


def test_maps_and_one_gradient_are_the_authors(goldens, engine, gradient):
    g = goldens("p2p_guidance_step.npz")
    outputs = engine("unet_maps")(x=g["x_ref"], t=np.full(2, g["t"], np.float32), context=g["embeds_ref"])
    found = {f"reference_{i:02}": outputs[f"map_{i:02}"].copy() for i in range(4)}
    for name, array in zip(NAMES, found.values(), strict=True):
        assert close(array.reshape(-1, *array.shape[2:]), g[f"ref__{name}"])
    loss, slope = gradient(g["x"], t=float(g["t"]), context=g["embeds_edit"], **found)
    assert loss == pytest.approx(float(g["loss"]), rel=1e-4)
    assert close(slope, g["grad"], 1e-3)
    assert close(gradient.prediction, g["eps"])


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "torch"])
def test_the_official_guidance_step(goldens, bundle, backend):
    g = goldens("p2p_guidance_step.npz")
    given = (g[f"ref__{name}"] for name in NAMES)
    references = {f"reference_{i:02}": maps.reshape(2, -1, *maps.shape[1:]) for i, maps in enumerate(given)}
    with closing(open_gradient(bundle, "unet_gradient", backend=backend, precision="fp32", **references)) as gradient:
        loss, slope = gradient(g["x"], t=float(g["t"]), context=g["embeds_edit"])
        assert close(gradient.prediction, g["eps"], 2e-5)
    assert float(loss) == pytest.approx(float(g["loss"]), rel=2e-5)
    assert close(slope, g["grad"], 2e-5)


def test_the_loss_of_each_module_is_the_authors(goldens, engine):
    g = goldens("p2p_guidance_step.npz")
    t = np.full(2, g["t"], np.float32)
    reference = [
        m.copy() for k, m in engine("unet_maps")(x=g["x_ref"], t=t, context=g["embeds_ref"]).items() if "m" in k
    ]
    current = engine("unet_maps")(x=g["x"], t=t, context=g["embeds_edit"])
    wanted = dict(zip(g["module_names"].tolist(), g["module_loss"].tolist(), strict=True))
    for i, name in enumerate(NAMES):
        assert close(current[f"map_{i:02}"].reshape(-1, *reference[i].shape[2:]), g[f"cur__{name}"])
        loss = np.square(current[f"map_{i:02}"] - reference[i]).sum(axis=(2, 3)).mean()
        assert float(loss) == pytest.approx(wanted[name], rel=1e-3)


@pytest.mark.parametrize("apart", [False, True])
def test_the_official_edit_of_a_picture(goldens, engine, gradient, apart):
    g = goldens("p2p_edit_real.npz")
    context = np.repeat(g["cond"], 2, axis=0)  # the negative prompt is the caption
    edit = AttentionEdit(
        engine("unet"), engine("unet_maps"), gradient, SCHEDULE, context=context, delta=g["direction"], apart=apart
    )
    seen = []

    def look(step):
        arrays = (step.before, step.gradient, step.after, step.reference, step.x)
        seen.append((step.loss, *(array.copy() for array in arrays)))

    reference, edited = edit.run(g["x_in"], g["real__t"], DDIM(SCHEDULE, final=0), on_step=look)
    for k, (loss, before, slope, after, at, x) in enumerate(seen):
        assert loss == pytest.approx(float(g["real__loss"][k]), rel=1e-3)
        assert close(before, g["real__xin_before"][k])
        assert close(slope, g["real__grad"][k], 3e-3)
        assert close(after, g["real__xin_after"][k])
        assert close(at, g["real__ref_x"][k + 1])
        assert close(x, g["real__edit_x"][k], 3e-4)
    for latents, name in ((reference, "rec"), (edited, "edit")):
        image = engine("vae_decoder")(z=latents / np.float32(0.18215))["image"]
        picture = np.clip(image * 0.5 + 0.5, 0, 1).transpose(0, 2, 3, 1)
        assert np.abs(picture - g[f"real__image_{name}"]).max() < 1e-3


def test_maps_of_the_reference_in_the_first_and_the_last_step(goldens, engine):
    g = goldens("p2p_edit_real.npz")
    for k in (0, 4):
        t = np.full(1, g["real__t"][k], np.float32)
        outputs = engine("unet_maps")(x=g["real__ref_x"][k], t=t, context=g["cond"])
        for i, name in enumerate(NAMES):
            both = np.repeat(outputs[f"map_{i:02}"], 2, axis=0)
            assert close(both.reshape(-1, *both.shape[2:]), g[f"real__refmap_step{k}__{name}"])


@pytest.mark.parametrize("name", ["reg", "noreg", "klonly"])
def test_the_official_inversion_of_a_picture(goldens, engine, name):
    g = goldens("p2p_inversion.npz")
    denoiser = EngineDenoiser(engine("unet"), SCHEDULE, context=g["prompt_embeds"])
    ways = {
        "reg": lambda: NoiseRegularizer(replay(g["reg__rolls"].ravel())),
        "klonly": lambda: NoiseRegularizer(ac=0, outer=2),
        "noreg": lambda: None,
    }
    x = invert(denoiser, SCHEDULE, g["reg__x0_latent"], official_climbs(SCHEDULE, 8), regularize=ways[name]())
    assert close(x, g[f"{name}__x_inv"], 3e-4)
    if name == "reg":
        for latents, wanted in ((x, "inv"), (g["reg__x0_latent"], "rec")):
            image = engine("vae_decoder")(z=latents / np.float32(0.18215))["image"]
            picture = np.clip(image * 0.5 + 0.5, 0, 1).transpose(0, 2, 3, 1)
            assert np.abs(picture - g[f"reg__image_{wanted}"]).max() < 2e-3


def test_inversion_and_edit_of_diffusers(goldens, engine, gradient):
    g = goldens("p2p_diffusers042.npz")
    denoiser = EngineDenoiser(engine("unet"), SCHEDULE, context=g["prompt_embeds"])
    regularize = NoiseRegularizer(replay(g["inv_rolls"].ravel()))
    x = invert(denoiser, SCHEDULE, g["x0"], diffusers_climbs(SCHEDULE, 8), regularize=regularize)
    assert close(x, g["inv_latents"], 1e-3)
    official = goldens("p2p_edit_real.npz")
    assert np.array_equal(g["edit_ref_x"], official["real__ref_x"][1:])  # its edit is the authors', bit for bit
    assert np.abs(g["edit_x"] - official["real__edit_x"]).max() < 1e-5


def test_autograd_needs_no_gradient_graph(goldens, bundle, engine):
    g = goldens("p2p_guidance_step.npz")
    outputs = engine("unet_maps")(x=g["x_ref"], t=np.full(2, g["t"], np.float32), context=g["embeds_ref"])
    found = {f"reference_{i:02}": outputs[f"map_{i:02}"].copy() for i in range(4)}
    with closing(open_gradient(bundle, "unet_maps", backend="torch", loss="attention_maps")) as opened:
        loss, slope = opened(g["x"], t=float(g["t"]), context=g["embeds_edit"], **found)
    assert loss == pytest.approx(float(g["loss"]), rel=1e-4)
    assert close(slope, g["grad"], 1e-3)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "torch"])
def test_the_whole_walk_by_every_backend(goldens, bundle, backend):
    picture = goldens("p2p_inversion.npz")["img_u8"]
    made = []
    for chosen in ("onnxruntime", backend):
        with sfumato.load(bundle.path, system="pix2pix-zero", backend=chosen, precision="fp32", threads=1) as system:
            words = {"source_word": "cat", "target_word": "dog", "attention_guidance": 0.02}
            made.append(system.edit(picture, "a cat", **words)[0])
    one, other = made
    assert other.image.shape == other.reconstruction.shape == (32, 32, 3)
    assert np.abs(one.image.astype(int) - other.image).max() <= 3
    assert np.abs(one.reconstruction.astype(int) - other.reconstruction).max() <= 2


def test_the_bundle_still_makes_pictures_from_prompts(bundle):
    with sfumato.load(bundle.path, backend="onnxruntime", threads=1) as system:
        assert system.generate("cat", steps=2)[0].image.shape == (32, 32, 3)


# --- bundles to which the networks are added ---------------------------------------------------------------------


@pytest.fixture
def prompted(exported, tmp_path) -> Bundle:
    """A CompVis checkpoint's networks under the settings of a model that takes prompts; nobody writes one here."""
    source = exported("ldm_t2i_kl_xattn")
    settings = LatentDiffusionSettings.from_json(source.manifest.settings)
    settings = replace(settings, task="text", null_class=None, tokenizer="clip", max_tokens=3)
    with BundleWriter(tmp_path / "plain") as writer:
        for path in source.manifest.files:
            writer.copy(path, source.file(path))
        return writer.commit(replace(source.manifest, settings=settings.to_json(), files={}))


@pytest.mark.slow
def test_networks_are_added_to_a_bundle_from_its_own_weights(prompted, tmp_path):
    more = export(prompted.path, tmp_path / "more")
    for name, spec in prompted.manifest.networks.items():
        assert more.manifest.networks[name] == spec
        assert more.digest(name) == prompted.digest(name)
    assert more.manifest.networks["unet_maps"].weights == ("unet.weights",)
    feeds = {k[3:]: v for k, v in more.tensors(more.network("unet").reference).items() if k.startswith("in/")}
    with (
        open_engine(prompted, "unet", backend="onnxruntime", threads=1) as one,
        open_engine(more, "unet_maps", backend="onnxruntime", threads=1) as two,
    ):
        assert close(two(**feeds)["prediction"], one(**feeds)["prediction"], 1e-5)


def test_a_bundle_for_classes_is_refused(exported, tmp_path):
    with pytest.raises(ExportError, match="pix2pix-zero edits with text-to-picture models"):
        export(exported("ldm_t2i_kl_xattn").path, tmp_path / "more")


def test_what_a_bundle_has_itself_is_not_taken(exported, tmp_path):
    with pytest.raises(ExportError, match="has its own name, license"):
        export(exported("ldm_t2i_kl_xattn").path, tmp_path / "more", name="x", license="y")


def test_a_model_without_prompts_is_refused(goldens, tmp_path):
    checkpoint = goldens.path("ldm_std_kl_uncond.ckpt")
    with pytest.raises(ExportError, match="pix2pix-zero edits with text-to-picture models"):
        export(checkpoint, tmp_path / "more", config=checkpoint.with_suffix(".yaml"))
    assert not (tmp_path / "more").exists()


def test_pictures_of_another_size_are_resized_on_the_way(bundle):
    with (
        sfumato.load(bundle.path, system="pix2pix-zero", backend="onnxruntime", threads=1) as system,
        pytest.warns(SfumatoWarning, match="width 20 and height 40 was resized to 16 and 32"),
    ):
        edit = system.edit(
            np.zeros((40, 20, 3), np.uint8), "a cat", source_word="cat", target_word="dog", attention_guidance=0.01
        )[0]
    assert edit.image.shape == edit.original.shape == (32, 16, 3)


def test_sampling_by_the_engine_is_what_the_edit_calls_its_reference(goldens, engine):
    g = goldens("p2p_edit_real.npz")
    denoiser = EngineDenoiser(engine("unet"), SCHEDULE, context=g["cond"])
    x = sample(denoiser, DDIM(SCHEDULE, final=0), g["x_in"], g["real__t"])
    assert close(x, g["real__ref_x"][-1])
    assert from_float(engine("vae_decoder")(z=x)["image"]).dtype == np.uint8
