"""A byte-level BPE tokenizer, trained on the user's text and saved so that every tool loads it.

The pre-tokenizer is GPT-2's regular expression, which llama.cpp knows as "gpt-2", so that a trained vocabulary can be
exported. All 256 bytes are in the alphabet: no text has an unknown word, and decoding gives back every byte.
It never changes the text (no normalisation, no added spaces) and adds no token around it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from chinchilla_lm.core.errors import ConfigError, DataError
from chinchilla_lm.core.files import explain_os_error, write_json, write_text

# GPT-2's name for the token between documents (Radford et al. 2019); here id 0, and bos, eos and pad at once.
END_OF_TEXT = "<|endoftext|>"
# END_OF_TEXT and the 256 bytes.
MIN_VOCAB = 257
# The largest vocabularies in use are a quarter of it (Gemma 3: 262,144); above is a slip of the pen.
MAX_VOCAB = 1 << 20
# A merge seen once compresses one place of the sample and nothing else.
_MIN_PAIR_COUNT = 2


def train_tokenizer(texts: Iterable[str], vocab: int) -> Tokenizer:
    """Train a byte-level BPE on all of `texts`; the same texts give the same tokenizer, in any order.

    Time grows with the text (2.5 MB a second a core on English books, 0.6 MB on Chinese novels): pass a sample, as
    `sample_bytes` says.

    Args:
        texts: pieces of text of any length (64 KiB pieces train in parallel).
        vocab: ids wanted, END_OF_TEXT and the 256 bytes included.

    Returns:
        A tokenizer of `vocab` ids, or fewer when the text has no more pairs that occur twice.

    Raises:
        ConfigError: vocab is out of range.

    Source: Sennrich et al. 2016, section 3.2, on bytes as in Radford et al. 2019, section 2.2.
    """
    check_vocab(vocab)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        min_frequency=_MIN_PAIR_COUNT,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_refuse_no_text(texts), trainer)
    return tokenizer


def check_vocab(vocab: int) -> None:
    """Refuse a number of ids that no tokenizer here can have.

    Raises:
        ConfigError: vocab is out of range.
    """
    if not MIN_VOCAB <= vocab <= MAX_VOCAB:
        raise ConfigError(f"vocab = {vocab} must be from {MIN_VOCAB} to {MAX_VOCAB}; 1024 to 32768 suit most budgets")


def sample_bytes(vocab: int) -> int:
    """Return how many bytes of text, in pieces drawn from all of it, are enough to train `vocab` ids.

    Measured in shuffled 64 KiB pieces as tokens of unseen text: 102 MB of English books, relative to a 20 MB sample:
    vocab 1024: 2 MB +0.7 %, 5 MB +0.3 %, 10 MB +0.2 %; vocab 8192: 2 MB +1.2 %, 5 MB +0.6 %, 10 MB +0.2 %. Chinese
    novels and poems at vocab 4096, relative to 8 MB: 2 MB +0.9 % and +0.1 %, 4 MB +0.3 % and +0.04 %.
    Untested above vocab 8192.
    """
    return min(max(1_000 * vocab, 4_000_000), 20_000_000)


def save_tokenizer(tokenizer: Tokenizer, folder: Path | str, *, max_tokens: int | None = None) -> None:
    """Write the Hugging Face files: `AutoTokenizer.from_pretrained(folder)` gives the same ids.

    Args:
        tokenizer: as `train_tokenizer` makes it.
        folder: where; missing folders are made.
        max_tokens: the model's context, written as model_max_length.

    Raises:
        DataError: the folder cannot be written.
    """
    special = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "pad_token": END_OF_TEXT}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",  # known to transformers 4 and 5, and to vLLM
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        **({} if max_tokens is None else {"model_max_length": max_tokens}),
        **special,
    }
    write_text(Path(folder) / "tokenizer.json", tokenizer.to_str(pretty=False))
    write_json(Path(folder) / "special_tokens_map.json", special)
    write_json(Path(folder) / "tokenizer_config.json", settings)


def load_tokenizer(folder: Path | str) -> Tokenizer:
    """Read `tokenizer.json` of a Hugging Face folder, ours or another's.

    Raises:
        DataError: the file is absent or not a tokenizer.
    """
    path = Path(folder) / "tokenizer.json"
    with explain_os_error(path):
        content = path.read_bytes()
    try:
        return Tokenizer.from_buffer(content)
    except ValueError as error:
        raise DataError(
            f"{path} is not a tokenizer of the `tokenizers` library ({str(error)[:200]}); save it again, or convert it "
            "with transformers' AutoTokenizer and save_pretrained"
        ) from None


def token_bytes(tokenizer: Tokenizer) -> np.ndarray:
    """Return how many bytes of text each id stands for: the sum over a text's ids is its length in UTF-8.

    Args:
        tokenizer: byte-level (GPT-2, Llama 3, Qwen and ours are; SentencePiece tokenizers are not).

    Returns:
        (vocab,) int32; 0 for special tokens and for ids that the vocabulary skips.

    Raises:
        DataError: the tokenizer is not byte-level.
    """
    description = json.loads(tokenizer.to_str())
    if "ByteLevel" not in _types(description["decoder"]):
        raise DataError(
            "this tokenizer is not byte-level (its decoder is"
            f" {(description['decoder'] or {}).get('type')}), so its ids have no fixed number of bytes; compare models"
            " on whole documents, or prepare the text with `chinchilla prepare`"
        )
    added = tokenizer.get_added_tokens_decoder()
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    bytes_v = np.zeros(max(vocabulary.values()) + 1, dtype=np.int32)
    for token, index in vocabulary.items():
        if index not in added:
            bytes_v[index] = len(token)  # one character of the byte-level alphabet is one byte
        elif not added[index].special:
            bytes_v[index] = len(token.encode("utf-8"))
    return bytes_v


def _refuse_no_text(texts: Iterable[str]) -> Iterator[str]:
    assert not isinstance(texts, str), "pass pieces of text, not one string (it would be read by character)"
    yield from texts


def _types(part: dict | None) -> set[str]:
    """Return the type names of a component and of its parts (a Sequence has some)."""
    if part is None:
        return set()
    names = {part["type"]}
    for inner in part.get("decoders", []):
        names |= _types(inner)
    return names
