"""Requests for completions: from the body to jobs, and from what the model generates to the response."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from scalebench.data import Coder
from scalebench.running.serving.api_errors import ApiError
from scalebench.running.serving.bodies import CompletionBody
from scalebench.running.serving.scheduler import Completion, Scheduler, Update
from scalebench.running.serving.text_stream import TextStream
from scalebench.workloads.continuous import Job
from scalebench.workloads.decoding import Choose, Sampling, chooser

LONG = 20_000  # characters of prompts: more are encoded in another thread, which takes a while to get its turn
DEFAULT_TOKENS = 16  # as OpenAI's, or as many as the context has room for


@dataclass(frozen=True)
class Served:
    """The model that is served: its name, its tokenizer, how many tokens fit its context and a request."""

    name: str
    data: Coder
    context: int
    max_tokens: int
    created: int = field(default_factory=lambda: int(time.time()))


def completion_of(served: Served, body: CompletionBody, number: int) -> Completion:
    """Return one prompt of a request as a job. Raises ``ApiError`` where it does not fit the context."""
    prompt, given = served.data.encode(body.prompts[number]), body.max_tokens
    room = served.context - len(prompt)
    if room < 1:
        line = f"prompt: {len(prompt)} tokens, and the model's context holds {served.context}: leave room for one"
        raise ApiError(400, line, "prompt", "context_length_exceeded")
    if given and given > room:
        line = f"max_tokens: {given} after a prompt of {len(prompt)} outgrow the context; {room} fit"
        raise ApiError(400, line, "max_tokens", "context_length_exceeded")
    if given and given > served.max_tokens:
        raise ApiError(400, f"max_tokens: at most {served.max_tokens} on this server, given {given}", "max_tokens")
    job = Job(prompt, given or min(room, served.max_tokens, DEFAULT_TOKENS), _choose(body))
    return Completion(job, TextStream(served.data, body.stops), number=number)


def _choose(body: CompletionBody) -> Choose | None:
    """Return how tokens are sampled, each job with its own generator; None for greedily."""
    temperature = 1.0 if body.temperature is None else body.temperature
    if temperature == 0:
        return None
    generator = torch.Generator()
    if body.seed is None:
        generator.seed()
    else:
        generator.manual_seed(body.seed)
    return chooser(Sampling(temperature, body.top_k or 0, 1.0 if body.top_p is None else body.top_p), generator)


class Answer:
    """The response to one request, while its completions run."""

    def __init__(self, served: Served, body: CompletionBody, scheduler: Scheduler) -> None:
        self.served, self.body, self.scheduler = served, body, scheduler
        self.id, self.created = f"cmpl-{uuid.uuid4().hex}", int(time.time())
        self.completions: Sequence[Completion] = ()
        self._updates: asyncio.Queue[Update] = asyncio.Queue()

    async def submit(self) -> None:
        """Hand the completions to the scheduler. Raises ``ApiError`` for a request that is refused."""
        body, most = self.body, self.scheduler.most_waiting
        if body.model is not None and body.model != self.served.name:
            line = f"model: {body.model!r} is not served here; {self.served.name!r} is"
            raise ApiError(404, line, "model", "model_not_found")
        if len(body.prompts) > most:
            raise ApiError(400, f"prompt: at most {most} texts, given {len(body.prompts)}", "prompt")
        if sum(map(len, body.prompts)) > LONG:  # others need not wait while the tokenizer reads it
            self.completions = await asyncio.to_thread(self._prepare)
        else:
            self.completions = self._prepare()
        self.scheduler.submit(self.completions)

    def _prepare(self) -> list[Completion]:
        completions = [completion_of(self.served, self.body, number) for number in range(len(self.body.prompts))]
        for completion in completions:
            completion.owner = self
        return completions

    def receive(self, update: Update) -> None:
        """Take what the model added to one of the completions."""
        self._updates.put_nowait(update)

    async def updates(self) -> AsyncIterator[Update]:
        """Yield what the model adds, to the end of all completions. Raises ``ApiError`` where one has failed."""
        to_go = len(self.completions)
        while to_go:
            update = await self._updates.get()
            if update.error is not None:
                raise update.error
            to_go -= update.finish is not None
            yield update

    def cancel(self) -> None:
        """End what still runs; nothing, once all completions are done."""
        self.scheduler.cancel(self.completions)

    async def whole(self) -> dict[str, Any]:
        """Return the response once all completions are done."""
        texts = [prompt if self.body.echo else "" for prompt in self.body.prompts]
        finish: list[str | None] = [None] * len(texts)
        async for update in self.updates():
            texts[update.completion.number] += update.text
            finish[update.completion.number] = update.finish
        choices = [_choice(number, *each) for number, each in enumerate(zip(texts, finish, strict=True))]
        return self._document(choices) | {"usage": self._usage()}

    async def events(self, first: Sequence[Update], following: AsyncIterator[Update]) -> AsyncIterator[str]:
        """Yield server-sent events: the ``first`` updates, which are there already, and those that follow."""
        try:
            if self.body.echo:
                for number, prompt in enumerate(self.body.prompts):
                    yield _event(self._document([_choice(number, prompt, None)]))
            for update in first:
                yield self._chunk(update)
            async for update in following:
                yield self._chunk(update)
            if self.body.includes_usage:
                yield _event(self._document([]) | {"usage": self._usage()})
            yield "data: [DONE]\n\n"
        except ApiError as error:  # the status is sent: clients look for this object among the events
            yield _event(error.body)
        finally:
            self.cancel()

    def _chunk(self, update: Update) -> str:
        return _event(self._document([_choice(update.completion.number, update.text, update.finish)]))

    def _document(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        about = {"id": self.id, "object": "text_completion", "created": self.created, "model": self.served.name}
        return about | {"choices": choices}

    def _usage(self) -> dict[str, int]:
        read = sum(len(completion.job.prompt) for completion in self.completions)
        generated = sum(len(completion.job.tokens) for completion in self.completions)
        return {"prompt_tokens": read, "completion_tokens": generated, "total_tokens": read + generated}


def _choice(number: int, text: str, finish: str | None) -> dict[str, Any]:
    return {"index": number, "text": text, "logprobs": None, "finish_reason": finish}


def _event(document: dict[str, Any]) -> str:
    return f"data: {json.dumps(document)}\n\n"


def deliver(updates: Sequence[Update]) -> None:
    """Give each update to the request that waits for it; called by the event loop."""
    for update in updates:
        update.completion.owner.receive(update)
