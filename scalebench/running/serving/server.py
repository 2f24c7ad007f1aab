"""The server: its socket, its signals, and its end."""

from __future__ import annotations

import contextlib
import errno
import math
import signal
import socket
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

import uvicorn

from scalebench.errors import InputError
from scalebench.running.serving.application import application
from scalebench.running.serving.completions import Served
from scalebench.running.serving.options import Options
from scalebench.running.serving.scheduler import Scheduler

BACKLOG = 512  # connections that wait to be accepted
GRACE_S = 5.0  # what runs when the server is stopped may go on for so long


class Server(uvicorn.Server):
    """Serves an application until a signal comes: then it ends what runs, and does not raise the signal again."""

    def __init__(self, config: uvicorn.Config, scheduler: Scheduler) -> None:
        super().__init__(config)
        self.scheduler = scheduler

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals while the block runs, in the main thread, where Python allows it."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - as signal calls it
        """Stop; a second signal ends what runs at once. uvicorn's own would then leave the model's thread running."""
        self.stop(0 if self.should_exit else GRACE_S)

    def stop(self, grace_s: float = GRACE_S) -> None:
        """Accept nothing more, and end what still runs after some seconds."""
        self.scheduler.stop_at_s = time.monotonic() + grace_s
        self.should_exit = True


def bound(options: Options) -> socket.socket:
    """Return the socket that the server listens on. Raises ``InputError`` where that is impossible."""
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    # With its protocol: asyncio sends the parts of a response at once (TCP_NODELAY) only where that is known to be TCP.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # not for the minute after another server
        listening.bind((options.host, options.port))
        listening.listen(BACKLOG)
    except OSError as error:
        option = "--port" if error.errno in (errno.EADDRINUSE, errno.EACCES) else "--host"
        listening.close()
        line = f"{options.host} port {options.port}: {error.strerror}; choose another (--port 0: any free one)"
        raise InputError(f"{option}: {line}") from error
    return listening


def address(options: Options, listening: socket.socket) -> str:
    """Return the address of the API."""
    host = f"[{options.host}]" if ":" in options.host else options.host
    scheme = "http" if options.tls_certificate is None else "https"
    return f"{scheme}://{host}:{listening.getsockname()[1]}/v1"


def server(served: Served, scheduler: Scheduler, options: Options) -> Server:
    """Return a server that is not running yet; ``run(sockets=[…])`` runs it."""
    tls: dict[str, Any] = {"ssl_certfile": options.tls_certificate, "ssl_keyfile": options.tls_key}
    config = uvicorn.Config(
        application(served, scheduler, options.api_key()),
        log_config=None,  # leaves the logging of this process as it is: only warnings are printed
        access_log=False,
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=math.ceil(2 * GRACE_S),
        **tls,
    )
    return Server(config, scheduler)
