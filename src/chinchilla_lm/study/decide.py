"""From the ladder to the plan: the law, the size and tokens that the rest of the budget buys, and the forecast.

Everything here is written to disk before the final training starts: law.json, forecast.json, plan.toml.
Sizes are compared by predicted loss for the same seconds (or FLOPs), not by C = 6ND: on a real machine a wide model
does more FLOPs a second than a narrow one, and the time-optimal size is the larger for it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from chinchilla_lm.core.errors import BudgetError
from chinchilla_lm.core.shapes import ModelShape
from chinchilla_lm.laws.count import count_parameters, training_flops_per_token
from chinchilla_lm.laws.forms.additive import AdditiveLaw
from chinchilla_lm.laws.forms.repetition import effective_tokens
from chinchilla_lm.laws.shapes import path
from chinchilla_lm.laws.trust.bracket import Run, Target
from chinchilla_lm.laws.trust.forecast import Forecast, forecast
from chinchilla_lm.study.ladder import MOST_EPOCHS, TRUSTED_RUNG_FLOPS
from chinchilla_lm.train.recipe import RECIPE_VERSION

# A law of small runs may wander; sizes further than this from sqrt-scaling of the top rung's best run are not tried.
_MOST_DRIFT = 3.0
FLAT_BAND_PENALTY = 0.005
_DOUBTFUL_HALF_WIDTH = 0.04  # laws of runs below the floor missed by +4.8 % at 10x (dev/LOG.md)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A size that the rest of the budget could train.

    Attributes:
        shape: of the model.
        params: matmul parameters.
        tokens: that fit the budget.
        seconds: they take; None where the budget is FLOPs.
        loss: by the additive law, with repeated tokens discounted.
    """

    shape: ModelShape
    params: float
    tokens: float
    seconds: float | None
    loss: float

    def to_dict(self) -> dict[str, Any]:
        """Return the fields of one of forecast.json's candidates."""
        return {
            "d_model": self.shape.d_model,
            "params_matmul": self.params,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "loss": self.loss,
        }


def rank_candidates(
    law: AdditiveLaw,
    affordable_tokens: Callable[[ModelShape], tuple[float, float | None]],
    *,
    top: Run,
    vocab: int,
    context: int,
    unique_tokens: float,
) -> list[Candidate]:
    """Price every shape of the path at the same budget, least predicted loss first.

    Args:
        law: of the ladder.
        affordable_tokens: shape -> (tokens, seconds) that the rest of the budget buys.
        top: the best run of the top rung.
        vocab: of the tokenizer.
        context: tokens in a window.
        unique_tokens: in the training text.

    Returns:
        Candidates within a factor 3 of where the square-root rule puts the optimum, best first.

    Raises:
        BudgetError: nothing is left to train any of them.
    """
    candidates: list[Candidate] = []
    for shape in path(vocab=vocab, context=context):
        tokens, seconds = affordable_tokens(shape)
        if tokens < context * 100:
            continue
        params = float(count_parameters(shape).matmul)
        flops = tokens * training_flops_per_token(shape)
        expected = top.params * math.sqrt(max(flops / top.flops, 1.0))
        if not expected / _MOST_DRIFT <= params <= expected * _MOST_DRIFT:
            continue
        loss = float(law.loss(params, effective_tokens(tokens, unique_tokens)))
        candidates.append(Candidate(shape=shape, params=params, tokens=tokens, seconds=seconds, loss=loss))
    if not candidates:
        raise BudgetError("the sweep has spent the budget and nothing is left for the final run; give a larger budget")
    return sorted(candidates, key=lambda candidate: candidate.loss)


def flat_band(candidates: Sequence[Candidate]) -> dict[str, float]:
    """Give the range of sizes that cost less than .5 % of loss: the valley is flat, N* is no precise number."""
    best = min(candidate.loss for candidate in candidates)
    inside = [candidate.params for candidate in candidates if candidate.loss <= best * (1 + FLAT_BAND_PENALTY)]
    return {"params_low": min(inside), "params_high": max(inside), "loss_penalty": FLAT_BAND_PENALTY}


def forecast_run(
    runs: Sequence[Run], shape: ModelShape, tokens: float, unique_tokens: float, seed_sd: float
) -> Forecast:
    """Forecast a run of a shape, its repeated tokens discounted.

    Args:
        runs: of the ladder.
        shape: to be trained.
        tokens: to train on.
        unique_tokens: in the text.
        seed_sd: sd of ln L between seeds.

    Returns:
        The forecast.
    """
    target = Target(
        params=float(count_parameters(shape).matmul),
        tokens=tokens,
        flops=tokens * training_flops_per_token(shape),
        effective_tokens=float(effective_tokens(tokens, unique_tokens)),
    )
    return forecast(runs, target, seed_sd=seed_sd)


def forecast_record(
    made: Forecast,
    shape: ModelShape,
    tokens: float,
    candidates: Sequence[Candidate],
    *,
    tokens_per_byte: float,
    unique_tokens: float,
) -> dict[str, Any]:
    """Assemble forecast.json.

    Args:
        made: the forecast.
        shape: of the final model.
        tokens: it will be trained on.
        candidates: the sizes compared.
        tokens_per_byte: of the held-out text, which turns nats per token into bits per byte.
        unique_tokens: in the training text.

    Returns:
        The record, schema forecast/1.
    """
    count = count_parameters(shape)
    to_bits = tokens_per_byte / math.log(2)
    epochs = tokens / unique_tokens
    doubts = _doubts(made, epochs)
    floor = _DOUBTFUL_HALF_WIDTH if doubts else 0.0
    low, high = min(made.low, made.loss * (1 - floor)), max(made.high, made.loss * (1 + floor))
    return {
        **made.to_dict(),
        "low": low,
        "high": high,
        "written_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "params_matmul": count.matmul,
        "params_total": count.total,
        "tokens": tokens,
        "unique_tokens": unique_tokens,
        "epochs": epochs,
        "shape": shape.to_dict(),
        "recipe": RECIPE_VERSION,
        "established": made.established and not doubts,
        "reasons": [*doubts, *made.reasons],
        "flat_band": flat_band(candidates),
        "candidates": [candidate.to_dict() for candidate in sorted(candidates, key=lambda c: c.params)],
        "bits_per_byte": {
            "predicted": made.loss * to_bits,
            "low": low * to_bits,
            "high": high * to_bits,
        },
    }


def _doubts(made: Forecast, epochs: float) -> list[str]:
    """Say why the law may not hold for this run, a line each."""
    doubts: list[str] = []
    if sum(rung.flops >= 0.9 * TRUSTED_RUNG_FLOPS for rung in made.rungs) < 2:
        doubts.append(
            f"fewer than two rungs reach {TRUSTED_RUNG_FLOPS:.0e} FLOPs, where runs begin to follow a law; "
            "give a larger budget"
        )
    if epochs > MOST_EPOCHS:
        doubts.append(
            f"the text is seen {epochs:.1f} times, and past {MOST_EPOCHS:.0f} passes more compute buys little: "
            "give more text, or a smaller budget"
        )
    return doubts
