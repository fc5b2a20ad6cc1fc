"""Any model of transformers as a backbone: decoders, encoders and encoder-decoders, through the Auto classes.

Never a folder's own code, never pickled weights, never the network. What peft changes, it changes in `module`.

Attention masks of a decoder: "causal"; "bidirectional" (`config.is_causal = False`, saved with the folder, so that
transformers builds the same mask when it loads it); "top-k": bidirectional in the last blocks only, by a hook that no
saved folder can carry. Padding is never attended to.

Axes: b rows, t positions of the input, u positions of an answer, n chosen positions, d width, v vocab, k chosen tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from chinchilla_lm.core.errors import ModelError
from chinchilla_lm.model.transformer import CHUNK_LOGITS
from chinchilla_lm.tune.backbone import IGNORED, Kind, price_continuations, read_next_tokens, split_by_length
from chinchilla_lm.tune.hub_layout import (
    HubMask,
    context_of,
    find_blocks,
    kind_of,
    mask_of,
    open_blocks,
    quiet,
    set_dropout,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

# Settings that transform logits after the output matrix (Gemma 2, Cohere, Granite): the full forward pass knows them.
_LOGIT_SETTINGS = ("final_logit_softcapping", "logit_scale", "logits_scaling")


class HubBackbone(nn.Module):
    """See `tune.backbone.Backbone`.

    Attributes:
        module: AutoModelForCausalLM, AutoModelForSeq2SeqLM or, for an encoder, AutoModel (replaced by `adopt_head`).
        read_states: what computes hidden states from (ids, mask) in place of the module's body; None: the body. peft's
            virtual tokens come in here.
        write: what generates in place of the module's `generate`; None: the module.
    """

    form: Literal["own", "hub"] = "hub"

    def __init__(
        self,
        module: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        *,
        kind: Kind,
        folder: Path,
        dtype: torch.dtype,
    ) -> None:
        """Keeps the module as it is."""
        super().__init__()
        self.module = module
        self.tokenizer = tokenizer
        self.kind: Kind = kind
        self.folder = folder
        self.compute_dtype = dtype
        config = cast(Any, module.config)
        self.width = int(config.hidden_size)
        self.vocab = int(config.vocab_size)
        self.context = context_of(config)
        self.read_states: Callable[[Tensor, Tensor], Tensor] | None = None
        self.write: Callable[..., Tensor] | None = None

    @property
    def body(self) -> nn.Module:
        """The network without its language-model head."""
        return cast(Any, self.module).base_model

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """Blocks from the input to the output; of an encoder-decoder, the encoder's and then the decoder's."""
        body = self.body
        if self.kind == "seq2seq":
            parts = (cast(Any, self.module).get_encoder(), cast(Any, self.module).get_decoder())
            return [block for part in parts for block in find_blocks(part)]
        return find_blocks(body)

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return next(self.module.parameters()).device

    def hidden(self, ids_bt: Tensor, lengths_b: Tensor) -> Tensor:
        """Last hidden states x_btd; of the encoder for an encoder-decoder. Padding is masked."""
        mask_bt = mask_of(ids_bt, lengths_b)
        with self._precision():
            if self.read_states is not None:
                return self.read_states(ids_bt, mask_bt)
            body = cast(Any, self.module).get_encoder() if self.kind == "seq2seq" else self.body
            settings = {"use_cache": False} if self.kind == "causal" else {}
            return body(input_ids=ids_bt, attention_mask=mask_bt, **settings).last_hidden_state

    def token_losses(self, ids_bt: Tensor, targets_bt: Tensor, lengths_b: Tensor) -> Tensor:
        """-ln p(target), float32 nats, 0 where the target is -100; see `tune.backbone` for the three kinds."""
        if self.kind == "seq2seq":
            return self._answer_losses(ids_bt, targets_bt, lengths_b)
        if self._has_plain_head():
            x_nd = self.hidden(ids_bt, lengths_b).flatten(0, 1)
        else:
            x_nd = self._logits(ids_bt, lengths_b).flatten(0, 1)
        targets_n = targets_bt.flatten()
        chosen_n = (targets_n != IGNORED).nonzero()[:, 0]
        losses_n = self._losses_of(x_nd[chosen_n], targets_n[chosen_n])
        return losses_n.new_zeros(len(targets_n)).index_copy(0, chosen_n, losses_n).view_as(targets_bt)

    def unembedding_rows(self, ids: Sequence[int]) -> Tensor:
        """Rows of the output matrix, w_kd, float32, differentiable; an encoder's are those of its embedding."""
        table = self._output_embeddings()
        return table.weight[torch.tensor(list(ids), device=self.device)].float()

    @torch.no_grad()
    def next_token_logits(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Logits of the token after each prompt, logits_bv, float32; of an encoder-decoder, of the answer's first."""
        if self.kind == "seq2seq" or not self._has_plain_head():
            return torch.stack([self._next_logits_alone(prompt) for prompt in prompts])
        x_bd = read_next_tokens(self, prompts)
        with self._precision():
            return self._output_embeddings()(x_bd).float()

    @torch.no_grad()
    def choice_logprobs(self, prefix: Sequence[int], continuations: Sequence[Sequence[int]]) -> np.ndarray[Any, Any]:
        """Ln p(continuation | prefix), nats summed over tokens, float64 (k)."""
        if self.kind != "seq2seq":
            return price_continuations(self, prefix, continuations)
        ids_bt = torch.tensor([list(prefix)], device=self.device)
        lengths_b = torch.tensor([len(prefix)], device=self.device)
        prices = [
            -float(self.token_losses(ids_bt, torch.tensor([list(each)], device=self.device), lengths_b).sum())
            for each in continuations
        ]
        return np.array(prices)

    @torch.no_grad()
    def generate(self, prompts: Sequence[Sequence[int]], max_tokens: int, stops: Sequence[int]) -> list[list[int]]:
        """Continue each prompt greedily with transformers' own `generate`, batches of like length, padded left."""
        answers: list[list[int]] = [[] for _ in prompts]
        for rows in split_by_length([len(prompt) + max_tokens for prompt in prompts]):
            for row, answer in zip(rows, self._generate([prompts[i] for i in rows], max_tokens, stops), strict=True):
                answers[row] = answer
        return answers

    def adopt_head(self, hub_class: str, labels: Sequence[str], **settings: Any) -> HubHead:
        """Load the folder as a task's own class, such as BertForSequenceClassification, and take over its body.

        An encoder's head is not one matrix: each family has its pooler, activation and dropout. New weights are drawn
        from torch's global generator.

        Args:
            hub_class: a class name of transformers, such as "AutoModelForTokenClassification".
            labels: names of the outputs.
            settings: further keys of config.json, such as problem_type.

        Raises:
            ModelError: transformers has no such class for this model.
        """
        import transformers  # seconds to import; everyone who has this class has it

        config = copy.deepcopy(self.module.config)  # with this run's dropout
        if labels:
            config.id2label, config.label2id = dict(enumerate(labels)), _numbered(labels)
        for name, value in settings.items():
            setattr(config, name, value)
        try:
            with quiet():
                full, loading = getattr(transformers, hub_class).from_pretrained(
                    self.folder,
                    config=config,
                    local_files_only=True,
                    trust_remote_code=False,
                    use_safetensors=True,
                    dtype=torch.float32,
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,  # a folder already tuned may have a head of other labels
                )
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ModelError(f"{self.folder} cannot be used as {hub_class} ({reason}); choose another model") from None
        fresh = {*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])}
        self.module = full.to(self.device)
        return HubHead(self, fresh)

    def run(self, ids_bt: Tensor, lengths_b: Tensor, **more: Tensor) -> Any:
        """The module's whole forward pass with its own outputs, padding masked."""
        with self._precision():
            return cast(Any, self.module)(input_ids=ids_bt, attention_mask=mask_of(ids_bt, lengths_b), **more)

    # Inside

    def _precision(self) -> AbstractContextManager[Any]:
        if self.compute_dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.compute_dtype)

    def _output_embeddings(self) -> Any:
        return cast(Any, self.module).get_output_embeddings() or cast(Any, self.module).get_input_embeddings()

    def _has_plain_head(self) -> bool:
        """Whether logits are the output matrix times the states, without a transformation after it."""
        config = self.module.config
        return all(getattr(config, name, None) in (None, 1, 1.0) for name in _LOGIT_SETTINGS)

    def _logits(self, ids_bt: Tensor, lengths_b: Tensor) -> Tensor:
        return self.run(ids_bt, lengths_b).logits

    def _losses_of(self, x_nd: Tensor, targets_n: Tensor) -> Tensor:
        """Cross-entropy of states (or of logits, where the head is not plain) at chosen positions, part by part."""
        head = self._output_embeddings() if self._has_plain_head() else nn.Identity()

        def losses(x_nd: Tensor, targets_n: Tensor) -> Tensor:
            with self._precision():
                logits_nv = head(x_nd)
            return F.cross_entropy(logits_nv.float(), targets_n, reduction="none")

        size = max(1, CHUNK_LOGITS // self.vocab)
        if len(targets_n) <= size:
            return losses(x_nd, targets_n)
        parts = [
            cast(Tensor, checkpoint(losses, x_nd[i : i + size], targets_n[i : i + size], use_reentrant=False))
            for i in range(0, len(targets_n), size)
        ]
        return torch.cat(parts)

    def _answer_losses(self, ids_bt: Tensor, targets_bu: Tensor, lengths_b: Tensor) -> Tensor:
        logits_buv = self.run(ids_bt, lengths_b, labels=targets_bu).logits.float()
        return F.cross_entropy(logits_buv.flatten(0, 1), targets_bu.flatten(), reduction="none").view_as(targets_bu)

    def _next_logits_alone(self, prompt: Sequence[int]) -> Tensor:
        ids_bt = torch.tensor([list(prompt)], device=self.device)
        lengths_b = torch.tensor([len(prompt)], device=self.device)
        more = {}
        if self.kind == "seq2seq":
            start = cast(Any, self.module).config.decoder_start_token_id
            more = {"decoder_input_ids": torch.full((1, 1), start, device=self.device)}
        return self.run(ids_bt, lengths_b, **more).logits[0, -1].float()

    def _generate(self, prompts: Sequence[Sequence[int]], max_tokens: int, stops: Sequence[int]) -> list[list[int]]:
        filler = int(cast(int, self.tokenizer.pad_token_id))
        width = max(map(len, prompts))
        ids_bt = torch.full((len(prompts), width), filler, dtype=torch.int64)
        mask_bt = torch.zeros_like(ids_bt)
        for row, prompt in enumerate(prompts):
            ids_bt[row, width - len(prompt) :] = torch.tensor(list(prompt))
            mask_bt[row, width - len(prompt) :] = 1
        is_seq2seq = self.kind == "seq2seq"
        if is_seq2seq:  # an encoder's positions count from its first token, padding or not
            ids_bt, mask_bt = _moved_left(ids_bt, mask_bt, filler)
        ends = [*stops] or [int(cast(int, self.tokenizer.eos_token_id))]
        with self._precision():
            out_bt = (self.write or cast(Any, self.module).generate)(
                input_ids=ids_bt.to(self.device),
                attention_mask=mask_bt.to(self.device),
                max_new_tokens=max_tokens,
                do_sample=False,
                num_beams=1,
                eos_token_id=ends,
                pad_token_id=filler,
            )
        return [_until(row, {*ends}) for row in out_bt[:, 1 if is_seq2seq else width :].tolist()]


class HubHead(nn.Module):
    """The head that a task's class of transformers adds to a body: `forward` runs the whole class.

    Attributes:
        fresh: names of the weights that the folder did not hold.
    """

    def __init__(self, backbone: HubBackbone, fresh: set[str]) -> None:
        """Parameters: those of the class outside the body, and those of the body that the folder did not hold."""
        super().__init__()
        self.fresh = frozenset(fresh)
        in_body = {id(parameter) for parameter in backbone.body.parameters()}
        named = backbone.module.named_parameters()
        self.weights = nn.ParameterList([p for name, p in named if id(p) not in in_body or name in fresh])
        self._backbone = (backbone,)  # in a tuple: it must not become a second registered module

    def forward(self, ids_bt: Tensor, lengths_b: Tensor, **more: Tensor) -> Any:
        """The class's own outputs (`.logits`, or `.start_logits` and `.end_logits`), padding masked."""
        return self._backbone[0].run(ids_bt, lengths_b, **more)


def load_hub_backbone(
    folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    dtype: torch.dtype,
    device: str,
    mask: HubMask,
    dropout: float | None = None,
) -> HubBackbone:
    """Read a folder through the Auto classes.

    Args:
        folder: safetensors and config.json.
        tokenizer: with `pad_token` set.
        dtype: of activations and matmuls (autocast); weights are float32.
        device: a torch device name.
        mask: of a decoder's attention.
        dropout: in every place where the model has some; None: the folder's own.

    Raises:
        ModelError: transformers does not read it, or it would need a folder's own code or pickled weights, or the mask
            is asked of a model that is no decoder.
    """
    import transformers  # seconds to import

    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        kind = kind_of(config)
        if mask.kind != "causal" and kind != "causal":
            raise ModelError(f'mask "{mask.kind}" is for decoders, {folder} is an {kind}; leave the mask out')
        names: dict[Kind, str] = {
            "causal": "AutoModelForCausalLM",
            "seq2seq": "AutoModelForSeq2SeqLM",
            "encoder": "AutoModel",
        }
        if mask.kind == "bidirectional":
            config.is_causal = False
        if dropout is not None:
            set_dropout(config, dropout)
        with quiet():
            module = getattr(transformers, names[kind]).from_pretrained(
                folder,
                config=config,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                dtype=torch.float32,
            )
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"{folder} is not read by transformers ({reason}); save it with save_pretrained") from None
    if module.config.pad_token_id is None:
        module.config.pad_token_id = tokenizer.pad_token_id
    backbone = HubBackbone(module.to(device), tokenizer, kind=kind, folder=folder, dtype=dtype)
    if mask.kind == "top-k":
        open_blocks(backbone.body, backbone.blocks[-mask.blocks :])
    return backbone


def _numbered(labels: Sequence[str]) -> dict[str, int]:
    return {label: index for index, label in enumerate(labels)}


def _moved_left(ids_bt: Tensor, mask_bt: Tensor, filler: int) -> tuple[Tensor, Tensor]:
    """Padding from the left to the right."""
    order_bt = (1 - mask_bt).argsort(dim=1, stable=True)
    return ids_bt.gather(1, order_bt), mask_bt.gather(1, order_bt)


def _until(ids: list[int], ends: set[int]) -> list[int]:
    for index, token in enumerate(ids):
        if token in ends:
            return ids[:index]
    return ids
