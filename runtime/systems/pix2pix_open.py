"""Opening a bundle for pix2pix-zero: its settings, and the gradient of its attention loss by engine or by torch."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING

from ...engines.binding import Array
from ...engines.engine import Backend, Engine
from ...engines.precision import Precision
from ...errors import BundleError, ManifestError, MissingDependency
from ..attention_guidance import Guide
from ..captioner import CAPTION_ROLE, CAPTION_TOKENIZER, DECODER, ENCODER, Captioner, CaptionerSettings
from ..tokenizer import BertTokenizer
from .latent_open import Sources
from .latent_settings import LatentDiffusionSettings
from .pix2pix_settings import GRADIENT, MAPS, ROLE, Pix2PixZeroSettings
from .text_states import TextStates

if TYPE_CHECKING:
    from ...engines.bundle import Bundle

__all__ = ["captioner_of", "guide_opener", "open_texts", "read_settings"]


def read_settings(bundle: Bundle) -> Pix2PixZeroSettings:
    """What the bundle says an edit should take; the authors' values where it says nothing.

    Raises:
        ManifestError: Its settings cannot be used.
    """
    if ROLE not in bundle.manifest.assets:
        return Pix2PixZeroSettings()
    path = bundle.asset(ROLE)
    return Pix2PixZeroSettings.from_bytes(path.read_bytes(), path.name)


def guide_opener(
    bundle: Bundle, backend: Backend, precision: Precision | None, threads: int | None
) -> Callable[[], Guide]:
    """What opens the gradient of the attention loss; torch, if it is to take it, is looked for now.

    The engine of the graph ``unet_gradient``, or with the backend "torch" the derivative that torch's autograd takes of
    the same graph's forward part, or of ``unet_maps`` in a bundle without it.

    Raises:
        MissingDependency: The backend is "torch", which is not installed.
    """
    if backend == "torch" and importlib.util.find_spec("torch") is None:
        raise MissingDependency("torch", "export", "a gradient by autograd")

    def open_guide() -> Guide:
        from ..gradient import open_gradient

        if GRADIENT in bundle.manifest.networks:
            return open_gradient(bundle, GRADIENT, backend=backend, precision=precision, threads=threads)
        if backend == "torch":
            return open_gradient(bundle, MAPS, backend=backend, threads=threads, loss="attention_maps")
        raise BundleError(
            f"bundle {bundle.manifest.name!r} has no network {GRADIENT!r}, so there is no gradient of the attention "
            "loss; export it again with `sfumato export pix2pix-zero`, or use backend='torch' "
            "(pip install 'sfumato[export]'), or attention_guidance=0"
        )

    return open_guide


def captioner_of(bundle: Bundle, open_network: Callable[[str], Engine]) -> Callable[[Array], str] | None:
    """What says what a picture uint8 (H, W, 3) shows, if the bundle holds a captioner.

    Its networks are opened for each picture and closed again: they are large, and needed once.

    Raises:
        BundleError: Its settings or its tokenizer cannot be used.
    """
    if CAPTION_ROLE not in bundle.manifest.assets:
        return None
    path = bundle.asset(CAPTION_ROLE)
    settings = CaptionerSettings.from_bytes(path.read_bytes(), path.name)
    words = BertTokenizer(bundle.asset(CAPTION_TOKENIZER), settings.max_length).words

    def caption(picture: Array) -> str:
        with open_network(ENCODER) as encoder, open_network(DECODER) as decoder:
            return Captioner(encoder, decoder, words, settings)(picture)

    return caption


@contextlib.contextmanager
def open_texts(
    bundle: Bundle, backend: Backend, precision: Precision | None, threads: int | None
) -> Generator[TextStates]:
    """The text encoder of a bundle alone, for directions; closed at the end.

    Raises:
        ManifestError: The bundle is none that takes prompts.
    """
    if bundle.manifest.system != "latent-diffusion":
        raise ManifestError(
            f"$.system: is {bundle.manifest.system!r}, which takes no prompts; use a latent-diffusion bundle"
        )
    settings = LatentDiffusionSettings.from_json(bundle.manifest.settings)
    if settings.tokenizer is None or "text_encoder" not in bundle.manifest.networks:
        raise ManifestError(
            f"$.settings.tokenizer: is {settings.tokenizer!r} and the networks are "
            f"{', '.join(bundle.manifest.networks)}; directions need a tokenizer and a 'text_encoder'"
        )
    open_network, _, tokenizer = Sources.of(bundle, backend, precision, threads)
    with open_network("text_encoder") as engine:
        yield TextStates(engine, tokenizer(settings), bundle.digest("text_encoder"))
