"""The routes: read a body, ask the model, answer. What they share is in `Routes`; each is one short method."""

from __future__ import annotations

import array
import asyncio
import base64
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from chinchilla_lm.core.errors import ConfigError, ModelError
from chinchilla_lm.generate.request import QueueFull
from chinchilla_lm.generate.request import Request as TextRequest
from chinchilla_lm.generate.text import encode_text
from chinchilla_lm.serve import metrics as metrics_page
from chinchilla_lm.serve.answer_reader import AnswerReader
from chinchilla_lm.serve.answers import Answer
from chinchilla_lm.serve.api_errors import ApiError
from chinchilla_lm.serve.bodies import LARGE_BODY_BYTES, BodyReader
from chinchilla_lm.serve.classifier import Classifier, Tagger
from chinchilla_lm.serve.event_stream import EventStream
from chinchilla_lm.serve.guards import Exchange
from chinchilla_lm.serve.metrics import Metrics
from chinchilla_lm.serve.openai_schema import (
    ChatBody,
    ClassifyBody,
    CompletionBody,
    DetokenizeBody,
    EmbeddingBody,
    GenerationBody,
    Question,
    RelatedText,
    TextPair,
    TokenizeBody,
)
from chinchilla_lm.serve.relation_reader import RelationReader
from chinchilla_lm.serve.runs import ClientLeft, Run, collect
from chinchilla_lm.serve.served_model import ServedModel
from chinchilla_lm.serve.settings import ServerSettings
from chinchilla_lm.serve.translate import (
    FORM_FIELDS,
    chat_requests,
    completion_requests,
    most_prompt_tokens,
    read_pairs,
    read_prompts,
    read_questions,
    read_related,
)

QUICK_BODY_BYTES = 1024  # of a short question; its prompt takes up to 0.3 ms to tokenise (2026-11-22)
QUICK_TEXTS = 4  # each 0.04 ms to begin
Result = TypeVar("Result")
Given = TypeVar("Given")


class Routes:
    """Answers of one served model. Attributes: `is_draining`, set when the server has been told to stop."""

    def __init__(self, served: ServedModel, settings: ServerSettings, metrics: Metrics) -> None:
        """Nothing runs yet."""
        self.is_draining = False
        self._served, self._settings, self._metrics = served, settings, metrics
        self._limits = settings.limits
        self._bodies = BodyReader(settings.limits, served.bound, served.large_work)
        self._most_tokens = max(1, most_prompt_tokens(served, settings.limits, reserve=0))
        self._in_flight = 0
        self._runs: set[Run] = set()

    async def completions(self, request: Request) -> Response:
        """POST /v1/completions."""
        body = await self._bodies.read(request, CompletionBody, most_tokens=self._most_tokens)
        return await self._write(request, body, lambda: completion_requests(body, self._served, self._limits))

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        body = await self._bodies.read(request, ChatBody)
        return await self._write(request, body, lambda: chat_requests(body, self._served, self._limits))

    async def embeddings(self, request: Request) -> Response:
        """POST /v1/embeddings."""
        body = await self._bodies.read(request, EmbeddingBody, most_tokens=self._most_tokens)
        self._check_model(body.model)
        prompts = await self._read_input(request, body.input)
        rows: list[dict[str, Any]] = []
        for index, found in enumerate(await self._compute(request, self._served.embed, prompts)):
            vector = found.tolist()
            if body.encoding_format == "base64":
                vector = base64.b64encode(array.array("f", vector).tobytes()).decode()
            rows.append({"object": "embedding", "index": index, "embedding": vector})
        return JSONResponse(
            {"object": "list", "data": rows, "model": self._served.name, "usage": self._read_usage(prompts)}
        )

    async def classify(self, request: Request) -> Response:
        """POST /v1/classify."""
        classifier = self._served.classifier
        is_cut = isinstance(
            classifier, AnswerReader | RelationReader
        )  # into windows, or to what is around the entities
        most_tokens = None if is_cut else self._most_tokens
        body = await self._bodies.read(request, ClassifyBody, most_tokens=most_tokens)
        self._check_model(body.model)
        if classifier is None:
            raise ApiError(
                404,
                f"the model {self._served.name} has no classification head; serve a tuned ...ForSequenceClassification "
                'folder, or use /v1/completions with response_format {"type": "labels"}',
                code="no_classification_head",
            )
        if isinstance(classifier, AnswerReader):
            return await self._answer(request, body.input, classifier)
        if isinstance(classifier, RelationReader):
            return await self._relate(request, body.input, classifier)
        if isinstance(classifier, Classifier) and classifier.is_paired:
            self._enter(request)
            prompts = await self._read(request, lambda: read_pairs(body.input, self._served, self._limits, "input"))
        else:
            prompts = await self._read_input(request, _single_texts(body.input))
        rows: list[dict[str, Any]] = []
        if isinstance(classifier, Tagger):
            texts = _only_texts(_single_texts(body.input))
            for index, entities in enumerate(await self._compute(request, classifier.entities, texts)):
                rows.append({"index": index, "entities": entities})
        else:
            for index, chances in enumerate(await self._compute(request, classifier.probabilities, prompts)):
                rows.append(_class_row(index, chances, classifier.labels))
        answer = {"object": "list", "data": rows, "labels": list(classifier.labels), "model": self._served.name}
        return JSONResponse({**answer, "usage": self._read_usage(prompts)})

    async def _answer(self, request: Request, given: Any, reader: AnswerReader) -> Response:
        """Answer questions, window by window."""
        self._enter(request)
        asked = await self._read(request, lambda: read_questions(given, reader, self._served, self._limits, "input"))
        scores = iter(await self._compute(request, reader.score, [window for _, each in asked for window in each]))
        rows = [
            {"index": index, **reader.answer(one.context, windows, [next(scores) for _ in windows])}
            for index, (one, windows) in enumerate(asked)
        ]
        usage = self._read_usage([window.ids_t.tolist() for _, windows in asked for window in windows])
        answer = {"object": "list", "data": rows, "labels": [], "model": self._served.name, "usage": usage}
        return JSONResponse(answer)

    async def _relate(self, request: Request, given: Any, reader: RelationReader) -> Response:
        """Name the relations of texts with two entities each."""
        self._enter(request)
        asked = await self._read(request, lambda: read_related(given, reader, self._served, self._limits, "input"))
        found = await self._compute(request, reader.probabilities, asked)
        rows = [_class_row(index, chances, reader.labels) for index, chances in enumerate(found)]
        usage = self._read_usage([each.ids_t.tolist() for each in asked])
        answer = {"object": "list", "data": rows, "labels": list(reader.labels), "model": self._served.name}
        return JSONResponse({**answer, "usage": usage})

    async def tokenize(self, request: Request) -> Response:
        """POST /tokenize."""
        body = await self._bodies.read(request, TokenizeBody, {})
        self._check_model(body.model)
        self._enter(request)
        tokenizer, label = self._served.tokenizer, self._served.token_text.label

        def read() -> tuple[list[int], list[str] | None]:
            ids = encode_text(tokenizer, body.prompt, add_special_tokens=body.add_special_tokens)
            return ids, [label(token) for token in ids] if body.return_token_strs else None

        ids, words = await self._read(request, read)
        answer = {"tokens": ids, "token_strs": words, "count": len(ids), "max_model_len": self._served.capacity}
        return JSONResponse(answer)

    async def detokenize(self, request: Request) -> Response:
        """POST /detokenize."""
        body = await self._bodies.read(request, DetokenizeBody, {})
        self._check_model(body.model)
        outside = next((token for token in body.tokens if token >= self._served.vocab), None)
        if outside is not None:
            raise ApiError(400, f"tokens: id {outside} must be below {self._served.vocab}", param="tokens")
        self._enter(request)
        decode = self._served.tokenizer.decode
        text = await self._read(request, lambda: decode(list(body.tokens), skip_special_tokens=False))
        return JSONResponse({"prompt": text})

    async def models(self, _: Request) -> Response:
        """GET /v1/models."""
        return JSONResponse({"object": "list", "data": [self._card()]})

    async def model(self, request: Request) -> Response:
        """GET /v1/models/NAME."""
        self._check_model(request.path_params["model"])
        return JSONResponse(self._card())

    async def health(self, _: Request) -> Response:
        """GET /health: the process answers."""
        return JSONResponse({"status": "ok"})

    async def ready(self, _: Request) -> Response:
        """GET /ready: requests are taken."""
        if self.is_draining or not self._served.is_alive():
            raise ApiError(503, "the server is shutting down or its worker has ended; ask another, or restart it")
        return JSONResponse({"status": "ready", "model": self._served.name})

    async def metrics(self, _: Request) -> Response:
        """GET /metrics."""
        return PlainTextResponse(self._metrics.page(), media_type=metrics_page.CONTENT_TYPE)

    def abort(self) -> None:
        """End every text that is being written; its client is told."""
        for run in list(self._runs):
            run.abort()

    async def _write(
        self, request: Request, body: GenerationBody, translate: Callable[[], list[TextRequest]]
    ) -> Response:
        self._check_model(body.model)
        if self._served.scheduler is None:
            raise ApiError(404, f"the model {self._served.name} is a classifier; ask /v1/classify", code="no_text")
        exchange = self._enter(request)

        def begin() -> tuple[list[TextRequest], Run]:
            requests = translate()
            if self._settings.logs_prompts:
                exchange.notes |= self._noted_prompts(requests)
            return requests, self._submit(requests)

        # The way to another thread and back takes longer than a short prompt, most of all while others hold the lock.
        is_quick = exchange.body_bytes <= QUICK_BODY_BYTES and _is_quick(body)
        requests, run = begin() if is_quick else await self._read(request, begin)
        self._runs.add(run)
        exchange.at_end += [run.cancel, lambda: self._runs.discard(run), lambda: _note_tokens(exchange, run)]
        is_chat = isinstance(body, ChatBody)
        answer = Answer(self._served, requests, is_chat=is_chat)
        if body.stream:
            has_usage = body.stream_options is not None and body.stream_options.include_usage
            return EventStream(answer, run, self._served.large_work, has_usage=has_usage)
        found = await collect(run, request.receive)
        if answer.is_large(found):
            threads = self._served.large_work
            content = await asyncio.get_running_loop().run_in_executor(threads, answer.whole, found, run)
        else:
            content = answer.whole(found, run)
        return Response(content, media_type="application/json")

    def _noted_prompts(self, requests: Sequence[TextRequest]) -> dict[str, Any]:
        prompts = [list(one.prompt_ids) for one in requests]
        decode = self._served.tokenizer.decode
        words = [decode(ids, skip_special_tokens=False) for ids in prompts]
        return {"prompt_token_ids": prompts, "prompts": words}

    def _submit(self, requests: Sequence[TextRequest]) -> Run:
        assert self._served.scheduler is not None
        tickets = []
        try:
            for one in requests:
                tickets.append(self._served.scheduler.submit(one))
        except QueueFull as error:
            for ticket in tickets:
                ticket.cancel()
            is_ending = self.is_draining or not self._served.is_alive()
            raise ApiError(503 if is_ending else 429, str(error)) from None
        except (ConfigError, ModelError) as error:
            for ticket in tickets:
                ticket.cancel()
            raise ApiError(400, str(error)) from None
        return Run(tickets, self._metrics, self._limits.request_timeout_s)

    def _enter(self, request: Request) -> Exchange:
        """Take a place among the requests under way, given back when the answer is complete."""
        exchange: Exchange = request.scope["exchange"]
        if self.is_draining:
            raise ApiError(503, "the server is shutting down; try another, or later")
        if self._in_flight >= self._limits.max_requests:
            raise ApiError(429, f"{self._in_flight} requests are under way, the limit; try again", code="queue_full")
        self._in_flight += 1
        self._metrics.in_flight.inc()

        def leave() -> None:
            self._in_flight -= 1
            self._metrics.in_flight.dec()

        exchange.at_end.append(leave)
        return exchange

    def _check_model(self, name: str | None) -> None:
        if name is not None and name != self._served.name:
            raise ApiError(
                404,
                f"the model {name[:80]!r} is not served; this is {self._served.name}",
                param="model",
                code="model_not_found",
            )

    def _card(self) -> dict[str, Any]:
        card = {
            "id": self._served.name,
            "object": "model",
            "created": self._served.created,
            "owned_by": "chinchilla-lm",
        }
        return {**card, "max_model_len": self._served.capacity}

    @staticmethod
    def _read_usage(prompts: Sequence[Sequence[int]]) -> dict[str, int]:
        tokens = sum(map(len, prompts))
        return {"prompt_tokens": tokens, "total_tokens": tokens}

    async def _read(self, request: Request, work: Callable[[], Result]) -> Result:
        is_large = request.scope["exchange"].body_bytes >= LARGE_BODY_BYTES
        threads = self._served.large_work if is_large else self._served.readers
        return await asyncio.get_running_loop().run_in_executor(threads, work)

    async def _read_input(self, request: Request, given: str | Sequence[Any]) -> list[tuple[int, ...]]:
        self._enter(request)
        return await self._read(request, lambda: read_prompts(given, self._served, self._limits, "input", reserve=0))

    async def _compute(
        self, request: Request, work: Callable[[Given], Result], prompts: Sequence[Given]
    ) -> list[Result]:
        """Do the work for each prompt in the lane, until the time is over or the client has left."""
        results: list[Result] = []
        try:
            async with asyncio.timeout(self._limits.request_timeout_s):
                for ids in prompts:
                    if await request.is_disconnected():
                        raise ClientLeft
                    results.append(await asyncio.get_running_loop().run_in_executor(self._served.lane, work, ids))
        except TimeoutError:
            message = (
                f"{len(results)} of {len(prompts)} texts were done in {self._limits.request_timeout_s:g} s, the limit"
            )
            raise ApiError(504, f"{message}; send fewer", code="request_timeout") from None
        return results


def _is_quick(body: GenerationBody) -> bool:
    """Whether a small body is turned into requests within a fraction of a millisecond."""
    if not isinstance(body, CompletionBody) or any(getattr(body, name) is not None for name in FORM_FIELDS):
        return False
    is_one = isinstance(body.prompt, str) or isinstance(body.prompt[0], int)
    return is_one and not body.bad_words and max(body.n, body.best_of or 1) <= QUICK_TEXTS


def _single_texts(given: Any) -> str | Sequence[Any]:
    """Refuse what only other heads take."""
    entries = given if isinstance(given, tuple) else (given,)
    is_pair = any(isinstance(one, TextPair | Question | RelatedText) for one in entries)
    if is_pair or any(isinstance(one, tuple) and isinstance(one[0], str) for one in entries):
        message = "input: this model was tuned on single texts; send a text or a list of texts"
        raise ApiError(400, message, param="input")
    return given


def _class_row(index: int, chances: Sequence[float], labels: Sequence[str]) -> dict[str, Any]:
    best = max(range(len(chances)), key=chances.__getitem__)
    return {"index": index, "label": labels[best], "probs": chances, "num_classes": len(chances)}


def _only_texts(given: str | Sequence[Any]) -> list[str]:
    texts = [given] if isinstance(given, str) else list(given)
    if not all(isinstance(text, str) for text in texts):
        raise ApiError(400, "input: entities are places in a text; send texts, not token ids", param="input")
    return texts


def _note_tokens(exchange: Exchange, run: Run) -> None:
    exchange.notes |= {"prompt_tokens": run.prompt_tokens, "completion_tokens": run.completion_tokens}
