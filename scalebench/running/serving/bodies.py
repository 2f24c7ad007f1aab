"""The body of a request for completions: which fields it may have, and one line for each that is wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from scalebench.errors import shortened, unknown

Text = Annotated[str, Field(min_length=1)]
StopText = Annotated[str, Field(min_length=1, max_length=200)]
NOT_OFFERED = "not offered"  # with another value it would change the result


def only(value: str) -> Any:
    """Return the description of a field that is accepted with a value that changes nothing."""
    return Field(None, description=f"{NOT_OFFERED}; leave it out, or give {value}")


class StreamOptions(BaseModel):
    """What is streamed."""

    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool | None = Field(None, description="true or false")


class CompletionBody(BaseModel):
    """OpenAI's fields, and vLLM's ``top_k``. The description of a field is what it may be; null is its default."""

    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: Text | Annotated[list[Text], Field(min_length=1)] = Field(
        description="a text, or a list of texts (lists of tokens are not offered), none of them empty"
    )
    model: str | None = Field(None, description="the id that /v1/models lists")
    max_tokens: int | None = Field(None, ge=1, description="a whole number of at least 1")
    temperature: float | None = Field(
        None, ge=0, allow_inf_nan=False, description="a number of at least 0 (0: greedy; default 1)"
    )
    top_k: int | None = Field(None, ge=0, description="a whole number of at least 0 (0: all tokens)")
    top_p: float | None = Field(None, gt=0, le=1, description="a number above 0 and at most 1")
    seed: int | None = Field(None, ge=-(2**63), lt=2**64, description="a whole number of 64 bits")
    stop: StopText | Annotated[list[StopText], Field(max_length=4)] | None = Field(
        None, description="a text, or a list of at most 4, each of 1 to 200 characters"
    )
    echo: bool | None = Field(None, description="true or false")
    stream: bool | None = Field(None, description="true or false")
    stream_options: StreamOptions | None = Field(None, description='{"include_usage": true} or false')
    user: str | None = Field(None, description="a text, which changes nothing")
    ignore_eos: bool | None = Field(None, description="true or false: no token ends a completion")
    n: Literal[1] | None = only("1")
    best_of: Literal[1] | None = only("1")
    logprobs: None = only("null")
    suffix: Literal[""] | None = only("null")
    presence_penalty: Literal[0] | None = only("0")
    frequency_penalty: Literal[0] | None = only("0")
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = only("null")

    @property
    def prompts(self) -> list[str]:
        """The prompts, in order."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt

    @property
    def stops(self) -> list[str]:
        """The stop strings."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with the number of tokens."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)


def mistakes(body: Any, errors: Sequence[Mapping[str, Any]]) -> dict[str | None, str]:
    """Return a line for each wrong field, by its name, from pydantic's errors; None for the body as a whole."""
    lines: dict[str | None, str] = {}
    for error in errors:
        name = str(error["loc"][1]) if len(error["loc"]) > 1 and isinstance(body, Mapping) else None
        if name is None:
            reason = error.get("ctx", {}).get("error", "give one object with the field prompt")
            lines[None] = f"the body is no JSON object: {reason}"
        elif name not in CompletionBody.model_fields:
            lines[name] = unknown(name, CompletionBody.model_fields)
        elif name not in body:
            lines[name] = f"{name}: is missing; give {CompletionBody.model_fields[name].description}"
        else:
            expected = str(CompletionBody.model_fields[name].description)
            verb = "is" if expected.startswith(NOT_OFFERED) else "must be"
            lines[name] = f"{name}: {verb} {expected}; given {shortened(repr(body[name]))}"
    return lines
