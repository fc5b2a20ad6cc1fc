"""config.json: ModelShape to and from Hugging Face's words, with a strict border.

It accepts model_type qwen3, llama and chinchilla_lm (ours), bounds every whole number, refuses what would change the
function computed and our modules do not have (biases, sliding windows, rope scaling, quantisation) or that
would run a folder's own code (auto_map). Keys without influence on the logits (initializer_range, use_cache, ...) pass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chinchilla_lm.core.errors import ConfigError, ModelError
from chinchilla_lm.core.files import read_json
from chinchilla_lm.core.shapes import ModelShape

OWN_MODEL_TYPE = "chinchilla_lm"
OWN_SCHEMA = "model/1"
_ARCHITECTURES = {"qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM"}

# Largest sizes that are believed, each above any published model's: a mistyped or hostile number must not allocate.
_BOUNDS = {
    "vocab_size": 1 << 21,
    "max_position_embeddings": 1 << 24,
    "hidden_size": 1 << 16,
    "num_hidden_layers": 1 << 10,
    "num_attention_heads": 1 << 10,
    "num_key_value_heads": 1 << 10,
    "head_dim": 1 << 12,
    "intermediate_size": 1 << 18,
}
# Options that change the function: only these values are what our modules compute.
_REQUIRED_VALUES: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "use_sliding_window": (False, None),
    "pretraining_tp": (1, None),
    "partial_rotary_factor": (1, None),
    "rope_interleaved": (False, None),
    "quantization_config": (None,),
    "is_encoder_decoder": (False, None),
}
_HEAD_DIM_OF_QWEN3 = 128  # the class's own defaults, which a config.json may leave out (transformers 5.23, Qwen3Config)
_KV_HEADS_OF_QWEN3 = 32


@dataclass(frozen=True, kw_only=True)
class SpecialIds:
    """Token ids of the special tokens; None where the tokenizer has none."""

    bos: int | None = None
    eos: int | None = None
    pad: int | None = None


def is_stock(shape: ModelShape) -> bool:
    """Whether transformers, vLLM and llama.cpp know this shape as Qwen3 or Llama."""
    return shape.layout in _ARCHITECTURES and shape.activation == "swiglu"


def write_config(shape: ModelShape, special: SpecialIds) -> tuple[dict[str, Any], dict[str, Any]]:
    """The values of config.json and generation_config.json.

    Args:
        shape: any; dropout is a matter of training and is not written for stock shapes.
        special: from the tokenizer.
    """
    ids = {"bos_token_id": special.bos, "eos_token_id": special.eos, "pad_token_id": special.pad}
    if not is_stock(shape):
        config = {
            "model_type": OWN_MODEL_TYPE,
            "schema": OWN_SCHEMA,
            "note": "Not a layout of transformers: load it with chinchilla_lm.model.huggingface.load_model.",
            "shape": shape.to_dict(),
            "dtype": "float32",
        }
        return config | ids, dict(ids)
    config = {
        "architectures": [_ARCHITECTURES[shape.layout]],
        "model_type": shape.layout,
        "vocab_size": shape.vocab,
        "max_position_embeddings": shape.context,
        "hidden_size": shape.d_model,
        "intermediate_size": shape.d_ff,
        "num_hidden_layers": shape.n_layers,
        "num_attention_heads": shape.n_heads,
        "num_key_value_heads": shape.n_kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": shape.norm_epsilon,
        "rope_theta": shape.rope_theta,  # where tools older than transformers 5 look
        "rope_parameters": {"rope_theta": shape.rope_theta, "rope_type": "default"},
        "attention_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": shape.is_tied,
        "use_cache": True,
        "dtype": "float32",
    }
    if shape.layout == "llama":
        config["mlp_bias"] = False
    else:
        config |= {"use_sliding_window": False, "sliding_window": None}
    return config | ids, dict(ids)


def read_config(folder: Path) -> ModelShape:
    """The shape that a folder's config.json describes.

    Raises:
        ModelError: a type, size or option that this package does not read; the message names it.
        DataError: config.json is absent or not JSON.
    """
    path = folder / "config.json"
    config = read_json(path)
    if not isinstance(config, dict):
        raise ModelError(f"{path} is not a table; name the folder of a saved model")
    if config.get("auto_map") is not None:
        raise ModelError(f"{path} has auto_map, which runs the folder's own code; only built-in layouts are read")
    model_type = config.get("model_type")
    if model_type == OWN_MODEL_TYPE:
        return _read_own(path, config)
    if not isinstance(model_type, str) or model_type not in _ARCHITECTURES:
        raise ModelError(
            f"{path}: model_type {model_type!r} is not read; choose a model of type qwen3 or llama, or one of ours"
        )
    _refuse_options(path, config)
    layers = config.get("layer_types")
    if layers is not None and (not isinstance(layers, list) or any(kind != "full_attention" for kind in layers)):
        raise ModelError(f"{path}: layer_types must all be full_attention; sliding windows are not read")
    return _read_stock(path, config, model_type)


def read_special_ids(folder: Path, vocab: int) -> SpecialIds:
    """The ids of bos, eos and pad that a tokenizer folder names.

    Args:
        folder: holds tokenizer.json, and tokenizer_config.json with bos_token, eos_token, pad_token.
        vocab: rows of the model's embedding.

    Raises:
        ModelError: the tokenizer has ids that the model has no row for, or names a special token it does not hold.
        DataError: tokenizer.json is absent or not JSON.
    """
    tokenizer = read_json(folder / "tokenizer.json")
    config = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    ids: dict[str, int] = {}
    words = tokenizer.get("model", {}).get("vocab", {})
    if isinstance(words, dict):
        ids |= words
    ids |= {token["content"]: token["id"] for token in tokenizer.get("added_tokens", [])}
    if ids and max(ids.values()) >= vocab:
        raise ModelError(
            f"{folder}: the tokenizer has token ids up to {max(ids.values())}, the model only {vocab} rows; "
            "give the tokenizer that the model was trained with"
        )

    def id_of(name: str) -> int | None:
        token = config.get(name)
        token = token.get("content") if isinstance(token, dict) else token
        if token is not None and token not in ids:
            raise ModelError(
                f"{folder}: {name} is {token!r}, which tokenizer.json does not hold; save the tokenizer again"
            )
        return None if token is None else ids[token]

    return SpecialIds(bos=id_of("bos_token"), eos=id_of("eos_token"), pad=id_of("pad_token"))


def find_end_ids(
    generation: Mapping[str, Any], config: Mapping[str, Any], *, eos: int | None, vocab: int
) -> tuple[int, ...]:
    """The tokens that end a text, each once: the tokenizer's, then those that the model's files name.

    A chat model ends its answers with other tokens than its documents (Llama 3 names three). As in transformers,
    config.json counts only where generation_config.json names none.

    Args:
        generation: generation_config.json; empty: absent.
        config: config.json.
        eos: the tokenizer's own; None: none.
        vocab: rows of the model's embedding.

    Raises:
        ModelError: an end that the model has no row for.
    """
    ends = [] if eos is None else [eos]
    for name, table in (("generation_config.json", generation), ("config.json", config)):
        named = table.get("eos_token_id")
        if named is None:
            continue
        listed = named if isinstance(named, list) else [named]
        if not all(type(one) is int and 0 <= one < vocab for one in listed):
            raise ModelError(f"{name}: eos_token_id {str(named)[:60]} must be token ids below {vocab}; correct it")
        ends += [one for one in listed if one not in ends]
        break
    return tuple(ends)


def _read_own(path: Path, config: Mapping[str, Any]) -> ModelShape:
    if config.get("schema") != OWN_SCHEMA:
        raise ModelError(
            f"{path}: schema {config.get('schema')!r} is not {OWN_SCHEMA!r}; use the version that wrote it"
        )
    fields = config.get("shape")
    if not isinstance(fields, dict):
        raise ModelError(f"{path} has no shape; export the model again")
    try:
        shape = ModelShape.from_dict(fields)
    except ConfigError as error:
        raise ModelError(f"{path}: {error}") from None
    sizes = (shape.vocab, shape.context, shape.d_model, shape.n_layers)
    sizes += (shape.n_heads, shape.n_kv_heads, shape.head_dim, shape.d_ff)
    for (name, bound), size in zip(_BOUNDS.items(), sizes, strict=True):
        _check_size(path, name, size, bound)
    return shape


def _read_stock(path: Path, config: Mapping[str, Any], layout: str) -> ModelShape:
    sizes: dict[str, Any] = dict(config)
    heads: Any = sizes.get("num_attention_heads")
    width: Any = sizes.get("hidden_size")
    is_qwen3 = layout == "qwen3"
    if sizes.get("num_key_value_heads") is None:
        sizes["num_key_value_heads"] = _KV_HEADS_OF_QWEN3 if is_qwen3 else heads
    if sizes.get("head_dim") is None:
        is_known = not is_qwen3 and type(heads) is int and type(width) is int and heads > 0
        sizes["head_dim"] = width // heads if is_known else _HEAD_DIM_OF_QWEN3
    for name, bound in _BOUNDS.items():
        if name not in sizes:
            raise ModelError(f"{path} lacks {name}; name the folder of a saved model")
        _check_size(path, name, sizes[name], bound)
    is_tied = sizes.get("tie_word_embeddings", False)
    if type(is_tied) is not bool:
        raise ModelError(f"{path}: tie_word_embeddings={is_tied!r} must be true or false")
    try:
        return ModelShape(
            layout=layout,  # type: ignore[arg-type] - one of _ARCHITECTURES, checked by the caller
            vocab=sizes["vocab_size"],
            context=sizes["max_position_embeddings"],
            d_model=sizes["hidden_size"],
            n_layers=sizes["num_hidden_layers"],
            n_heads=sizes["num_attention_heads"],
            n_kv_heads=sizes["num_key_value_heads"],
            head_dim=sizes["head_dim"],
            d_ff=sizes["intermediate_size"],
            is_tied=is_tied,
            rope_theta=_read_rope_theta(path, config),
            norm_epsilon=_number(path, "rms_norm_eps", sizes.get("rms_norm_eps", 1e-6)),
        )
    except ConfigError as error:
        raise ModelError(f"{path}: {error}") from None


def _refuse_options(path: Path, config: Mapping[str, Any]) -> None:
    for name, values in _REQUIRED_VALUES.items():
        if name in config and config[name] not in values:
            shown = str(config[name])[:60]
            raise ModelError(
                f"{path}: {name}={shown} is not supported (only {values[0]}); convert or choose another model"
            )


def _read_rope_theta(path: Path, config: Mapping[str, Any]) -> float:
    """The base, from `rope_parameters` (transformers 5), top-level `rope_theta`, or the default 10000."""
    thetas = [] if config.get("rope_theta") is None else [_number(path, "rope_theta", config["rope_theta"])]
    for name in ("rope_parameters", "rope_scaling"):
        table = config.get(name)
        if table is None:
            continue
        if not isinstance(table, dict):
            raise ModelError(f"{path}: {name} must be a table; name the folder of a saved model")
        kind = table.get("rope_type", table.get("type", "default"))
        unknown = set(table) - {"rope_theta", "rope_type", "type", "partial_rotary_factor"}
        if kind != "default" or unknown or table.get("partial_rotary_factor", 1) != 1:
            raise ModelError(
                f"{path}: rope scaling of type {kind!r} is not supported (only 'default'); choose another model"
            )
        if table.get("rope_theta") is not None:
            thetas.append(_number(path, "rope_theta", table["rope_theta"]))
    if len(set(thetas)) > 1:
        raise ModelError(
            f"{path}: rope_theta is both {thetas[0]} and {thetas[1]}; keep the one the model was trained with"
        )
    return thetas[0] if thetas else 10000.0


def _check_size(path: Path, name: str, size: Any, bound: int) -> None:
    if type(size) is not int or not 0 < size <= bound:
        raise ModelError(
            f"{path}: {name}={str(size)[:40]} must be a whole number from 1 to {bound}; export the model again"
        )


def _number(path: Path, name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ModelError(f"{path}: {name}={value!r} must be a finite number; export the model again")
    return float(value)
