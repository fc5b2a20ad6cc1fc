"""What transformers' models have where: kind, longest text, blocks; and masks of attention that can be opened.

Axes: b rows, t positions.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from chinchilla_lm.core.errors import ModelError
from chinchilla_lm.tune.backbone import Kind
from chinchilla_lm.tune.config import Mask

# Where transformers keep their blocks, by family: Llama and most decoders, GPT-2, GPT-NeoX, BERT-like, DistilBERT, T5,
# BART-like. A list of another name makes freezing by block impossible, and is refused by name.
_BLOCK_PLACES = ("layers", "h", "encoder.layer", "layer", "transformer.layer", "block", "encoder.layers")
# BERT-like; GPT-2; T5; BART and most decoders. Those of heads ("classifier_dropout") follow the hidden one when None.
_DROPOUT_NAMES = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "embd_pdrop",
    "resid_pdrop",
    "attn_pdrop",
    "dropout_rate",
    "dropout",
    "attention_dropout",
    "activation_dropout",
    "classifier_dropout",
)


@dataclass(frozen=True, kw_only=True)
class HubMask:
    """Attention of a decoder: causal, bidirectional, or bidirectional in the last `blocks` blocks ("top-k")."""

    kind: Mask = "causal"
    blocks: int = 4


def kind_of(config: Any) -> Kind:
    """Say what a config.json describes: decoder, encoder or encoder-decoder."""
    if getattr(config, "is_encoder_decoder", False):
        return "seq2seq"
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as DECODERS
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as ENCODERS

    # BERT-like models are in both lists: transformers can run them as decoders too.
    is_encoder = config.model_type in ENCODERS and not getattr(config, "is_decoder", False)
    return "causal" if config.model_type in DECODERS and not is_encoder else "encoder"


def context_of(config: Any) -> int:
    """The most tokens that a model reads."""
    for name in ("max_position_embeddings", "n_positions", "n_ctx"):
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            # RoBERTa's positions start after its padding id.
            return value - (config.pad_token_id + 1 if config.model_type in ("roberta", "xlm-roberta") else 0)
    return 1 << 14  # relative positions without a longest (T5): memory decides


def set_dropout(config: Any, dropout: float) -> None:
    """Set every dropout that a config.json has, under whatever name."""
    for name in _DROPOUT_NAMES:
        if hasattr(config, name):
            setattr(config, name, dropout)


def find_blocks(body: nn.Module) -> list[nn.Module]:
    """A body's blocks from the input to the output.

    Raises:
        ModelError: they lie under a name that is not known.
    """
    for place in _BLOCK_PLACES:
        module: Any = body
        for part in place.split("."):
            module = getattr(module, part, None)
        if isinstance(module, nn.ModuleList):
            return list(module)
    raise ModelError(f"{type(body).__name__} keeps its blocks under an unknown name; use method full, head or pattern")


def open_blocks(body: nn.Module, top: Sequence[nn.Module]) -> None:
    """Let some blocks of a decoder see the whole text, by hooks on their attention mask.

    Source: Dukic and Snajder 2024 (arXiv 2401.14556), section 3.2: unmasking the top blocks only.
    """
    padding: list[Tensor] = []

    def open_mask(module: nn.Module, arguments: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        x_btd = arguments[0] if arguments else named["hidden_states"]
        allowed_b1ts = padding[0][:, None, None, :].bool().expand(-1, 1, x_btd.shape[1], -1)
        place = list(inspect.signature(module.forward).parameters).index("attention_mask")
        if place < len(arguments):  # GPT-2's blocks get it by position
            return (*arguments[:place], allowed_b1ts, *arguments[place + 1 :]), named
        return arguments, named | {"attention_mask": allowed_b1ts}

    def note_padding(module: nn.Module, arguments: Any, named: dict[str, Any]) -> None:
        padding[:] = [named["attention_mask"]]

    body.register_forward_pre_hook(note_padding, with_kwargs=True)
    for block in top:
        block.register_forward_pre_hook(open_mask, with_kwargs=True)


def mask_of(ids_bt: Tensor, lengths_b: Tensor) -> Tensor:
    """1 where a position is real, 0 where it is padding, int64, shaped as the ids: by length, never by a padding id."""
    return (torch.arange(ids_bt.shape[-1], device=ids_bt.device) < lengths_b[..., None]).long()


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from printing bars and reports of new weights, which a head always has."""
    from transformers.utils import logging

    verbosity, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if has_bars:
            logging.enable_progress_bar()
