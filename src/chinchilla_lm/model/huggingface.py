"""Model folders: written so that the Hugging Face world loads them, read without trusting them.

A folder holds config.json, generation_config.json, model.safetensors (or shards with an index), the tokenizer's files.
Layouts qwen3 and llama become stock Qwen3ForCausalLM and LlamaForCausalLM folders. The others (and a qwen3 or llama
with another activation) have the same form with `model_type` "chinchilla_lm", which only this package loads.
Reading parses config.json itself (see `model_config`), takes safetensors only, and checks names and shapes before it
allocates anything. It never unpickles, runs code from a folder, or imports transformers.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from chinchilla_lm.core.errors import ModelError
from chinchilla_lm.core.files import (
    clean_temporaries,
    explain_os_error,
    read_json,
    replace_directory,
    require_space,
    temporary_beside,
    write_bytes,
    write_json,
)
from chinchilla_lm.core.shapes import ModelShape
from chinchilla_lm.model.model_config import SpecialIds, is_stock, read_config, read_special_ids, write_config
from chinchilla_lm.model.transformer import Transformer

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt", "model.pth", "consolidated.00.pth")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
READABLE_BY_ALL = 0o644  # safetensors writes 0600, and a server that runs as another user could not read the weights
_FLOAT_TYPES = ("F32", "BF16", "F16", "F64")


def save_model(
    model: Transformer,
    folder: Path | str,
    *,
    tokenizer_folder: Path | str | None = None,
    extra_files: Mapping[str, str | bytes] | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a model folder at once: it appears whole, or the old one stays.

    Args:
        model: any layout.
        folder: the target; replaced if it exists.
        tokenizer_folder: where tokenizer.json and its companions are copied from; None writes none.
        extra_files: further files by plain name, such as README.md; one named as a file above takes its place.
        dtype: of the saved weights, float32 or bfloat16.

    Raises:
        ModelError: the tokenizer does not fit the model, or a name in extra_files is not a plain file name.
        DataError: the disk is full, or the place may not be written.
    """
    target = Path(folder).absolute()
    special = SpecialIds() if tokenizer_folder is None else read_special_ids(Path(tokenizer_folder), model.shape.vocab)
    temporary = temporary_beside(target)
    tensors = export_tensors(model)
    needed_bytes = sum(dtype.itemsize * tensor.numel() for tensor in tensors.values())
    require_space(target, needed_bytes, "the weights of the model")
    with explain_os_error(target, needed_bytes=needed_bytes):
        clean_temporaries(target.parent, target.name)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            config, generation = write_config(model.shape, special)
            config["dtype"] = str(dtype).removeprefix("torch.")
            write_json(temporary / "config.json", config)
            write_json(temporary / "generation_config.json", generation)
            write_weights(temporary / WEIGHTS_FILE, tensors, dtype)
            if tokenizer_folder is not None:
                _copy_tokenizer(Path(tokenizer_folder), temporary)
            for name, content in (extra_files or {}).items():
                if Path(name).name != name:
                    raise ModelError(f"extra file {name!r} must be a plain file name; write it without folders")
                write_bytes(temporary / name, content.encode() if isinstance(content, str) else content)
            replace_directory(temporary, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def load_model(folder: Path | str) -> Transformer:
    """Read a model folder: Qwen3 or Llama as Hugging Face writes them, or one of ours.

    Args:
        folder: holds config.json and model.safetensors, or the shards that model.safetensors.index.json names.

    Returns:
        The model, float32, on the CPU, in training mode as torch builds it, `compute_dtype` float32.

    Raises:
        ModelError: a model type, option or tensor that this package does not read; the message names it.
        DataError: config.json is absent or not JSON.
    """
    place = Path(folder)
    shape = read_config(place)
    files = weight_files(place)
    found = read_header(files)
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in export_tensors(Transformer(shape)).items()}
    check_tensors(place, shape, expected, found)
    model = Transformer(shape)
    targets = export_tensors(model)  # views of the parameters: filling them fills the model
    for path in files:
        with safe_open(path, framework="pt") as weights, torch.no_grad():
            for name in weights.keys():  # noqa: SIM118 - not a dict
                if name in targets:
                    targets[name].copy_(weights.get_tensor(name))
    return model


def export_tensors(model: Transformer) -> dict[str, Tensor]:
    """The model's weights by the names they have in a folder: views of the parameters, fused matrices cut apart.

    Args:
        model: any layout.

    Returns:
        Hugging Face's names for a stock shape, ours otherwise.
    """
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    if not is_stock(model.shape):
        return weights
    shape = model.shape
    heads, kv_heads = shape.n_heads * shape.head_dim, shape.n_kv_heads * shape.head_dim
    tensors = {"model.embed_tokens.weight": weights["embedding"]}
    for layer in range(shape.n_layers):
        ours, theirs = f"blocks.{layer}", f"model.layers.{layer}"
        q, k, v = weights[f"{ours}.attention.qkv.weight"].split((heads, kv_heads, kv_heads))
        gate, up = weights[f"{ours}.feed_forward.gate_up.weight"].chunk(2)
        tensors |= {
            f"{theirs}.self_attn.q_proj.weight": q,
            f"{theirs}.self_attn.k_proj.weight": k,
            f"{theirs}.self_attn.v_proj.weight": v,
            f"{theirs}.self_attn.o_proj.weight": weights[f"{ours}.attention.out.weight"],
            f"{theirs}.mlp.gate_proj.weight": gate,
            f"{theirs}.mlp.up_proj.weight": up,
            f"{theirs}.mlp.down_proj.weight": weights[f"{ours}.feed_forward.down.weight"],
            f"{theirs}.input_layernorm.weight": weights[f"{ours}.attention_norm.weight"],
            f"{theirs}.post_attention_layernorm.weight": weights[f"{ours}.feed_forward_norm.weight"],
        }
        if shape.layout == "qwen3":
            tensors[f"{theirs}.self_attn.q_norm.weight"] = weights[f"{ours}.attention.query_norm.weight"]
            tensors[f"{theirs}.self_attn.k_norm.weight"] = weights[f"{ours}.attention.key_norm.weight"]
    tensors["model.norm.weight"] = weights["norm.weight"]
    if not shape.is_tied:
        tensors["lm_head.weight"] = weights["head.weight"]
    return tensors


def write_weights(path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """Write a safetensors file that transformers reads, and that others than its owner may read."""
    contiguous = {name: tensor.to("cpu", dtype).contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, path, metadata={"format": "pt"})  # transformers refuses a file without this key
    os.chmod(path, READABLE_BY_ALL)


def _copy_tokenizer(source: Path, target: Path) -> None:
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder: one, or the shards that its index names.

    Raises:
        ModelError: none, pickled ones, or a broken index.
    """
    if (folder / WEIGHTS_FILE).is_file():
        return [folder / WEIGHTS_FILE]
    if (folder / INDEX_FILE).is_file():
        index = read_json(folder / INDEX_FILE)
        weight_map = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
            raise ModelError(f"{folder / INDEX_FILE} has no weight_map of names; export the model again")
        names = sorted(set(weight_map.values()))
        for name in names:
            if Path(name).name != name or not name.endswith(".safetensors"):
                raise ModelError(
                    f"{folder / INDEX_FILE} names {name!r}; shards are .safetensors files in the same folder"
                )
            if not (folder / name).is_file():
                raise ModelError(f"{folder} lacks the shard {name}; download or export the model again")
        return [folder / name for name in names]
    pickles = [name for name in PICKLES if (folder / name).exists()]
    if pickles:
        raise ModelError(
            f"{folder} holds only pickled weights ({pickles[0]}), which can run code; save it with save_pretrained "
            "of a recent transformers, which writes safetensors"
        )
    raise ModelError(f"{folder} has no {WEIGHTS_FILE}; name the folder of a saved model")


def read_header(files: list[Path]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors, without reading the weights."""
    found: dict[str, tuple[int, ...]] = {}
    for path in files:
        try:
            with safe_open(path, framework="pt") as weights:
                for name in weights.keys():  # noqa: SIM118 - not a dict
                    view = weights.get_slice(name)
                    if view.get_dtype() not in _FLOAT_TYPES:
                        raise ModelError(
                            f"{path}: tensor {name} has type {view.get_dtype()}; weights are {', '.join(_FLOAT_TYPES)}"
                        )
                    if name in found:
                        raise ModelError(f"{path}: tensor {name} is in two shards; export the model again")
                    found[name] = tuple(view.get_shape())
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path} is not a whole safetensors file ({error}); write or download it again") from None
    return found


def check_tensors(
    folder: Path, shape: ModelShape, expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]
) -> None:
    """Refuse a folder that lacks a tensor, has an unknown one, or one of another shape.

    Raises:
        ModelError: the first difference.
    """
    surplus = {name for name in found if name not in expected and not name.endswith("rotary_emb.inv_freq")}
    if shape.is_tied:
        surplus.discard("lm_head.weight")  # some folders write the tied head a second time; the embedding counts
    missing = [name for name in expected if name not in found]
    for verb, names in (("lacks", missing), ("has the unknown", sorted(surplus))):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ModelError(
                f"{folder} {verb} tensor {names[0]}{more}; config.json and the weights must belong together"
            )
    for name, size in expected.items():
        if found[name] != size:
            raise ModelError(
                f"{folder}: tensor {name} has shape {list(found[name])}, but config.json says {list(size)}; "
                "config.json and the weights must belong together"
            )
