from __future__ import annotations

import numpy as np
import pytest
from tokenizers import Tokenizer

from chinchilla_lm.core.errors import DataError
from chinchilla_lm.data.documents import Document
from chinchilla_lm.data.tokenizer import token_bytes, train_tokenizer
from chinchilla_lm.evals.heldout import windows_of_documents

TEXTS = ["The sailor 说 hello, hello, hello. 👩‍🚀 " * 7, "naïve café; " * 9, "end"]
DOCUMENTS = [Document(text=text, id=str(i)) for i, text in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS, 300)


@pytest.mark.parametrize("context", [1, 7, 16])
def test_windows_are_the_stream_cut_by_hand(tokenizer: Tokenizer, context: int) -> None:
    stream = [token for text in TEXTS for token in [0, *tokenizer.encode(text).ids]]
    windows = (len(stream) - 1) // context
    heldout = windows_of_documents(DOCUMENTS, tokenizer, context)
    assert heldout.inputs_nt.ravel().tolist() == stream[: windows * context]
    assert heldout.targets_nt.ravel().tolist() == stream[1 : windows * context + 1]
    assert heldout.inputs_nt.shape == (windows, context)


def test_bytes_are_those_of_the_text(tokenizer: Tokenizer) -> None:
    heldout = windows_of_documents(DOCUMENTS, tokenizer, 1)  # context 1: no token is left out at the end
    assert heldout.bytes == sum(len(text.encode()) for text in TEXTS)


def test_bytes_of_whole_characters_are_those_of_the_tokens(tokenizer: Tokenizer) -> None:
    ascii_only = [Document(text="hello, sailor; end of café".replace("é", "e") * 5, id="0")]
    heldout = windows_of_documents(ascii_only, tokenizer, 4)
    np.testing.assert_array_equal(heldout.target_bytes_n, token_bytes(tokenizer)[heldout.targets_nt].sum(axis=1))


def test_max_tokens_bounds_the_targets(tokenizer: Tokenizer) -> None:
    assert windows_of_documents(DOCUMENTS, tokenizer, 8, max_tokens=30).targets_nt.shape == (3, 8)


def test_too_little_text_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match="a window needs 65"):
        windows_of_documents(DOCUMENTS[2:], tokenizer, 64)
