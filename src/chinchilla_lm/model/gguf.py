"""GGUF, the file that llama.cpp and Ollama load: written from a model and its tokenizer, and read back.

Qwen3 and Llama layouts, as float32, bfloat16 or 8-bit blocks (Q8_0: 32 weights share a scale; Dettmers et al. 2022,
section 2, per block). Norms stay float32, as does a matrix whose rows are no multiple of 32 in Q8_0. Llama's query and
key rows change places: llama.cpp turns neighbouring pairs where Hugging Face turns halves (its converter's `permute`).
Uses the `gguf` package (optional). Never reads other people's files: a stranger's GGUF is for llama.cpp to judge.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch

from chinchilla_lm.core.errors import ConfigError, ModelError
from chinchilla_lm.core.files import clean_temporaries, explain_os_error, require_space, temporary_beside
from chinchilla_lm.core.shapes import ModelShape
from chinchilla_lm.model.gguf_tokenizer import GgufTokenizer
from chinchilla_lm.model.huggingface import READABLE_BY_ALL, export_tensors
from chinchilla_lm.model.model_config import SpecialIds, is_stock
from chinchilla_lm.model.transformer import Transformer

Precision = Literal["f32", "bf16", "q8_0"]
_FILE_TYPES: dict[str, int] = {"f32": 0, "bf16": 32, "q8_0": 7}  # gguf.LlamaFileType
_QUANTIZATION_VERSION = 2  # of ggml's block formats since May 2023


@dataclass(frozen=True, kw_only=True)
class GgufText:
    """The part of the file about text.

    Attributes:
        tokenizer: tokens, merges and the pre-tokenizer's name.
        special: ids of bos, eos and pad.
        end_of_turn: a second token that ends an answer.
        chat_template: jinja2.
    """

    tokenizer: GgufTokenizer
    special: SpecialIds
    end_of_turn: int | None = None
    chat_template: str | None = None


def write_gguf(
    model: Transformer,
    path: Path | str,
    text: GgufText,
    *,
    precision: Precision = "f32",
    name: str = "model",
) -> None:
    """Write a GGUF file at once: it appears whole, or the old one stays.

    Args:
        model: of layout qwen3 or llama with the swiglu activation.
        path: the file.
        text: its `tokenizer` as `describe_tokenizer` gives it.
        precision: of the matrices.
        name: general.name, for people.

    Raises:
        ModelError: the model's layout is not one that llama.cpp knows.
        ConfigError: an unknown precision, or the package `gguf` is absent.
        DataError: the disk is full, or the place may not be written.
    """
    gguf = _package()
    if precision not in get_args(Precision):
        raise ConfigError(f"precision {precision!r} is unknown; choose from {', '.join(get_args(Precision))}")
    refuse_own_layout(model.shape)
    target = Path(path)
    temporary = temporary_beside(target)
    tensors = gguf_tensors(model)
    writer = gguf.GGUFWriter(temporary, model.shape.layout)
    _add_sizes(writer, model.shape, name, _FILE_TYPES[precision])
    _add_text(writer, text)
    kinds = {key: _kind_of(gguf, tensor, precision) for key, tensor in tensors.items()}
    needed_bytes = 0
    for key, tensor in tensors.items():
        n_bytes = int(np.prod(gguf.quant_shape_to_byte_shape(tuple(tensor.shape), kinds[key])))
        needed_bytes += n_bytes
        writer.add_tensor_info(key, tuple(tensor.shape), np.dtype(np.float32), n_bytes, raw_dtype=kinds[key])
    require_space(target.parent, needed_bytes, f"the weights of {target.name}")
    with explain_os_error(target, needed_bytes=needed_bytes):
        target.parent.mkdir(parents=True, exist_ok=True)
        clean_temporaries(target.parent, target.name)
        try:
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for key, tensor in tensors.items():  # one at a time: a quantised copy of the whole model is never held
                writer.write_tensor_data(gguf.quants.quantize(tensor.float().contiguous().numpy(), kinds[key]))
            writer.flush()
            writer.close()
            os.chmod(temporary, READABLE_BY_ALL)
            os.replace(temporary, target)
        finally:
            with contextlib.suppress(OSError):  # on a full disk, what its buffer still holds
                writer.close()
            temporary.unlink(missing_ok=True)


def refuse_own_layout(shape: ModelShape) -> None:
    """Refuse a shape that only this package loads.

    Raises:
        ModelError: with the way out.
    """
    if not is_stock(shape):
        raise ModelError(
            f"a {shape.layout} model with {shape.activation} exists in no other program; `chinchilla serve` and "
            "`generate` run it, and a model trained with layout qwen3 or llama and activation swiglu can be exported"
        )


def gguf_tensors(model: Transformer) -> dict[str, torch.Tensor]:
    """The model's weights by GGUF's names, in GGUF's order of rows."""
    gguf = _package()
    shape = model.shape
    names = _name_map(gguf, shape)
    tensors: dict[str, torch.Tensor] = {}
    for key, tensor in export_tensors(model).items():
        heads = _turned_heads(key, shape)
        tensors[names[key]] = tensor if heads is None else _pair_rows(tensor, heads)
    return tensors


def read_gguf(path: Path | str) -> tuple[Transformer, GgufText]:
    """Read a file that `write_gguf` wrote, dequantised to float32: for checking it.

    Raises:
        ModelError: it is torn, or not a Qwen3 or Llama of ours.
        ConfigError: the package `gguf` is absent.
    """
    gguf = _package()
    try:
        reader = gguf.GGUFReader(path)
        fields = {field.name: field.contents() for field in reader.fields.values()}
        shape = _read_shape(fields, {tensor.name for tensor in reader.tensors})
        found = {tensor.name: tensor for tensor in reader.tensors}
        model = Transformer(shape)
        names = _name_map(gguf, shape)
        with torch.no_grad():
            for key, target in export_tensors(model).items():
                tensor = found[names[key]]
                rows = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(tuple(target.shape))
                values = torch.from_numpy(np.array(rows, dtype=np.float32))
                heads = _turned_heads(key, shape)
                target.copy_(values if heads is None else _halve_rows(values, heads))
        return model, _read_text(fields)
    except (ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError) as error:
        reason = repr(error)[:200]  # the package checks little of what it reads
        raise ModelError(f"{path} is not a whole GGUF file of ours ({reason}); export the model again") from None


def _package() -> Any:
    try:
        import gguf  # optional
    except ModuleNotFoundError:
        raise ConfigError("writing GGUF needs the package gguf, which is not installed; pip install gguf") from None
    return gguf


def _name_map(gguf: Any, shape: ModelShape) -> dict[str, str]:
    """Hugging Face's names to GGUF's, for one shape."""
    arch = {"qwen3": gguf.MODEL_ARCH.QWEN3, "llama": gguf.MODEL_ARCH.LLAMA}[shape.layout]
    mapping = gguf.get_tensor_name_map(arch, shape.n_layers)
    with torch.device("meta"):
        keys = export_tensors(Transformer(shape))
    return {key: mapping.get_name(key, try_suffixes=(".weight",)) for key in keys}


def _kind_of(gguf: Any, tensor: torch.Tensor, precision: str) -> Any:
    kinds = gguf.GGMLQuantizationType
    if tensor.ndim == 1 or precision == "f32":
        return kinds.F32
    if precision == "bf16":
        return kinds.BF16
    block = gguf.GGML_QUANT_SIZES[kinds.Q8_0][0]
    return kinds.Q8_0 if tensor.shape[-1] % block == 0 else kinds.F32


def _turned_heads(key: str, shape: ModelShape) -> int | None:
    """Heads of a matrix whose rows llama.cpp expects in pairs; None for all others, and for qwen3."""
    if shape.layout != "llama":
        return None
    if key.endswith("q_proj.weight"):
        return shape.n_heads
    return shape.n_kv_heads if key.endswith("k_proj.weight") else None


def _pair_rows(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """From (first half, second half) of each head to pairs of one of each."""
    return rows.reshape(heads, 2, -1, rows.shape[-1]).transpose(1, 2).reshape(rows.shape)


def _halve_rows(rows: torch.Tensor, heads: int) -> torch.Tensor:
    return rows.reshape(heads, -1, 2, rows.shape[-1]).transpose(1, 2).reshape(rows.shape)


def _add_sizes(writer: Any, shape: ModelShape, name: str, file_type: int) -> None:
    writer.add_type("model")
    writer.add_name(name)
    writer.add_file_type(file_type)
    writer.add_quantization_version(_QUANTIZATION_VERSION)
    writer.add_vocab_size(shape.vocab)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.d_model)
    writer.add_feed_forward_length(shape.d_ff)
    writer.add_block_count(shape.n_layers)
    writer.add_head_count(shape.n_heads)
    writer.add_head_count_kv(shape.n_kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_layer_norm_rms_eps(shape.norm_epsilon)


def _add_text(writer: Any, text: GgufText) -> None:
    tokenizer = text.tokenizer
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(tokenizer.pre)
    writer.add_token_list(tokenizer.tokens)
    writer.add_token_types(tokenizer.types)
    writer.add_token_merges(tokenizer.merges)
    writer.add_add_bos_token(tokenizer.adds_bos)
    writer.add_add_space_prefix(False)
    for add, index in (
        (writer.add_bos_token_id, text.special.bos),
        (writer.add_eos_token_id, text.special.eos),
        (writer.add_pad_token_id, text.special.pad),
        (writer.add_eot_token_id, text.end_of_turn),
    ):
        if index is not None:
            add(index)
    if text.chat_template is not None:
        writer.add_chat_template(text.chat_template)


def _read_shape(fields: Mapping[str, Any], tensors: set[str]) -> ModelShape:
    layout = fields["general.architecture"]
    return ModelShape(
        layout=layout,
        vocab=fields[f"{layout}.vocab_size"],
        context=fields[f"{layout}.context_length"],
        d_model=fields[f"{layout}.embedding_length"],
        n_layers=fields[f"{layout}.block_count"],
        n_heads=fields[f"{layout}.attention.head_count"],
        n_kv_heads=fields[f"{layout}.attention.head_count_kv"],
        head_dim=fields[f"{layout}.attention.key_length"],
        d_ff=fields[f"{layout}.feed_forward_length"],
        is_tied="output.weight" not in tensors,
        rope_theta=_from_float32(fields[f"{layout}.rope.freq_base"]),
        norm_epsilon=_from_float32(fields[f"{layout}.attention.layer_norm_rms_epsilon"]),
    )


def _from_float32(number: float) -> float:
    """The decimal number that was stored as float32, which holds seven digits: 9.99999997e-07 was 1e-06."""
    return float(f"{number:.7g}")


def _read_text(fields: Mapping[str, Any]) -> GgufText:
    key = "tokenizer.ggml"
    tokenizer = GgufTokenizer(
        pre=fields[f"{key}.pre"],
        tokens=tuple(fields[f"{key}.tokens"]),
        types=tuple(fields[f"{key}.token_type"]),
        merges=tuple(fields.get(f"{key}.merges") or ()),
        adds_bos=fields[f"{key}.add_bos_token"],
    )
    ids = [fields.get(f"{key}.{name}_token_id") for name in ("bos", "eos", "padding")]
    return GgufText(
        tokenizer=tokenizer,
        special=SpecialIds(bos=ids[0], eos=ids[1], pad=ids[2]),
        end_of_turn=fields.get(f"{key}.eot_token_id"),
        chat_template=fields.get("tokenizer.chat_template"),
    )
