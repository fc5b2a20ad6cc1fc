from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tests.random_models import add_noise

from chinchilla_lm.core.errors import ModelError
from chinchilla_lm.core.shapes import ModelShape
from chinchilla_lm.model.attention import RelativeAttention, shift_distances
from chinchilla_lm.model.layers import rotary_table, rotate, sinusoids
from chinchilla_lm.model.transformer import EMBEDDING_STD, IGNORED, KeyValueCache, Transformer, initialise

QWEN3 = ModelShape(vocab=61, context=48, d_model=32, n_layers=2, n_heads=4, n_kv_heads=4, head_dim=8, d_ff=48)
SHAPES = {
    "qwen3": QWEN3,
    "qwen3-grouped": replace(QWEN3, n_kv_heads=2),
    "qwen3-tied": replace(QWEN3, is_tied=True),
    "llama": replace(QWEN3, layout="llama", n_kv_heads=1),
    "chinchilla": replace(QWEN3, layout="chinchilla", activation="gelu", is_tied=True),
    "textbook-pre": replace(QWEN3, layout="textbook", activation="relu"),
    "textbook-post": replace(QWEN3, layout="textbook", activation="gelu", norm_placement="post", is_tied=True),
    "wide-heads": replace(QWEN3, head_dim=16),
}
every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())


def make_model(shape: ModelShape, *, is_shaken: bool = True) -> Transformer:
    """A model with all parameters in play (the initial one has zero residual outputs)."""
    model = Transformer(shape)
    initialise(model, seed=1)
    return add_noise(model, spread=0.1, seed=2) if is_shaken else model


def make_ids(rows: int, length: int, vocab: int = 61) -> torch.Tensor:
    return torch.randint(vocab, (rows, length), generator=torch.Generator().manual_seed(3))


@every_shape
def test_a_later_token_does_not_change_earlier_logits(shape):
    model, ids = make_model(shape), make_ids(2, 20)
    changed = ids.clone()
    changed[:, 11] = (changed[:, 11] + 1) % 61
    before, after = model(ids), model(changed)
    torch.testing.assert_close(before[:, :11], after[:, :11], rtol=0, atol=1e-5)
    assert (before[:, 11:] - after[:, 11:]).abs().amax(dim=(0, 2)).min() > 1e-3  # and every later one feels it


@every_shape
def test_gradients_flow_to_every_parameter(shape):
    model, ids = make_model(shape), make_ids(2, 20)
    model.token_losses(ids[:, :-1], ids[:, 1:]).mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@every_shape
@pytest.mark.parametrize("chunks", [(1,) * 12, (5, 1, 6)])
def test_decoding_with_a_cache_equals_the_full_forward(shape, chunks):
    model, ids = make_model(shape).eval(), make_ids(3, 12)
    with torch.no_grad():
        cache, parts, start = KeyValueCache(model, rows=3, capacity=12), [], 0
        for size in chunks:
            parts.append(model(ids[:, start : start + size], cache))
            start += size
        assert cache.length == 12
        torch.testing.assert_close(torch.cat(parts, dim=1), model(ids), rtol=1e-4, atol=1e-5)


@every_shape
def test_left_padded_rows_decode_as_alone(shape):
    model, ids = make_model(shape).eval(), make_ids(2, 10)
    lengths = (9, 6)  # the second row has 3 tokens of padding before its 6
    padded = torch.zeros(2, 9, dtype=torch.int64)
    positions = torch.full((2, 9), -1)
    for row, length in enumerate(lengths):
        padded[row, 9 - length :] = ids[row, :length]
        positions[row, 9 - length :] = torch.arange(length)
    with torch.no_grad():
        cache = KeyValueCache(model, rows=2)
        first = model(padded, cache, positions)
        second = model(ids[:, 9:], cache, torch.tensor([[9], [6]]))
        for row, length in enumerate(lengths):
            alone = torch.cat((ids[row, :length], ids[row, 9:]))[None]
            both = torch.cat((first[row, 9 - length :], second[row]))[None]
            torch.testing.assert_close(both, model(alone), rtol=1e-4, atol=1e-5)


@every_shape
def test_token_losses_equal_the_cross_entropy_of_the_logits(shape):
    model, ids = make_model(shape), make_ids(3, 17)
    inputs, targets = ids[:, :-1], ids[:, 1:]
    losses = model.token_losses(inputs, targets)
    assert losses.dtype == torch.float32
    expected = F.cross_entropy(model(inputs).transpose(1, 2), targets, reduction="none")
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-5)


def test_losses_and_gradients_do_not_depend_on_the_parts_they_are_computed_in(monkeypatch):
    model, ids = make_model(QWEN3), make_ids(3, 17)
    results = []
    for size in (1 << 26, 61 * 5):  # at once; 5 tokens at a time, 3 in the last part
        monkeypatch.setattr("chinchilla_lm.model.transformer.CHUNK_LOGITS", size)
        losses = model.token_losses(ids[:, :-1], ids[:, 1:])
        results.append((losses, torch.autograd.grad(losses.mean(), list(model.parameters()))))
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-6)


def test_ignored_targets_cost_nothing():
    model, ids = make_model(QWEN3), make_ids(2, 9)
    targets = ids[:, 1:].clone()
    targets[0, 3:] = IGNORED
    losses, expected = model.token_losses(ids[:, :-1], targets), model.token_losses(ids[:, :-1], ids[:, 1:])
    assert (losses[0, 3:] == 0).all()
    assert torch.equal(losses[0, :3], expected[0, :3])


def test_a_model_used_in_inference_mode_first_trains_afterwards():
    model, ids = make_model(QWEN3), make_ids(2, 9)
    with torch.inference_mode():
        model(ids[:, :-1])
    model.token_losses(ids[:, :-1], ids[:, 1:]).mean().backward()


@pytest.mark.parametrize("is_grouped", [False, True])
def test_fused_and_written_out_attention_agree(is_grouped):
    model, ids = make_model(SHAPES["qwen3-grouped"] if is_grouped else QWEN3), make_ids(3, 17)
    results = []
    for form in ("bmm", "sdpa"):
        for block in model.blocks:
            block.attention.form = form
        results.append(model(ids))
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("length", "form", "entries"), [(100, "auto", 10_000), (300, "auto", 0), (300, "bmm", 90_000)])
def test_a_long_sequence_has_no_square_of_its_length(length, form, entries):
    model, found = make_model(replace(QWEN3, context=400)), []
    for block in model.blocks:
        block.attention.form = form
        block.register_forward_pre_hook(lambda _, given: found.append(given[1].bias_ts.numel()))
    with torch.no_grad():
        model.hidden(make_ids(1, length))
    assert set(found) == {entries}


@every_shape
def test_a_new_model_predicts_near_uniformly(shape):
    model, ids = make_model(shape, is_shaken=False), make_ids(4, 33)
    loss = model.token_losses(ids[:, :-1], ids[:, 1:]).mean().item()
    if shape.is_tied:
        assert loss < math.log(61) + 0.5
    else:
        assert loss == pytest.approx(math.log(61), abs=1e-5)


@every_shape
def test_every_layout_overfits_a_small_batch(shape):
    model, ids = make_model(shape, is_shaken=False), make_ids(4, 17)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    for _ in range(80):
        optimizer.zero_grad()
        loss = model.token_losses(ids[:, :-1], ids[:, 1:]).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert loss.item() < 0.5  # from ln 61 = 4.1


@every_shape
def test_bfloat16_is_near_float32_and_keeps_float32_gradients(shape):
    model, ids = make_model(shape), make_ids(8, 33)
    loss = model.token_losses(ids[:, :-1], ids[:, 1:]).mean()
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    model.compute_dtype = torch.bfloat16
    loss_bf16 = model.token_losses(ids[:, :-1], ids[:, 1:]).mean()
    gradients_bf16 = torch.autograd.grad(loss_bf16, list(model.parameters()))
    assert model(ids).dtype == loss_bf16.dtype == torch.float32
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert loss_bf16.item() == pytest.approx(loss.item(), rel=5e-3)  # 8 bits of mantissa: 2^-8 = 4e-3
    for full, half in zip(gradients, gradients_bf16, strict=True):
        assert half.dtype == torch.float32
        assert F.cosine_similarity(full.flatten(), half.flatten(), dim=0) > 0.99


def test_relative_attention_equals_the_formula_for_each_pair():
    shape = SHAPES["chinchilla"]
    model = make_model(shape)
    attention = model.blocks[0].attention
    assert isinstance(attention, RelativeAttention)
    x = torch.randn(1, 9, 32, generator=torch.Generator().manual_seed(4))
    _, positions = model._positions(torch.zeros(1, 9, dtype=torch.int64), None, None)
    heads, e = shape.n_heads, shape.head_dim
    q, k, v = attention.qkv(x)[0].view(9, 3, heads, e).unbind(1)
    expected = torch.zeros(9, heads, e)
    for h in range(heads):
        for i in range(9):
            scores = []
            for j in range(i + 1):
                r = (attention.position_key.weight @ sinusoids(torch.tensor(i - j), 32)).view(heads, e)[h]
                content = (q[i, h] + attention.content_bias[h]) @ k[j, h]
                scores.append((content + (q[i, h] + attention.position_bias[h]) @ r) / math.sqrt(e))
            weights = torch.stack(scores).softmax(0)
            expected[i, h] = sum(weight * v[j, h] for j, weight in enumerate(weights))
    torch.testing.assert_close(attention(x, positions)[0], attention.out(expected.flatten(1)), rtol=1e-4, atol=1e-5)


def test_relative_shift_finds_the_distance_of_each_pair():
    t, s = 3, 5  # three queries after two cached keys
    distance = torch.arange(s - 1, -1, -1.0).expand(1, 1, t, s)
    shifted = shift_distances(distance)[0, 0]
    for i in range(t):
        for j in range(s - t + i + 1):
            assert shifted[i, j] == (s - t + i) - j


def test_sinusoids_equal_the_formula_of_the_paper():
    table = sinusoids(torch.arange(50), 16)
    for p in (0, 1, 7, 49):
        for i in range(8):
            assert table[p, 2 * i] == pytest.approx(math.sin(p / 10000 ** (2 * i / 16)), abs=1e-5)
            assert table[p, 2 * i + 1] == pytest.approx(math.cos(p / 10000 ** (2 * i / 16)), abs=1e-5)


def test_textbook_positions_number_the_tokens_and_not_the_rows():
    model = make_model(SHAPES["textbook-pre"])
    same = torch.full((3, 6), 5)
    logits = model(same)
    torch.testing.assert_close(logits[0], logits[2])  # equal rows are equal ...
    assert (logits[0, 0] - logits[0, 5]).abs().max() > 1e-3  # ... and equal tokens at other positions are not


def test_rotary_scores_depend_on_distance_only():
    q, k = torch.randn(2, 1, 8, generator=torch.Generator().manual_seed(5))
    scores = []
    for i, j in ((3, 1), (13, 11), (43, 41)):
        cos, sin = rotary_table(torch.tensor([i, j]), 8, 10000.0)
        scores.append((rotate(q, cos[:1], sin[:1]) @ rotate(k, cos[1:], sin[1:]).T).item())
    assert scores == pytest.approx([scores[0]] * 3, rel=1e-4)


def test_initial_scales_follow_the_recipe():
    shape = replace(QWEN3, vocab=512, d_model=128, n_heads=16, d_ff=256)
    model = make_model(shape, is_shaken=False)
    for name, parameter in model.named_parameters():
        if name == "embedding":
            assert parameter.std().item() == pytest.approx(EMBEDDING_STD, rel=0.02)
        elif name.endswith(("qkv.weight", "gate_up.weight")):
            assert parameter.std().item() == pytest.approx(128**-0.5, rel=0.03)
        elif name.endswith(("norm.weight",)):
            assert (parameter == 1).all()
        else:
            assert (parameter == 0).all()
            assert name.endswith(("out.weight", "down.weight", "head.weight"))


def test_a_seed_gives_one_model_and_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    first, second, other = Transformer(QWEN3), Transformer(QWEN3), Transformer(QWEN3)
    initialise(first, 7)
    initialise(second, 7)
    initialise(other, 8)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(first.embedding, second.embedding)
    assert torch.equal(first.blocks[1].attention.qkv.weight, second.blocks[1].attention.qkv.weight)
    assert not torch.equal(first.embedding, other.embedding)


def test_dropout_acts_in_training_only():
    shape = replace(QWEN3, dropout=0.5)
    model, ids = make_model(shape), make_ids(2, 16)
    assert not torch.equal(model(ids), model(ids))
    model.eval()
    assert torch.equal(model(ids), model(ids))


def test_too_long_a_text_is_refused():
    with pytest.raises(ModelError, match="49 tokens are more than the model's context of 48"):
        make_model(QWEN3)(make_ids(1, 49))


def test_parameter_names_are_stable():
    """Checkpoints and optimizers rely on these names; a change needs a migration."""
    names = {key: [n for n, _ in Transformer(shape).named_parameters()] for key, shape in SHAPES.items()}
    block = [
        "attention_norm.weight",
        "attention.qkv.weight",
        "attention.out.weight",
        "attention.query_norm.weight",
        "attention.key_norm.weight",
        "feed_forward_norm.weight",
        "feed_forward.gate_up.weight",
        "feed_forward.down.weight",
    ]
    assert names["qwen3"] == [
        "embedding",
        *[f"blocks.{layer}.{name}" for layer in range(2) for name in block],
        "norm.weight",
        "head.weight",
    ]
    assert names["qwen3-tied"] == names["qwen3"][:-1]
    assert [n.removeprefix("blocks.1.") for n in names["chinchilla"] if n.startswith("blocks.1.")] == [
        "attention_norm.weight",
        "attention.content_bias",
        "attention.position_bias",
        "attention.qkv.weight",
        "attention.position_key.weight",
        "attention.out.weight",
        "feed_forward_norm.weight",
        "feed_forward.up.weight",
        "feed_forward.up.bias",
        "feed_forward.down.weight",
        "feed_forward.down.bias",
    ]
    assert "norm.weight" not in names["textbook-post"]
    assert "norm.bias" in names["textbook-pre"]
