"""A model folder or a run directory to what a finished model is used with: tokenizer, special tokens, scorer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from chinchilla_lm.core.errors import ModelError
from chinchilla_lm.core.files import read_json
from chinchilla_lm.data.tokenizer import load_tokenizer
from chinchilla_lm.evals.scorer import Scorer
from chinchilla_lm.model.huggingface import load_model
from chinchilla_lm.model.model_config import SpecialIds, find_end_ids, read_special_ids
from chinchilla_lm.model.transformer import Transformer


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A finished model.

    Attributes:
        folder: of the model itself.
        model: float32, in evaluation mode.
        tokenizer: its own.
        special: beginning and end of text, where the tokenizer names them.
        stop_ids: the tokens that end a text, the tokenizer's first; empty: the files name none.
    """

    folder: Path
    model: Transformer
    tokenizer: Tokenizer
    special: SpecialIds
    stop_ids: tuple[int, ...]

    @property
    def start_id(self) -> int:
        """The token before a text: beginning-of-text, else end-of-text.

        Raises:
            ModelError: the tokenizer names neither.
        """
        start = self.special.bos if self.special.bos is not None else self.special.eos
        if start is None:
            raise ModelError(
                f"{self.folder}: tokenizer_config.json names neither bos_token nor eos_token, and an empty text needs "
                "one to start from; name the token that separates documents"
            )
        return start

    def scorer(self, weights: str = "auto") -> Scorer:
        """Return a scorer with weights "auto", "float32", "bfloat16" or "int8"; errors as `start_id`."""
        return Scorer(
            self.model, self.tokenizer, start_id=self.start_id, stop_ids=self.stop_ids or None, weights=weights
        )


def load_for_evaluation(place: Path) -> Loaded:
    """Load a model.

    Args:
        place: a Qwen3 or Llama folder, one of ours, or a run directory, whose model/ is taken.

    Raises:
        ModelError: a layout that is not read.
        DataError: a file is absent.
    """
    folder = place / "model" if (place / "model" / "config.json").is_file() else place
    model = load_model(folder).eval()
    special = read_special_ids(folder, model.shape.vocab)
    generation = folder / "generation_config.json"
    stop_ids = find_end_ids(
        read_json(generation) if generation.is_file() else {},
        read_json(folder / "config.json"),
        eos=special.eos,
        vocab=model.shape.vocab,
    )
    return Loaded(folder=folder, model=model, tokenizer=load_tokenizer(folder), special=special, stop_ids=stop_ids)
