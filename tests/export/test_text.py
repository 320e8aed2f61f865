"""Sentence encoders in 8-bit rows: size, similarity, and both engines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from sfumato.engines.bundle import Bundle, BundleWriter
from sfumato.engines.engine import open_engine
from sfumato.engines.manifest import Manifest
from sfumato.errors import CheckpointError
from sfumato.export.recipes.text import sentence_encoder
from sfumato.export.write import export_network


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentence-transformers folder of MiniLM's layout with random weights."""
    from transformers import BertConfig, BertModel

    path = tmp_path_factory.mktemp("minilm")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=300,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=40,
    )
    BertModel(config).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def bundle(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    with BundleWriter(tmp_path_factory.mktemp("text") / "b") as writer:
        spec = export_network(writer, sentence_encoder(folder, max_tokens=16), "fp16")
        return writer.commit(Manifest("test", "text", "CC0-1.0", {}, {"text_encoder": spec}))


def _ids(batch: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(0, 300, (batch, tokens), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(tokens)[None] < torch.tensor([[tokens], [3], [1]])[:batch]).long()
    return ids, mask


@pytest.mark.parametrize("tokens", [3, 16])
def test_the_masks_are_those_of_the_library(folder: Path, tokens: int) -> None:
    from transformers import BertModel

    ids, mask = _ids(3, tokens)
    with torch.no_grad():
        mine = sentence_encoder(folder, weights=None, max_tokens=16).build()(ids, mask)
        library = BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
        expected = library(input_ids=ids, attention_mask=mask).last_hidden_state
    shown = mask.bool()
    torch.testing.assert_close(mine[shown], expected[shown], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("backend", "precision"), [("onnxruntime", "fp32"), ("openvino", "fp32"), ("openvino", None)])
def test_eight_bit_rows_keep_the_meaning(folder: Path, bundle: Bundle, backend, precision) -> None:
    ids, mask = _ids(3, 11)
    with torch.no_grad():
        reference = sentence_encoder(folder, weights=None, max_tokens=16).build()(ids, mask).numpy()
    with open_engine(bundle, "text_encoder", backend=backend, precision=precision) as engine:
        result = engine(input_ids=ids.numpy(), attention_mask=mask.numpy())["context"]
    shown = mask.numpy().astype(bool)
    a, b = result[shown].ravel(), reference[shown].ravel()
    assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.999


def test_hidden_tokens_do_not_matter(bundle: Bundle) -> None:
    ids, mask = _ids(2, 8)
    other = torch.where(mask.bool(), ids, (ids + 7) % 300)
    with open_engine(bundle, "text_encoder", backend="onnxruntime") as engine:
        first, second = (
            engine(input_ids=i.numpy(), attention_mask=mask.numpy())["context"].copy() for i in (ids, other)
        )
    shown = mask.numpy().astype(bool)
    np.testing.assert_allclose(first[shown], second[shown], atol=1e-5)


def test_every_matrix_is_stored_in_int8_and_nothing_is_computed_in_it(bundle: Bundle) -> None:
    graph = onnx.load(str(bundle.file("text_encoder.onnx")), load_external_data=False).graph
    kinds = {n.op_type for n in graph.node}
    assert "DequantizeLinear" in kinds
    assert not kinds & {"MatMulInteger", "ConvInteger", "DynamicQuantizeLinear", "QuantizeLinear", "Range", "ScatterND"}
    large = [i for i in graph.initializer if len(i.dims) == 2 and np.prod(i.dims) >= 1024]
    assert {onnx.TensorProto.DataType.Name(i.data_type) for i in large} == {"INT8"} and len(large) == 14
    assert bundle.network("text_encoder").precision.default == "fp32"


def test_what_is_no_bert_or_too_long_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="max_tokens is 41, the model has 40 positions; ask for 3 to 40"):
        sentence_encoder(folder, max_tokens=41)
    with pytest.raises(CheckpointError, match="cannot be read"):
        sentence_encoder(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(CheckpointError, match="model_type is 'gpt2', need 'bert'"):
        sentence_encoder(tmp_path)
