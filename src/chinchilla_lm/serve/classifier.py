"""A tuned classification head on a decoder: Qwen3ForSequenceClassification and LlamaForSequenceClassification folders.

Axes: t positions, d width, c classes. The last token's hidden state meets `score` (c, d), as in transformers. A folder
holds the trunk's tensors and score.weight in model.safetensors; the labels are id2label of config.json.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from chinchilla_lm.core.errors import ModelError
from chinchilla_lm.model.huggingface import WEIGHTS_FILE, export_tensors
from chinchilla_lm.model.model_config import read_config
from chinchilla_lm.model.transformer import Transformer

HEAD = "score.weight"
MOST_LABELS = 100_000


class Classifier:
    """A trunk, a head and the names of the classes. Attributes: `trunk`, `labels` (c), `is_multi_label`."""

    def __init__(
        self, trunk: Transformer, head_cd: torch.Tensor, labels: Sequence[str], *, is_multi_label: bool
    ) -> None:
        """Takes parts that belong together."""
        self.trunk, self.labels, self.is_multi_label = trunk, tuple(labels), is_multi_label
        self._head_cd = head_cd

    @torch.inference_mode()
    def probabilities(self, ids: Sequence[int]) -> list[float]:
        """Return a probability for each class: they sum to 1, or are independent if `is_multi_label`."""
        x_d = self.trunk.hidden(torch.tensor([list(ids)]))[0, -1].float()
        scores_c = self._head_cd @ x_d
        chances_c = scores_c.sigmoid() if self.is_multi_label else scores_c.softmax(dim=-1)
        return [float(chance) for chance in chances_c]


def is_classifier(config: Mapping[str, Any]) -> bool:
    """Whether a config.json describes a sequence classifier."""
    names = config.get("architectures")
    return isinstance(names, list) and any(str(name).endswith("ForSequenceClassification") for name in names)


def load_classifier(folder: Path, config: Mapping[str, Any]) -> Classifier:
    """Read a classifier's folder.

    Args:
        folder: checked by `check_model_folder`.
        config: its config.json.

    Raises:
        ModelError: labels or tensors are missing or do not fit.
    """
    labels = _read_labels(folder, config)
    kind = config.get("problem_type") or "single_label_classification"
    if kind not in ("single_label_classification", "multi_label_classification") or len(labels) < 2:
        raise ModelError(
            f"{folder}: problem_type {kind!r} with {len(labels)} labels is not served; use two or more classes"
        )
    trunk = Transformer(replace(read_config(folder), is_tied=True))  # tied: a classifier's folder has no lm_head
    head_cd = torch.empty(len(labels), trunk.shape.d_model)
    targets = {**export_tensors(trunk), HEAD: head_cd}
    path = folder / WEIGHTS_FILE
    try:
        with safe_open(path, framework="pt") as weights, torch.no_grad():
            shapes = {name: list(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
            for name, target in targets.items():
                if shapes.get(name) != list(target.shape):
                    raise ModelError(
                        f"{path}: tensor {name} has shape {shapes.get(name)} and must have {list(target.shape)}; "
                        "config.json and the weights must belong together"
                    )
                target.copy_(weights.get_tensor(name))
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is not a whole safetensors file ({error}); write or download it again") from None
    return Classifier(trunk.eval(), head_cd, labels, is_multi_label=kind.startswith("multi"))


def _read_labels(folder: Path, config: Mapping[str, Any]) -> list[str]:
    table = config.get("id2label")
    if not isinstance(table, dict) or not 0 < len(table) <= MOST_LABELS:
        raise ModelError(f"{folder}: config.json has no id2label; save the model again with its labels")
    labels = [table.get(str(index)) for index in range(len(table))]
    if not all(isinstance(label, str) for label in labels):
        raise ModelError(f"{folder}: id2label must name the classes 0 to {len(table) - 1}; save the model again")
    return [str(label) for label in labels]
