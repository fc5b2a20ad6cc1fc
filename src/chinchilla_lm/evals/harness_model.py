"""Our engine as a model of lm-evaluation-harness. Importing it needs lm_eval; `harness.py` says so where it is absent.

Tokens, boundaries, empty contexts and cuts at the left follow the harness's `TemplateLM`, so that the same requests are
priced as by its Hugging Face model; a request that is longer than the context keeps its last tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lm_eval.api.model import TemplateLM  # pyright: ignore[reportMissingImports]

from chinchilla_lm.core.errors import DataError
from chinchilla_lm.evals.harness import DEFAULT_NEW_TOKENS
from chinchilla_lm.evals.scorer import Scorer, TokenPair
from chinchilla_lm.evals.sliding import document_nats
from chinchilla_lm.generate.completion import complete
from chinchilla_lm.generate.request import Request, join_events
from chinchilla_lm.generate.sampling import Sampling
from chinchilla_lm.model.transformer import Transformer


class HarnessModel(TemplateLM):
    """See `harness.make_harness_model`."""

    def __init__(self, model: Transformer, scorer: Scorer) -> None:
        super().__init__()
        self._model, self._scorer = model, scorer

    @property
    def eot_token_id(self) -> int:
        """The end-of-text token."""
        return self._scorer.stop_ids[0] if self._scorer.stop_ids else self._scorer.start_id

    @property
    def prefix_token_id(self) -> int:
        """The token that an empty context stands for."""
        return self._scorer.start_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Tokenise; no special token is added, whatever is asked: our engine adds none either."""
        return self._scorer.tokenizer.encode(string, add_special_tokens=False).ids

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        room = self._scorer.engine.capacity + 1  # the last token of a continuation is never an input
        pairs = []
        for _, context, continuation in requests:
            if not 0 < len(continuation) < room:
                raise DataError(
                    f"a continuation of {len(continuation)} tokens cannot be priced in a context of {room - 1}; leave "
                    "the task out, or take a model of a longer context"
                )
            context = context or [self.prefix_token_id]
            cut = max(0, len(context) + len(continuation) - room)
            pairs.append(TokenPair(tuple(context[cut:]), tuple(continuation), cut))
        answers = [(score.logprob, score.is_greedy) for score in self._scorer.score_ids(pairs)]
        for (names, _, _), answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial("loglikelihood", names, answer)
        return answers

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probabilities of whole texts, in the harness's disjoint windows of the model's context."""
        ids = [self.tok_encode(request.args[0]) for request in requests]
        nats_n = document_nats(self._model, ids, start_id=self.prefix_token_id, stride=self._model.shape.context)
        return [-float(nats) for nats in nats_n]

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Continue each context until one of its stop strings, greedily unless the task asks for a temperature."""
        return [self._continue(*request.args) for request in requests]

    def _continue(self, context: str, settings: dict[str, Any]) -> str:
        engine, until = self._scorer.engine, settings.get("until") or []
        capacity = engine.capacity
        ids = self.tok_encode(context) or [self.prefix_token_id]
        # In a context too short for both, the prompt keeps half: the harness's own model refuses such a task.
        most = min(int(settings.get("max_gen_toks", DEFAULT_NEW_TOKENS)), max(capacity - len(ids), capacity // 2))
        is_drawn = bool(settings.get("do_sample")) and float(settings.get("temperature") or 0) > 0
        request = Request(
            prompt_ids=tuple(ids[-(capacity - most) :]),
            max_tokens=most,
            sampling=Sampling(temperature=float(settings["temperature"]) if is_drawn else 0.0),
            stop=tuple(stop for stop in _strings(until) if stop),
            stop_ids=self._scorer.stop_ids or (self.eot_token_id,),
        )
        return join_events(complete(engine, self._scorer.tokenizer, request))[0].text


def _strings(until: str | Sequence[str]) -> Sequence[str]:
    return [until] if isinstance(until, str) else until
