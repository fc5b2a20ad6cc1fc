"""Any tuner of peft by its name, with its own settings: method "peft".

    {"peft_type": "LOHA", "r": 8, "alpha": 16, "target_modules": ["q_proj", "v_proj"]}
    {"peft_type": "LORA", "use_dora": true, "target_modules": "all-linear"}

The settings are those of peft's class for the type, and peft checks their values. Refused are virtual tokens (methods
"prompt" and "prefix" have them), tuners that need a call of their own after each update (their state would not be in a
checkpoint), tuners that cannot be merged (the saved folder would not answer as tuned), and what the task decides.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import json
from typing import Any

from torch import nn

from chinchilla_lm.core.errors import ConfigError

# What the task, the head and the base model decide; the adapter is saved with them.
_MADE_HERE = ("task_type", "modules_to_save", "inference_mode", "base_model_name_or_path", "auto_mapping")


def make_tuner_config(text: str) -> Any:
    """Make peft's config of a tuner.

    Args:
        text: a JSON object: "peft_type", and fields of peft's class for it.

    Raises:
        ConfigError: an unknown type or field, a tuner that is refused (top of the file), or values that peft refuses.
    """
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

    settings = json.loads(text)
    name = settings.pop("peft_type")
    classes = {str(kind.value): (found, PEFT_TYPE_TO_TUNER_MAPPING[kind]) for kind, found in _items(
        PEFT_TYPE_TO_CONFIG_MAPPING
    )}  # fmt: skip
    if name not in classes:
        raise ConfigError(f"peft_type {name!r} is none of peft's{_nearest(name, list(classes))}")
    made, tuner = classes[name]
    known = [field.name for field in dataclasses.fields(made)]
    for field, value in settings.items():
        if field not in known:
            raise ConfigError(f"{field!r} is no field of peft's {made.__name__}{_nearest(field, known)}")
        if field in _MADE_HERE and value is not None:
            raise ConfigError(f"{field} of peft's {made.__name__} is set by the task; leave it out")
    if hasattr(tuner, "update_and_allocate"):
        raise ConfigError(
            f"peft_type {name!r} changes its ranks by a state that no checkpoint holds; choose another, such as LORA"
        )
    try:
        config = made(**settings)
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"peft refuses these settings of {name} ({_first_line(error)}); correct them") from None
    if config.is_prompt_learning or getattr(config, "is_adaption_prompt", False):
        raise ConfigError(f'peft_type {name!r} has virtual tokens; write method = "prompt" or "prefix"')
    return config


def check_mergeable(module: nn.Module, name: str) -> None:
    """Merge a copy of the first layer that a tuner has put into a module.

    Raises:
        ConfigError: there is none, or peft cannot merge it.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    first = next((layer for layer in module.modules() if isinstance(layer, BaseTunerLayer)), None)
    if first is None:
        raise ConfigError(f"peft_type {name!r} puts no layers into the model that can be merged; choose another")
    try:
        copy.deepcopy(first).merge()
    except (NotImplementedError, AttributeError) as error:
        raise ConfigError(f"peft cannot merge {name} ({_first_line(error)}); choose another") from None


def _items(mapping: Any) -> list[tuple[Any, Any]]:
    return list(mapping.items())


def _nearest(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5) or difflib.get_close_matches(
        word.upper(), known, n=1
    )
    shown = sorted(name for name in known if name not in _MADE_HERE)
    return f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(shown)}"


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
