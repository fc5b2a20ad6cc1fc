"""The application: routes, doors and envelope of one served model, put together."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import PurePosixPath
from typing import TextIO

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from chinchilla_lm.serve.api_errors import ApiError
from chinchilla_lm.serve.guards import Doors, Envelope, error_response, failed_response, left_response
from chinchilla_lm.serve.metrics import Metrics
from chinchilla_lm.serve.openapi import openapi_document
from chinchilla_lm.serve.routes import Routes
from chinchilla_lm.serve.runs import ClientLeft
from chinchilla_lm.serve.served_model import ServedModel
from chinchilla_lm.serve.settings import ServerSettings

CONTENT_SECURITY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_PAGE_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_PLACEHOLDER = b"<!doctype html><title>chinchilla</title><p>The API is under /v1; see /openapi.json.\n"


@dataclass(frozen=True, kw_only=True)
class Application:
    """What the server runs: the ASGI application, its routes (to drain and abort) and its counts."""

    asgi: ASGIApp
    routes: Routes
    metrics: Metrics


def make_application(served: ServedModel, settings: ServerSettings, log: TextIO | None = None) -> Application:
    """Put the application of a model together.

    Args:
        served: the model.
        settings: who may ask, and how much.
        log: where the access log goes; None is stdout.
    """
    metrics = Metrics(served, settings.limits)
    routes = Routes(served, settings, metrics)
    listed = [*_api_routes(routes), *_page_routes(), Route("/openapi.json", _document(served), methods=["GET"])]
    inner = Starlette(
        routes=listed,
        exception_handlers={
            ApiError: _refused,
            HTTPException: _not_routed,
            ClientLeft: left_response,
            Exception: failed_response,
        },  # type: ignore[dict-item]
    )
    inner.router.redirect_slashes = False
    entered: ASGIApp = Doors(inner, settings)
    if settings.allow_origins:  # outside the doors: a browser's first question (OPTIONS) brings no key
        entered = CORSMiddleware(
            entered,
            allow_origins=list(settings.allow_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type", "x-request-id"],
            expose_headers=["x-request-id", "retry-after"],
        )
    paths = [route.path for route in listed]
    return Application(asgi=Envelope(entered, metrics, paths, log), routes=routes, metrics=metrics)


def _api_routes(routes: Routes) -> list[Route]:
    posts = {
        "/v1/completions": routes.completions,
        "/v1/chat/completions": routes.chat,
        "/v1/embeddings": routes.embeddings,
        "/v1/classify": routes.classify,
        "/tokenize": routes.tokenize,
        "/detokenize": routes.detokenize,
    }
    gets = {
        "/v1/models": routes.models,
        "/v1/models/{model:path}": routes.model,
        "/health": routes.health,
        "/ready": routes.ready,
        "/metrics": routes.metrics,
    }
    return [
        *(Route(path, answer, methods=["POST"]) for path, answer in posts.items()),
        *(Route(path, answer, methods=["GET"]) for path, answer in gets.items()),
    ]


def _page_routes(folder: str = "page") -> list[Route]:
    """Serve serve/page/: index.html at /, its other files at /page/NAME. Read once; nothing else can be named."""
    found: dict[str, tuple[bytes, str]] = {"/": (_PLACEHOLDER, "text/html")}
    place = files("chinchilla_lm.serve") / folder
    for entry in place.iterdir() if place.is_dir() else ():
        kind = _PAGE_TYPES.get(PurePosixPath(entry.name).suffix)
        if kind is not None and entry.is_file():
            found["/" if entry.name == "index.html" else f"/page/{entry.name}"] = (entry.read_bytes(), kind)
    return [Route(path, _file(content, kind), methods=["GET"]) for path, (content, kind) in found.items()]


def _file(content: bytes, kind: str):  # noqa: ANN202
    async def answer(_: Request) -> Response:
        return Response(content, media_type=kind, headers={"content-security-policy": CONTENT_SECURITY})

    return answer


def _document(served: ServedModel):  # noqa: ANN202
    async def answer(_: Request) -> Response:
        return JSONResponse(openapi_document(served.name))

    return answer


async def _refused(_: Request, error: ApiError) -> Response:
    return error_response(error)


async def _not_routed(request: Request, error: HTTPException) -> Response:
    """404 and 405 of the router."""
    path = request.scope["path"][:80]
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method")
        response = error_response(
            ApiError(405, f"{path} takes {allowed}, not {request.method[:10]}", code="bad_method")
        )
        response.headers.update(error.headers or {})
        return response
    return error_response(ApiError(404, f"there is nothing at {path}; /openapi.json lists the routes", code="no_route"))
