"""Packing: a system and its checkpoints by role become a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..engines.bundle import Bundle
from ..engines.precision import Precision
from ..errors import ExportError
from .write import Progress

__all__ = ["pack"]


def pack(
    system: str,
    checkpoints: Mapping[str, Path | str],
    out: Path | str,
    *,
    precision: Precision = "fp16",
    on_progress: Progress | None = None,
) -> Bundle:
    """Make the bundle of a system.

    Arguments:
        system: "latent-diffusion", "pix2pix-zero" or "cold-diffusion".
        checkpoints: Path by role. "latent-diffusion" takes ``model`` and may take ``config`` and ``tokenizer``;
            "pix2pix-zero" may take a ``captioner`` too, and a bundle for its model; "cold-diffusion" takes ``model``,
            a file of `training.train_cold`.
        out: Folder of the bundle.
        precision: How large weights are stored.
        on_progress: Told of every step.

    Raises:
        ExportError: The system is unknown, a role is missing or unknown, or a network cannot be exported.
        CheckpointError: A checkpoint cannot be used.
        BundleError: `out` cannot be written.
    """
    match system:
        case "latent-diffusion":
            from .recipes.latent_diffusion import export

            roles = _roles(system, checkpoints, need=("model",), may=("config", "tokenizer"))
            return export(
                roles["model"] or "",
                out,
                config=roles["config"],
                tokenizer=roles["tokenizer"],
                precision=precision,
                on_progress=on_progress,
            )
        case "pix2pix-zero":
            from .recipes import pix2pix_zero

            roles = _roles(system, checkpoints, need=("model",), may=("config", "tokenizer", "captioner"))
            return pix2pix_zero.export(
                roles["model"] or "",
                out,
                config=roles["config"],
                tokenizer=roles["tokenizer"],
                captioner=roles["captioner"],
                precision=precision,
                on_progress=on_progress,
            )
        case "cold-diffusion":
            from .recipes import cold_diffusion

            roles = _roles(system, checkpoints, need=("model",), may=())
            return cold_diffusion.export(roles["model"] or "", out, precision=precision, on_progress=on_progress)
        case _:
            raise ExportError(
                f"no system is named {system!r}; this version packs latent-diffusion, pix2pix-zero and cold-diffusion"
            )


def _roles(
    system: str, checkpoints: Mapping[str, Path | str], *, need: tuple[str, ...], may: tuple[str, ...]
) -> dict[str, Path | str | None]:
    unknown = sorted(set(checkpoints) - {*need, *may})
    missing = [role for role in need if role not in checkpoints]
    if unknown or missing:
        raise ExportError(
            f"{system}: checkpoints have {', '.join(checkpoints) or 'no'} roles; "
            f"need {', '.join(need)}, may have {', '.join(may)}"
        )
    return {role: checkpoints.get(role) for role in (*need, *may)}
