"""Held-out windows from plain documents and any tokenizer, for models whose data we did not prepare.

Documents become one stream, each after the end-of-text token (when the vocabulary has one), cut into windows of the
model's context; every token but the first is a target once. Never reads files.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import numpy as np
from tokenizers import Tokenizer

from chinchilla_lm.core.errors import DataError
from chinchilla_lm.data.documents import Document
from chinchilla_lm.data.loader import HeldOut
from chinchilla_lm.data.tokenizer import END_OF_TEXT


def windows_of_documents(
    documents: Iterable[Document], tokenizer: Tokenizer, context: int, max_tokens: int | None = None
) -> HeldOut:
    """Cut documents into fixed windows that do not overlap.

    Args:
        documents: text that the model has not seen.
        tokenizer: the model's own.
        context: targets a window.
        max_tokens: most targets; None takes all. The last, incomplete window is left out.

    Returns:
        (n, context) inputs and targets, (n,) bytes of the targets.

    Raises:
        DataError: the text is shorter than one window.
    """
    wanted = None if max_tokens is None else max_tokens // context * context + 1
    pairs = itertools.islice(_tokens_with_bytes(documents, tokenizer), wanted)
    pairs_s2 = np.array(list(pairs), dtype=np.int64).reshape(-1, 2)
    n_windows = max(0, len(pairs_s2) - 1) // context
    if n_windows == 0:
        raise DataError(
            f"the text has {len(pairs_s2)} tokens and a window needs {context + 1}; give more text to evaluate on"
        )
    end = n_windows * context
    return HeldOut(
        inputs_nt=pairs_s2[:end, 0].reshape(n_windows, context),
        targets_nt=pairs_s2[1 : end + 1, 0].reshape(n_windows, context),
        target_bytes_n=pairs_s2[1 : end + 1, 1].reshape(n_windows, context).sum(axis=1),
    )


def _tokens_with_bytes(documents: Iterable[Document], tokenizer: Tokenizer) -> Iterator[tuple[int, int]]:
    """Yield (token id, UTF-8 bytes that it adds); the bytes of a document's tokens sum to the document's."""
    end_of_text = tokenizer.token_to_id(END_OF_TEXT)
    for document in documents:
        if end_of_text is not None:
            yield end_of_text, 0
        encoding = tokenizer.encode(document.text, add_special_tokens=False)
        bytes_before = np.concatenate([[0], np.cumsum([len(character.encode()) for character in document.text])])
        # A character cut into several tokens counts with the first of them: each of them reports the whole character.
        covered = 0
        for token, (_, end) in zip(encoding.ids, encoding.offsets, strict=True):
            yield token, int(bytes_before[max(end, covered)] - bytes_before[covered])
            covered = max(end, covered)
