"""`export_model`: a model folder made complete for transformers and vLLM, or a GGUF file for llama.cpp and Ollama.

The source is checked before it is read (model_folder.py) and nothing of it is run. After writing, the result is read
back by others and compared with the source (export_check.py); an export that differs is an error.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from chinchilla_lm.core.errors import ConfigError, ModelError
from chinchilla_lm.data.tokenizer import load_tokenizer
from chinchilla_lm.model.gguf import GgufText, refuse_own_layout, write_gguf
from chinchilla_lm.model.gguf_tokenizer import describe_tokenizer
from chinchilla_lm.model.huggingface import load_model, save_model
from chinchilla_lm.model.model_config import SpecialIds, find_end_ids, read_special_ids
from chinchilla_lm.model.transformer import Transformer
from chinchilla_lm.serve.chat_template import find_chat_template
from chinchilla_lm.serve.classifier import is_classifier
from chinchilla_lm.serve.export_card import plain_card
from chinchilla_lm.serve.export_check import Parity, check_gguf, check_hf
from chinchilla_lm.serve.model_folder import check_model_folder, find_model_folder

FORMS = ("hf", "hf:f32", "hf:bf16", "gguf", "gguf:f32", "gguf:bf16", "gguf:q8_0")
_HF_TYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
# Sampling defaults of a generation_config.json, kept if they are numbers or truths; nothing else of it is.
_SAMPLING_KEYS = ("do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "max_new_tokens")
# What transformers 5 writes about the machine that saved a tokenizer, and keys that would run code.
_NOT_KEPT = ("backend", "is_local", "local_files_only", "auto_map", "name_or_path", "tokenizer_file")


@dataclass(frozen=True, kw_only=True)
class Source:
    """A model folder that was checked and read.

    Attributes:
        folder: where it is.
        name: of the model, for people.
        tables: its small JSON files by name; {} for an absent one.
        model: float32.
        special: ids of bos, eos and pad.
        end_ids: tokens that end a text, the tokenizer's own first.
        chat_template: jinja2; None when it has none.
    """

    folder: Path
    name: str
    tables: Mapping[str, Mapping[str, Any]]
    model: Transformer
    special: SpecialIds
    end_ids: tuple[int, ...]
    chat_template: str | None


@dataclass(frozen=True, kw_only=True)
class Export:
    """What was written and how it compares.

    Attributes:
        form: "hf" or "gguf".
        precision: "f32", "bf16" or "q8_0".
        path: the folder or the file.
        bytes_by_file: sizes.
        parity: one comparison for each reader.
        commands: that load it, for people.
    """

    form: str
    precision: str
    path: Path
    bytes_by_file: Mapping[str, int]
    parity: tuple[Parity, ...]
    commands: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the record that `chinchilla export --json` prints."""
        return {
            "schema": "export/1",
            "form": self.form,
            "precision": self.precision,
            "path": str(self.path),
            "files": dict(self.bytes_by_file),
            "parity": [parity.to_dict() for parity in self.parity],
            "commands": list(self.commands),
        }


def export_model(place: Path, form: str, out: Path) -> Export:
    """Write a model in a form that other programs load, and compare.

    Args:
        place: a model folder or a run directory.
        form: one of FORMS; "hf" and "gguf" alone are float32.
        out: the folder, or the .gguf file (a folder gets a file named after the model).

    Raises:
        ModelError: the folder is unsafe or broken, the form cannot hold this model, or the export differs.
        ConfigError: the form is unknown, `out` is the source or holds other files, or `gguf` is not installed.
        DataError: a file is absent, or the disk is full.
    """
    if form not in FORMS:
        raise ConfigError(f"--to {form} is unknown; choose from {', '.join(FORMS)} (ONNX is not offered: docs/export)")
    kind, _, precision = form.partition(":")
    precision = precision or "f32"
    source = read_source(place)
    refuse_own_layout(source.model.shape)
    if kind == "gguf":
        path = out if out.suffix == ".gguf" else out / f"{source.name}-{precision}.gguf"
        if path.is_dir():
            raise ConfigError(f"{path} is a folder; name a file, or the folder that it should be put into")
        _write_gguf(source, path, precision)
        parity = (check_gguf(source.model, load_tokenizer(source.folder), path, precision),)
        files = {path.name: path.stat().st_size}
    else:
        path = out
        _refuse_target(source.folder, out)
        _write_hf(source, out, precision)
        parity = check_hf(source.model, load_tokenizer(source.folder), out, precision)
        files = {file.name: file.stat().st_size for file in sorted(out.iterdir())}
    return Export(
        form=kind,
        precision=precision,
        path=path,
        bytes_by_file=files,
        parity=parity,
        commands=loading_commands(path, has_template=source.chat_template is not None),
    )


def read_source(place: Path) -> Source:
    """Check and read a model folder.

    Raises:
        ModelError, DataError: as `load_model` and `check_model_folder`; a classifier is refused.
    """
    folder = find_model_folder(place)
    tables = check_model_folder(folder)
    if is_classifier(tables["config.json"]):
        raise ModelError(
            f"{folder} is a classifier, which is in Hugging Face's form already; copy the folder, or `chinchilla serve`"
        )
    model = load_model(folder).eval()
    special = read_special_ids(folder, model.shape.vocab)
    template = find_chat_template(folder, tables["tokenizer_config.json"])
    return Source(
        folder=folder,
        name=model_name(folder),
        tables=tables,
        model=model,
        special=special,
        end_ids=find_end_ids(
            tables["generation_config.json"], tables["config.json"], eos=special.eos, vocab=model.shape.vocab
        ),
        chat_template=None if template is None else template.source,
    )


def model_name(folder: Path) -> str:
    """Return a folder's name; of a run directory's model/ the run's."""
    place = folder.resolve()
    return (place.parent if place.name == "model" else place).name


def loading_commands(path: Path, *, has_template: bool) -> tuple[str, ...]:
    """Return the commands that serve an export, as one would type them."""
    if path.suffix != ".gguf":
        return (f"vllm serve {path}", f"chinchilla serve {path}")
    chat = "llama-cli" if has_template else "llama-completion"
    return (
        f"llama-server -m {path}",
        f"{chat} -m {path} -p 'Once upon a time'",
        f"printf 'FROM {path.resolve()}\\n' > Modelfile && ollama create {path.stem.lower()} -f Modelfile",
    )


def folder_commands(folder: Path, blocked: Sequence[str]) -> tuple[str, ...]:
    """Return the commands that bring a folder into the programs that would load it.

    Args:
        folder: of the model.
        blocked: readers that would not, as `preflight.blocked_readers` gives them.
    """
    commands = [f"chinchilla serve {folder}"]
    if "vllm" not in blocked:
        commands.append(f"vllm serve {folder}")
    if "llama.cpp" not in blocked:
        file = Path(f"{model_name(folder)}-q8_0.gguf")
        commands.append(f"chinchilla export {folder} --to gguf:q8_0 --out {file}")
        commands += loading_commands(file, has_template=True)[::2]
    return tuple(commands)


def _write_gguf(source: Source, path: Path, precision: str) -> None:
    # A file without an eos token ends texts at token 11: llama.cpp's default for byte-level BPE, whatever that is.
    special = source.special
    if special.eos is None and source.end_ids:
        special = replace(special, eos=source.end_ids[0])
    further = [index for index in source.end_ids if index != special.eos]
    text = GgufText(
        tokenizer=describe_tokenizer(source.folder, source.model.shape.vocab),
        special=special,
        end_of_turn=further[0] if further else None,
        chat_template=source.chat_template,
    )
    write_gguf(source.model, path, text, precision=precision, name=source.name)  # type: ignore[arg-type] - checked


def _write_hf(source: Source, out: Path, precision: str) -> None:
    card = source.folder / "README.md"
    extra = {
        "generation_config.json": _json(_generation_config(source)),
        "tokenizer_config.json": _json(_tokenizer_config(source)),
        "README.md": card.read_bytes() if card.is_file() else plain_card(source.name, source.model.shape),
    }
    if source.chat_template is not None:
        extra["chat_template.jinja"] = source.chat_template
    save_model(source.model, out, tokenizer_folder=source.folder, extra_files=extra, dtype=_HF_TYPES[precision])
    for file in out.iterdir():
        file.chmod(0o644)  # another user's server must be able to read them


def _refuse_target(folder: Path, out: Path) -> None:
    if out.resolve() == folder.resolve():
        raise ConfigError(f"--out {out} is the model itself; choose another folder")
    if out.is_file():
        raise ConfigError(f"--out {out} is a file; name a folder")
    if out.is_dir() and any(out.iterdir()) and not (out / "config.json").is_file():
        raise ConfigError(f"--out {out} holds other files, which an export would replace; name a new folder")


def _generation_config(source: Source) -> dict[str, Any]:
    given = source.tables["generation_config.json"]
    ends = source.end_ids
    config: dict[str, Any] = {
        "bos_token_id": source.special.bos,
        "eos_token_id": ends[0] if len(ends) == 1 else list(ends) or None,
        "pad_token_id": source.special.pad,
    }
    kept = {key: given[key] for key in _SAMPLING_KEYS if isinstance(given.get(key), (bool, int, float))}
    return {key: value for key, value in config.items() if value is not None} | kept


def _tokenizer_config(source: Source) -> dict[str, Any]:
    config = {key: value for key, value in source.tables["tokenizer_config.json"].items() if key not in _NOT_KEPT}
    if config.get("tokenizer_class") in (None, "TokenizersBackend"):  # the latter is unknown to transformers 4
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    context = source.model.shape.context
    longest = config.get("model_max_length")
    if not isinstance(longest, int) or longest > context:
        config["model_max_length"] = context
    if source.chat_template is not None:
        config["chat_template"] = source.chat_template  # where transformers before 4.53 and other tools look
    return config


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
