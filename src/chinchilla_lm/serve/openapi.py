"""/openapi.json: made from the declared bodies, so that it says what the server takes."""

from __future__ import annotations

from typing import Any

from chinchilla_lm import __version__
from chinchilla_lm.serve.fields import schema_of
from chinchilla_lm.serve.openai_schema import (
    ChatBody,
    ClassifyBody,
    CompletionBody,
    DetokenizeBody,
    EmbeddingBody,
    TokenizeBody,
)

_POSTS: dict[str, tuple[type, str, str]] = {
    "/v1/completions": (CompletionBody, "Continue one or more prompts.", "completion"),
    "/v1/chat/completions": (ChatBody, "Write the assistant's next turn.", "chat"),
    "/v1/embeddings": (EmbeddingBody, "Mean of the last hidden states, of length 1.", "embedding"),
    "/v1/classify": (ClassifyBody, "Classes of texts, by a tuned head.", "classify"),
    "/tokenize": (TokenizeBody, "Text to token ids.", "tokenize"),
    "/detokenize": (DetokenizeBody, "Token ids to text.", "detokenize"),
}
_GETS = {
    "/v1/models": "The served model.",
    "/v1/models/{model}": "The served model, by name.",
    "/health": "The process answers.",
    "/ready": "Requests are taken.",
    "/metrics": "Counts for Prometheus.",
    "/openapi.json": "This document.",
}
_POST_ERRORS = (400, 401, 403, 404, 408, 413, 415, 429, 503, 504)
_GET_ERRORS = (401, 403, 404, 503)
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


def openapi_document(model: str) -> dict[str, Any]:
    """Return the OpenAPI 3.1 description of the server of `model`."""
    paths: dict[str, Any] = {}
    for path, (body, words, name) in _POSTS.items():
        schema = schema_of(body)
        schema["properties"]["model"] = {"enum": [model]}
        content = {"application/json": {"schema": schema}}
        streams = {"text/event-stream": {"schema": {"type": "string"}}} if path.endswith("completions") else {}
        paths[path] = {
            "post": {
                "operationId": name,
                "summary": words,
                "requestBody": {"required": True, "content": content},
                "responses": _responses(_POST_ERRORS, {"application/json": {"schema": {"type": "object"}}, **streams}),
            }
        }
    for path, words in _GETS.items():
        kind = "text/plain" if path == "/metrics" else "application/json"
        paths[path] = {
            "get": {
                "summary": words,
                "responses": _responses(
                    _GET_ERRORS, {kind: {"schema": {"type": "string" if kind == "text/plain" else "object"}}}
                ),
            }
        }
    named = {"name": "model", "in": "path", "required": True, "schema": {"enum": [model]}}
    paths["/v1/models/{model}"]["get"]["parameters"] = [named]
    return {
        "openapi": "3.1.0",
        "info": {"title": "chinchilla-lm", "version": __version__},
        "paths": paths,
        "components": {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "security": [{}, {"key": []}],
    }


def _responses(errors: tuple[int, ...], content: dict[str, Any]) -> dict[str, Any]:
    refused = {"description": "Refused.", "content": {"application/json": {"schema": _ERROR}}}
    return {"200": {"description": "Answered.", "content": content}, **{str(status): refused for status in errors}}
