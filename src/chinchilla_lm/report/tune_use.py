"""How a tuned folder is used: the lines for transformers, the command that serves it, and a request to it.

The folder's own config.json decides the class; the task decides the pipeline. Pure text, from the records.
"""

from __future__ import annotations

import shlex

from chinchilla_lm.report.tune_record import TuneRun

_PIPELINES = {
    "text-classification": 'pipeline("text-classification", model="{folder}")("{example}")',
    "token-classification": (
        'pipeline("token-classification", model="{folder}", aggregation_strategy="simple")("{example}")'
    ),
}
_LOADER = """\
from transformers import {auto}, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{folder}")
model = {auto}.from_pretrained("{folder}")"""
_GENERATE = """
ids = tokenizer("{example}", return_tensors="pt")
written = model.generate(**ids, max_new_tokens=64, do_sample=False)
print(tokenizer.decode(written[0, {start}:], skip_special_tokens=True))"""
_AUTO_BY_TASK = {
    "text-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "relation-extraction": "AutoModelForSequenceClassification",
    "question-answering": "AutoModelForQuestionAnswering",
}
_EXAMPLES = {
    "text-classification": "a stirring, funny film",
    "token-classification": "Ada Lovelace was born in London",
}


def auto_class(run: TuneRun) -> str:
    """Return the Auto class that loads the folder."""
    named = run.word("hub_class")
    return named if named.startswith("AutoModel") else _AUTO_BY_TASK.get(run.word("task"), "AutoModelForCausalLM")


def load_lines(run: TuneRun, folder: str = "model") -> str:
    """Return Python that loads the tuned folder and asks it once.

    Args:
        run: of the tuning.
        folder: path of the Hugging Face folder, as the reader would write it.
    """
    task = run.word("task")
    example = _EXAMPLES.get(task, "...")
    if task in _PIPELINES:
        call = _PIPELINES[task].format(folder=folder, example=example)
        return f"from transformers import pipeline\n\nprint({call})"
    auto = auto_class(run)
    lines = _LOADER.format(auto=auto, folder=folder)
    if auto in ("AutoModelForCausalLM", "AutoModelForSeq2SeqLM"):
        start = 'ids["input_ids"].shape[1]' if auto == "AutoModelForCausalLM" else "1"
        prompt = str(run.table("describe").get("template") or "...")
        lines += _GENERATE.format(example=_python_text(prompt), start=start)
    return lines


def serve_lines(run: TuneRun, folder: str = "model") -> str:
    """Return the command that serves the folder and one request to it; empty where serve has no such task."""
    auto = auto_class(run)
    command = f"chinchilla serve {shlex.quote(folder)}"
    ask = "curl -s localhost:8000/v1/{path} -H 'content-type: application/json' -d '{body}'"
    if auto == "AutoModelForSequenceClassification" and run.word("task") == "text-classification":
        body = '{"input": "' + _EXAMPLES["text-classification"] + '"}'
        return f"{command} &\n" + ask.format(path="classify", body=body)
    if auto == "AutoModelForCausalLM":
        body = '{"model": "model", "prompt": "...", "max_tokens": 64, "temperature": 0}'
        return f"{command} &\n" + ask.format(path="completions", body=body)
    return ""


def _python_text(text: str) -> str:
    """Return text as the inside of a double-quoted Python string."""
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
