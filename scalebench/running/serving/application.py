"""The HTTP application: its endpoints, and every error in the shape that clients of OpenAI's API read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from scalebench.running.serving import metrics
from scalebench.running.serving.api_errors import ApiError
from scalebench.running.serving.bodies import CompletionBody, mistakes
from scalebench.running.serving.completions import Answer, Served, deliver
from scalebench.running.serving.guard import Application, Guard
from scalebench.running.serving.scheduler import Scheduler, Update

T = TypeVar("T")


def application(served: Served, scheduler: Scheduler, key: str | None = None) -> Application:
    """Return the ASGI application that serves a model; ``key`` is what its clients must have."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        scheduler.start(lambda updates: loop.call_soon_threadsafe(deliver, updates))
        yield
        await asyncio.to_thread(scheduler.close)

    # The pages of the documentation would load scripts from the network.
    app = FastAPI(title="scalebench", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    _add_endpoints(app, served, scheduler)
    return Guard(app, key, scheduler.metrics.responses)


def _add_endpoints(app: FastAPI, served: Served, scheduler: Scheduler) -> None:
    model = {"id": served.name, "object": "model", "created": served.created, "owned_by": "scalebench"}
    model |= {"max_model_len": served.context}

    @app.post("/v1/completions")
    async def completions(body: CompletionBody, request: Request) -> Response:
        """Continue a prompt, or several."""
        return await _respond(Answer(served, body, scheduler), request)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """List the one model there is."""
        return {"object": "list", "data": [model]}

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> dict[str, Any]:
        """Describe the model."""
        if name != served.name:
            line = f"{name!r} is not served here; {served.name!r} is"
            raise ApiError(404, line, "model", "model_not_found")
        return model

    @app.get("/health")
    async def health() -> Response:
        """Tell whether requests are answered: status 200, or 503."""
        status = "ok" if scheduler.accepting else "stopping" if scheduler.alive else "stopped"
        return JSONResponse({"status": status}, 200 if scheduler.accepting else 503)

    @app.get("/metrics")
    async def counted() -> Response:
        """Return counters and times for Prometheus."""
        text = scheduler.metrics.text(scheduler.waiting, scheduler.running)
        return Response(text, headers={"Content-Type": metrics.CONTENT_TYPE})


async def _respond(answer: Answer, request: Request) -> Response:
    """Return the response to a request for completions; a client that leaves ends them."""
    await answer.submit()
    streaming = False
    try:
        if not answer.body.stream:
            return JSONResponse(await _unless_gone(request, answer.whole()))
        following = answer.updates()
        first: list[Update] = [await _unless_gone(request, anext(following))]  # an error has its status until then
        streaming = True
        return StreamingResponse(answer.events(first, following), media_type="text/event-stream")
    except _GoneError:
        return PlainTextResponse("the client has left", 499)
    finally:
        if not streaming:
            answer.cancel()


class _GoneError(Exception):
    """The client has closed the connection."""


async def _unless_gone(request: Request, result: Awaitable[T]) -> T:
    """Return a result. Raises ``_GoneError`` as soon as the client closes the connection."""
    work, gone = asyncio.ensure_future(result), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise _GoneError
        return work.result()
    finally:
        work.cancel()
        gone.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body, error.status, error.headers)


async def _http_error(request: Request, error: Exception) -> Response:
    """Answer a path that is none, or a method that it does not have."""
    assert isinstance(error, HTTPException)
    line = f"{request.method} {request.url.path}: {error.detail}"
    return JSONResponse(ApiError(error.status_code, line).body, error.status_code, error.headers)


async def _invalid(request: Request, error: Exception) -> Response:
    """Answer a body with mistakes: a line for each, in the order of the fields."""
    assert isinstance(error, RequestValidationError)
    lines = mistakes(error.body, error.errors())
    return await _api_error(request, ApiError(400, "\n".join(lines.values()), next(iter(lines))))
