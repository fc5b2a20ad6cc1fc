"""A tuned model as it was when its run ended, exactly: from the run directory, for tuning on.

The base model, the task from the run's own rows, and the checkpoint of the parameters that were learned. (A folder that
only answers is run/model, which `transformers.pipeline` and `chinchilla serve` load.)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from chinchilla_lm.core.config import from_mapping, load_toml
from chinchilla_lm.core.errors import CheckpointError
from chinchilla_lm.core.files import read_json
from chinchilla_lm.train.checkpoint import list_checkpoints, load_checkpoint
from chinchilla_lm.tune.backbone import load_backbone
from chinchilla_lm.tune.config import TuneConfig
from chinchilla_lm.tune.defaults import resolve
from chinchilla_lm.tune.freezing import choose_parameters, has_adapter
from chinchilla_lm.tune.hub_backbone import HubHead
from chinchilla_lm.tune.learning import learned_part
from chinchilla_lm.tune.lora import has_lora, remove_lora
from chinchilla_lm.tune.own_backbone import OwnBackbone
from chinchilla_lm.tune.splits import Splits, read_splits
from chinchilla_lm.tune.stages import claim_sources
from chinchilla_lm.tune.task import Row, Task, TunedModel, make_task

CONTINUATION_FILE = "continuation.json"


@dataclass(frozen=True, kw_only=True)
class ContinueSettings:
    """How a tuning goes on from an older one without forgetting it.

    Attributes:
        replay: share of the older training rows that is trained on again, in [0, 1]; TUNE notes 2.7: 0.05 to 0.2.
        pull: after each update theta <- theta - lr * pull * (theta - theta_old): L2-SP (Li et al. 2018), decoupled from
            the gradient as weight decay is; 0: none.
        averages: go only as far from the old weights to the new ones as the old validation rows allow (weights
            interpolated: Wortsman et al. 2022, WiSE-FT).
        has_new_adapter: merge the old LoRA into the weights and train a new one.
        max_drop: most that an older task's measure may fall for the result to be accepted, >= 0.
    """

    replay: float = 0.1
    pull: float = 0.0
    averages: bool = False
    has_new_adapter: bool = False
    max_drop: float = 0.01


@dataclass(frozen=True, kw_only=True)
class LoadedRun:
    """A run's end.

    Attributes:
        folder: the run directory.
        model: with the weights that the run ended with, in eval mode.
        task: with the labels of its rows and of all runs before it.
        config: resolved.
        splits: its own rows.
        train_rows: its own training rows and those of the runs before it.
        record: tune.json.
    """

    folder: Path
    model: TunedModel
    task: Task
    config: TuneConfig
    splits: Splits
    train_rows: list[dict[str, Any]]
    record: dict[str, Any]


def load_tuned(folder: Path) -> LoadedRun:
    """Load the end of a finished run, or of a continuation of one.

    Raises:
        CheckpointError: the run is not finished, its checkpoint is gone, or its rows have changed.
        ChinchillaError: its base model or rows are no longer where they were.
    """
    if not (folder / "tune.json").is_file():
        raise CheckpointError(f"{folder} holds no finished tuning (no tune.json); finish it with its own command first")
    config = load_toml(TuneConfig, folder / "config.toml")
    claim_sources(folder, config)
    splits = read_splits(config)
    if (folder / CONTINUATION_FILE).is_file():
        parent, settings = read_continuation(folder)
        model, task, config = grow_model(parent, config, splits.train, settings)
        train_rows = [*parent.train_rows, *splits.train]
    else:
        model, task, config = _first_model(config, splits.train)
        train_rows = splits.train
    groups = choose_parameters(model, config)
    learned = learned_part(torch.optim.SGD([p for group in groups for p in group["params"]], lr=0.0), model)
    found = list_checkpoints(folder / "final") or list_checkpoints(folder / "best")
    if not found:
        raise CheckpointError(f"{folder} has no checkpoint in best/ any more; tune again into a new folder")
    load_checkpoint(found[-1], learned, None)
    return LoadedRun(
        folder=folder,
        model=model.eval(),
        task=task,
        config=config,
        splits=splits,
        train_rows=train_rows,
        record=read_json(folder / "tune.json"),
    )


def read_continuation(folder: Path) -> tuple[LoadedRun, ContinueSettings]:
    """The run that a continuation went on from, loaded, and its settings."""
    said = read_json(folder / CONTINUATION_FILE)
    settings = from_mapping(ContinueSettings, said["settings"], str(folder / CONTINUATION_FILE))
    return load_tuned(Path(said["run"])), settings


def grow_model(
    parent: LoadedRun, config: TuneConfig, new_rows: list[dict[str, Any]], settings: ContinueSettings
) -> tuple[TunedModel, Task, TuneConfig]:
    """Make the model that a continuation starts with: the old one, with outputs for labels that are new.

    Args:
        parent: used up: its backbone and head become the new model's.
        config: of the continuation, as `continued_config` makes it.
        new_rows: its training rows.
        settings: whether a new adapter is wanted.

    Raises:
        CheckpointError: new labels on a head that cannot grow, or a new adapter where there is none to merge.
    """
    backbone: Any = parent.model.backbone
    resolved, _ = resolve(config, context=backbone.context)
    rows: list[Row] = [*parent.train_rows, *new_rows]
    if settings.has_new_adapter:
        if not isinstance(backbone, OwnBackbone):
            raise CheckpointError(f"{parent.folder}: a new adapter needs our own backbone; leave has_new_adapter out")
        if has_lora(backbone):
            remove_lora(backbone.transformer, merges=True)
    resolved = _as_asked_before(resolved, parent.task)
    torch.manual_seed(resolved.seed)
    task = make_task(resolved, rows, backbone)
    head = parent.model.head
    if tuple(task.labels) != tuple(parent.task.labels):
        head = _grown_head(parent, task)
    return TunedModel(backbone, head), task, resolved


def _as_asked_before(config: TuneConfig, task: Task) -> TuneConfig:
    """Keep the prompt and the kind of head that a classifier was tuned with: by rule, new rows could change both.

    A label that is no sentiment would make "Review: ... Sentiment:" into "Text: ... Label:", and rows beyond 2,000
    would give label words, which are no parameters, a trained matrix.
    """
    said = task.describe()
    if config.task != "text-classification" or said["head"] == "own":
        return config
    return replace(config, head=said["head"], template=said["template"])


def _first_model(config: TuneConfig, train_rows: list[dict[str, Any]]) -> tuple[TunedModel, Task, TuneConfig]:
    """As `tuning.tune` makes it before its first update."""
    first, _ = resolve(config, context=1 << 30)
    assert first.device is not None
    backbone: Any = load_backbone(config, dtype=getattr(torch, first.dtype), device=first.device)
    resolved, _ = resolve(config, context=backbone.context)
    task = make_task(resolved, train_rows, backbone)
    torch.manual_seed(resolved.seed)
    head = task.make_head(backbone)
    model = TunedModel(backbone, head if head is None else head.to(backbone.device))
    assert not has_adapter(model)
    return model, task, resolved


def _grown_head(parent: LoadedRun, task: Task) -> Any:
    """A head for more labels: rows of old labels are kept where they were trained, the others begin as they would."""
    old: Any = parent.model.head
    missing = [label for label in parent.task.labels if label not in task.labels]
    assert not missing, missing
    if isinstance(old, HubHead):
        new = ", ".join(label for label in task.labels if label not in parent.task.labels)
        raise CheckpointError(
            f"{parent.folder}: the head of an encoder cannot take the new labels ({new}); tune again on all rows"
        )
    head: Any = task.make_head(parent.model.backbone)
    if head is None:
        return None
    head = head.to(parent.model.backbone.device)
    places = [task.labels.index(label) for label in parent.task.labels]
    before = dict(old.named_parameters())
    with torch.no_grad():
        for name, parameter in head.named_parameters():
            if before[name].shape == parameter.shape:
                parameter.copy_(before[name])
            else:
                parameter[places] = before[name]
    return head


def continued_config(old: TuneConfig, new: TuneConfig, settings: ContinueSettings) -> TuneConfig:
    """The config of a continuation: rows and training settings of the new one, the model and its form of the old."""
    kept = ("task", "model", "backbone", "mask", "mask_blocks", "head", "pooling", "template", "language", "rank")
    kept += ("lora_alpha", "virtual_tokens", "top_k", "pattern", "peft_config", "label_words", "normalisation")
    kept += ("max_tokens",)
    fixed = {name: getattr(old, name) for name in kept}
    method = "lora" if settings.has_new_adapter else old.method
    return replace(new, **fixed, method=method)
