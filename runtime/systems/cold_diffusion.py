"""Cold Diffusion: pictures restored from any degradation, and generated, by one network that predicts the clean one.

References:
    Bansal et al., "Cold Diffusion: Inverting Arbitrary Image Transforms Without Noise", 2022,
    https://arxiv.org/abs/2208.09392
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

from ...engines.engine import Backend, Engine
from ...engines.manifest import Manifest
from ...engines.precision import Precision
from ...errors import ManifestError, ParameterError
from .. import image as pictures
from ..cold_generation import GaussianMixture
from ..degradation import Degradation
from .base import OnStep, Verbs, network_opener
from .cold_call import Algorithm, Call, Job, check_seed
from .cold_pictures import Pictures, check_size, hole_offsets, matching, read_hole
from .cold_result import Restored
from .cold_settings import ColdDiffusionSettings
from .cold_start import starts

if TYPE_CHECKING:
    from ...engines.bundle import Bundle

__all__ = ["NETWORK", "ColdDiffusion"]

NETWORK = "restorer"
"""The bundle's network: x (batch, C, height, width) and, unless trained without, t (batch,) -> x0."""


class ColdDiffusion(Verbs):
    """A cold-diffusion bundle, ready to work. The network opens on first use and stays open; one call at a time.

    Arguments:
        manifest: The bundle's manifest.
        open_network: Opens a network by name.
        mixture: Reads the mixture that generation starts from, where the bundle has one.
    """

    def __init__(
        self,
        manifest: Manifest,
        open_network: Callable[[str], Engine],
        *,
        mixture: Callable[[], GaussianMixture] | None = None,
    ) -> None:
        if NETWORK not in manifest.networks:
            raise ManifestError(f"$.networks: lacks {NETWORK!r}, which Cold Diffusion needs; export the bundle again")
        self.manifest = manifest
        self.settings = ColdDiffusionSettings.from_json(manifest.settings)
        self.pictures = Pictures(self.settings)
        self._open = open_network
        self._engine: Engine | None = None
        self._mixture = mixture
        self._kept: dict[tuple[int, int], Degradation] = {}

    @classmethod
    def from_bundle(
        cls,
        bundle: Bundle,
        *,
        backend: Backend = "auto",
        precision: Precision | None = None,
        threads: int | None = None,
    ) -> ColdDiffusion:
        """The system of an open bundle; see `load`."""
        open_network = network_opener(bundle, backend, precision, threads)

        def mixture() -> GaussianMixture:
            bundle.asset("mixture")  # says so where there is none
            return GaussianMixture.of(bundle.tensors(bundle.manifest.assets["mixture"]))

        return cls(bundle.manifest, open_network, mixture=mixture)

    @property
    def verbs(self) -> tuple[str, ...]:
        """The verbs this bundle can do."""
        return ("restore",) if self.settings.generation is None else ("restore", "generate")

    def restore(
        self,
        image: pictures.Source | Sequence[pictures.Source],
        *,
        severity: int | None = None,
        algorithm: Algorithm | None = None,
        degraded: bool = False,
        original: pictures.Source | None = None,
        second: pictures.Source | None = None,
        mask: pictures.Source | None = None,
        size: tuple[int, int] | None = None,
        seed: int = 0,
        official: bool = False,
        keep_stages: bool = False,
        batch_size: int | None = None,
        on_step: OnStep | None = None,
    ) -> list[Restored]:
        """Degrade a clean picture and restore it, or restore one that is degraded already.

        Arguments:
            image: A picture or several; see `runtime.image.read`. Grey ones are taken as colours that are equal.
            severity: 0 … T, T by default: how far to degrade, or how far the picture is degraded.
            algorithm: 1 or 2; by default the bundle's.
            degraded: The picture is degraded already.
            original: What it was, to measure by; only with `degraded`. A clean picture is its own original.
            second: The second picture of animorphosis, brought to the first one's size. It has to be given to degrade;
                with `degraded` it is estimated if it is not given.
            mask: Of the picture's size: white may change, what is black is put back at the end, exactly. Where holes
                lie anywhere (inpainting's "Random_Incremental") the hole comes to the middle of the white.
            size: Height and width to resize to first; by default the picture keeps its size.
            seed: Of what is drawn: holes, snow, noise. Picture i has seed + i.
            official: The original's numbering of severities for snow and decolourisation; see `restoration.restore`.
            keep_stages: Keep the prediction of every step.
            batch_size: Most pictures to restore at once.
            on_step: Called with `Progress` after every network call; returning False stops.

        Returns:
            A `Restored` for each picture.

        Raises:
            ImageError: A picture cannot be read.
            ParameterError: A size, severity, algorithm, mask or missing second picture does not allow the run.
            NonFiniteError: The network made NaN or infinity.
            Cancelled: `on_step` returned False.
        """
        spec, network = self.settings.degradation, self.manifest.networks[NETWORK]
        call = Call(self, severity, algorithm, official=official, keep=keep_stages, on_step=on_step)
        first = check_seed(seed)
        if original is not None and not degraded:
            raise ParameterError(
                "original is given for a clean picture, which is its own; leave it out, or say degraded"
            )
        if second is not None and not spec.needs_picture:
            raise ParameterError(f"second is given, but {spec.kind} takes no second picture; leave it out")
        sources = list(image) if isinstance(image, (list, tuple)) else [cast("pictures.Source", image)]
        jobs = []
        for index, source in enumerate(sources):
            picture = pictures.read(source)
            picture = picture if size is None else pictures.resize(picture, size)
            extent = cast("tuple[int, int]", picture.shape[:2])
            check_size(extent, network, spec)
            hole = None if mask is None else read_hole(mask, extent)
            places = hole is not None and spec.parameters.get("routine") == "Random_Incremental"
            job = Job(
                picture=picture,
                seed=first + index,
                degraded=degraded,
                original=picture if not degraded else None if original is None else matching(original, extent),
                end=None if second is None else self.pictures.to_network(matching(second, extent)[None]),
                mask=hole,
                offsets=hole_offsets(hole) if places and hole is not None else None,
            )
            jobs.append(job)
        return call.restore(jobs, batch_size)

    def generate(
        self,
        *,
        num_images: int = 1,
        second: pictures.Source | Sequence[pictures.Source] | None = None,
        severity: int | None = None,
        algorithm: Algorithm | None = None,
        noise: float | None = None,
        size: tuple[int, int] | None = None,
        seed: int = 0,
        keep_stages: bool = False,
        batch_size: int | None = None,
        on_step: OnStep | None = None,
    ) -> list[Restored]:
        """Pictures from a colour, a thumbnail, noise, or out of another picture.

        Arguments:
            num_images: How many; of several second pictures, one of each.
            second: The picture or pictures to turn into others (animorphosis).
            severity: Severity that the start is taken for; by default the bundle's.
            algorithm: 1 or 2; by default the bundle's.
            noise: Level of the noise that breaks the symmetry; by default the bundle's.
            size: Height and width; by default the bundle's.
            seed: Picture i has seed + i, whatever the number of pictures.
            keep_stages: As in `restore`; so are `batch_size` and `on_step`.

        Raises:
            ParameterError: The bundle cannot generate, or an option does not fit it.
            Further ones as `restore`.
        """
        plan = self.settings.generation
        if plan is None:
            self.refuse("generate", f"it was exported to undo {self.settings.degradation.kind} alone")
        first = check_seed(seed)
        if num_images < 1:
            raise ParameterError(f"num_images is {num_images}, need 1 or more")
        extent = size or self.settings.image_size
        check_size(extent, self.manifest.networks[NETWORK], self.settings.degradation)
        given = None
        if plan.start == "picture":
            if second is None:
                raise ParameterError(
                    f"{self.settings.degradation.kind} generates out of a picture and none was given; "
                    "pass second=PICTURE"
                )
            sources = list(second) if isinstance(second, (list, tuple)) else [cast("pictures.Source", second)]
            given = [self.pictures.to_network(matching(source, extent)[None])[0] for source in sources]
            given = given if len(given) > 1 else given * num_images
            num_images = len(given)
        elif second is not None:
            raise ParameterError(f"second is given, but generation starts from {plan.start}; leave it out")
        call = Call(self, plan.severity if severity is None else severity, algorithm, keep=keep_stages, on_step=on_step)
        mixture = self._mixture() if plan.from_mixture and self._mixture is not None else None
        begin = starts(
            self.settings, extent, range(first, first + num_images), mixture=mixture, given=given, level=noise
        )
        return call.generate(begin, first, batch_size)

    def engine(self) -> Engine:
        """The network, opened at the first call."""
        if self._engine is None:
            self._engine = self._open(NETWORK)
        return self._engine

    def most(self, size: tuple[int, int], wanted: int | None) -> int:
        """Most pictures of a size in a batch: `wanted` or as many as are usual, within what the network takes."""
        if wanted is not None and wanted < 1:
            raise ParameterError(f"batch_size is {wanted}, need 1 or more; leave it out for a usual one")
        batch = self.manifest.networks[NETWORK].dimensions.get("batch")
        many = wanted or max(1, 65536 // (size[0] * size[1]))
        return many if batch is None else max(1, min(many, batch.max))

    def degradation(self, shape: tuple[int, int, int, int]) -> Degradation:
        """A degradation for which nothing is drawn, kept for the next pictures of that size."""
        size = shape[2:]
        if size not in self._kept:
            self._kept = {size: self.settings.degradation.build(shape)}
        return self._kept[size]

    def close(self) -> None:
        """Close the network; it opens again on use."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()
