"""Writing a tuned model as an ordinary Hugging Face folder."""

from __future__ import annotations

from pathlib import Path

from chinchilla_lm.tune.config import TuneConfig
from chinchilla_lm.tune.task import Task, TunedModel


def save_tuned(model: TunedModel, task: Task, folder: Path, config: TuneConfig) -> None:
    """Write weights, head, labels and tokenizer so that `transformers.pipeline` loads the folder unchanged."""
    tokenizer = getattr(task, "tokenizer", model.backbone.tokenizer)
    tokenizer.save_pretrained(folder)
