"""The config of one fine-tuning run: what config.toml of its directory holds, value by value.

It is frozen and loaded strictly (`core.config`). None means "by rule": `tune.defaults.resolve` fills every None from
the method and the data, and the run records what it took. Nothing here reaches torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Literal

from chinchilla_lm.core.errors import ConfigError
from chinchilla_lm.core.tasks import TaskName

Method = Literal["full", "head", "top-k", "gradual", "pattern", "lora", "prompt", "prefix", "ia3", "bitfit", "peft"]
Mask = Literal["causal", "bidirectional", "top-k"]
HeadKind = Literal["auto", "label-words", "fresh", "markers", "span", "generative", "scoring"]

# What may change between a run and its continuation: where it lies, and how often it looks at itself.
_NOT_DECIDING = ("out", "micro_batch", "threads", "checkpoint_seconds")
# What is only measured: a search trains without these rows and hands its weights to the run that has them.
_MEASURING = ("test", "test_rows", "bootstrap_draws")


@dataclass(frozen=True, kw_only=True)
class TuneConfig:
    r"""One fine-tuning run.

    Attributes:
        task: one of Hugging Face's task names.
        model: folder of a saved model, ours or any Hugging Face one.
        train: labelled rows, as `data.labelled.read_rows` reads them.
        validation: rows for early stopping and the choice of the best checkpoint; None: a part of `train`.
        test: rows that are only measured, before and after; None: no test, the validation rows are reported.
        out: the run directory.
        backbone: "own" (our Transformer and kernels), "hub" (the transformers module), "auto": own where it can.
        method: which parameters learn. "full" all; "head" the head alone; "top-k" the last `top_k` blocks, the last
            norm and the head; "gradual" one block more each epoch from the top; "pattern" names that match
            `pattern`; "lora", "prompt", "prefix", "ia3", "bitfit" as in the literature; "peft" any tuner of peft.
        top_k: blocks for method "top-k", >= 1.
        pattern: regular expression on parameter names (`re.search`), for method "pattern".
        rank: of LoRA, >= 1.
        lora_alpha: LoRA's scale is lora_alpha / rank; None: 2 * rank.
        lora_dropout: on LoRA's input, in [0, 1).
        peft_config: for method "peft": peft's own settings as a JSON object, such as {"peft_type": "LOHA", "r": 8}; on
            the command line a file that holds it.
        virtual_tokens: of methods "prompt" and "prefix", >= 1.
        mask: of attention: "causal", "bidirectional", or bidirectional in the last `mask_blocks` blocks ("top-k").
        mask_blocks: blocks without the causal mask for mask "top-k", >= 1.
        head: "label-words" tunes the model's own words for the labels, "fresh" a new matrix that starts from their
            rows; "markers" for relations; "span", "generative" for question-answering; "scoring" for choices; "auto" by
            rule.
        pooling: which states a classification head reads: the last token's, or the mean. In token-classification, which
            sub-tokens speak for a word: its last, its first, or all, their probabilities averaged ("mean").
        template: prompt of the task with fields in braces, such as "Review: {text}\nSentiment:"; None: the task's own.
        language: of prompts and measures, "en" or "zh"; None: found from the rows.
        label_words: label -> the word that names it in the prompt's answer; labels left out name themselves.
        normalisation: of a choice's log-probability: "byte", "token" or "sum".
        epochs: passes over the training rows, > 0; may be a fraction.
        steps: updates; None: epochs decide.
        rows: examples in one update, >= 1.
        micro_batch: examples in one pass, 1..rows; it changes memory, not the result. None: rows.
        lr: peak learning rate, > 0; None: by method.
        optimizer: "adamw" or "sgd" (momentum 0.9).
        weight_decay: decoupled, on matrices only.
        warmup: share of the updates, in [0, 1).
        schedule: of the learning rate after the warm-up.
        clip_norm: the gradient's norm is scaled down to this, > 0.
        layer_decay: factor of the learning rate from one block to the one below, in (0, 1]; 1: none.
        dropout: before the head, and where a module of transformers has it, in [0, 1); None: 0.1 before a trained head,
            the module's own within. Our Transformer has none within.
        patience: validations without a better metric before stopping, >= 1; 0: never stop early.
        evaluate_every: updates between validations, >= 1; None: once an epoch.
        seed: of heads, order of rows, dropout, >= 0.
        dtype: of matmuls and activations; weights stay float32. "auto": bfloat16 where the processor has it.
        device: "auto" takes the GPU where there is one.
        threads: of torch on a CPU, >= 1.
        max_tokens: longest example in tokens; None: 512 or the model's context.
        max_new_tokens: longest generated answer; None: the task's own.
        beams: of a generative task's written answers; 1: greedy, more: beam search, 1..8.
        temperature: > 0 draws written answers' tokens, as a chat does; 0: the likeliest, the one to measure by.
        is_packed: put several completion examples in one row, isolated by a mask; for generative tasks.
        train_rows: take only this many training rows, drawn by seed; None: all.
        validation_rows: the same of the validation rows.
        test_rows: the same of the test rows.
        validation_fraction: of the training rows where `validation` is None, in (0, 1).
        columns: canonical field -> the file's column, where the names differ.
        checkpoint_seconds: between checkpoints for resuming, >= 0.
        bootstrap_draws: of the intervals and the paired test, >= 100.
    """

    task: TaskName
    model: str
    train: str
    validation: str | None = None
    test: str | None = None
    out: str
    backbone: Literal["auto", "own", "hub"] = "auto"
    method: Method = "lora"
    top_k: int = 4
    pattern: str | None = None
    rank: int = 8
    lora_alpha: float | None = None
    lora_dropout: float = 0.05
    peft_config: str | None = None
    virtual_tokens: int = 20
    mask: Mask = "causal"
    mask_blocks: int = 4
    head: HeadKind = "auto"
    pooling: Literal["last", "first", "mean"] = "last"
    template: str | None = None
    language: Literal["en", "zh"] | None = None
    label_words: Mapping[str, str] = field(default_factory=dict)
    normalisation: Literal["byte", "token", "sum"] = "byte"
    epochs: float = 3.0
    steps: int | None = None
    rows: int = 16
    micro_batch: int | None = None
    lr: float | None = None
    optimizer: Literal["adamw", "sgd"] = "adamw"
    weight_decay: float = 0.01
    warmup: float = 0.1
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    clip_norm: float = 1.0
    layer_decay: float = 1.0
    dropout: float | None = None
    patience: int = 3
    evaluate_every: int | None = None
    seed: int = 0
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = 1
    max_tokens: int | None = None
    max_new_tokens: int | None = None
    beams: int = 1
    temperature: float = 0.0
    is_packed: bool = False
    train_rows: int | None = None
    validation_rows: int | None = None
    test_rows: int | None = None
    validation_fraction: float = 0.1
    columns: Mapping[str, str] = field(default_factory=dict)
    checkpoint_seconds: float = 60.0
    bootstrap_draws: int = 10_000

    def __post_init__(self) -> None:
        self._check_whole_numbers()
        self._check_shares()
        if self.method == "pattern" and not self.pattern:
            raise ConfigError('pattern = None must be a regular expression for method "pattern"; write pattern = "..."')
        if self.micro_batch is not None and self.micro_batch > self.rows:
            raise ConfigError(
                f"micro_batch = {self.micro_batch} must lie in 1..rows = 1..{self.rows}; leave it out to take one pass"
            )
        if self.pooling == "first" and self.task != "token-classification":
            raise ConfigError(
                f'pooling = "first" is for the words of token-classification, not {self.task}; leave it out'
            )
        if self.mask != "causal" and self.backbone == "own":
            raise ConfigError(
                f'mask = "{self.mask}" needs the backbone of transformers; write backbone = "hub" or "auto"'
            )
        self._check_peft_config()
        if self.method in ("prompt", "prefix", "ia3", "peft") and self.backbone == "own":
            raise ConfigError(
                f'method = "{self.method}" needs the backbone of transformers; write backbone = "hub" or "auto"'
            )

    def _check_peft_config(self) -> None:
        if self.method != "peft":
            if self.peft_config is not None:
                raise ConfigError(f'peft_config is for method = "peft", not "{self.method}"; leave it out')
            return
        try:
            settings = json.loads(self.peft_config or "")
        except json.JSONDecodeError:
            settings = None
        if not isinstance(settings, dict) or not isinstance(settings.get("peft_type"), str):
            raise ConfigError(
                f"peft_config = {str(self.peft_config)[:60]!r} must be a JSON object with peft_type; write such as "
                '{"peft_type": "LOHA", "r": 8}'
            )

    def _check_whole_numbers(self) -> None:
        least = {"top_k": 1, "rank": 1, "virtual_tokens": 1, "mask_blocks": 1, "rows": 1, "patience": 0, "seed": 0}
        least |= {"threads": 1, "bootstrap_draws": 100, "steps": 1, "micro_batch": 1, "evaluate_every": 1}
        least |= {"max_tokens": 2, "max_new_tokens": 1, "train_rows": 1, "validation_rows": 1, "test_rows": 1}
        least |= {"beams": 1}
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise ConfigError(f"{name} = {value} must be >= {bound}; write {bound} or more")

    def _check_shares(self) -> None:
        if self.beams > 8 or (self.beams > 1 and self.temperature):  # the decoding engine has eight slots
            raise ConfigError(
                f"beams = {self.beams} and temperature = {self.temperature} must be 1..8 beams, or a temperature with "
                "one; leave one of them out"
            )
        if not 0 <= self.temperature <= 100:
            raise ConfigError(f"temperature = {self.temperature} must lie in [0, 100]; write 0.7, or 0.0 for greedy")
        for name in ("epochs", "lr", "clip_norm", "lora_alpha"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name} = {value} must be > 0; write a positive number")
        for name in ("lora_dropout", "dropout", "warmup"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise ConfigError(f"{name} = {value} must lie in [0, 1); write 0.1")
        if not 0 < self.layer_decay <= 1:
            raise ConfigError(f"layer_decay = {self.layer_decay} must lie in (0, 1]; write 0.95, or 1.0 for none")
        if not 0 < self.validation_fraction < 1:
            raise ConfigError(f"validation_fraction = {self.validation_fraction} must lie in (0, 1); write 0.1")
        if not (self.weight_decay >= 0 and self.checkpoint_seconds >= 0):
            raise ConfigError(
                f"weight_decay = {self.weight_decay} and checkpoint_seconds = {self.checkpoint_seconds} must be >= 0; "
                "write 0.0 for none"
            )

    def fingerprint(self) -> str:
        """Name what decides weights and record: 16 hex digits, equal for two configs of the same run."""
        return self._digest(without=_NOT_DECIDING)

    def weights_fingerprint(self) -> str:
        """Name what decides the weights alone: 16 hex digits, the same for other test rows."""
        return self._digest(without=(*_NOT_DECIDING, *_MEASURING))

    def _digest(self, without: tuple[str, ...]) -> str:
        deciding = {name: value for name, value in asdict(self).items() if name not in without}
        for each in fields(self):  # epochs 12 and 12.0 are one run
            if "float" in str(each.type) and isinstance(deciding.get(each.name), int):
                deciding[each.name] = float(deciding[each.name])
        return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:16]
