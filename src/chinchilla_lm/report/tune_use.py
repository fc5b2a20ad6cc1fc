"""How a tuned folder is used: Python that loads it, the command that serves it, and what each cannot do.

The class follows from the record; stock classes and pipelines of transformers where they exist, `tune.deployed` where
they do not (relation markers, exact spans). Pure text.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping

from chinchilla_lm.report.tune_record import TuneRun

_TEXT = "a stirring, funny film"
_SENTENCE = "Ada Lovelace was born in London"
_PIPELINE = """\
from transformers import pipeline

tuned = pipeline({arguments})
print(tuned({asked}))"""
_DEPLOYED = """\
from pathlib import Path

from chinchilla_lm.tune.deployed import load_deployed

task, model = load_deployed(Path({folder}))
print(task.predict(model, [{row}]))"""
_GENERATE = """\
from transformers import {auto}, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({folder})
model = {auto}.from_pretrained({folder})
ids = tokenizer({prompt}, return_tensors="pt")
written = model.generate(**ids, max_new_tokens=64, do_sample=False)
print(tokenizer.decode({written}, skip_special_tokens=True))"""
_ADAPTER = """\
from peft import PeftModel
from transformers import {auto}

model = PeftModel.from_pretrained({auto}.from_pretrained({folder}), "adapter")"""
_ROWS = {
    "relation-extraction": '{"text": "The fire was caused by a cigarette.", "head": [4, 8], "tail": [25, 34]}',
    "question-answering": '{"question": "Who was born?", "context": "Ada Lovelace was born in London.", "answers": []}',
}


def load_lines(run: TuneRun, folder: str = "model") -> str:
    """Return Python that loads the tuned folder and asks it once.

    Args:
        run: of the tuning.
        folder: path of the Hugging Face folder, as the reader would write it.
    """
    task, hub_class, path = run.word("task"), run.word("hub_class"), json.dumps(folder)
    if run.word("method") in ("prompt", "prefix"):
        return _ADAPTER.format(auto=hub_class or "AutoModel", folder=path)
    if hub_class in ("AutoModel", "AutoModelForQuestionAnswering") and task in _ROWS:
        return _DEPLOYED.format(folder=path, row=_ROWS[task])
    if task == "token-classification":
        return _PIPELINE.format(arguments=_arguments(task, path, _tagging_arguments(run)), asked=json.dumps(_SENTENCE))
    if hub_class == "AutoModelForSequenceClassification":
        return _PIPELINE.format(arguments=_arguments("text-classification", path, {}), asked=json.dumps(_TEXT))
    if task == "dialogue" and hub_class == "AutoModelForCausalLM":
        asked = '[{"role": "user", "content": "Hello!"}], max_new_tokens=64'
        return _PIPELINE.format(arguments=_arguments("text-generation", path, {}), asked=asked)
    auto = hub_class if hub_class.startswith("AutoModel") else "AutoModelForCausalLM"
    written = "written[0]" if "Seq2Seq" in auto else 'written[0, ids["input_ids"].shape[1] :]'
    return _GENERATE.format(
        auto=auto, folder=path, prompt=json.dumps(_prompt(run), ensure_ascii=False), written=written
    )


def serve_lines(run: TuneRun, folder: str = "model") -> str:
    """Return the command that serves the folder and one request to it; empty where serve has no such task."""
    hub_class = run.word("hub_class")
    if run.word("method") in ("prompt", "prefix"):
        return ""
    if hub_class == "AutoModelForSequenceClassification" and run.word("task") == "text-classification":
        path, body = "classify", {"input": _TEXT}
    elif hub_class == "AutoModelForCausalLM" and run.word("task") == "dialogue":
        path, body = "chat/completions", {"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 64}
    elif hub_class == "AutoModelForCausalLM":
        path, body = "completions", {"prompt": _prompt(run), "max_tokens": 64, "temperature": 0}
    else:
        return ""
    words = shlex.quote(json.dumps(body, ensure_ascii=False))
    ask = f"curl -s localhost:8000/v1/{path} -H 'content-type: application/json' -d {words}"
    return f"chinchilla serve {shlex.quote(folder)} &\n{ask}"


def use_note(run: TuneRun) -> str:
    """Return what is not the same in the stock classes; empty where nothing is."""
    if run.word("method") in ("prompt", "prefix"):
        return "The learned virtual tokens lie in adapter/; without it the folder answers as the untouched model."
    if run.word("mask") == "top-k":
        return "No folder can carry a mask that differs from block to block; stock classes would read it as causal."
    pipeline = run.table("describe", "pipeline")
    if run.word("task") == "token-classification" and pipeline.get("is_exact") is False:
        return (
            "The stock pipeline reads a word's sub-tokens by its own rule and takes each tag by itself; here the tag "
            "is read at one sub-token and only valid sequences are given, by chinchilla_lm.tune.deployed."
        )
    return ""


def _prompt(run: TuneRun) -> str:
    template = run.table("describe").get("template")
    return template.partition("{answer}")[0].rstrip(" ") if isinstance(template, str) and template else "..."


def _tagging_arguments(run: TuneRun) -> dict[str, object]:
    found: Mapping[str, object] = run.table("describe", "pipeline")
    kept = {str(name): value for name, value in found.items() if name != "is_exact"}
    return kept or {"aggregation_strategy": "simple"}


def _arguments(task: str, path: str, more: Mapping[str, object]) -> str:
    words = [json.dumps(task), f"model={path}", *(f"{name}={value!r}" for name, value in more.items())]
    return ", ".join(word.replace("'", '"') for word in words)
