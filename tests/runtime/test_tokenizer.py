"""Prompts become the ids that the text encoders were trained with."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from sfumato.errors import BundleError, ParameterError, PromptError
from sfumato.runtime.tokenizer import BertTokenizer, ClipTokenizer, open_tokenizer

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "apple", "##s", "große", "リンゴ", "!"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import tokenizers
    from tokenizers import models, normalizers, pre_tokenizers

    library = tokenizers.Tokenizer(models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    library.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=False)
    library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    library.enable_truncation(4)  # a file may say so; the bundle's max_tokens counts
    path = tmp_path_factory.mktemp("bert") / "tokenizer.json"
    library.save(str(path))
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import tokenizers
    from tokenizers import models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(c + "</w>" for c in letters), "re", "red</w>", "<|startoftext|>", "<|endoftext|>"]
    model = models.BPE(
        vocab={word: i for i, word in enumerate(words)},
        merges=[("r", "e"), ("re", "d</w>")],
        end_of_word_suffix="</w>",
        continuing_subword_prefix="",
    )
    library = tokenizers.Tokenizer(model)
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    path = tmp_path_factory.mktemp("clip") / "tokenizer.json"
    library.save(str(path))
    return path


def test_bert_puts_start_and_end_around_and_pads(bert: Path) -> None:
    tokens = BertTokenizer(bert, 8)(["A red apples", ""])
    assert tokens.ids.dtype == tokens.mask.dtype == np.int64
    assert tokens.ids.tolist() == [[2, 4, 5, 6, 7, 3, 0, 0], [2, 3, 0, 0, 0, 0, 0, 0]]
    assert tokens.mask.tolist() == [[1] * 6 + [0] * 2, [1] * 2 + [0] * 6]
    assert tokens.cut == ("", "")


def test_clip_pads_with_the_end_token_or_as_the_file_says(clip: Path, tmp_path: Path) -> None:
    import tokenizers

    tokenizer = ClipTokenizer(clip, 6)
    ids = tokenizer(["red"]).ids[0].tolist()
    assert tokenizer.words(ids) == ["<|startoftext|>", "red</w>", *["<|endoftext|>"] * 4]
    library = tokenizers.Tokenizer.from_file(str(clip))
    library.enable_padding(pad_id=0, pad_token=library.id_to_token(0))
    library.save(str(tmp_path / "tokenizer.json"))
    padded = ClipTokenizer(tmp_path / "tokenizer.json", 6)(["red"])
    assert padded.ids[0].tolist() == [*ids[:3], 0, 0, 0] and padded.mask[0].tolist() == [1, 1, 1, 0, 0, 0]


def test_what_does_not_fit_is_cut_and_told_in_the_prompts_own_words(bert: Path) -> None:
    tokens = BertTokenizer(bert, 5)(["a red  apple, a GROẞE リンゴ!", "a red apple"])
    assert tokens.ids[0].tolist() == [2, 4, 5, 6, 3]
    assert tokens.cut == (", a GROẞE リンゴ!", "")
    assert tokens.ids[1].tolist() == [2, 4, 5, 6, 3]


def test_any_script_has_ids(bert: Path, clip: Path) -> None:
    for text in ("リンゴ", "שלום", "🍎", "a\0b\n", "große", " " * 50):
        assert (BertTokenizer(bert, 16)([text]).ids >= 0).all()
        assert (ClipTokenizer(clip, 64)([text]).ids >= 0).all()


def test_what_is_no_text_or_no_tokenizer_is_refused(bert: Path, clip: Path, tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="a prompt is a int, need text"):
        BertTokenizer(bert, 8)([7])  # type: ignore[list-item]
    with pytest.raises(PromptError, match="not Unicode"):
        BertTokenizer(bert, 8)(["\ud800"])
    with pytest.raises(ParameterError, match="max_tokens is 2"):
        BertTokenizer(bert, 2)
    with pytest.raises(BundleError, match=r"has no token '\[CLS\]', which BertTokenizer needs"):
        BertTokenizer(clip, 8)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleError, match="is not a tokenizer.json"):
        open_tokenizer("clip", tmp_path / "tokenizer.json", 8)
    with pytest.raises(ParameterError, match="no tokenizer family is named 't5'"):
        open_tokenizer("t5", bert, 8)


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="needs transformers to compare with")
def test_ids_are_those_of_transformers(bert: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    theirs = PreTrainedTokenizerFast(
        tokenizer_file=str(bert), cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]", unk_token="[UNK]"
    )
    for text in ("A red apples", "", "große リンゴ! a", "unknown words"):
        ids = theirs(text, add_special_tokens=False)["input_ids"]
        ours = BertTokenizer(bert, 32)([text])
        assert ours.ids[0, 1 : 1 + len(ids)].tolist() == ids and ours.mask[0].sum() == len(ids) + 2
