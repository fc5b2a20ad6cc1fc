"""The options of `chinchilla tune`: one for each field of TuneConfig, in groups that a person can read.

Name, type, default and help of an option are the field's own, so that they are stated once. An option that is not given
is None: the config file decides, and after it TuneConfig.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import tomllib
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Group, Parameter

from chinchilla_lm.core.config import from_mapping
from chinchilla_lm.core.errors import ConfigError
from chinchilla_lm.tune.config import TuneConfig

GROUPS: Mapping[str, tuple[str, ...]] = {
    "Model and rows": ("model", "train", "validation", "test", "out", "columns", "language"),
    "How many rows": ("train_rows", "validation_rows", "test_rows", "validation_fraction"),
    "Which parameters learn": (
        *("method", "top_k", "pattern", "rank", "lora_alpha", "lora_dropout", "peft_config"),
        *("virtual_tokens", "layer_decay"),
    ),
    "Task": (
        *("head", "pooling", "template", "label_words", "mask", "mask_blocks", "normalisation"),
        *("max_tokens", "max_new_tokens", "beams", "temperature", "is_packed"),
    ),
    "Training": (
        *("epochs", "steps", "rows", "lr", "optimizer", "schedule", "warmup", "weight_decay", "clip_norm", "dropout"),
        *("patience", "evaluate_every", "seed"),
    ),
    "Machine": ("backbone", "device", "threads", "dtype", "micro_batch", "checkpoint_seconds", "bootstrap_draws"),
}
_PAIRS = ("columns", "label_words")
_FLAGS = {"is_packed": "--packed"}
_SENTENCE = re.compile(r"\n        (\w+): (.*?)(?=\n        \w+: |\n\n|\Z)", re.DOTALL)


def make_options() -> type[Any]:
    """Build the dataclass of options from TuneConfig, for cyclopts to read."""
    hints = typing.get_type_hints(TuneConfig)
    words = field_help()
    fields: list[Any] = []
    for place, (title, names) in enumerate(GROUPS.items()):
        group = Group(title, sort_key=10 + place)
        for name in names:
            hint: Any = tuple[str, ...] if name in _PAIRS else hints[name]
            flag = _FLAGS.get(name, "--" + name.replace("_", "-"))
            parameter = Parameter(name=flag, help=words[name], group=group, negative="", show_default=False)
            empty: Any = dataclasses.field(default=() if name in _PAIRS else None)
            fields.append((name, Annotated[hint | None, parameter], empty))
    # cyclopts looks into classes of a module of its caller's only, and make_dataclass would name `types`.
    own = {"__module__": __name__}
    made = dataclasses.make_dataclass("TuneOptions", fields, namespace=own, frozen=True, kw_only=True)
    return Parameter(name="*")(made)


def field_help() -> dict[str, str]:
    """Return what TuneConfig's docstring says of each field, with the default."""
    doc = inspect.cleandoc(TuneConfig.__doc__ or "").replace("\n    ", "\n        ")
    said = {name: " ".join(text.split()) for name, text in _SENTENCE.findall(doc)}
    words: dict[str, str] = {}
    for each in dataclasses.fields(TuneConfig):
        text = said.get(each.name, each.name.replace("_", " "))
        text = (text[:1].upper() + text[1:]).replace("None: ", "left out: ").replace("`", "")
        text = text.replace(" is None", " is left out")
        default = each.default
        if each.name in _PAIRS:
            text += " NAME=VALUE, once for each."
        elif default not in (None, dataclasses.MISSING):
            shown = {True: "yes", False: "no"}[default] if isinstance(default, bool) else default
            text += f" [default: {shown}]"
        words[each.name] = text
    return words


def read_config(task: str | None, options: Any, config: Path | None, older: Path | None = None) -> TuneConfig:
    """Join the words of the command line with a config file; the command line wins.

    Args:
        task: the command's first word, or None to take the file's.
        options: of `make_options`.
        config: a TOML file with TuneConfig's keys, or None.
        older: the run that is continued, whose task and model are taken where none is given, or None.

    Raises:
        ConfigError: an unknown key, a missing model or file, a wrong value, or two tasks.
    """
    table = _read_file(config)
    if task is not None and table.setdefault("task", task) != task:
        raise ConfigError(f"the task is {task!r} here and {table['task']!r} in {config}; leave one of them out")
    for each in dataclasses.fields(options):
        value = getattr(options, each.name)
        if each.name in _PAIRS:
            if value:
                table[each.name] = _read_pairs(each.name, value)
        elif value is not None:
            # A shell hands \n over as two characters; in a prompt it always means the line break.
            table[each.name] = value.replace("\\n", "\n") if each.name == "template" else value
            if each.name == "peft_config":
                table[each.name] = _read_text(Path(value))
    if older is not None:
        table = {**{name: _read_file(older / "config.toml").get(name) for name in ("task", "model")}, **table}
    _check_needed(table)
    table.setdefault("out", default_out(table))
    return from_mapping(TuneConfig, table, where=str(config) if config else "chinchilla tune")


def default_out(table: Mapping[str, Any]) -> str:
    """Name a run directory after the request: runs/text-classification-sst2-lora."""
    train = Path(str(table["train"]))
    rows = train.parent.name if train.stem in ("train", "data") and train.parent.name else train.name.partition(".")[0]
    name = f"{table['task']}-{rows}-{table.get('method', TuneConfig.method)}"
    return str(Path("runs") / re.sub(r"[^\w.]+", "-", name)[:80])


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--peft-config {path} cannot be read ({type(error).__name__}); name a JSON file") from None


def _read_file(config: Path | None) -> dict[str, Any]:
    if config is None:
        return {}
    try:
        return tomllib.loads(config.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"--config {config} cannot be read ({error.strerror}); write the path of a TOML file"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{config} is not TOML ({error}); correct that place") from None


def _read_pairs(name: str, words: tuple[str, ...]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    flag = "--" + name.replace("_", "-")
    for word in words:
        key, sign, value = word.partition("=")
        if not sign or not key:
            raise ConfigError(f"{flag} {word!r} must be NAME=VALUE, such as {flag} text=sentence")
        pairs[key] = value
    return pairs


def _check_needed(table: Mapping[str, Any]) -> None:
    for name, way_out in (
        ("task", "write it after `chinchilla tune`, such as text-classification"),
        ("model", "give --model FOLDER, a saved model, ours or any Hugging Face one"),
        ("train", "give --train FILE with labelled rows (.jsonl, .csv, .tsv, .parquet, .conll)"),
    ):
        if not table.get(name):
            raise ConfigError(f"{name} is missing, and nothing can be tuned without it; {way_out}")


if TYPE_CHECKING:
    TuneOptions = Any
else:
    TuneOptions = make_options()
