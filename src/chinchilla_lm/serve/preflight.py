"""`preflight`: what transformers, vLLM and llama.cpp would say to a model folder, without starting any of them.

Each finding names the reader, the subject, and a verdict: "ok", "warn" (it loads, and something is missing) or "block"
(it will not load, or not serve). The rules come from those programs' documented behaviour and their users' reports
(docs/export.md lists the sources). A folder is read as strictly as by `chinchilla serve`; nothing of it is run.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open

from chinchilla_lm.core.errors import ChinchillaError, ModelError
from chinchilla_lm.core.files import read_json
from chinchilla_lm.core.shapes import ModelShape
from chinchilla_lm.core.units import format_bytes
from chinchilla_lm.model.gguf_tokenizer import name_pre_tokenizer
from chinchilla_lm.model.model_config import find_end_ids, is_stock, read_config, read_special_ids
from chinchilla_lm.serve.chat_template import find_chat_template
from chinchilla_lm.serve.model_folder import check_model_folder, find_model_folder

Verdict = Literal["ok", "warn", "block"]
READERS = ("transformers", "vllm", "llama.cpp")
# Classes of tokenizer_config.json that transformers 4 and 5 both know and that keep tokenizer.json as it is.
_KNOWN_CLASSES = ("PreTrainedTokenizerFast", "LlamaTokenizerFast", "Qwen2TokenizerFast", "GPT2TokenizerFast")
_OLDER_CLASSES = ("Qwen2Tokenizer", "GPT2Tokenizer", "LlamaTokenizer")
_VLLM_HEAD_SIZES = (32, 64, 80, 96, 112, 120, 128, 192, 256)  # of vLLM's paged attention on CPUs and GPUs


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one program would say about one thing.

    Attributes:
        reader: one of READERS.
        subject: "architecture", "weights", "tokenizer", ...
        verdict: "ok", "warn" or "block".
        detail: what there is; for others than "ok" also what to do.
    """

    reader: str
    subject: str
    verdict: Verdict
    detail: str

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name."""
        return asdict(self)


def preflight(place: Path) -> tuple[Path, tuple[Finding, ...]]:
    """Look at a model folder with the eyes of the programs that would load it.

    Args:
        place: a model folder or a run directory.

    Returns:
        The folder, and the findings: subject by subject, for each reader.

    Raises:
        ModelError: there is no config.json.
    """
    folder = find_model_folder(place)
    try:
        tables = check_model_folder(folder)
        shape = read_config(folder)
    except ChinchillaError as error:
        return folder, tuple(_all("folder", "block", str(error)))
    parts = (
        _architecture(shape),
        _weights(folder, shape),
        _tokenizer_files(folder, shape, tables),
        _pre_tokenizer(folder),
        _ends(folder, shape, tables),
        _chat(folder, tables),
        _context(shape, tables),
        _modes(folder),
        _card(folder),
    )
    return folder, tuple(finding for part in parts for finding in part)


def blocked_readers(findings: Sequence[Finding]) -> tuple[str, ...]:
    """Return the readers that would not load or serve the folder."""
    return tuple(
        reader for reader in READERS if any(one.reader == reader and one.verdict == "block" for one in findings)
    )


def _all(subject: str, verdict: Verdict, detail: str) -> list[Finding]:
    return [Finding(reader=reader, subject=subject, verdict=verdict, detail=detail) for reader in READERS]


def _one(reader: str, subject: str, verdict: Verdict, detail: str) -> Finding:
    return Finding(reader=reader, subject=subject, verdict=verdict, detail=detail)


def _architecture(shape: ModelShape) -> list[Finding]:
    if not is_stock(shape):
        detail = (
            f"layout {shape.layout} with {shape.activation} is this package's own; `chinchilla serve` runs it, others "
            "need a model trained with layout qwen3 or llama and activation swiglu"
        )
        return _all("architecture", "block", detail)
    name = {"qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM"}[shape.layout]
    findings = _all("architecture", "ok", name)
    if shape.head_dim not in _VLLM_HEAD_SIZES:
        detail = f"head_dim {shape.head_dim} is none of {_VLLM_HEAD_SIZES}; its attention kernels may refuse it"
        findings[1] = _one("vllm", "architecture", "warn", detail)
    return findings


def _weights(folder: Path, shape: ModelShape) -> list[Finding]:
    files = sorted(folder.glob("*.safetensors"))
    held = sum(file.stat().st_size for file in files)
    types: set[str] = set()
    try:
        for file in files:
            with safe_open(file, framework="pt") as weights:
                types |= {weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118
                if not (weights.metadata() or {}).get("format"):
                    detail = f"{file.name} has no format in its metadata; `chinchilla export --to hf` writes it"
                    return _all("weights", "block", detail)
    except (SafetensorError, OSError) as error:
        return _all("weights", "block", f"{file.name} is not whole ({error}); download or export it again")
    if not files:
        return _all("weights", "block", "no .safetensors file; save the model again")
    said = f"{', '.join(sorted(types))}, {format_bytes(held)} in {len(files)} file{'s' if len(files) > 1 else ''}"
    findings = _all("weights", "ok", said)
    if types == {"F32"} and held > 1 << 30:
        detail = f"{said}; twice what it needs: --to hf:bf16 halves it"
        findings[1] = _one("vllm", "weights", "warn", detail)
    if is_stock(shape) and shape.d_model % 32:
        detail = f"{said}; width {shape.d_model} is no multiple of 32, so q8_0 leaves matrices in float32"
        findings[2] = _one("llama.cpp", "weights", "warn", detail)
    return findings


def _tokenizer_files(folder: Path, shape: ModelShape, tables: Mapping[str, Mapping[str, Any]]) -> list[Finding]:
    if not (folder / "tokenizer.json").is_file():
        return _all("tokenizer", "block", "no tokenizer.json; save the tokenizer into the folder")
    try:
        read_special_ids(folder, shape.vocab)
    except ChinchillaError as error:
        return _all("tokenizer", "block", str(error))
    named = tables["tokenizer_config.json"].get("tokenizer_class")
    findings = _all("tokenizer", "ok", str(named))
    if named not in _KNOWN_CLASSES + _OLDER_CLASSES:
        what = "no tokenizer_class" if named is None else f"tokenizer_class {named}"
        detail = f"{what}: transformers 4 does not know it; `chinchilla export --to hf` names PreTrainedTokenizerFast"
        findings[0] = _one("transformers", "tokenizer", "warn", detail)
        findings[1] = _one("vllm", "tokenizer", "warn", detail)
    findings[2] = _one("llama.cpp", "tokenizer", "ok", "is part of the GGUF file")
    return findings


def _pre_tokenizer(folder: Path) -> list[Finding]:
    if not (folder / "tokenizer.json").is_file():
        return []
    try:
        document = read_json(folder / "tokenizer.json")
        pre = name_pre_tokenizer(document, where="tokenizer.json")
    except ChinchillaError as error:
        return [_one("llama.cpp", "pre-tokenizer", "block", str(error))]
    if document.get("normalizer") is not None:
        detail = f'"{pre.name}"; the tokenizer composes characters (NFC) and llama.cpp does not: send composed text'
        return [_one("llama.cpp", "pre-tokenizer", "warn", detail)]
    detail = f'"{pre.name}", written into the GGUF file (llama.cpp\'s own converter would refuse a new vocabulary)'
    return [_one("llama.cpp", "pre-tokenizer", "ok", detail)]


def _ends(folder: Path, shape: ModelShape, tables: Mapping[str, Mapping[str, Any]]) -> list[Finding]:
    ends = tables["generation_config.json"].get("eos_token_id", tables["config.json"].get("eos_token_id"))
    if ends is None:
        return _all("end of text", "warn", "no eos_token_id: answers end only at their longest; name an eos_token")
    try:
        listed = find_end_ids(tables["generation_config.json"], tables["config.json"], eos=None, vocab=shape.vocab)
    except ModelError as error:
        return _all("end of text", "block", str(error))
    if not (folder / "generation_config.json").is_file():
        detail = f"{ends}, from config.json; no generation_config.json: `chinchilla export --to hf` writes it"
        return [_one("transformers", "end of text", "warn", detail), *_all("end of text", "ok", str(ends))[1:]]
    return _all("end of text", "ok", f"token {', '.join(map(str, listed))}")


def _chat(folder: Path, tables: Mapping[str, Mapping[str, Any]]) -> list[Finding]:
    try:
        template = find_chat_template(folder, tables["tokenizer_config.json"])
    except ChinchillaError as error:
        return _all("chat template", "block", str(error))
    if template is not None:
        return _all("chat template", "ok", f"{len(template.source)} characters")
    return [
        _one("transformers", "chat template", "warn", "none: apply_chat_template is refused; a base model needs none"),
        _one("vllm", "chat template", "warn", "none: /v1/chat/completions is refused, /v1/completions works"),
        _one("llama.cpp", "chat template", "warn", "none: it would take ChatML, which this model has not learned"),
    ]


def _context(shape: ModelShape, tables: Mapping[str, Mapping[str, Any]]) -> list[Finding]:
    longest = tables["tokenizer_config.json"].get("model_max_length")
    findings = _all("context", "ok", f"{shape.context} tokens")
    if not isinstance(longest, int) or longest > shape.context:
        detail = f"{shape.context} tokens; model_max_length does not say so: `chinchilla export --to hf` writes it"
        findings[0] = _one("transformers", "context", "warn", detail)
    return findings


def _modes(folder: Path) -> list[Finding]:
    private = [file.name for file in sorted(folder.iterdir()) if file.is_file() and not _is_readable(file)]
    if private:
        detail = f"{private[0]}{f' and {len(private) - 1} more' if len(private) > 1 else ''} cannot be read by another "
        return _all("file modes", "warn", detail + f"user's server; chmod a+r {folder}/*")
    return _all("file modes", "ok", "readable by all")


def _is_readable(file: Path) -> bool:
    return bool(file.stat().st_mode & stat.S_IROTH)


def _card(folder: Path) -> list[Finding]:
    if (folder / "README.md").is_file():
        return []
    return [_one("transformers", "model card", "warn", "no README.md; `chinchilla export --to hf` writes one")]
