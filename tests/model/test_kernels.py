"""The fused CPU kernels against plain torch, forward and backward, and the compilation that chooses them."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from chinchilla_lm.core import files
from chinchilla_lm.core.errors import ModelError
from chinchilla_lm.core.shapes import ModelShape
from chinchilla_lm.model import compiling, kernels
from chinchilla_lm.model.attention import MASKED, attend, join_heads, split_heads
from chinchilla_lm.model.compiling import compile_blocks
from chinchilla_lm.model.layers import rotary_table, rotate
from chinchilla_lm.model.transformer import IGNORED, KeyValueCache, Transformer, initialise

QWEN3 = ModelShape(vocab=61, context=48, d_model=32, n_layers=2, n_heads=4, n_kv_heads=4, head_dim=8, d_ff=48)
SHAPES = {
    "qwen3": QWEN3,
    "qwen3-grouped": replace(QWEN3, n_kv_heads=2, head_dim=32, d_model=64),
    "qwen3-odd": replace(QWEN3, d_model=40, d_ff=56, head_dim=10, is_tied=True),
    "llama": replace(QWEN3, layout="llama", n_kv_heads=1),
    "chinchilla": replace(QWEN3, layout="chinchilla", activation="gelu", is_tied=True),
    "textbook-post": replace(QWEN3, layout="textbook", activation="relu", norm_placement="post"),
}
TOLERANCES = {torch.float32: 2e-5, torch.bfloat16: 4e-2}  # bfloat16 rounds to 2^-9 in several places
every_type = pytest.mark.parametrize("dtype", TOLERANCES, ids=["float32", "bfloat16"])


@pytest.fixture(autouse=True)
def compiled():
    reason = compiling._load_kernels()
    if reason:
        pytest.skip(reason)


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_same(fused, plain, inputs: list[torch.Tensor], dtype: torch.dtype) -> None:
    """Outputs and gradients of `fused(*inputs)` are those of `plain` on the same numbers in float32."""
    ours = [x.detach().clone().requires_grad_(x.is_floating_point()) for x in inputs]
    theirs = [x.detach().float().clone().requires_grad_() if x.is_floating_point() else x for x in inputs]
    out, expected = fused(*ours), plain(*theirs)
    out, expected = (x if isinstance(x, tuple) else (x,) for x in (out, expected))
    weights = [draw(*x.shape, seed=9) for x in expected]
    sum((x.float() * w).sum() for x, w in zip(out, weights, strict=True)).backward()
    sum((x * w).sum() for x, w in zip(expected, weights, strict=True)).backward()
    pairs = [*zip(out, expected, strict=True)]
    pairs += [(a.grad, b.grad) for a, b in zip(ours, theirs, strict=True) if a.is_floating_point()]
    for found, wanted in pairs:
        error = (found.float() - wanted).abs().max() / wanted.abs().max().clamp_min(1.0)
        assert error < TOLERANCES[dtype]


@every_type
@pytest.mark.parametrize("d", [16, 20, 7, 128])
def test_norms_equal_torch(dtype, d, threads):
    x, delta, weight = draw(2, 9, d, dtype=dtype), draw(2, 9, d, dtype=dtype, seed=1), draw(d, seed=2)
    assert_same(
        lambda a, w: kernels.rms_norm(a, w, 1e-6), lambda a, w: F.rms_norm(a, (d,), w, 1e-6), [x, weight], dtype
    )

    def plain(a, b, w):
        return a + b, F.rms_norm(a + b, (d,), w, 1e-6)

    assert_same(lambda a, b, w: kernels.add_norm(a, b, w, 1e-6), plain, [x, delta, weight], dtype)


@every_type
@pytest.mark.parametrize("f", [16, 21])
def test_swiglu_equals_torch_also_far_from_zero(dtype, f, threads):
    x = draw(3, 5, 2 * f, dtype=dtype) * 3
    x[0, 0, :4] = torch.tensor([-1e4, -100.0, 100.0, 1e4])
    assert_same(kernels.swiglu, lambda a: F.silu(a[..., :f]) * a[..., f:], [x], dtype)


@every_type
@pytest.mark.parametrize(("heads", "e"), [((4, 4), 8), ((4, 2), 32), ((3, 1), 6)])
@pytest.mark.parametrize("t", [1, 13, 64])
@pytest.mark.parametrize("has_norm", [True, False])
def test_rotary_attention_equals_torch(dtype, heads, e, t, has_norm, threads):
    (h, k), b = heads, 2
    qkv = draw(b, t, (h + 2 * k) * e, dtype=dtype)
    norms = [1 + 0.3 * draw(e, seed=1), 1 + 0.3 * draw(e, seed=2)] if has_norm else []
    cos, sin = rotary_table(torch.arange(t), e, 10000.0)
    bias = torch.full((t, t), MASKED).triu(1)

    def plain(x, *w):
        q, keys, values = split_heads(x, h, k)
        if w:
            q, keys = F.rms_norm(q, (e,), w[0], 1e-6), F.rms_norm(keys, (e,), w[1], 1e-6)
        return join_heads(attend(rotate(q, cos, sin), rotate(keys, cos, sin), values, bias))

    def fused(x, *w):
        return kernels.causal_attention(*kernels.rotary_heads(x, w or None, (cos, sin), heads, 1e-6))

    assert_same(fused, plain, [qkv, *norms], dtype)


@pytest.mark.parametrize("has_norm", [True, False])
def test_turning_keeps_its_input_for_the_backward_pass_only_where_a_norm_reads_it(has_norm):
    qkv = draw(2, 5, 24).requires_grad_()
    norms = (torch.ones(8), torch.ones(8)) if has_norm else None
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.data_ptr()) or x, lambda x: x):
        kernels.rotary_heads(qkv, norms, rotary_table(torch.arange(5), 8, 1e4), (1, 1), 1e-6)
    assert (qkv.data_ptr() in kept) == has_norm


@every_type
@pytest.mark.parametrize("v", [16, 100, 1024])
@pytest.mark.parametrize("is_kept", [True, False])
def test_token_losses_equal_torch(dtype, v, is_kept, threads, monkeypatch):
    monkeypatch.setattr(kernels, "CHUNK_ELEMENTS", 17 * v)  # several chunks, the last one shorter
    if not is_kept:
        monkeypatch.setattr(kernels, "KEPT_ELEMENTS", 0)
    x, head = draw(50, 24, dtype=dtype), draw(v, 24, dtype=dtype, seed=1)
    targets = torch.randint(v, (50,), generator=torch.Generator().manual_seed(2))
    targets[[3, 20]] = IGNORED
    assert_same(
        lambda a, w: kernels.token_losses(a, w, targets),
        lambda a, w: F.cross_entropy(a @ w.T, targets, reduction="none"),
        [x, head],
        dtype,
    )


@every_type
def test_embedding_equals_torch_with_repeated_ids(dtype, threads):
    ids = torch.tensor([[0, 3, 3, 5], [3, 0, 1, 1]])
    assert_same(lambda w: kernels.embed(w, ids, dtype), lambda w: F.embedding(ids, w), [draw(6, 20)], dtype)


@pytest.mark.parametrize("kind", [torch.int32, torch.int16, torch.uint8])
def test_ids_of_any_whole_type_mean_the_same(kind):
    ids, table = torch.tensor([[0, 3, 3, 5]]), draw(6, 20)
    assert torch.equal(kernels.embed(table, ids.to(kind), torch.float32), kernels.embed(table, ids, torch.float32))
    x, targets = draw(4, 20, seed=1), ids[0]
    assert torch.equal(kernels.token_losses(x, table, targets.to(kind)), kernels.token_losses(x, table, targets))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_losses_without_gradients_hold_one_chunk_of_logits(mode, monkeypatch):
    calls = []
    run = kernels._run

    def listen(name, dtype, *arguments):
        calls.append(arguments)
        run(name, dtype, *arguments)

    monkeypatch.setattr(kernels, "CHUNK_ELEMENTS", 16 * 30)
    x, head, targets = draw(50, 24), torch.nn.Parameter(draw(30, 24, seed=1)), torch.arange(50) % 30
    kept = kernels.token_losses(x, head, targets).detach()
    monkeypatch.setattr(kernels, "_run", listen)
    with mode():
        losses = kernels.token_losses(x, head, targets)
    assert torch.equal(losses, kept)
    assert [arguments[-1] for arguments in calls] == [0] * 4  # no gradient of the logits is written


@pytest.mark.parametrize("bad", [-1, 61, 1 << 40])
def test_ids_outside_the_vocabulary_are_refused(bad):
    model = Transformer(QWEN3)
    compile_blocks(model, "kernels")
    ids = torch.zeros(1, 4, dtype=torch.int64)
    wrong = torch.tensor([[0, 0, bad, 0]])
    with pytest.raises(ModelError, match=f"token id {bad} is outside the vocabulary of 61"):
        model(wrong)
    if bad > 0:
        with pytest.raises(ModelError, match="outside the vocabulary"):
            model.token_losses(ids, wrong)


def test_not_a_number_comes_through():
    """A diverged run must be seen as one."""
    x = draw(2, 32)
    x[1, 20] = float("nan")
    assert kernels.token_losses(x, draw(40, 32), torch.tensor([1, 2])).isnan().tolist() == [False, True]
    assert kernels.rms_norm(x, torch.ones(32), 1e-6)[1].isnan().all()
    cos, sin = rotary_table(torch.arange(2), 8, 1e4)
    qkv = draw(1, 2, 24)
    qkv[0, 0, 8 + 1] = float("nan")  # of the first key, which both queries see
    assert kernels.causal_attention(*kernels.rotary_heads(qkv, None, (cos, sin), (1, 1), 0.0)).isnan().all()


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@every_type
def test_a_model_with_kernels_computes_the_same(shape, dtype):
    model = Transformer(shape)
    initialise(model, seed=1)
    for seed, parameter in enumerate(model.parameters()):
        parameter.data += 0.1 * draw(*parameter.shape, seed=seed)
    ids = torch.randint(61, (3, 33), generator=torch.Generator().manual_seed(3))
    model.compute_dtype = dtype
    results = []
    for mode in ("plain", "kernels"):
        assert compile_blocks(model, mode).mode == mode
        losses = model.token_losses(ids[:, :-1], ids[:, 1:])
        gradients = torch.autograd.grad(losses.mean(), list(model.parameters()))
        results.append((losses, gradients))
    (losses, gradients), (losses_fused, gradients_fused) = results
    torch.testing.assert_close(losses_fused, losses, rtol=0, atol={torch.float32: 1e-4, torch.bfloat16: 0.2}[dtype])
    for plain, fused in zip(gradients, gradients_fused, strict=True):
        assert F.cosine_similarity(plain.flatten(), fused.flatten(), dim=0) > (
            0.9999 if dtype == torch.float32 else 0.99
        )


def test_decoding_works_with_kernels():
    model = Transformer(QWEN3)
    initialise(model, seed=1)
    for seed, parameter in enumerate(model.parameters()):
        parameter.data += 0.1 * draw(*parameter.shape, seed=seed)
    ids = torch.randint(61, (2, 9), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = model(ids)
        compile_blocks(model, "kernels")
        cache = KeyValueCache(model, rows=2)
        parts = [model(ids[:, :5], cache), model(ids[:, 5:], cache)]
    torch.testing.assert_close(torch.cat(parts, dim=1), expected, rtol=1e-4, atol=1e-5)


def test_without_a_compiler_the_plain_form_is_used_and_the_reason_given(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    compiling._load_kernels.cache_clear()
    model = Transformer(QWEN3)
    for mode in ("auto", "kernels", "inductor"):
        result = compile_blocks(model, mode)
        assert result.mode == "plain"
        assert "no C++ compiler found" in result.reason
        assert "\n" not in result.reason
    compiling._load_kernels.cache_clear()


def test_a_broken_compiler_is_a_reason_and_not_an_error(monkeypatch, tmp_path):
    broken = tmp_path / "broken-compiler"
    broken.write_text("#!/bin/sh\necho 'error: no such luck' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    compiling._load_kernels.cache_clear()
    result = compile_blocks(Transformer(QWEN3), "kernels")
    compiling._load_kernels.cache_clear()
    assert result.mode == "plain"
    assert "no such luck" in result.reason


def test_a_full_disk_is_the_reason_before_the_compiler_has_run(monkeypatch, tmp_path):
    asked = tmp_path / "asked"
    compiler = tmp_path / "compiler"
    compiler.write_text(f"#!/bin/sh\ntouch {asked}\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(files, "free_bytes", lambda path: 1000)
    compiling._load_kernels.cache_clear()
    result = compile_blocks(Transformer(QWEN3), "kernels")
    compiling._load_kernels.cache_clear()
    assert result.mode == "plain"
    assert "compiled kernels need about 4 MiB, and 1000 B are free" in result.reason
    assert not asked.exists()


def test_a_cache_that_cannot_be_written_leaves_no_folder_behind(tmp_path):
    (tmp_path / "cache").touch()  # a file where the folder should be
    (tmp_path / "tmp").mkdir()
    code = "from chinchilla_lm.model.compiling import _cache_folder as f; assert f() == f(); print(f())"
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "TMPDIR": str(tmp_path / "tmp")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert str(tmp_path / "tmp") in done.stdout
    assert not list((tmp_path / "tmp").iterdir())


def test_an_unknown_mode_is_refused():
    with pytest.raises(ModelError, match="compile mode 'fast' is unknown"):
        compile_blocks(Transformer(QWEN3), "fast")  # type: ignore[arg-type]


@pytest.mark.slow
def test_torch_compile_of_blocks_computes_the_same():
    model = Transformer(QWEN3)
    initialise(model, seed=1)
    for seed, parameter in enumerate(model.parameters()):
        parameter.data += 0.1 * draw(*parameter.shape, seed=seed)
    names = [name for name, _ in model.named_parameters()]
    ids = torch.randint(61, (2, 17), generator=torch.Generator().manual_seed(3))
    expected = model.token_losses(ids[:, :-1], ids[:, 1:])
    assert compile_blocks(model, "inductor").mode == "inductor"
    found = model.token_losses(ids[:, :-1], ids[:, 1:])
    found.mean().backward()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert [name for name, _ in model.named_parameters()] == names
