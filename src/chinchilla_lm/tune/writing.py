"""How a tuned model writes its answers: greedily, by beam search, or by drawing; one batch of prompts at a time.

Greedy is the default and what `backbone.generate` does. Beams and draws go prompt by prompt: on our backbone through
the decoding engine (whose beam search finds transformers' texts), on the hub through transformers' `generate`.
A draw has its own random numbers from (seed, prompt): it depends neither on the batch nor on what training drew before,
and does not change what training draws next. Never reads rows, never measures.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from chinchilla_lm.generate.beam import BeamSearch, search_beams
from chinchilla_lm.generate.sampling import Sampling, choose_tokens
from chinchilla_lm.tune.config import TuneConfig
from chinchilla_lm.tune.own_backbone import OwnBackbone

if TYPE_CHECKING:
    from chinchilla_lm.tune.backbone import Backbone

_MOST_OPENINGS = 2  # SmolLM2 answers "Summary:" with one line break or two
Prompts = Sequence[Sequence[int]]
Write = Callable[[Prompts], list[list[int]]]


@dataclass(frozen=True, kw_only=True)
class Writing:
    """How answers are written.

    Attributes:
        max_tokens: of one answer, >= 1.
        stop_ids: tokens that end it.
        opening_ids: those of them that do not while nothing is written: a chat model likes to begin with a line break.
        beams: > 1: beam search with so many.
        temperature: > 0: tokens are drawn.
        seed: of the draws.
    """

    max_tokens: int
    stop_ids: tuple[int, ...]
    opening_ids: tuple[int, ...] = ()
    beams: int = 1
    temperature: float = 0.0
    seed: int = 0

    def describe(self) -> dict[str, Any]:
        """For the record and the card."""
        return {"max_new_tokens": self.max_tokens, "beams": self.beams, "temperature": self.temperature}


def writing_of(config: TuneConfig, max_tokens: int, stop_ids: Sequence[int]) -> Writing:
    """The settings of a config."""
    return Writing(
        max_tokens=max_tokens,
        stop_ids=tuple(stop_ids),
        opening_ids=tuple(stop_ids)[1:],  # the first is the end-of-text token, the others begin with a stop string
        beams=config.beams,
        temperature=config.temperature,
        seed=config.seed,
    )


def make_writer(backbone: Backbone, writing: Writing) -> Write:
    """The function that continues a batch of prompts until a stop token, which it leaves out."""
    if writing.beams == 1 and writing.temperature == 0:
        return lambda prompts: _write_greedily(backbone, writing, prompts)
    write_one = _own_writer(backbone, writing) if isinstance(backbone, OwnBackbone) else _hub_writer(backbone, writing)
    return lambda prompts: [write_one(list(prompt)) for prompt in prompts]


def _write_greedily(backbone: Backbone, writing: Writing, prompts: Prompts) -> list[list[int]]:
    """Continue all prompts; those that open with line breaks are asked again behind them."""
    asked = [list(prompt) for prompt in prompts]
    answers = backbone.generate(asked, writing.max_tokens, writing.stop_ids)
    for _ in range(_MOST_OPENINGS if backbone.kind == "causal" and writing.opening_ids else 0):
        empty = [index for index, answer in enumerate(answers) if not answer]
        if not empty:
            break
        first = backbone.next_token_logits([asked[index] for index in empty]).argmax(dim=-1).tolist()
        opened = [(index, token) for index, token in zip(empty, first, strict=True) if token in writing.opening_ids]
        for index, token in opened:
            asked[index].append(token)
        again = [index for index, _ in opened if len(asked[index]) < backbone.context]
        written = backbone.generate([asked[index] for index in again], writing.max_tokens, writing.stop_ids)
        for index, answer in zip(again, written, strict=True):
            answers[index] = answer
    return answers


def _own_writer(backbone: OwnBackbone, writing: Writing) -> Callable[[list[int]], list[int]]:
    @torch.no_grad()
    def write(prompt: list[int]) -> list[int]:
        engine = backbone._fresh_engine(len(prompt) + writing.max_tokens)
        if writing.beams > 1:
            settings = BeamSearch(beams=writing.beams)
            found = search_beams(engine, prompt, settings, max_tokens=writing.max_tokens, stop_ids=writing.stop_ids)
            return list(found[0].token_ids)
        sampling = Sampling(temperature=writing.temperature)
        generator = torch.Generator().manual_seed(_seed_of(prompt, writing))
        answer: list[int] = []
        logits_v = engine.prefill(0, prompt)
        while True:
            token = int(choose_tokens(logits_v[None].float().cpu(), sampling, generator)[0])
            if token in writing.stop_ids:
                return answer
            answer.append(token)
            if len(answer) >= writing.max_tokens or engine.length(0) >= engine.capacity:
                return answer
            logits_v = engine.decode([0], [token])[0]

    return write


def _hub_writer(backbone: Any, writing: Writing) -> Callable[[list[int]], list[int]]:
    @torch.no_grad()
    def write(prompt: list[int]) -> list[int]:
        ids_bt = torch.tensor([prompt], device=backbone.device)
        is_drawn = writing.temperature > 0
        choice = {"temperature": writing.temperature, "top_k": 0, "top_p": 1.0} if is_drawn else {}
        with torch.random.fork_rng(), backbone._precision():
            torch.manual_seed(_seed_of(prompt, writing))
            out_bt = backbone.module.generate(
                input_ids=ids_bt,
                attention_mask=torch.ones_like(ids_bt),
                max_new_tokens=writing.max_tokens,
                do_sample=is_drawn,
                num_beams=writing.beams,
                eos_token_id=list(writing.stop_ids),
                pad_token_id=backbone.tokenizer.pad_token_id,
                **choice,
            )
        answer = out_bt[0, 1 if backbone.kind == "seq2seq" else len(prompt) :].tolist()
        ends = [place for place, token in enumerate(answer) if token in writing.stop_ids]
        return answer[: ends[0]] if ends else answer

    return write


def _seed_of(prompt: Sequence[int], writing: Writing) -> int:
    return zlib.crc32(np.asarray([writing.seed, *prompt], dtype=np.int64).tobytes())
