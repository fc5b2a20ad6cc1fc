"""How a tuned model writes its answers: greedily, by beam search, or by drawing; one batch of prompts at a time.

Greedy is the default and what `backbone.generate` does. Beams and draws go prompt by prompt: on our backbone through
the decoding engine (whose beam search finds transformers' texts), on the hub through transformers' `generate`.
A draw has its own random numbers from (seed, prompt): it depends neither on the batch nor on what training drew before,
and does not change what training draws next.

An answer is not empty where no training answer was: its first token is the likeliest one that does not end it. A model
that has just learnt to end its answers gives the end at the first place, too, what it would have given a line break
there, though its answers are good (SmolLM2, 8 updates on scitldr: 16 of 24 summaries empty, ROUGE-L .121; each begun
with its likeliest word .275; the untouched model .241). Never reads rows, never measures.
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
        may_be_empty: an answer may end before its first token.
        beams: > 1: beam search with so many.
        temperature: > 0: tokens are drawn.
        seed: of the draws.
    """

    max_tokens: int
    stop_ids: tuple[int, ...]
    opening_ids: tuple[int, ...] = ()
    may_be_empty: bool = True
    beams: int = 1
    temperature: float = 0.0
    seed: int = 0

    def describe(self) -> dict[str, Any]:
        """For the record and the card."""
        return {"max_new_tokens": self.max_tokens, "beams": self.beams, "temperature": self.temperature}


def writing_of(config: TuneConfig, max_tokens: int, stop_ids: Sequence[int], *, may_be_empty: bool) -> Writing:
    """The settings of a config."""
    return Writing(
        max_tokens=max_tokens,
        stop_ids=tuple(stop_ids),
        opening_ids=tuple(stop_ids)[1:],  # the first is the end-of-text token, the others begin with a stop string
        may_be_empty=may_be_empty,
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
    """Continue all prompts; empty answers are asked again behind the line breaks they open with, then not to be so."""
    answers = backbone.generate(prompts, writing.max_tokens, writing.stop_ids)
    if backbone.kind != "causal":
        if not writing.may_be_empty and not all(answers):
            write_one = _hub_writer(backbone, writing)
            return [answer or write_one(list(prompt)) for answer, prompt in zip(answers, prompts, strict=True)]
        return answers
    asked = [list(prompt) for prompt in prompts]
    for rounds_left in reversed(range(_MOST_OPENINGS + 1)):
        openings = writing.opening_ids if rounds_left else ()
        empty = [i for i, answer in enumerate(answers) if not answer and len(asked[i]) + 1 < backbone.context]
        if not empty or (writing.may_be_empty and not openings):
            break
        logits_bv = backbone.next_token_logits([asked[index] for index in empty])
        if not writing.may_be_empty:
            logits_bv[:, [token for token in writing.stop_ids if token not in openings]] = -torch.inf
        first = dict(zip(empty, logits_bv.argmax(dim=-1).tolist(), strict=True))
        again = [i for i in empty if first[i] in openings or first[i] not in writing.stop_ids]
        for index in again:
            asked[index].append(first[index])
        written = backbone.generate([asked[index] for index in again], writing.max_tokens, writing.stop_ids)
        for index, answer in zip(again, written, strict=True):
            begun = [] if first[index] in openings else [first[index]]
            answers[index] = [*begun, *answer][: writing.max_tokens]
    return answers


def _own_writer(backbone: OwnBackbone, writing: Writing) -> Callable[[list[int]], list[int]]:
    @torch.no_grad()
    def write(prompt: list[int]) -> list[int]:
        engine = backbone._fresh_engine(len(prompt) + writing.max_tokens)
        if writing.beams > 1:
            settings = BeamSearch(beams=writing.beams)
            found = search_beams(engine, prompt, settings, max_tokens=writing.max_tokens, stop_ids=writing.stop_ids)
            kept = [beam for beam in found if beam.token_ids or writing.may_be_empty]
            return list((kept or found)[0].token_ids)
        sampling = Sampling(temperature=writing.temperature)
        generator = torch.Generator().manual_seed(_seed_of(prompt, writing))
        answer: list[int] = []
        logits_v = engine.prefill(0, prompt)
        while True:
            if not answer and not writing.may_be_empty:
                logits_v[list(writing.stop_ids)] = -torch.inf
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
                min_new_tokens=0 if writing.may_be_empty else 1,
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
