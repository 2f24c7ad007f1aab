"""Servers for the tests of `scalebench serve`: run in a thread, over a model that recites a text."""

from __future__ import annotations

import http.client
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from scalebench.data.text import Text
from scalebench.families.cache import KVCache, LayerCache
from scalebench.running.serving.completions import Served
from scalebench.running.serving.options import Options
from scalebench.running.serving.scheduler import Scheduler
from scalebench.running.serving.server import Server, bound, server
from scalebench.workloads.continuous import Batch

DATA = Text((b"nothing",))
SCRIPT = "héllo wörld, €uro 😀 and all that follows; "


def recited(prompt: str, tokens: int) -> str:
    """What a model that recites SCRIPT adds to a prompt."""
    start = len(prompt.encode())
    return (SCRIPT.encode() * 9)[start : start + tokens].decode(errors="replace")


class Reciter:
    """A decoder that follows a prompt of n bytes by the bytes of ``script`` from the n-th on, over and over.

    It fails on a token "!" and waits in each pass for ``gate``.
    """

    def __init__(self, script: str) -> None:
        self.script = torch.tensor(list(script.encode()))
        self.gate = threading.Event()
        self.gate.set()

    def cache(self, batch: int, capacity: int) -> KVCache:
        return KVCache([LayerCache(torch.zeros(batch, 1, capacity, 1), torch.zeros(batch, 1, capacity, 1))])

    def __call__(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        assert cache is not None
        assert self.gate.wait(20)
        if (tokens == ord("!")).any():
            raise RuntimeError("the model cannot bear this")
        at = cache.positions(tokens.size(1))
        positions = torch.arange(at.start, at.stop)[None] if isinstance(at, slice) else at
        cache.layers[0].extend(tokens[:, None, :, None].float(), tokens[:, None, :, None].float())
        following = self.script[(positions + 1) % len(self.script)]
        return 100 * torch.nn.functional.one_hot(following, 256).float()


@dataclass
class Running:
    """A server that runs in a thread. ``secure`` is how a client checks its certificate."""

    server: Server
    port: int
    model: Any
    secure: ssl.SSLContext | None = None
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def scheduler(self) -> Scheduler:
        return self.server.scheduler

    def connect(self) -> http.client.HTTPConnection:
        if self.secure is not None:
            return http.client.HTTPSConnection("localhost", self.port, timeout=20, context=self.secure)
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)

    def send(self, body: Any, path: str = "/v1/completions", **headers: str) -> http.client.HTTPResponse:
        """Send a request, POST where there is a body, and return the response, which is not read yet."""
        connection = self.connect()
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        kind = {"Content-Type": "application/json", "Connection": "close"} | self.headers | headers
        connection.request("GET" if data is None else "POST", path, data, kind)
        return connection.getresponse()

    def post(self, body: Any, **headers: str) -> tuple[int, dict[str, Any]]:
        """Send a request for completions; return status and JSON of the response."""
        response = self.send(body, **headers)
        return response.status, json.loads(response.read())

    def get(self, path: str) -> tuple[int, str]:
        response = self.send(None, path)
        return response.status, response.read().decode()

    def text(self, prompt: str, **fields: Any) -> str:
        """Return the text that follows a prompt."""
        status, document = self.post({"prompt": prompt} | fields)
        assert status == 200, document
        return document["choices"][0]["text"]

    def events(self, **fields: Any) -> list[Any]:
        """Return the events of a stream, parsed but for the last."""
        response = self.send(fields | {"stream": True})
        assert response.headers["Content-Type"].startswith("text/event-stream")
        lines = response.read().decode().split("\n\n")
        assert lines.pop() == ""
        words = [line.removeprefix("data: ") for line in lines]
        return [json.loads(word) if word != "[DONE]" else word for word in words]


@contextmanager
def running(model: Any, options: Options | None = None, context: int = 64, most: int = 64) -> Iterator[Running]:
    """Run a server of a model over bytes, on a free port."""
    options = options or Options(port=0, max_batch=3)
    served = Served("tiny", DATA, context, most)
    scheduler = Scheduler(Batch(model, options.max_batch, context))
    with bound(options) as listening:
        made = server(served, scheduler, options)
        thread = threading.Thread(target=made.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            until(lambda: made.started)
            yield Running(made, listening.getsockname()[1], model)
        finally:
            made.stop(0)
            thread.join(20)
            assert not thread.is_alive()


def until(true: Callable[[], object], seconds: float = 20.0) -> None:
    """Wait until something is true."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it never became true"
        time.sleep(0.002)
