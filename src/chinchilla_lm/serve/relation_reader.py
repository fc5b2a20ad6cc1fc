"""Relations between two entities of a text: a decoder with the marker head, from its folder alone.

The folder holds a bare trunk of a Qwen3, Llama or own layout and head.safetensors (`tune.relation.MarkerHead`): the
states at the two closing markers and the last token, joined, through one hidden layer with GELU. task.json says how a
text is asked and names the relations. Axes: t positions, d width, k relations.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

from chinchilla_lm.core.errors import ModelError
from chinchilla_lm.data.markers import EncodedRelation, encode_marked
from chinchilla_lm.model.headed import HeadedModel


class RelationReader:
    """A trunk and a marker head. Attributes: `trunk`, `labels` (k), the relations."""

    def __init__(self, model: HeadedModel, tokenizer: Tokenizer, said: Mapping[str, Any]) -> None:
        """Takes parts that belong together.

        Args:
            model: of kind Model.
            tokenizer: of its folder.
            said: its task.json.

        Raises:
            ModelError: the head does not fit, or task.json does not say how a text is asked.
        """
        described, labels = said.get("describe"), said.get("labels")
        described = described if isinstance(described, dict) else {}
        width = model.trunk.shape.d_model
        if not isinstance(labels, list) or len(labels) < 2 or not all(isinstance(label, str) for label in labels):
            raise ModelError("task.json: labels must be the names of two relations or more; save the model again")
        expected = {
            "hidden.weight": (width, 3 * width),
            "hidden.bias": (width,),
            "linear.weight": (len(labels), width),
            "linear.bias": (len(labels),),
        }
        sizes = {name: tuple(tensor.shape) for name, tensor in model.head.items()}
        if sizes != expected:
            raise ModelError(
                f"the head has {sizes}, a marker head of {len(labels)} relations {expected}; save it again"
            )
        self.trunk, self.labels = model.trunk, tuple(labels)
        self._head = {name: tensor.float() for name, tensor in model.head.items()}
        self._tokenizer = tokenizer
        self._template, self._max_tokens = described.get("template"), described.get("max_tokens")
        if not isinstance(self._template, str) or self._template.count("{text}") != 1:
            raise ModelError("task.json: template must hold {text} once; save the model again")
        if type(self._max_tokens) is not int or not 1 <= self._max_tokens <= model.trunk.shape.context:
            raise ModelError(
                f"task.json: max_tokens {str(self._max_tokens)[:40]} must be a whole number from 1 to "
                f"{model.trunk.shape.context}; save the model again"
            )

    def encode(self, row: Mapping[str, Any]) -> EncodedRelation:
        """Mark the two entities, and cut the prompt into tokens.

        Args:
            row: {text, head: (start, end), tail: (start, end), head_type, tail_type}; types may be None.

        Raises:
            DataError: entities outside the text, or that cross.
        """
        assert self._template is not None, "checked above"
        assert self._max_tokens is not None, "checked above"
        return encode_marked(self._encode_text, row, template=self._template, max_tokens=self._max_tokens)

    @torch.inference_mode()
    def probabilities(self, encoded: EncodedRelation) -> list[float]:
        """Return a probability for each relation; they sum to 1."""
        x_td = self.trunk.hidden(torch.from_numpy(encoded.ids_t)[None])[0].float()
        joined = x_td[list(encoded.places)].flatten()
        hidden_d = F.gelu(F.linear(joined, self._head["hidden.weight"], self._head["hidden.bias"]))
        scores_k = F.linear(hidden_d, self._head["linear.weight"], self._head["linear.bias"])
        return scores_k.softmax(dim=-1).tolist()

    def _encode_text(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        encoding = self._tokenizer.encode_batch([text])[0]  # `encode` would let no other thread run
        return encoding.ids, encoding.offsets
