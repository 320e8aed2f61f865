"""A Stable Diffusion pipeline of diffusers without text encoder, tokenizer and filter: it takes embeddings."""

from __future__ import annotations

from typing import Any


def bare_pipeline(kind: str, **parts: Any) -> Any:
    """The pipeline of that class of its parts `vae`, `unet` and `scheduler`."""
    import diffusers

    pipe = getattr(diffusers, kind)(
        **parts,
        text_encoder=None,
        tokenizer=None,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe
