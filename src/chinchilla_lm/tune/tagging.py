"""Token classification: a tag for each word of a sentence, in IOB2.

A linear layer reads the states of a word's sub-tokens: the last one of a causal model, which alone has read the whole
word, or all of them (pooling "mean"), whose probabilities are averaged just as transformers' pipeline does with
aggregation_strategy="average". Decoding is constrained to valid IOB2 (`tune.viterbi`); the deployed pipeline takes the
likeliest tag of each word and agrees wherever these tags are valid.

There is no zero-shot form: an untouched model with a fresh head says nothing. A tagger that only says "O" has F1 0.

Axes: b rows (windows), t positions, d width, u units of a window, k tags.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chinchilla_lm.core.errors import DataError
from chinchilla_lm.metrics.measures import Measures
from chinchilla_lm.metrics.tagging import measure_tagging
from chinchilla_lm.tune.backbone import Backbone, pad_rows, split_by_length
from chinchilla_lm.tune.batches import trim
from chinchilla_lm.tune.config import TuneConfig
from chinchilla_lm.tune.hub_backbone import HubHead
from chinchilla_lm.tune.task import IGNORED, Item, Prediction, Progress, Row, TunedModel, refuse_unusable
from chinchilla_lm.tune.viterbi import best_tags, tag_rules
from chinchilla_lm.tune.words import Pooling, encode_words, joiner_for

# TUNE.md 2.1; transformers' own default for a decoder's token head.
HEAD_DROPOUT = 0.1
# Of a fresh head: transformers' initializer_range of every family here.
HEAD_STD = 0.02
MAX_TOKENS = 512


class Tagging:
    """See `tune.task.Task`."""

    name = "token-classification"
    hub_class = "AutoModelForTokenClassification"
    primary = "f1"

    def __init__(
        self,
        backbone: Backbone,
        labels: Sequence[str],
        *,
        pooling: Pooling = "last",
        joiner: str = " ",
        max_tokens: int = MAX_TOKENS,
        is_causal: bool = True,
        dropout: float = HEAD_DROPOUT,
    ) -> None:
        """Notes how words are read.

        Args:
            backbone: whose tokenizer cuts the words.
            labels: IOB2 tags, in the order of the head's outputs.
            pooling: which sub-tokens speak for a word.
            joiner: between words: " ", or "" in a language without spaces.
            max_tokens: longest window; longer sentences become several.
            is_causal: whether a word sees only what is left of it.
            dropout: before the head of a decoder.
        """
        self.labels = tuple(labels)
        self._rules = tag_rules(self.labels)
        self._tokenizer = backbone.tokenizer
        self._pooling: Pooling = pooling
        self._joiner = joiner
        self._max_tokens = min(max_tokens, backbone.context)
        self._is_causal = is_causal
        self._dropout = dropout

    def encode(self, rows: Sequence[Row], *, is_training: bool) -> list[Item]:
        """Make one item of each window; a training window without a scored word is left out."""
        items: list[Item] = []
        unusable: list[int] = []
        for number, row in enumerate(rows):
            windows = encode_words(
                self._tokenizer,
                row["tokens"],
                joiner=self._joiner,
                pooling=self._pooling,
                max_tokens=self._max_tokens,
                is_causal=self._is_causal,
            )
            kept = [window for window in windows if len(window.word_u)]
            if not kept:
                unusable.append(number)
            tags_w = self._tag_numbers(row, number) if is_training else None
            for window in kept:
                targets = {"units": window.unit_t, "words": window.word_u, "is_first": window.is_first_u}
                if tags_w is not None:
                    goes_on_u = self._rules.inside_k[tags_w[window.word_u]]
                    targets["tags"] = np.where(window.is_first_u, tags_w[window.word_u], goes_on_u)
                items.append(Item(row=number, ids=window.ids_t, targets=targets))
        if not is_training:
            return items
        return refuse_unusable(items, unusable, "no word has a token; check the column of tokens")

    def collate(self, items: Sequence[Item]) -> tuple[np.ndarray[Any, Any], ...]:
        """(ids_bt, lengths_b, units_bt, tags_bu): -1 for a position that speaks for no unit, -100 for no tag."""
        ids_bt, lengths_b = pad_rows(
            [item.ids.tolist() for item in items], int(cast(int, self._tokenizer.pad_token_id))
        )
        units_bt, _ = pad_rows([item.targets["units"].tolist() for item in items], -1)
        none = np.zeros(0, np.int64)
        tags_bu, _ = pad_rows([item.targets.get("tags", none).tolist() for item in items], IGNORED)
        return ids_bt, lengths_b, units_bt, tags_bu

    def objective(self, model: nn.Module, batch: tuple[Tensor, ...]) -> tuple[Tensor, int]:
        """-ln of the probability of each unit's tag, summed; and the number of units."""
        ids_bt, lengths_b, units_bt, tags_bu = batch
        ids_bt, units_bt = trim(lengths_b, ids_bt, units_bt)
        logits_btk = tag_logits(model, ids_bt, lengths_b)
        logps_buk = unit_log_probabilities(logits_btk, units_bt, tags_bu.shape[1])
        loss = F.nll_loss(logps_buk.flatten(0, 1), tags_bu.flatten(), ignore_index=IGNORED, reduction="sum")
        return loss, int((tags_bu != IGNORED).sum())

    def make_head(self, backbone: Backbone) -> nn.Module:
        """A decoder's own linear layer behind dropout; of an encoder the head of its class in transformers."""
        if backbone.kind != "causal":
            return backbone.adopt_head(self.hub_class, self.labels)  # type: ignore[attr-defined]
        return LinearHead(backbone.width, len(self.labels), dropout=self._dropout)

    def predict(self, model: TunedModel, rows: Sequence[Row], progress: Progress | None = None) -> list[Prediction]:
        """Tag every word; {"tags": [...]} a row. A word without a token is "O"."""
        items = self.encode(rows, is_training=False)
        left = np.bincount([item.row for item in items], minlength=len(rows))
        scored: dict[int, list[tuple[np.ndarray[Any, Any], Item]]] = {}
        predictions: list[Prediction] = [{"tags": ["O"] * len(row["tokens"])} for row in rows]
        done = int((left == 0).sum())
        for item, logps_uk in _score(self, model, items):
            scored.setdefault(item.row, []).append((logps_uk, item))
            left[item.row] -= 1
            if left[item.row] == 0:
                predictions[item.row]["tags"] = self._decode(scored.pop(item.row), len(rows[item.row]["tokens"]))
                done += 1
                if progress is not None:
                    progress(done, len(rows))
        return predictions

    def measure(self, predictions: Sequence[Prediction], rows: Sequence[Row]) -> Measures:
        """Spans by seqeval's strict IOB2, and partial matches."""
        return measure_tagging([each["tags"] for each in predictions], [row["tags"] for row in rows])

    def zero_shot(self, backbone: Backbone, rows: Sequence[Row]) -> list[Prediction] | None:
        """None: see the top of the file."""
        return None

    def describe(self) -> dict[str, Any]:
        """How words are read and decoded, and how to deploy it."""
        return {
            "head": "linear",
            "labels": list(self.labels),
            "scheme": "IOB2",
            "pooling": self._pooling,
            "joiner": self._joiner,
            "max_tokens": self._max_tokens,
            "is_causal": self._is_causal,
            "decoding": "Viterbi under IOB2",
            "zero_shot": 'none; a tagger that always says "O" has F1 0',
            "pipeline": self._pipeline(),
        }

    def _pipeline(self) -> dict[str, Any]:
        """Arguments with which transformers' pipeline gives the words' entities."""
        if not self._joiner:
            arguments = {"aggregation_strategy": "simple", "is_split_into_words": True, "delimiter": ""}
        else:
            arguments = {"aggregation_strategy": "first" if self._pooling == "first" else "average"}
        return arguments | {"is_exact": self._pooling == "mean"}

    def _tag_numbers(self, row: Row, number: int) -> np.ndarray[Any, Any]:
        index = {label: place for place, label in enumerate(self.labels)}
        for tag in row["tags"]:
            if tag not in index:
                known = ", ".join(self.labels)
                raise DataError(
                    f"row {number + 1}: tag {tag!r} is not among the training rows' tags {known}; correct it"
                )
        return np.array([index[tag] for tag in row["tags"]], np.int64)

    def _decode(self, parts: list[tuple[np.ndarray[Any, Any], Item]], count: int) -> list[str]:
        parts.sort(key=lambda part: int(part[1].targets["words"][0]))
        scores_uk = np.concatenate([logps_uk for logps_uk, _ in parts])
        words_u = np.concatenate([item.targets["words"] for _, item in parts])
        is_first_u = np.concatenate([item.targets["is_first"] for _, item in parts])
        tags = ["O"] * count
        for word, is_first, tag in zip(words_u, is_first_u, best_tags(scores_uk, self._rules, is_first_u), strict=True):
            if is_first:
                tags[word] = self.labels[tag]
        return _repaired(tags)


class LinearHead(nn.Module):
    """Dropout, then one matrix and its bias: the head of transformers' ...ForTokenClassification on a decoder."""

    def __init__(self, width: int, outputs: int, *, dropout: float) -> None:
        """Draws the matrix from N(0, 0.02^2) by torch's global generator; the bias is 0."""
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(width, outputs)
        nn.init.normal_(self.linear.weight, std=HEAD_STD)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x_btd: Tensor) -> Tensor:
        """Logits of every position, float32."""
        return self.linear(self.dropout(x_btd.float()))


def make_tagging(config: TuneConfig, train_rows: Sequence[Row], backbone: Backbone) -> Tagging:
    """Make the task: tags from the training rows, and how their words are joined.

    Raises:
        DataError: no row has an entity, or a tag that is not IOB2.
    """
    kinds = sorted({tag[2:] for row in train_rows for tag in row["tags"] if tag != "O"})
    if not kinds:
        raise DataError(f"{len(train_rows)} training rows have no tag but O; give rows with entities")
    labels = ("O", *(f"{prefix}-{kind}" for kind in kinds for prefix in ("B", "I")))
    is_encoder = backbone.kind != "causal"
    return Tagging(
        backbone,
        labels,
        pooling=config.pooling,
        joiner=joiner_for([row["tokens"] for row in train_rows]),
        max_tokens=config.max_tokens or MAX_TOKENS,
        is_causal=config.mask == "causal" and not is_encoder,
        dropout=HEAD_DROPOUT if config.dropout is None else config.dropout,
    )


def tag_logits(model: nn.Module, ids_bt: Tensor, lengths_b: Tensor) -> Tensor:
    """Logits of every position, logits_btk, float32."""
    assert isinstance(model, TunedModel)
    if isinstance(model.head, HubHead):
        return model.head(ids_bt, lengths_b).logits.float()
    assert model.head is not None
    return model.head(model.backbone.hidden(ids_bt, lengths_b))


def unit_log_probabilities(logits_btk: Tensor, units_bt: Tensor, units: int) -> Tensor:
    """Mean probability of each tag, as its logarithm, over the positions that speak for a unit.

    Args:
        logits_btk: float32.
        units_bt: the unit of each position, -1: none.
        units: u, one more than the largest unit.

    Returns:
        logps_buk; meaningless for a unit without a position.
    """
    logps_btk = logits_btk.log_softmax(dim=-1)
    rows, _, tags = logps_btk.shape
    at_bt = torch.where(units_bt < 0, units, units_bt)  # one more place takes the positions that speak for none
    at_btk = at_bt[..., None].expand_as(logps_btk)
    greatest_buk = torch.full((rows, units + 1, tags), -torch.inf, device=logps_btk.device)
    greatest_buk = greatest_buk.scatter_reduce(1, at_btk, logps_btk.detach(), "amax")
    shares_btk = (logps_btk - greatest_buk.gather(1, at_btk)).exp()
    sums_buk = torch.zeros_like(greatest_buk).scatter_add(1, at_btk, shares_btk)
    counts_bu = torch.zeros(rows, units + 1, device=logps_btk.device)
    counts_bu = counts_bu.scatter_add(1, at_bt, torch.ones_like(at_bt, dtype=counts_bu.dtype))
    sums_buk, greatest_buk = sums_buk[:, :units], greatest_buk[:, :units]
    is_spoken_buk = counts_bu[:, :units, None] > 0
    # A unit without a position would be ln 0, whose gradient is not a number.
    logps_buk = torch.where(is_spoken_buk, sums_buk, 1.0).log() - counts_bu[:, :units, None].clamp_min(1).log()
    return torch.where(is_spoken_buk, greatest_buk, 0.0) + logps_buk


@torch.no_grad()
def _score(task: Tagging, model: TunedModel, items: Sequence[Item]) -> Iterable[tuple[Item, np.ndarray[Any, Any]]]:
    """Each item with its units' log-probabilities, batches of like length."""
    device = next(model.parameters()).device
    for batch in split_by_length([item.length for item in items]):
        chosen = [items[number] for number in batch]
        arrays = task.collate(chosen)
        ids_bt, lengths_b, units_bt = (torch.from_numpy(array).to(device) for array in arrays[:3])
        units = max(len(item.targets["words"]) for item in chosen)
        logps_buk = unit_log_probabilities(tag_logits(model, ids_bt, lengths_b), units_bt, units).cpu().numpy()
        for row, item in enumerate(chosen):
            yield item, logps_buk[row, : len(item.targets["words"])].astype(np.float64)


def _repaired(tags: list[str]) -> list[str]:
    """A word without a token, which is "O", may stand between B-X and I-X: what follows it then begins anew."""
    before = "O"
    for number, tag in enumerate(tags):
        if tag.startswith("I-") and before[2:] != tag[2:]:
            tags[number] = "B-" + tag[2:]
        before = tags[number]
    return tags
