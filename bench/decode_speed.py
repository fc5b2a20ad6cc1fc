"""Decoding speed on SmolLM2-135M: ours, transformers' generate and llama.cpp, and the limit that memory sets.

    python bench/decode_speed.py --model FOLDER --threads 1
    python bench/decode_speed.py --model FOLDER --threads 2 --llama-cpp NODE_FOLDER --gguf FILE --out speed.json

All sides have the same weights, take the same prompts and choose greedily. FOLDER is a Hugging Face folder;
NODE_FOLDER holds `npm install node-llama-cpp` (a build of llama.cpp for this processor); FILE is the model as GGUF of
any type, from which f32, bf16 and q8_0 are written. Rounds are interleaved (every contender once, then all again) and
the figure is the median: other users of a machine slow a round down. Processor seconds a token are steadier there. A
decoding figure is new tokens over seconds, the prompt of 16 tokens included. The floor is the time to read all matrices
once at the speed at which the same number of threads reads memory, measured in every round.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from machine import describe_machine, print_report, print_table
from scratch import scratch

from chinchilla_lm.generate.engine import Engine
from chinchilla_lm.model.compiling import compiled_library, find_compiler
from chinchilla_lm.model.huggingface import load_model

BENCH = Path(__file__).parent
PROMPT_TOKENS = 16
STREAMS = 8
PREFILLS = (128, 512)
CAPACITY = 1024
Timed = tuple[float, float, list[list[int]]]  # wall seconds, processor seconds, new tokens of each stream


class Ours:
    """`Engine` with one type of weights."""

    def __init__(self, model: torch.nn.Module, weights: str) -> None:
        self.name = f"ours {weights}"
        self.engine = Engine(model, slots=STREAMS, capacity=CAPACITY, weights=weights)  # type: ignore[arg-type]

    def run(self, prompts: list[list[int]], count: int) -> Timed:
        engine, slots = self.engine, list(range(len(prompts)))
        for slot in slots:
            engine.clear(slot)
        start, cpu = time.perf_counter(), time.process_time()
        last = engine.prefill_many(slots, prompts).argmax(-1).tolist()
        found = [[token] for token in last]
        for _ in range(count - 1):
            last = engine.decode(slots, last).argmax(-1).tolist()
            for row, token in zip(found, last, strict=True):
                row.append(token)
        return time.perf_counter() - start, time.process_time() - cpu, found


class Transformers:
    """`generate` of transformers, with its dynamic or its static cache."""

    def __init__(self, model: torch.nn.Module, dtype: str, cache: str) -> None:
        self.name = f"transformers {dtype} {cache} cache"
        self.model, self.cache = model, cache

    @torch.inference_mode()
    def run(self, prompts: list[list[int]], count: int) -> Timed:
        ids = torch.tensor(prompts)
        options = {"cache_implementation": "static", "disable_compile": True} if self.cache == "static" else {}
        start, cpu = time.perf_counter(), time.process_time()
        found = self.model.generate(  # type: ignore[operator]
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=count,
            eos_token_id=None,
            pad_token_id=0,
            **options,
        )
        return time.perf_counter() - start, time.process_time() - cpu, found[:, ids.shape[1] :].tolist()


class LlamaCpp:
    """llama.cpp in a process of its own."""

    def __init__(self, node_folder: str, gguf: Path, kind: str, threads: int) -> None:
        self.name = f"llama.cpp {kind}"
        command = ["node", str(BENCH / "llama_cpp_peer.mjs"), node_folder, str(gguf), str(threads)]
        # the context is shared by the sequences
        command += [str(STREAMS), str(STREAMS * CAPACITY)]
        self.child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._read()

    def run(self, prompts: list[list[int]], count: int) -> Timed:
        assert self.child.stdin is not None
        self.child.stdin.write(json.dumps({"prompts": prompts, "count": count}) + "\n")
        self.child.stdin.flush()
        answer = self._read()
        return answer["seconds"], answer["cpu_seconds"], answer["tokens"]

    def _read(self) -> dict:
        assert self.child.stdout is not None
        while not (line := self.child.stdout.readline()).startswith("{"):
            assert line, f"{self.name} ended"
        return json.loads(line)


def main() -> None:
    options = parse_options()
    with scratch("decode_speed") as folder:
        measure(options, folder)


def measure(options: argparse.Namespace, folder: Path) -> None:
    torch.manual_seed(0)
    prompts = make_prompts(options.model)
    model = load_model(options.model).eval()
    contenders = make_contenders(options, model, folder)
    read_memory = memory_reader(options.threads)
    cases = {
        "decode 1": (1, PROMPT_TOKENS, options.tokens),
        f"decode {STREAMS}": (STREAMS, PROMPT_TOKENS, options.tokens),
    }
    cases |= {f"prefill {length}": (1, length, 1) for length in PREFILLS}
    seconds: dict[tuple[str, str], list[Timed]] = {}
    gb_per_s: list[float] = []
    for index in range(options.rounds + 1):  # the first warms up
        gb_per_s.append(read_memory())
        for contender in contenders:
            for case, (streams, length, count) in cases.items():
                timed = contender.run([prompts[i][:length] for i in range(streams)], count)
                if index:
                    seconds.setdefault((contender.name, case), []).append(timed)
            print(f"round {index}: {contender.name}", file=sys.stderr, flush=True)
    report = {
        "bench": "decode_speed/1",
        "machine": describe_machine(options.threads),
        "threads": options.threads,
        "rounds": options.rounds,
        "new_tokens": options.tokens,
        "memory_gb_per_s": statistics.median(gb_per_s),
        "contenders": [summarise(contender.name, cases, seconds) for contender in contenders],
        "floor_tokens_per_s": floors(model, statistics.median(gb_per_s)),
        "profile_ms_per_token": {
            c.engine.weights: profile(c.engine, prompts) for c in contenders if isinstance(c, Ours)
        },
        "load_average": os.getloadavg(),
    }
    show(report, list(cases))
    print_report(report, options.out)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder with config.json and model.safetensors")
    parser.add_argument("--llama-cpp", help="folder in which `npm install node-llama-cpp` was run")
    parser.add_argument("--gguf", help="the same model as GGUF, any type")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--out")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    return options


def make_prompts(folder: str) -> list[list[int]]:
    """Eight texts of at least 512 tokens that begin differently."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    text = "Rivers carry water from the mountains to the sea, and towns grew where a road crossed one. " * 40
    starts = ["Once", "The sailor", "In spring", "We know", "A map", "Far away", "Paris", "My sister"]
    return [tokenizer.encode(f"{start}: {text}").ids[: max(PREFILLS)] for start in starts]


def make_contenders(options: argparse.Namespace, model: torch.nn.Module, folder: Path) -> list:
    from transformers import AutoModelForCausalLM

    contenders: list = [Ours(model, weights) for weights in ("float32", "bfloat16", "int8")]
    for dtype in ("float32", "bfloat16"):
        theirs = AutoModelForCausalLM.from_pretrained(options.model, dtype=getattr(torch, dtype)).eval()
        contenders += [Transformers(theirs, dtype, cache) for cache in ("dynamic", "static")]
    if options.llama_cpp and options.gguf:
        for kind in ("f32", "bf16", "q8_0"):
            target = folder / f"{kind}.gguf"
            write_gguf(options.gguf, target, kind)
            contenders.append(LlamaCpp(options.llama_cpp, target, kind, options.threads))
    return contenders


def write_gguf(source: str, target: Path, kind: str) -> None:
    """The same model with all matrices in another type."""
    import gguf

    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, "llama")
    types = gguf.GGMLQuantizationType
    quantisation, file_type = {"f32": (types.F32, 0), "bf16": (types.BF16, 32), "q8_0": (types.Q8_0, 7)}[kind]
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        value = file_type if field.name == "general.file_type" else field.contents()
        inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, value, field.types[0], sub_type=inner)
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype("float32")
        values = values.reshape([int(size) for size in reversed(tensor.shape)])
        if values.ndim == 1 or kind == "f32":
            writer.add_tensor(tensor.name, values)
        else:
            writer.add_tensor(tensor.name, gguf.quants.quantize(values, quantisation), raw_dtype=quantisation)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def memory_reader(threads: int) -> Callable[[], float]:
    """A function that reads half a gigabyte from large pages and returns GB/s."""
    compiler = find_compiler()
    assert compiler is not None, "the floor needs a C++ compiler"
    library = ctypes.CDLL(str(compiled_library(compiler, (BENCH / "read_memory.cpp",))))
    library.read_memory.restype = ctypes.c_double
    return lambda: library.read_memory(ctypes.c_int64(1 << 29), ctypes.c_int(threads))


def floors(model: torch.nn.Module, gb_per_s: float) -> dict[str, float]:
    """Tokens/s if a token cost exactly one reading of the matrices."""
    elements = sum(p.numel() for p in model.parameters() if p.ndim == 2)
    sizes = {"float32": 4, "bfloat16": 2, "int8": 1}
    return {name: gb_per_s * 1e9 / (elements * size) for name, size in sizes.items()}


def profile(engine: Engine, prompts: list[list[int]], steps: int = 24) -> dict[str, float]:
    """Milliseconds of one token at batch 1 by part; `python` is what the call costs beside the compiled step."""
    if engine.form != "kernels":
        return {}
    engine.clear(0)
    last = int(engine.prefill(0, prompts[0][:PROMPT_TOKENS]).argmax())
    parts: list[dict[str, float]] = []
    for _ in range(steps):
        start = time.perf_counter()
        with engine.timed() as seconds:
            last = int(engine.decode([0], [last])[0].argmax())
        total = time.perf_counter() - start
        parts.append({**seconds, "python": total - sum(seconds.values())})
    return {name: 1000 * statistics.median(part[name] for part in parts) for name in parts[0]}


def summarise(name: str, cases: dict, seconds: dict[tuple[str, str], list[Timed]]) -> dict:
    row: dict = {"name": name}
    for case, (streams, length, count) in cases.items():
        timed = seconds[name, case]
        tokens = length if case.startswith("prefill") else streams * count
        row[case] = {
            "tokens_per_s": tokens / statistics.median(wall for wall, _, _ in timed),
            "all_tokens_per_s": [tokens / wall for wall, _, _ in timed],
            "cpu_ms_per_token": 1000 * statistics.median(cpu for _, cpu, _ in timed) / tokens,
            "first_tokens": timed[0][2][0][:8],
        }
    return row


def show(report: dict, cases: list[str]) -> None:
    rows = [
        [c["name"], *(f"{c[case]['tokens_per_s']:.1f}" for case in cases), f"{c['decode 1']['cpu_ms_per_token']:.1f}"]
        for c in report["contenders"]
    ]
    print_table("SmolLM2-135M, tokens/s", ["", *cases, "CPU ms a token"], rows)
    print(f"memory reads {report['memory_gb_per_s']:.1f} GB/s; floors: {report['floor_tokens_per_s']}", file=sys.stderr)
    for weights, parts in report["profile_ms_per_token"].items():
        print(weights, {name: round(ms, 2) for name, ms in parts.items()}, file=sys.stderr)


if __name__ == "__main__":
    main()
