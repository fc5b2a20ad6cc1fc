"""llama.cpp on an exported GGUF file beside this package on its source: tokens of random texts, greedy continuations.

    python bench/export_parity.py MODEL_FOLDER FILE.gguf --node FOLDER [--count 48]

FOLDER holds node_modules with node-llama-cpp (`npm install node-llama-cpp`, which brings a prebuilt llama.cpp). Where a
continuation differs, the printed gap is between our best logit and that of llama.cpp's token: a rounded file may choose
the other of two tokens that are nearly as likely, and from there on the texts part.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path

from chinchilla_lm.data.tokenizer import load_tokenizer
from chinchilla_lm.generate.engine import Engine
from chinchilla_lm.serve.export import read_source
from chinchilla_lm.serve.export_check import random_texts

PROMPTS = (
    "The capital of France is",
    "def read(path):\n    ",
    "Once upon a time, there was a",
    "import os\nimport",
    "In 1872 the",
    "Water boils at",
    "A list of animals: cat, dog,",
    "x = [1, 2,",
    "#include",
    "你好",
)
MOST_TOKENS = 512  # of the prompt and its continuation


def main() -> None:
    words = argparse.ArgumentParser()
    words.add_argument("model", type=Path)
    words.add_argument("file", type=Path)
    words.add_argument("--node", type=Path, required=True)
    words.add_argument("--count", type=int, default=48)
    options = words.parse_args()
    source = read_source(options.model)
    tokenizer = load_tokenizer(source.folder)
    texts = random_texts()
    prompts = [tokenizer.encode(prompt).ids for prompt in PROMPTS]
    capacity = min(MOST_TOKENS, source.model.shape.context)
    request = {"texts": texts, "prompts": prompts, "count": options.count, "capacity": capacity}
    peer = Path(__file__).with_suffix(".mjs")
    answer = json.loads(
        subprocess.run(
            ["node", str(peer), str(options.node.resolve()), str(options.file)],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()[-1]
    )
    ours = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    engine = Engine(source.model, slots=1, capacity=capacity, weights="float32")
    agreed = [agree(engine, ids, theirs) for ids, theirs in zip(prompts, answer["continued"], strict=True)]
    print(
        json.dumps(
            {
                "file": options.file.name,
                "texts_tokenised_alike": sum(a == b for a, b in zip(ours, answer["tokenised"], strict=True)),
                "texts": len(texts),
                "continuations_equal": sum(gap is None for _, gap in agreed),
                "continuations": len(prompts),
                "tokens_before_a_difference": sum(count for count, _ in agreed),
                "tokens": sum(map(len, answer["continued"])),
                "logit_gaps": [gap for _, gap in agreed if gap is not None],
            }
        )
    )


def agree(engine: Engine, prompt: list[int], theirs: list[int]) -> tuple[int, float | None]:
    """Greedy tokens that are the same from the start, and the gap of logits where they part."""
    logits_v = engine.prefill(0, prompt)
    for place, token in enumerate(theirs):
        if int(logits_v.argmax()) != token:
            return place, float(logits_v.max() - logits_v[token])
        if place + 1 < len(theirs):
            logits_v = engine.decode([0], [token])[0]
    return len(theirs), None


if __name__ == "__main__":
    main()
