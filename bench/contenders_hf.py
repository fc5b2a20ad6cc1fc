"""The Hugging Face contenders of equal_time.py: GPT-2 and Llama configs, trained by transformers' own Trainer.

The variants "default" use TrainingArguments' defaults (lr 5e-5, linear decay, batch 8, no warm-up, no weight decay), as
run_clm.py does. The variants "tuned" use lr 1e-3 with cosine decay, 5 % warm-up and weight decay 0.1 (the course's
chapter on training a causal language model from scratch has 5e-4 for a 124 M model; smaller models want more), and
bfloat16 where it is faster here. All have a byte-level BPE trained on the text, where run_clm.py takes a published one.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from contenders import CALIBRATION_STEPS, SAFETY, TUNED, Contender, Task, read_bpe, split_text, train_bpe
from scoring import Scorer


@dataclass(frozen=True, kw_only=True)
class Settings:
    architecture: str
    is_tuned: bool

    @property
    def context(self) -> int:
        return TUNED["context"] if self.is_tuned else 256


def train(task: Task, settings: Settings) -> dict:
    import torch
    from transformers import set_seed

    torch.set_num_threads(task.threads)
    set_seed(0)
    tokenizer = train_bpe(task, TUNED["vocab"])
    sample = encode(tokenizer, task.train_text[:200_000], settings.context)
    with task.not_charged():
        timings = {dtype: _time_steps(task, settings, sample, dtype) for dtype in _number_formats(settings)}
    dtype, (step_seconds, start_seconds) = min(timings.items(), key=lambda item: item[1][0])
    # Tokenise no more text than the run will read: a batch of 8 windows a step, at 3 to 4 characters a token.
    wanted = int(task.left / step_seconds * 8 * settings.context * 4.5)
    blocks = encode(tokenizer, task.train_text[:wanted], settings.context)
    steps = max(10, int((task.left * SAFETY - start_seconds) / step_seconds))
    model = _run_trainer(task, settings, blocks, dtype, steps)
    model.save_pretrained(task.folder / "model")
    return {
        "steps": steps,
        "step_seconds": step_seconds,
        "dtype": dtype,
        "tokens": steps * 8 * settings.context,
        "epochs": steps * 8 / len(blocks),
    }


def load(task: Task, settings: Settings) -> Scorer:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(task.folder / "model").float().eval()
    tokenizer = read_bpe(task)
    return Scorer(
        encode=lambda text: tokenizer.encode(text).ids,
        decode=tokenizer.decode,
        start_id=0,
        context=settings.context,
        logits=lambda ids_bt: model(input_ids=ids_bt).logits,
        params=model.num_parameters(),
    )


def encode(tokenizer, text: str, context: int) -> list[dict]:
    """As run_clm.py's group_texts: one stream, cut into blocks; the model shifts the labels."""
    import torch

    stream = [0]
    for encoding in tokenizer.encode_batch(list(split_text(text))):
        stream.extend(encoding.ids)
    blocks = torch.tensor(stream[: len(stream) // context * context]).view(-1, context)
    return [{"input_ids": block, "labels": block} for block in blocks]


def _number_formats(settings: Settings) -> tuple[str, ...]:
    return ("float32", "bfloat16") if settings.is_tuned else ("float32",)


def _time_steps(task: Task, settings: Settings, blocks: list[dict], dtype: str) -> tuple[float, float]:
    """Return (seconds a step, seconds before the first step)."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.times: list[float] = []

        def on_step_begin(self, *_args, **_kwargs) -> None:
            self.times.append(time.time())

    clock = Clock()
    started = time.time()
    _run_trainer(task, settings, blocks, dtype, CALIBRATION_STEPS, clock)
    steps = [after - before for before, after in zip(clock.times, clock.times[1:], strict=False)]
    return statistics.mean(steps[5:]), clock.times[0] - started


def _run_trainer(task: Task, settings: Settings, blocks: list[dict], dtype: str, steps: int, callback=None):
    from transformers import Trainer, TrainingArguments, default_data_collator

    tuned = {
        "learning_rate": 1e-3,
        "lr_scheduler_type": "cosine",
        "warmup_steps": max(1, steps // 20),
        "weight_decay": 0.1,
    }
    arguments = TrainingArguments(
        output_dir=str(task.folder / "trainer"),
        max_steps=steps,
        use_cpu=True,
        bf16=dtype == "bfloat16",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        seed=0,
        **(tuned if settings.is_tuned else {}),
    )
    trainer = Trainer(
        model=_build_model(settings),
        args=arguments,
        train_dataset=blocks,
        data_collator=default_data_collator,
        callbacks=[callback] if callback else None,
    )
    trainer.train()
    return trainer.model


def _build_model(settings: Settings):
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    if settings.architecture == "gpt2":
        dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0} if settings.is_tuned else {}
        return GPT2LMHeadModel(
            GPT2Config(
                vocab_size=TUNED["vocab"],
                n_positions=settings.context,
                n_embd=TUNED["n_embd"],
                n_layer=TUNED["n_layer"],
                n_head=TUNED["n_head"],
                bos_token_id=0,
                eos_token_id=0,
                **dropout,
            )  # fmt: skip
        )
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=TUNED["vocab"],
            max_position_embeddings=settings.context,
            hidden_size=TUNED["n_embd"],
            intermediate_size=round(8 * TUNED["n_embd"] / 3 / 16) * 16,
            num_hidden_layers=TUNED["n_layer"],
            num_attention_heads=TUNED["n_head"],
            bos_token_id=0,
            eos_token_id=0,
        )  # fmt: skip
    )


def _contender(architecture: str, is_tuned: bool) -> Contender:
    settings = Settings(architecture=architecture, is_tuned=is_tuned)
    why = "lr 1e-3, cosine, warm-up, weight decay 0.1" if is_tuned else "TrainingArguments' defaults, as run_clm.py"

    def bind(function: Callable) -> Callable:
        return lambda task: function(task, settings)

    return Contender(train=bind(train), load=bind(load), why=why)


HUGGING_FACE = {
    f"hf-{architecture}-{'tuned' if is_tuned else 'default'}": _contender(architecture, is_tuned)
    for architecture in ("gpt2", "llama")
    for is_tuned in (False, True)
}
