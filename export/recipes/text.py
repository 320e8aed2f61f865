"""Text encoders: sentence transformers (MiniLM) as a network of token features.

References:
    Wang et al., "MiniLM: Deep Self-Attention Distillation for Task-Agnostic Compression of Pre-Trained
    Transformers", 2020, https://arxiv.org/abs/2002.10957. The weights are those of all-MiniLM-L6-v2.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, cast

from torch import Tensor, nn

from ...engines.binding import Binding, Dimension
from ...errors import CheckpointError
from ...networks.checkpoint import build, read_checkpoint
from ..network import Network, integers, mask

__all__ = ["BertTokens", "sentence_encoder"]

HIDDEN = -10_000.0
"""Added to the scores of hidden tokens: e^-10000 is 0 in every precision, and the number fits float16."""


class BertTokens(nn.Module):
    """Last hidden states of a transformers ``BertModel``, its masks written out.

    Arguments:
        input_ids: int64 (batch, tokens).
        attention_mask: int64 (batch, tokens), 1 for a token, 0 for padding.

    Returns:
        (batch, tokens, hidden).
    """

    def __init__(self, config: Any) -> None:
        from transformers import BertModel

        super().__init__()
        self.bert = cast(Any, BertModel(config, add_pooling_layer=False))
        self.bert.embeddings._buffers.clear()  # index tables that forward does without

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        table = self.bert.embeddings
        position = table.position_embeddings.weight[: input_ids.shape[1]]
        h = table.word_embeddings(input_ids) + (position + table.token_type_embeddings.weight[0])
        bias = (1.0 - attention_mask.float())[:, None, None, :] * HIDDEN
        return self.bert.encoder(table.LayerNorm(h), attention_mask=bias).last_hidden_state


def sentence_encoder(
    model_dir: Path | str, *, max_tokens: int = 128, weights: Literal["int8"] | None = "int8"
) -> Network:
    """The network ``text_encoder`` of a sentence-transformers folder with a BertModel.

    ``input_ids, attention_mask (batch, tokens) int64 -> context (batch, tokens, hidden)``.

    Arguments:
        model_dir: Folder with ``config.json`` and ``model.safetensors`` (and the ``tokenizer.json`` to pack beside it).
        max_tokens: Longest text, the tokens around it included.
        weights: "int8" stores tables and matrices in 8 bits a weight with one float32 scale a row: a quarter of
            the size at a cosine above 0.999, arithmetic in float32. None stores them as the bundle's precision says.

    Raises:
        CheckpointError: The folder holds no BertModel, or more tokens are asked than it has positions.
    """
    folder = Path(model_dir)
    config = _config(folder)
    if not 3 <= max_tokens <= config.max_position_embeddings:
        raise CheckpointError(
            f"{folder}: max_tokens is {max_tokens}, the model has {config.max_position_embeddings} positions; "
            f"ask for 3 to {config.max_position_embeddings}"
        )

    def load() -> nn.Module:
        state = read_checkpoint(folder / "model.safetensors")
        state = {f"bert.{k.removeprefix('bert.')}": v for k, v in state.items()}
        return build(lambda: BertTokens(config), state, str(folder), ignore=(r"bert\.pooler\.", r".*position_ids$"))

    tokens = ("batch", "tokens")
    return Network(
        name="text_encoder",
        build=load,
        inputs=(Binding("input_ids", "int64", tokens), Binding("attention_mask", "int64", tokens)),
        outputs=(Binding("context", "float32", (*tokens, config.hidden_size)),),
        dimensions={"batch": Dimension(1, 2, 64), "tokens": Dimension(1, max_tokens, max_tokens)},
        samples={"input_ids": integers(config.vocab_size), "attention_mask": mask},
        weights=weights,
    )


def _config(folder: Path) -> Any:
    from transformers import BertConfig

    path = folder / "config.json"
    try:
        fields = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); pass a sentence-transformers folder") from error
    if fields.get("model_type") != "bert":
        raise CheckpointError(f"{path}: model_type is {fields.get('model_type')!r}, need 'bert'")
    config = BertConfig(**fields)
    config._attn_implementation = "eager"  # pyright: ignore[reportPrivateUsage]
    return config
