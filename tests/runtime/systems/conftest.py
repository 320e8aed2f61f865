"""A latent-diffusion system over engines that are a few lines of NumPy, with answers known in closed form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sfumato.engines.binding import Array, Binding, Dimension, check_feeds
from sfumato.engines.manifest import Manifest, NetworkSpec, ScheduleSpec
from sfumato.runtime.schedule import Schedule
from sfumato.runtime.systems.latent_diffusion import LatentDiffusion
from sfumato.runtime.systems.latent_settings import Defaults, LatentDiffusionSettings
from sfumato.runtime.tokenizer import BertTokenizer

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "red", "green", "blue", "apple", "große", "リンゴ", "##s"]
COLORS = {"red": (0.8, -0.8, -0.8), "green": (-0.8, 0.8, -0.8), "blue": (-0.8, -0.8, 0.8)}
TOKENS = 6
WIDTH = 8


class FakeEngine:
    """An engine that is a function; it checks its feeds and writes its outputs over and over into the same arrays."""

    backend = "fake"
    precision = "fp32"

    def __init__(self, spec: NetworkSpec, function: Callable[..., dict[str, Array]]) -> None:
        self.spec = spec
        self.calls: list[dict[str, tuple[int, ...]]] = []
        self.closed = False
        self._function = function
        self._outputs: dict[Any, dict[str, Array]] = {}

    def __call__(self, **feeds: Array) -> dict[str, Array]:
        assert not self.closed
        check_feeds(self.spec, feeds)
        self.calls.append({name: array.shape for name, array in feeds.items()})
        fresh = self._function(**feeds)
        key = tuple(sorted((name, array.shape) for name, array in feeds.items()))
        kept = self._outputs.setdefault(key, {name: np.empty_like(array) for name, array in fresh.items()})
        for name, array in fresh.items():
            np.copyto(kept[name], array)
        return dict(kept)

    def close(self) -> None:
        self.closed = True

    def __enter__(self) -> FakeEngine:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


@dataclass
class Fake:
    """A system over fake engines; `engines` fills as they are opened."""

    settings: LatentDiffusionSettings
    tokenizer_file: Path
    prediction: str = "eps"
    spread: float = 0.05
    most: int = 16
    batch: int = 64
    without: tuple[str, ...] = ()
    broken: str = ""
    engines: dict[str, FakeEngine] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.schedule = Schedule.named("scaled_linear", 1000, 0.00085, 0.012)

    def system(self) -> LatentDiffusion:
        specs = {name: spec for name, spec in self._specs().items() if name not in self.without}
        manifest = Manifest(
            system="latent-diffusion",
            name="fake",
            license="CC0-1.0",
            producer={},
            networks=specs,
            schedule=ScheduleSpec("scaled_linear", 1000, 0.00085, 0.012, self.prediction),  # type: ignore[arg-type]
            settings=self.settings.to_json(),
        )

        def open_network(name: str) -> FakeEngine:
            self.engines[name] = FakeEngine(specs[name], getattr(self, f"_{name}"))
            return self.engines[name]

        def tokenizer(settings: LatentDiffusionSettings) -> BertTokenizer:
            return BertTokenizer(self.tokenizer_file, settings.max_tokens or 0)

        return LatentDiffusion(manifest, open_network, tokenizer=tokenizer)

    def _specs(self) -> dict[str, NetworkSpec]:
        s, f = self.settings, self.settings.factor
        side, pixels = Dimension(1, 8, self.most), Dimension(f, 8 * f, self.most * f, f)
        latent = {"batch": Dimension(1, 2, self.batch), "height": side, "width": side}
        image = {"batch": Dimension(1, 1, self.batch), "image_height": pixels, "image_width": pixels}
        more = {"inpaint": s.latent_channels + 1, "upscale": 3, "semantic": 3}.get(s.task, 0)
        grid = ("height", "width")
        inputs = [
            Binding("x", "float32", ("batch", s.latent_channels + more, *grid)),
            Binding("t", "float32", ("batch",)),
        ]
        if s.conditioning in ("crossattn", "hybrid"):
            inputs.append(Binding("context", "float32", ("batch", "tokens", WIDTH)))
            latent["tokens"] = Dimension(1, TOKENS, 77)
        if s.conditioning == "adm":
            inputs.append(Binding("y", "int64", ("batch",)))
        z = Binding("z", "float32", ("batch", s.latent_channels, *grid))
        picture = Binding("image", "float32", ("batch", 3, "image_height", "image_width"))
        code = [replace(z, name=n) for n in (("mean", "log_variance") if s.first_stage == "kl" else ("latent",))]
        ids = [Binding(n, "int64", ("batch", "tokens")) for n in ("input_ids", "attention_mask")]
        context = Binding("context", "float32", ("batch", "tokens", WIDTH))
        one = {"batch": Dimension(1, 1, 8), "tokens": Dimension(1, TOKENS, 77)}
        y = Binding("y", "int64", ("batch",))
        seg = Binding("segmentation", "float32", ("batch", 5, "image_height", "image_width"))
        image_batch = {k: v for k, v in image.items() if k != "batch"} | {"batch": Dimension(1, 1, self.batch)}
        plain = {k: v for k, v in latent.items() if k != "tokens"}

        def spec(name: str, ins: Any, outs: Any, dims: Any) -> NetworkSpec:
            return NetworkSpec(name, f"{name}.onnx", (), tuple(ins), tuple(outs), dims)

        return {
            "unet": spec("unet", inputs, [replace(z, name="prediction")], latent),
            "vae_encoder": spec("vae_encoder", [picture], code, image_batch),
            "vae_decoder": spec("vae_decoder", [z], [picture], plain),
            "text_encoder": spec("text_encoder", ids, [context], one),
            "class_embedder": spec("class_embedder", [y], [context], {"batch": Dimension(1, 1, 8)}),
            "spatial_rescaler": spec("spatial_rescaler", [seg], [replace(z, name="c")], image_batch),
        }

    def _unet(self, x: Array, t: Array, context: Array | None = None, y: Array | None = None) -> dict[str, Array]:
        """The exact prediction for data N(mu, spread²), mu read from the condition (a colour in channels 0-2)."""
        c = self.settings.latent_channels
        mu = np.zeros((len(x), c, 1, 1))
        if context is not None:
            mu[:, :3, 0, 0] = context[:, 1, :3]
        if y is not None:
            mu[:, 0, 0, 0] = y / 10
        if self.settings.conditioning == "hybrid":
            mu = np.where(x[:, c : c + 1] == 1, mu, x[:, c + 1 :])
        elif self.settings.task == "inpaint":
            mu = x[:, c : c + c] * np.ones_like(mu)
        if self.settings.task in ("upscale", "semantic"):
            mu = np.concatenate([x[:, c:], np.zeros((len(x), c - 3, *x.shape[2:]))], axis=1)
        alpha, sigma = self.schedule.alpha(float(t[0])), self.schedule.sigma(float(t[0]))
        noisy = x[:, :c]
        eps = (noisy - alpha * mu) * sigma / (alpha**2 * self.spread**2 + sigma**2)
        if self.prediction == "v":
            eps = alpha * eps - sigma * (noisy - sigma * eps) / alpha
        if self.broken == "unet":
            eps = eps * np.nan
        return {"prediction": eps.astype(np.float32)}

    def _vae_encoder(self, image: Array) -> dict[str, Array]:
        f, c = self.settings.factor, self.settings.latent_channels
        b, _, h, w = image.shape
        mean = np.zeros((b, c, h // f, w // f), np.float32)
        mean[:, :3] = image.reshape(b, 3, h // f, f, w // f, f).mean(axis=(3, 5)) / self.settings.scale_factor
        if self.settings.first_stage == "vq":
            return {"latent": mean}
        return {"mean": mean, "log_variance": np.full_like(mean, -4.0)}

    def _vae_decoder(self, z: Array) -> dict[str, Array]:
        f = self.settings.factor
        image = (z[:, :3] * np.float32(self.settings.scale_factor)).repeat(f, axis=2).repeat(f, axis=3)
        return {"image": image * np.float32(np.nan) if self.broken == "vae_decoder" else image}

    def _text_encoder(self, input_ids: Array, attention_mask: Array) -> dict[str, Array]:
        context = np.zeros((*input_ids.shape, WIDTH), np.float32)
        for row, ids in enumerate(input_ids):
            for position, i in enumerate(ids):
                context[row, position, :3] = COLORS.get(WORDS[i], (0, 0, 0))
        context[..., 4] = attention_mask
        return {"context": context}

    def _class_embedder(self, y: Array) -> dict[str, Array]:
        context = np.zeros((len(y), 2, WIDTH), np.float32)
        context[:, 1, 0] = y / 10
        return {"context": context}

    def _spatial_rescaler(self, segmentation: Array) -> dict[str, Array]:
        f = self.settings.factor
        pooled = segmentation[:, :3, ::f, ::f]
        return {"c": pooled * 2 - 1}


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A WordPiece ``tokenizer.json`` of `WORDS`."""
    import tokenizers
    from tokenizers import models, normalizers, pre_tokenizers

    library = tokenizers.Tokenizer(models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    library.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=False)
    library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    library.add_special_tokens(WORDS[:4])
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    library.save(str(path))
    return path


@pytest.fixture
def fake(tokenizer_file: Path) -> Callable[..., Fake]:
    """Makes a `Fake`: keyword arguments are settings or fields of `Fake`."""

    def make(task: str = "text", **given: Any) -> Fake:
        ways = {"text": "crossattn", "class": "crossattn", "layout": "crossattn", "unconditional": "none"}
        settings: dict[str, Any] = {
            "task": task,
            "conditioning": ways.get(task, "concat"),
            "latent_channels": 4,
            "factor": 2,
            "scale_factor": 0.5,
            "first_stage": "kl",
            "image_size": (16, 16),
            "size_multiple": 4,
            "null_class": 10 if task == "class" else None,
            "max_tokens": TOKENS if task in ("text", "layout") else None,
            "tokenizer": "bert" if task == "text" else None,
            "defaults": Defaults(steps=8, guidance_scale=1.0),
        }
        fields = {name: given.pop(name) for name in list(given) if name in Fake.__dataclass_fields__}
        settings |= given
        return Fake(LatentDiffusionSettings(**settings), tokenizer_file, **fields)

    return make


@pytest.fixture(scope="session")
def fake_engine() -> type[FakeEngine]:
    """`FakeEngine`, for tests that make systems of their own."""
    return FakeEngine
