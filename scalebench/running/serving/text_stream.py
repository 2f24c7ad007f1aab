"""The text of tokens while they are generated: whole characters, and nothing from a stop string on."""

from __future__ import annotations

from collections.abc import Sequence

from scalebench.data import Coder

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class TextStream:
    """Turns the tokens of a completion into text as they come. ``stopped`` is whether a stop string has come.

    What cannot be given yet is held back: the bytes of a character that is not complete (bytes that are no UTF-8 decode
    to the replacement character, so a text that ends with one may still change), and what may begin a stop string.
    """

    def __init__(self, data: Coder, stops: Sequence[str] = ()) -> None:
        self._data, self._stops = data, tuple(stops)
        self._tokens: list[int] = []  # since the last one that ended with a whole character
        self._decoded = 0  # characters of these that are decoded for good
        self._held = ""
        self.stopped = False

    def add(self, token: int, *, last: bool) -> str:
        """Return the text that a token adds; with the ``last`` token, all that was held back."""
        self._tokens.append(token)
        text = self._data.decode(self._tokens)
        incomplete = text.endswith(REPLACEMENT) and not last
        new = text[self._decoded : len(text) - incomplete]
        self._decoded += len(new)
        if not incomplete:
            self._tokens, self._decoded = [], 0
        return self._until_stop(new, last=last)

    def _until_stop(self, new: str, *, last: bool) -> str:
        """Return the text up to a stop string, or to what may begin one."""
        text = self._held + new
        ends = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if ends:
            self.stopped, self._held = True, ""
            return text[: min(ends)]
        end = len(text) - (0 if last else max((_begun(text, stop) for stop in self._stops), default=0))
        self._held = text[end:]
        return text[:end]


def _begun(text: str, stop: str) -> int:
    """Return how many characters at the end of a text begin a stop string."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)
