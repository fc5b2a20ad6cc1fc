"""More training rows out of the real ones: perturbed copies, or rows that the model writes for a label.

    out/augmentation/generator/      the same model, taught to write a text for a label
    out/augmentation/filter/         a classifier of the real rows alone, which must agree with the label
    out/augmentation/offered.jsonl   every text that was written, with the filter's opinion
    out/augmentation/{train,validation}.jsonl
    out/                             the run on real and added rows, with "augmentation" in tune.json

Never more than one added row for a real one: beyond that, filtered noise outweighs what people have labelled. The rows
that validate and test stay real, and no added row repeats one of them. Killed at any instant, the same call continues.

Source: Anaby-Tavor et al. 2020 (LAMBADA): a generator fine-tuned on label -> text, kept are the texts of which the
classifier is surest.
"""

from __future__ import annotations

import gc
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch

from chinchilla_lm.core.errors import CheckpointError, ConfigError
from chinchilla_lm.core.files import read_json, write_json, write_text
from chinchilla_lm.data.labelled import Row
from chinchilla_lm.generate.batching import Scheduler
from chinchilla_lm.generate.engine import Engine
from chinchilla_lm.generate.request import Request, join_events
from chinchilla_lm.generate.sampling import Sampling
from chinchilla_lm.tune.backbone import choose_form
from chinchilla_lm.tune.config import TuneConfig
from chinchilla_lm.tune.learning import Lesson, learn
from chinchilla_lm.tune.lora import has_lora, merged_copy
from chinchilla_lm.tune.own_backbone import OwnBackbone
from chinchilla_lm.tune.perturbation import perturb_rows, read_synonyms
from chinchilla_lm.tune.splits import Splits, read_splits
from chinchilla_lm.tune.stages import Display, Silent, claim_sources
from chinchilla_lm.tune.tuning import TuneResult, prepare_lesson, tune

_SLOTS = 8
# LAMBADA writes ten times what it keeps; three suffice where the writer has learnt the labels.
_OVERSAMPLE = 3
# Surer than this of the label; the rest is doubt, or another label.
_LEAST_PROBABILITY = 0.7
_SAMPLING = Sampling(temperature=0.9, top_p=0.95)
_WRITER_EPOCHS = 3.0
_LONGEST_TEXT = 96  # tokens


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What rows are added.

    Attributes:
        kind: "perturb" (slips and synonyms) or "generate" (written by the model for a label).
        share: added rows for each real one, in (0, 1].
        synonyms: a file for `perturbation.read_synonyms`; None: slips alone.
    """

    kind: Literal["perturb", "generate"]
    share: float = 1.0
    synonyms: str | None = None

    def __post_init__(self) -> None:
        """Refuse more added rows than real ones."""
        if not 0 < self.share <= 1:
            raise ConfigError(f"share = {self.share} must lie in (0, 1]; write 1.0 for one added row a real one")


def tune_augmented(config: TuneConfig, augmentation: Augmentation, display: Display | None = None) -> TuneResult:
    """Add rows, then tune on the real and the added ones.

    Args:
        config: of the run.
        augmentation: what to add.
        display: told what happens.

    Returns:
        The run; its record has "augmentation": {kind, share, synonyms, real, wanted, offered, added, by_label,
        examples}.

    Raises:
        ConfigError: a task whose rows cannot be made so, or a model that does not write.
        CheckpointError: the folder holds a run with other rows added.
        ChinchillaError: as `tune`.
    """
    display = display or Silent()
    folder = Path(config.out) / "augmentation"
    _claim(folder, config, augmentation)
    finished = folder.parent / "tune.json"
    if finished.is_file() and "augmentation" in read_json(finished):
        return TuneResult(folder=folder.parent, record=read_json(finished))
    splits = read_splits(config)
    wanted = max(1, round(augmentation.share * len(splits.train)))
    if augmentation.kind == "perturb":
        synonyms = read_synonyms(augmentation.synonyms) if augmentation.synonyms else None
        added = perturb_rows(config.task, splits.train, count=wanted, seed=config.seed, synonyms=synonyms)
        offered = len(added)
    else:
        texts = _offered(config, splits, wanted, folder, display)
        added, offered = keep_agreeing(texts, splits, wanted), len(texts)
    display.stage("augment", f"{len(added)} rows added to {len(splits.train)} ({offered} offered)")
    result = tune(_with_rows(config, splits, added, folder), display)
    found = {
        "kind": augmentation.kind,
        "share": augmentation.share,
        "synonyms": augmentation.synonyms,
        "real": len(splits.train),
        "wanted": wanted,
        "offered": offered,
        "added": len(added),
        "by_label": dict(Counter(str(row.get("label", "")) for row in added)),
        "examples": added[:20],
    }
    record = {**result.record, "augmentation": found}
    write_json(result.folder / "tune.json", record)
    return TuneResult(folder=result.folder, record=record)


def keep_agreeing(texts: Sequence[Row], splits: Splits, wanted: int) -> list[Row]:
    """Keep, label by label in the real shares, the texts of which the filter is surest.

    Args:
        texts: {text, label, predicted, probability}.
        splits: real rows; their texts are not repeated.
        wanted: most rows in all.

    Returns:
        Rows {text, label}, at most `wanted`.
    """
    known = {_key(row["text"]) for rows in (splits.train, splits.validation, splits.test) for row in rows}
    shares = Counter(str(row["label"]) for row in splits.train)
    room = {label: max(1, round(wanted * count / len(splits.train))) for label, count in shares.items()}
    kept: list[Row] = []
    for row in sorted(texts, key=lambda each: -each["probability"]):
        is_sure = row["predicted"] == row["label"] and row["probability"] >= _LEAST_PROBABILITY
        key = _key(row["text"])
        if is_sure and key and key not in known and room.get(row["label"], 0) > 0 and len(kept) < wanted:
            known.add(key)
            room[row["label"]] -= 1
            kept.append({"text": row["text"], "label": row["label"]})
    return kept


def _claim(folder: Path, config: TuneConfig, augmentation: Augmentation) -> None:
    """Write what is asked, or check that the folder was asked the same."""
    said = {"schema": "augmentation/1", **asdict(augmentation), "config": config.fingerprint()}
    path = folder / "augmentation.json"
    if path.is_file():
        if read_json(path) != said:
            raise CheckpointError(
                f"{folder.parent} holds a run of other settings or added rows; write to a new folder, or restore them"
            )
    elif (folder.parent / "config.toml").is_file():
        raise CheckpointError(f"{folder.parent} holds a run without added rows; write to a new folder")
    claim_sources(folder, config)
    if not path.is_file():
        write_json(path, said)


def _offered(config: TuneConfig, splits: Splits, wanted: int, folder: Path, display: Display) -> list[Row]:
    """Write texts for labels and ask the filter of each; read again if an earlier call has."""
    path = folder / "offered.jsonl"
    if path.is_file():
        # Not splitlines(): a text may hold U+2028, which JSON leaves as it is.
        return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    _check_labels(config, splits)
    display.stage("write", f"teaching the model to write texts for {len(splits.train)} labels")
    texts = _write_texts(config, splits, _OVERSAMPLE * wanted, folder, display)
    display.stage("filter", f"{len(texts)} texts, a classifier of the real rows")
    task, lesson = prepare_lesson(replace(config, out=str(folder / "filter")), splits)
    _learn(lesson, display)
    lesson.model.eval()
    with torch.no_grad():
        predictions = task.predict(lesson.model, texts)
    offered = [
        {**row, "predicted": prediction["label"], "probability": float(prediction["probability"])}
        for row, prediction in zip(texts, predictions, strict=True)
    ]
    _write_rows(path, offered)
    del lesson
    gc.collect()
    return offered


def _learn(lesson: Lesson, display: Display) -> None:
    steps = lesson.config.steps or 1
    learn(lesson, lambda record, _: display.advance(record.step / steps, record.loss, None))


def _check_labels(config: TuneConfig, splits: Splits) -> None:
    is_plain = all(isinstance(row["label"], str) and "text_pair" not in row for row in splits.train[:1000])
    if config.task != "text-classification" or not is_plain:
        raise ConfigError(
            f'augmentation "generate" writes texts for one label each, and these are {config.task} rows of another'
            ' form; choose "perturb"'
        )
    if choose_form(_writer_config(config, Path("."))) != "own":
        raise ConfigError(f'augmentation "generate" needs a decoder that writes, and {config.model} is none')


def _writer_config(config: TuneConfig, folder: Path) -> TuneConfig:
    return TuneConfig(
        task="text-generation",
        model=config.model,
        train=str(folder / "writer_train.jsonl"),
        validation=str(folder / "writer_validation.jsonl"),
        out=str(folder / "generator"),
        method="lora",
        epochs=_WRITER_EPOCHS,
        rows=config.rows,
        seed=config.seed,
        dtype=config.dtype,
        device=config.device,
        threads=config.threads,
        max_tokens=config.max_tokens,
        language=config.language,
    )


def _write_texts(config: TuneConfig, splits: Splits, count: int, folder: Path, display: Display) -> list[Row]:
    """Teach the model label -> text, and sample in the shares of the labels."""
    for name, rows in (("train", splits.train), ("validation", splits.validation)):
        lessons = [{"prompt": _prompt(row["label"]), "completion": f" {_line(row['text'])}\n"} for row in rows]
        _write_rows(folder / f"writer_{name}.jsonl", lessons)
    writer = _writer_config(config, folder)
    _, lesson = prepare_lesson(writer, read_splits(writer))
    _learn(lesson, display)
    backbone = cast("OwnBackbone", lesson.model.backbone)
    transformer = merged_copy(backbone.transformer) if has_lora(backbone.transformer) else backbone.transformer
    weights = "bfloat16" if backbone.transformer.compute_dtype == torch.bfloat16 else "float32"
    engine = Engine(transformer, slots=_SLOTS, capacity=min(backbone.context, 2 * _LONGEST_TEXT), weights=weights)
    labels = [str(row["label"]) for row in splits.train]
    wished = [labels[number % len(labels)] for number in range(count)]
    texts = _sample(engine, backbone, wished, config.seed)
    return [{"text": text, "label": label} for text, label in zip(texts, wished, strict=True) if text.strip()]


def _sample(engine: Engine, backbone: OwnBackbone, labels: Sequence[str], seed: int) -> list[str]:
    """Sample one text a label, several at a time."""
    tokenizer = backbone.tokenizer
    scheduler = Scheduler(engine, tokenizer.backend_tokenizer, queue_limit=len(labels))
    try:
        tickets = [
            scheduler.submit(
                Request(
                    prompt_ids=tuple(tokenizer.encode(_prompt(label), add_special_tokens=False)),
                    max_tokens=_LONGEST_TEXT,
                    sampling=replace(_SAMPLING, seed=(seed * 1_000_003 + number) % 2**63),
                    stop=("\n",),
                )
            )
            for number, label in enumerate(labels)
        ]
        return ["".join(choice.text for choice in join_events(ticket.events())).strip() for ticket in tickets]
    finally:
        scheduler.drain(timeout_s=1.0)


def _with_rows(config: TuneConfig, splits: Splits, added: Sequence[Row], folder: Path) -> TuneConfig:
    """Write the rows of the run, and return its config."""
    for name, rows in (("train", [*splits.train, *added]), ("validation", splits.validation)):
        _write_rows(folder / f"{name}.jsonl", rows)
    changes: dict[str, Any] = {"train": str(folder / "train.jsonl"), "validation": str(folder / "validation.jsonl")}
    if config.test is not None:  # the columns named the real files' fields; the new files are canonical
        _write_rows(folder / "test.jsonl", splits.test)
        changes |= {"test": str(folder / "test.jsonl"), "test_rows": None}
    return replace(config, **changes, columns={}, train_rows=None, validation_rows=None)


def _write_rows(path: Path, rows: Sequence[Row]) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _prompt(label: str) -> str:
    return f"Label: {label}\nText:"


def _line(text: str) -> str:
    return " ".join(text.split())


def _key(text: str) -> str:
    return "".join(character for character in text.casefold() if character.isalnum())
