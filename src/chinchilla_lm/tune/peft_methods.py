"""Parameter-efficient methods through peft, on a module of transformers: LoRA, IA3, prompt tuning, prefix tuning.

LoRA and IA3 put layers into the module, which then computes with them wherever it is used. Virtual tokens are not part
of a module: hidden states are computed here (`HubBackbone.read_states`), and generation goes through peft's wrapper.

    method   adds                                   needs
    lora     low-rank products on the blocks' maps  any model
    ia3      scales of keys, values, feed-forward   a model whose maps peft knows
    prompt   embeddings before the text             a decoder
    prefix   keys and values before the text        a decoder
    peft     what the tuner says (`peft_tuners`)    what the tuner says

What they save is peft's own format with the head among `modules_to_save`.
Axes: b rows, t positions, n virtual tokens, d width.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from chinchilla_lm.core.errors import ConfigError
from chinchilla_lm.model.huggingface import write_weights
from chinchilla_lm.tune.config import TuneConfig
from chinchilla_lm.tune.hub_backbone import HubBackbone, HubHead
from chinchilla_lm.tune.peft_tuners import check_mergeable, make_tuner_config
from chinchilla_lm.tune.task import TunedModel

if TYPE_CHECKING:
    import peft

# Names within a block that IA3 scales, where peft's own table does not know the model. Source: Liu et al. 2022 (T-Few),
# section 3.3: keys, values, and the inner activation of the feed-forward layer.
_IA3_NAMES = (("k_proj", "v_proj", "down_proj"), ("down_proj",))


def add_peft(backbone: HubBackbone, config: TuneConfig) -> None:
    """Put a method's parameters on the module, in place, and note them as `backbone.added_parameters`.

    Args:
        backbone: any, for lora and ia3; a decoder for prompt and prefix.
        config: method, rank, virtual_tokens, seed.

    Raises:
        ConfigError: peft is not installed, or the method does not fit the model.
    """
    try:
        import peft
    except ModuleNotFoundError:
        raise ConfigError(
            f'method "{config.method}" needs peft, which is not installed; pip install "chinchilla-lm[tune]"'
        ) from None
    is_virtual = config.method in ("prompt", "prefix")
    if is_virtual and backbone.kind != "causal":
        raise ConfigError(f'method "{config.method}" is for decoders, this is an {backbone.kind}; choose lora or ia3')
    if is_virtual and not backbone._has_plain_head():
        raise ConfigError(f'method "{config.method}" does not fit a model that transforms its logits; choose lora')
    module: Any = backbone.module
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        try:
            wrapped = peft.get_peft_model(module, _peft_config(backbone, config))
        except (ValueError, TypeError, KeyError, NotImplementedError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(f'method "{config.method}" does not fit this model ({reason}); choose lora') from None
    if config.method == "peft":
        check_mergeable(module, str(wrapped.peft_config["default"].peft_type.value))
    backbone.__dict__["peft_model"] = wrapped  # not a submodule: it holds the module a second time
    if is_virtual:
        backbone.add_module("prompt_encoder", wrapped.prompt_encoder)
        backbone.read_states = _virtual_states(backbone, wrapped, config)
        backbone.write = _write_alone(wrapped)
    backbone.__dict__["added_parameters"] = [p for p in backbone.parameters() if p.requires_grad]  # peft froze the rest


def merge_layers(module: nn.Module) -> nn.Module:
    """Return a copy of a module in which LoRA, IA3 and other tuners' layers are merged into plain ones."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    merged = copy.deepcopy(module)
    for name, layer in list(merged.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            layer.merge()
            merged.set_submodule(name, layer.get_base_layer())
    for attribute in ("peft_config", "_hf_peft_config_loaded"):  # transformers would save an adapter in its place
        merged.__dict__.pop(attribute, None)
    return merged


def save_peft_adapter(
    model: TunedModel, hub_class: str, task_type: str, head: Mapping[str, Tensor], folder: Path
) -> None:
    """Write adapter_config.json and adapter_model.safetensors as peft would for the task's class.

    Args:
        model: with an adapter of `add_peft`.
        hub_class: the class that peft will wrap when it loads.
        task_type: peft's word for it.
        head: "weight" and "bias" of a head of ours; a `HubHead` is read from the module.
        folder: exists.
    """
    import peft

    backbone: Any = model.backbone
    wrapped: peft.PeftModel = backbone.peft_model
    config: Any = copy.deepcopy(wrapped.peft_config["default"])
    prefix = "base_model." if config.is_prompt_learning else "base_model.model."
    tensors = dict(peft.get_peft_model_state_dict(wrapped, save_embedding_layers=False))
    if isinstance(model.head, HubHead):
        in_head = {id(parameter) for parameter in model.head.parameters()}
        named = {name: p for name, p in backbone.module.named_parameters() if id(p) in in_head}
    else:
        named = {f"{_head_name(backbone.module, hub_class)}.{kind}": tensor for kind, tensor in head.items()}
    if named and not config.is_prompt_learning:
        config.modules_to_save = sorted({name.rpartition(".")[0] for name in named})
    tensors = _renamed(tensors, backbone.module, hub_class, prefix)
    tensors |= {prefix + name: tensor.detach() for name, tensor in named.items()}
    config.task_type, config.inference_mode = task_type, True
    config.base_model_name_or_path = str(backbone.folder)
    config.save_pretrained(str(folder))
    write_weights(folder / "adapter_model.safetensors", tensors, torch.float32)


def _peft_config(backbone: HubBackbone, config: TuneConfig) -> Any:
    import peft

    module: Any = backbone.module
    if config.method == "peft":
        assert config.peft_config is not None, "TuneConfig checks it"
        return make_tuner_config(config.peft_config)
    if config.method == "lora":
        alpha = 2.0 * config.rank if config.lora_alpha is None else config.lora_alpha
        names, is_transposed = _block_maps(backbone)
        return peft.LoraConfig(
            r=config.rank,
            lora_alpha=alpha,  # type: ignore[arg-type] - peft divides it by r
            lora_dropout=config.lora_dropout,
            target_modules=names,
            fan_in_fan_out=is_transposed,
        )
    if config.method == "ia3":
        names, is_transposed = _block_maps(backbone)
        endings = {name.rpartition(".")[2] for name in names}
        if set(_IA3_NAMES[0]) <= endings:
            targets, inner = _IA3_NAMES
            return peft.IA3Config(target_modules=list(targets), feedforward_modules=list(inner))
        return peft.IA3Config(fan_in_fan_out=is_transposed)
    kind: Any = peft.PromptTuningConfig if config.method == "prompt" else peft.PrefixTuningConfig
    settings: dict[str, Any] = {"task_type": "CAUSAL_LM", "num_virtual_tokens": config.virtual_tokens}
    if config.method == "prompt":  # rows of the vocabulary are a better start than noise: Lester et al. 2021, fig. 3b
        settings["prompt_tuning_init"] = "SAMPLE_VOCAB"
    del module
    return kind(**settings)


def _block_maps(backbone: HubBackbone) -> tuple[list[str], bool]:
    """Names within a block of its linear maps, and whether they are GPT-2's transposed ones."""
    from transformers.pytorch_utils import Conv1D

    names: dict[str, None] = {}
    is_transposed = False
    for block in backbone.blocks:
        for name, module in block.named_modules():
            if isinstance(module, nn.Linear | Conv1D):
                names[name] = None
                is_transposed = is_transposed or isinstance(module, Conv1D)
    return list(names), is_transposed


def _virtual_states(backbone: HubBackbone, wrapped: Any, config: TuneConfig) -> Any:
    body: Any = backbone.body
    count = config.virtual_tokens

    def read_states(ids_bt: Tensor, mask_bt: Tensor) -> Tensor:
        mask_bs = torch.cat((mask_bt.new_ones(len(ids_bt), count), mask_bt), dim=1)
        virtual = wrapped.get_prompt(batch_size=len(ids_bt))
        if config.method == "prefix":
            return body(input_ids=ids_bt, attention_mask=mask_bs, past_key_values=virtual).last_hidden_state
        x_btd = body.get_input_embeddings()(ids_bt)
        x_bsd = torch.cat((virtual.to(x_btd.dtype), x_btd), dim=1)
        return body(inputs_embeds=x_bsd, attention_mask=mask_bs, use_cache=False).last_hidden_state[:, count:]

    return read_states


def _write_alone(wrapped: Any) -> Any:
    """One text at a time through peft: padding between virtual tokens and a text would shift its positions."""

    def write(input_ids: Tensor, attention_mask: Tensor, eos_token_id: list[int], **settings: Any) -> Tensor:
        width, answers = input_ids.shape[1], []
        for ids_t, mask_t in zip(input_ids, attention_mask.bool(), strict=True):
            text = ids_t[mask_t][None]
            mask = torch.ones_like(text)
            out = wrapped.generate(input_ids=text, attention_mask=mask, eos_token_id=eos_token_id, **settings)
            answers.append(out[0, text.shape[1] :])
        written = input_ids.new_full((len(answers), width + max(map(len, answers))), eos_token_id[0])
        written[:, :width] = input_ids
        for row, answer in enumerate(answers):
            written[row, width : width + len(answer)] = answer
        return written

    return write


def _head_name(module: Any, hub_class: str) -> str:
    """What the task's class calls its head: "score", "classifier", "qa_outputs"."""
    full = _empty(module, hub_class)
    prefix = f"{full.base_model_prefix}."
    return next(name.rpartition(".")[0] for name in full.state_dict() if not name.startswith(prefix))


def _renamed(tensors: Mapping[str, Tensor], module: Any, hub_class: str, prefix: str) -> dict[str, Tensor]:
    """The trunk's names as the task's class has them: ...ForQuestionAnswering of Llama says `transformer`."""
    theirs = "" if hub_class == "AutoModel" else f"{_empty(module, hub_class).base_model_prefix}."
    ours = prefix + f"{module.base_model_prefix}."
    return {
        prefix + theirs + name.removeprefix(ours) if name.startswith(ours) else name: tensor
        for name, tensor in tensors.items()
    }


def _empty(module: Any, hub_class: str) -> Any:
    import transformers

    with torch.device("meta"):
        return getattr(transformers, hub_class).from_config(copy.deepcopy(module.config))
