"""What the tests of pix2pix-zero's goldens share."""

from __future__ import annotations

import numpy as np

from sfumato.runtime.schedule import Schedule

SCHEDULE = Schedule.named("scaled_linear", 1000, 0.00085, 0.012)
NAMES = (
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2",
    "mid_block.attentions.0.transformer_blocks.0.attn2",
    "up_blocks.1.attentions.0.transformer_blocks.0.attn2",
    "up_blocks.1.attentions.1.transformer_blocks.0.attn2",
)
"""Cross-attention of the tiny UNet in the order in which it runs."""


def close(found, wanted, share=1e-4):
    return np.abs(found - wanted).max() <= share * np.abs(wanted).max() + 1e-12
