"""Finding and loading a draft: the smaller model that guesses a model's tokens (generate/speculative.py).

A draft is named by a folder, by "auto" (the largest of a run's drafts/, which a study leaves there), or by "int8": the
model's own copy with int8 weights, which every model has. Its folder is checked as the model's is. Never decodes.
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from chinchilla_lm.core.errors import ConfigError
from chinchilla_lm.data.tokenizer import load_tokenizer
from chinchilla_lm.generate.engine import Engine
from chinchilla_lm.generate.weights import WeightsType
from chinchilla_lm.model.huggingface import load_model
from chinchilla_lm.model.transformer import Transformer
from chinchilla_lm.serve.model_folder import check_model_folder, find_model_folder

AUTO, OWN_INT8 = "auto", "int8"


def find_draft(model: Path, word: str) -> Path:
    """Return the folder that a draft's name means.

    Args:
        model: the model folder or run directory that it is for.
        word: "auto" or a path; not "int8", which is no folder.

    Raises:
        ConfigError: "auto", and the run has no drafts.
        ModelError: the path holds no config.json.
    """
    if word != AUTO:
        return find_model_folder(Path(word))
    folders = [one for one in (model / "drafts").glob("*") if one.name.isdigit() and (one / "config.json").is_file()]
    if not folders:
        raise ConfigError(
            f"{model} has no drafts/ with a smaller model; name a folder, or --draft {OWN_INT8}, or leave --draft out"
        )
    return max(folders, key=lambda folder: int(folder.name))


def load_draft(
    model: Path, word: str, trunk: Transformer, tokenizer: Tokenizer, *, slots: int, weights: WeightsType
) -> Engine:
    """Load a draft for a loaded model.

    Args:
        model: where the model came from.
        word: "auto", "int8", or a path to a model folder or run directory.
        trunk: the loaded model.
        tokenizer: the model's.
        slots: of the model's engine.
        weights: of the model's engine; the draft's too, unless it is "int8".

    Returns:
        The draft's engine.

    Raises:
        ConfigError: there is no such draft, or it has another tokenizer.
        ModelError: its folder is unsafe, broken or of an unknown kind.
    """
    if word == OWN_INT8:
        return Engine(trunk, slots=slots, weights="int8")
    folder = find_draft(model, word)
    check_model_folder(folder)
    if load_tokenizer(folder).get_vocab() != tokenizer.get_vocab():
        raise ConfigError(f"{folder} has another tokenizer than the model; take a smaller model of the same sweep")
    return Engine(load_model(folder).eval(), slots=slots, weights=weights)
