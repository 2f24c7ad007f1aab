"""The options of ``scalebench generate``, checked before torch is imported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from scalebench.errors import InputError

if TYPE_CHECKING:
    from scalebench.workloads.decoding import Sampling

ABILITIES = ("generation", "filling")  # capabilities of families that generate text: the keys of completion.WRITERS


@dataclass(frozen=True)
class Request:
    """The options of ``scalebench generate``. ``tokens`` None generates up to 100, or what the context has room for."""

    prompt: str
    tokens: int | None = None
    temperature: float | None = None
    top_k: int = 0
    top_p: float = 1.0
    beams: int = 1
    seed: int = 0

    def sampling(self) -> Sampling:
        """Return how tokens are sampled: by default at temperature 1, and greedily with beam search."""
        from scalebench.workloads.decoding import Sampling  # imports torch

        return Sampling(self.temperature_or_default, self.top_k, self.top_p)

    @property
    def temperature_or_default(self) -> float:
        """Sampling temperature: by default 1, and 0 (greedy) with beam search."""
        default = 0.0 if self.beams > 1 else 1.0
        return default if self.temperature is None else self.temperature

    def check(self) -> None:
        """Raise ``InputError`` with a line for each invalid option."""
        drawn = self.temperature_or_default
        wrong = {
            "--prompt: is empty; give the text to continue": not self.prompt,
            f"--tokens: must be at least 1, given {self.tokens}": self.tokens is not None and self.tokens < 1,
            f"--temperature: must be 0 (greedy) or above, given {drawn}": not 0 <= drawn < float("inf"),
            f"--top-k: must be 0 (all) or above, given {self.top_k}": self.top_k < 0,
            f"--top-p: must be above 0 and at most 1, given {self.top_p}": not 0 < self.top_p <= 1,
            f"--beams: must be at least 1, given {self.beams}": self.beams < 1,
            "--beams: beam search does not sample; leave --temperature out": self.beams > 1 and drawn > 0,
            "--temperature: --top-k and --top-p need sampling; set it above 0": drawn == 0
            and (self.top_k > 0 or self.top_p < 1),
        }
        if any(wrong.values()):
            raise InputError([line for line, is_wrong in wrong.items() if is_wrong])
