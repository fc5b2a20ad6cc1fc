"""The network under a task's head, ours or transformers', as the tasks see it.

Axes: b rows, t positions, d width, v vocab, k chosen tokens or continuations. Rows are padded on the right with any id
below vocab; `lengths_b` says how much of each is real, and no result at a real position depends on the padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn

from chinchilla_lm.core.errors import ConfigError, ModelError
from chinchilla_lm.core.files import read_json
from chinchilla_lm.model.model_config import read_config
from chinchilla_lm.tune.config import TuneConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Kind = Literal["causal", "encoder", "seq2seq"]

IGNORED = -100
"""Target of a position without one; the value that Hugging Face and torch use."""
OWN_METHODS = ("full", "head", "top-k", "gradual", "pattern", "lora", "bitfit")
"""What our Transformer can be tuned by; the other methods need peft on the transformers module."""
_LENGTH_WARNING = "sequence-length-is-longer-than-the-specified-maximum"  # transformers' name for it
# Tokens of one pass when nothing is kept for a gradient: as many as a training batch of 16 rows of 128.
_TOKENS_AT_ONCE = 2048


class Backbone(Protocol):
    """A model without a task's head. Every implementation is an nn.Module.

    Attributes:
        kind: "causal" (decoder), "encoder", "seq2seq".
        form: "own" or "hub".
        tokenizer: Hugging Face's fast tokenizer, `pad_token` set.
        width: d.
        vocab: rows of the embedding.
        context: most tokens in one row.
        folder: where the model was read.
    """

    kind: Kind
    form: Literal["own", "hub"]
    tokenizer: PreTrainedTokenizerFast
    width: int
    vocab: int
    context: int
    folder: Path

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """Blocks from the input to the output, for freezing and layer-wise rates."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        ...

    def hidden(self, ids_bt: Tensor, lengths_b: Tensor) -> Tensor:
        """Last hidden states after the final norm, x_btd in the compute dtype (of the encoder for "seq2seq")."""
        ...

    def token_losses(self, ids_bt: Tensor, targets_bt: Tensor, lengths_b: Tensor) -> Tensor:
        """-ln p(target), float32 nats, 0 where the target is -100.

        "causal": targets_bt are the tokens that follow each position (already shifted). "encoder": those to be put at
        each position. "seq2seq": targets_bu are the tokens of the answer in order, of any length u; ids_bt the source.
        """
        ...

    def unembedding_rows(self, ids: Sequence[int]) -> Tensor:
        """Rows of the output matrix for some tokens, w_kd, float32, differentiable."""
        ...

    def next_token_logits(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Logits of the token after each prompt, logits_bv, float32, without gradient."""
        ...

    def choice_logprobs(self, prefix: Sequence[int], continuations: Sequence[Sequence[int]]) -> np.ndarray[Any, Any]:
        """Ln p(continuation | prefix), nats summed over tokens, float64 (k), without gradient."""
        ...

    def generate(self, prompts: Sequence[Sequence[int]], max_tokens: int, stops: Sequence[int]) -> list[list[int]]:
        """Continue each prompt greedily until a stop token (left out) or max_tokens."""
        ...


def load_backbone(config: TuneConfig, *, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Backbone:
    """Read the model of a config in the form that the config, or the rule, chooses.

    Own: a causal mask, a method among `OWN_METHODS`, and a folder that our Transformer reads. Hub: everything else.

    Args:
        config: `model`, `backbone`, `method`, `mask`, `mask_blocks` are read.
        dtype: of activations and matmuls; weights are float32.
        device: a torch device name.

    Raises:
        ModelError: the folder holds no model that can be read.
        ConfigError: backbone = "own" for a model that only transformers reads.
    """
    folder = Path(config.model)
    form = choose_form(config)
    tokenizer = load_tokenizer(folder)
    # Imported here: transformers' model classes take seconds to import.
    if form == "own":
        from chinchilla_lm.tune.own_backbone import load_own_backbone

        return load_own_backbone(folder, tokenizer, dtype, device)
    from chinchilla_lm.tune.hub_backbone import HubMask, load_hub_backbone

    mask = HubMask(kind=config.mask, blocks=config.mask_blocks)
    return load_hub_backbone(folder, tokenizer, dtype, device, mask, config.dropout)


def choose_form(config: TuneConfig) -> Literal["own", "hub"]:
    """Say which form of the model a config asks for, by name or by rule.

    Raises:
        ConfigError: backbone = "own" for a model that only transformers reads.
        DataError: the folder has no config.json.
    """
    if config.backbone == "hub":
        return "hub"
    obstacle = _own_obstacle(config)
    if config.backbone == "own" and obstacle:
        raise ConfigError(f'backbone = "own" cannot tune {config.model}: {obstacle}; write backbone = "auto"')
    return "hub" if obstacle else "own"


def _own_obstacle(config: TuneConfig) -> str:
    if config.mask != "causal":
        return f"mask {config.mask} needs the module of transformers"
    if config.method not in OWN_METHODS:
        return f"method {config.method} needs peft"
    model_type = read_json(Path(config.model) / "config.json").get("model_type")
    try:
        read_config(Path(config.model))
    except ModelError as error:
        if model_type == "chinchilla_lm":
            raise
        return str(error)
    return ""


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Read a folder's tokenizer; one without a padding token pads with its end-of-text token.

    Raises:
        ModelError: no tokenizer that transformers reads, or none with special tokens.
    """
    from transformers import AutoTokenizer  # seconds to import

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"{folder} has no tokenizer that transformers reads ({reason}); save it there") from None
    if not tokenizer.is_fast:
        raise ModelError(f"{folder} has no tokenizer.json; save the fast form of its tokenizer there")
    if tokenizer.pad_token is None:
        spare = tokenizer.eos_token or tokenizer.unk_token or tokenizer.bos_token
        if spare is None:
            raise ModelError(f"{folder}: the tokenizer names no special token to pad with; set its pad_token")
        tokenizer.pad_token = spare
    tokenizer.padding_side = "right"
    # It would warn of "indexing errors" for a long text, which every task here cuts or reads in windows.
    tokenizer.deprecation_warnings[_LENGTH_WARNING] = True
    return cast("PreTrainedTokenizerFast", tokenizer)


# What both forms do with their `hidden` and `token_losses`


def pad_rows(rows: Sequence[Sequence[int]], filler: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Make (rows_bt, lengths_b), int64, padded on the right with `filler`."""
    lengths_b = np.array([len(row) for row in rows], dtype=np.int64)
    rows_bt = np.full((len(rows), max(1, int(lengths_b.max(initial=0)))), filler, dtype=np.int64)
    for index, row in enumerate(rows):
        rows_bt[index, : len(row)] = row
    return rows_bt, lengths_b


def split_by_length(lengths: Sequence[int], tokens_at_once: int = _TOKENS_AT_ONCE) -> list[list[int]]:
    """Group row numbers into batches of like length, longest first, each of about `tokens_at_once` padded tokens."""
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batches and (len(batches[-1]) + 1) * max(1, lengths[batches[-1][0]]) <= tokens_at_once:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def last_states(x_btd: Tensor, lengths_b: Tensor) -> Tensor:
    """The states at each row's last real position, x_bd: by length, never by looking for a padding id."""
    return x_btd[torch.arange(len(x_btd), device=x_btd.device), lengths_b - 1]


@torch.no_grad()
def read_next_tokens(backbone: Backbone, prompts: Sequence[Sequence[int]]) -> Tensor:
    """States at the end of each prompt, x_bd, in the order given."""
    found: list[Tensor] = [torch.empty(0)] * len(prompts)
    filler = int(cast(int, backbone.tokenizer.pad_token_id))
    for rows in split_by_length([len(prompt) for prompt in prompts]):
        ids_bt, lengths_b = (
            torch.from_numpy(array).to(backbone.device) for array in pad_rows([prompts[row] for row in rows], filler)
        )
        for row, x_d in zip(rows, last_states(backbone.hidden(ids_bt, lengths_b), lengths_b), strict=True):
            found[row] = x_d
    return torch.stack(found)


@torch.no_grad()
def price_continuations(
    backbone: Backbone, prefix: Sequence[int], continuations: Sequence[Sequence[int]]
) -> np.ndarray[Any, Any]:
    """Ln p(continuation | prefix) of a causal model, nats, float64 (k).

    Args:
        backbone: causal.
        prefix: at least one token.
        continuations: k of them, at least one token each.
    """
    assert prefix, "a prefix without tokens"
    assert all(continuations), "a continuation without tokens"
    rows = [[*prefix, *each] for each in continuations]
    targets = [[IGNORED] * (len(prefix) - 1) + list(each) for each in continuations]
    filler = int(cast(int, backbone.tokenizer.pad_token_id))
    prices = np.zeros(len(rows))
    for batch in split_by_length([len(row) for row in rows]):
        ids_bt, lengths_b = pad_rows([rows[i][:-1] for i in batch], filler)
        targets_bt, _ = pad_rows([targets[i] for i in batch], IGNORED)
        tensors = [torch.from_numpy(array).to(backbone.device) for array in (ids_bt, targets_bt, lengths_b)]
        losses_bt = backbone.token_losses(*tensors)
        prices[batch] = -losses_bt.double().sum(dim=1).cpu().numpy()
    return prices
