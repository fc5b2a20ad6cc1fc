"""The running server: uvicorn with our limits, started and stopped in order.

Told to stop (SIGTERM, Ctrl-C) it takes no new connections, /ready answers 503, running requests finish within
`drain_timeout_s`, then those left are told so and ended. A second signal ends it at once.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import sys
from types import FrameType
from typing import TextIO

import uvicorn

from chinchilla_lm.serve.app import Application, make_application
from chinchilla_lm.serve.connections import guarded_protocol
from chinchilla_lm.serve.served_model import ServedModel
from chinchilla_lm.serve.settings import ServerSettings

LARGEST_HEADERS_BYTES = 32 << 10  # of one request; browsers send about 2,000
SWITCH_SECONDS = 0.002
"""How long a Python thread may keep the interpreter from another that waits (Python's own: 5 ms). Beside bodies of
390,000 token ids the 99th percentile of a short completion was 41 ms with 5 ms, 11 with 2 and 28 with .5; beside
clients that leave 11.5, 10.9 and 12.1 (two rounds on a busy machine, 2026-11-22): less cuts the event loop's turns."""
FAREWELL_SECONDS = 3.0  # for those that are told at the end of the drain, to be sent their last chunk


class ModelServer(uvicorn.Server):
    """A uvicorn server that drains. Run it with `serve(sockets=[...])`, or `run`."""

    def __init__(self, application: Application, settings: ServerSettings) -> None:
        """Configured; nothing listens yet."""
        limits = settings.limits
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # its warnings are a line for each hostile request
        super().__init__(
            uvicorn.Config(
                application.asgi,
                http=guarded_protocol(limits, application.metrics),  # type: ignore[arg-type] - a protocol class
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=limits.keep_alive_s,  # type: ignore[arg-type] - seconds, passed to call_later
                timeout_graceful_shutdown=limits.drain_timeout_s + FAREWELL_SECONDS,  # type: ignore[arg-type]
                h11_max_incomplete_event_size=LARGEST_HEADERS_BYTES,
            )
        )
        self._application, self._limits = application, limits

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finish what runs, then end."""
        routes = self._application.routes
        routes.is_draining = True
        deadline = asyncio.get_running_loop().call_later(self._limits.drain_timeout_s, routes.abort)
        try:
            await super().shutdown(sockets)
        finally:
            deadline.cancel()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop in order; the second time at once. The process then ends with 0: being stopped is no failure."""
        self.force_exit = self.should_exit
        self.should_exit = True


def run_server(
    served: ServedModel, settings: ServerSettings, listener: socket.socket, log: TextIO | None = None
) -> None:
    """Serve until told to stop; returns when everything is closed.

    Args:
        served: the model; closed at the end.
        settings: as the listener was opened with.
        listener: from `settings.open_socket`.
        log: where the access log goes; None is stdout.
    """
    application = make_application(served, settings, log)
    sys.setswitchinterval(SWITCH_SECONDS)
    gc.collect()
    gc.freeze()  # what is loaded stays; looking through its 180,000 objects held all threads for 80 ms (2026-11-22)
    try:
        ModelServer(application, settings).run(sockets=[listener])
    finally:
        served.close(timeout_s=1.0)
