"""Make a model's training step fast: our own CPU kernels, or torch.compile block by block; and say which, and why not.

Measured on one core of a busy Xeon with AMX (bench/model_step.py: best of 9 interleaved rounds; d_model 128, 5 layers,
vocab 1024, 8 x 256 tokens), tokens/s in bfloat16: plain 10,500, torch.compile of a block 19,500, `kernels.cpp` 22,100;
in float32: 7,200, 9,000 and 10,300. The first step took 180 s with torch.compile, 20 to 30 s with its cache warm;
`kernels.cpp` takes 3 to 8 s to compile, once a machine, and nothing later.
A missing or broken compiler never stops a run: the plain form is used and the reason returned.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from chinchilla_lm.core.errors import ChinchillaError, ModelError
from chinchilla_lm.core.files import explain_os_error, require_space
from chinchilla_lm.model import kernels
from chinchilla_lm.model.transformer import Transformer

Mode = Literal["auto", "plain", "kernels", "inductor"]

SOURCES = tuple(Path(__file__).with_name(name) for name in ("kernels.cpp", "vectors.h"))
_COMMON = "-O3 -fno-math-errno -fno-trapping-math -std=c++17 -shared -fPIC"
_FLAG_SETS = (  # tried in turn; the later ones are for compilers without OpenMP (Apple's) or without -march=native
    f"{_COMMON} -march=native -fopenmp",
    f"{_COMMON} -march=native",
    _COMMON,
)
_COMPILE_BYTES = 4 << 20  # the compiler's own files and a library of .1 MB
_COMPILE_SECONDS_MOST = 120.0  # it takes 4 to 15 seconds; a compiler that takes longer hangs


@dataclass(frozen=True, kw_only=True)
class Compilation:
    """What `compile_blocks` did.

    Attributes:
        mode: the form that the model now has: "plain", "kernels" or "inductor".
        seconds: spent on compiling in this call; "inductor" compiles later, in the first step.
        reason: why it is not the faster form, one line; empty if it is.
    """

    mode: Literal["plain", "kernels", "inductor"]
    seconds: float
    reason: str = ""


def compile_blocks(model: Transformer, mode: Mode = "auto") -> Compilation:
    """Give the model its fastest form, in place; parameters and their names stay.

    Args:
        model: on the device where it will train. May be called again with another mode.
        mode: "plain" (torch operations only), "kernels" (kernels.cpp, CPU only), "inductor" (torch.compile of one
            block, which serves all blocks), or "auto": kernels on a CPU, inductor on a GPU.

    Returns:
        The form it got. Without a working compiler that is "plain", with the reason.

    Raises:
        ModelError: mode is unknown.
    """
    start = time.perf_counter()
    is_cpu = model.embedding.device.type == "cpu"
    if mode not in ("auto", "plain", "kernels", "inductor"):
        raise ModelError(f"compile mode {mode!r} is unknown; choose from auto, plain, kernels, inductor")
    if mode == "auto":
        mode = "kernels" if is_cpu else "inductor"
    reason = ""
    if mode == "kernels":
        reason = "kernels.cpp runs on the CPU only" if not is_cpu else _load_kernels()
    elif mode == "inductor":
        reason = _inductor_obstacle(is_cpu)
    chosen = "plain" if reason or mode == "plain" else mode
    for module in model.modules():
        if hasattr(module, "has_kernels"):
            setattr(module, "has_kernels", chosen == "kernels")  # noqa: B010 - the type checker knows only tensors here
    for block in model.blocks:
        block._compiled_call_impl = None
        if chosen == "inductor":
            block.compile(dynamic=False)
    return Compilation(mode=chosen, seconds=time.perf_counter() - start, reason=reason)


def find_compiler() -> list[str] | None:
    """The C++ compiler as a command: $CXX, g++, clang++ or c++, the first that exists."""
    for command in (os.environ.get("CXX", ""), "g++", "clang++", "c++"):
        words = shlex.split(command)
        if words and shutil.which(words[0]):
            return words
    return None


@functools.cache
def _load_kernels() -> str:
    """Compiles (or finds), loads and checks kernels.cpp, once a process; returns why not, or an empty string."""
    compiler = find_compiler()
    if compiler is None:
        return "no C++ compiler found; install g++ or clang, or name one in CXX, for about 2.5 times the speed"
    try:
        kernels.bind(ctypes.CDLL(str(compiled_library(compiler, SOURCES))))
    except (OSError, AttributeError, ChinchillaError, subprocess.SubprocessError) as error:
        return f"kernels.cpp was not compiled with {compiler[0]}: {_first_line(str(error))}"
    difference = _largest_difference()
    if not difference < 1e-5:  # float32 sums of 20 terms
        return f"kernels.cpp as compiled with {compiler[0]} differs from torch by {difference:.1e}; plain torch is used"
    return ""


def compiled_library(compiler: list[str], sources: tuple[Path, ...]) -> Path:
    """The shared library of these sources, compiler and processor, from the cache or compiled now.

    Args:
        compiler: what `find_compiler` returned.
        sources: the .cpp file, then the files it includes.

    Raises:
        ModelError: it does not compile; the compiler's first error.
        DataError: the disk has no room for it.
    """
    identity = "\0".join(
        (*(path.read_text() for path in sources), *compiler, *_FLAG_SETS, platform.machine(), _processor())
    )
    name = f"{sources[0].stem}-{hashlib.sha256(identity.encode()).hexdigest()[:20]}.so"
    folder = _cache_folder()
    if (folder / name).is_file():
        return folder / name
    for place in (folder, Path(tempfile.gettempdir())):  # a compiler says so only after minutes, once for each flag set
        require_space(place, _COMPILE_BYTES, "compiled kernels")
    temporary = folder / f".{name}.{os.getpid()}.tmp"
    error = ""
    try:
        for flags in _FLAG_SETS:
            command = [*compiler, *flags.split(), "-o", str(temporary), str(sources[0])]
            done = subprocess.run(command, capture_output=True, text=True, timeout=_COMPILE_SECONDS_MOST, check=False)
            if done.returncode == 0:
                with explain_os_error(folder / name):
                    os.replace(temporary, folder / name)
                return folder / name
            error = error or done.stderr
    finally:
        temporary.unlink(missing_ok=True)
    raise ModelError(_first_line(error) or "the compiler failed without a message")


def _cache_folder() -> Path:
    """$XDG_CACHE_HOME/chinchilla_lm or ~/.cache/chinchilla_lm; a folder of this process if that is not writable."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "chinchilla_lm"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError:
        return _private_folder()
    return folder if os.access(folder, os.W_OK) else _private_folder()


@functools.cache
def _private_folder() -> Path:
    """A temporary folder that goes with the process."""
    folder = tempfile.mkdtemp(prefix="chinchilla_lm-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def _processor() -> str:
    """What -march=native depends on: a home folder may be shared by machines with different processors."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(
        sorted({line for line in lines if line.startswith(("flags", "model name", "Features", "CPU part"))})
    )


def _largest_difference() -> float:
    """The largest difference between kernels and torch on small inputs with a ragged end (20 = 16 + 4)."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    x, weight, targets = draw(3, 20), draw(20), torch.tensor([1, 0, 19])
    differences = (
        kernels.rms_norm(x, weight, 1e-6) - F.rms_norm(x, (20,), weight, 1e-6),
        kernels.swiglu(x) - F.silu(x[:, :10]) * x[:, 10:],
        kernels.token_losses(x, weight.diag(), targets) - F.cross_entropy(x * weight, targets, reduction="none"),
    )
    return max(float(difference.abs().max().nan_to_num(float("inf"))) for difference in differences)


def _inductor_obstacle(is_cpu: bool) -> str:
    if is_cpu and find_compiler() is None:
        return "no C++ compiler found for torch.compile; install g++ or clang, or name one in CXX"
    if not is_cpu:
        try:
            import triton  # noqa: F401  # pyright: ignore - only asked whether it is there
        except ImportError:
            return "torch.compile needs triton on this device; install it"
    return ""


def _first_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if "error" in line.lower()] or text.strip().splitlines()
    return lines[0][:200] if lines else ""
