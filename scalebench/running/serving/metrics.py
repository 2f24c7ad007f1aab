"""What a server has done, as text that Prometheus reads (its exposition format 0.0.4)."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence

PREFIX = "scalebench_"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
FIRST_TOKEN_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
TOKEN_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)


class Histogram:
    """Counts of values up to each of some bounds."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds, self.counts, self.sum = bounds, [0] * (len(bounds) + 1), 0.0

    def add(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def lines(self, name: str) -> Iterator[str]:
        """Yield its lines: each bucket counts the values up to its bound."""
        total = 0
        for bound, count in zip((*(f"{bound:g}" for bound in self.bounds), "+Inf"), self.counts, strict=True):
            total += count
            yield f'{name}_bucket{{le="{bound}"}} {total}'
        yield f"{name}_sum {self.sum:.9g}"
        yield f"{name}_count {total}"


class Metrics:
    """Counters of a server. The scheduler's thread writes all but ``responses``, which the event loop does."""

    def __init__(self) -> None:
        self.responses: Counter[int] = Counter()  # by HTTP status
        self.prompt_tokens = self.generated_tokens = 0
        self.first_token_s, self.token_s = Histogram(FIRST_TOKEN_S), Histogram(TOKEN_S)

    def text(self, waiting: int, running: int) -> str:
        """Return all metrics, with how many completions wait and run now."""
        by_status = [f'{{status="{status}"}} {count}' for status, count in sorted(self.responses.items())]
        values = {
            ("requests_total", "counter", "HTTP responses by status"): by_status,
            ("prompt_tokens_total", "counter", "tokens of the prompts that were read"): [f" {self.prompt_tokens}"],
            ("generated_tokens_total", "counter", "tokens generated"): [f" {self.generated_tokens}"],
            ("queue_length", "gauge", "completions that wait for a row of the batch"): [f" {waiting}"],
            ("batch_size", "gauge", "completions in the batch"): [f" {running}"],
        }
        times = {
            "time_to_first_token_seconds": (self.first_token_s, "from a request's arrival at the queue"),
            "time_per_output_token_seconds": (self.token_s, "between the tokens after the first, averaged by request"),
        }
        lines = []
        for (name, kind, meaning), samples in values.items():
            lines += [*_head(name, kind, meaning), *(f"{PREFIX}{name}{sample}" for sample in samples)]
        for name, (histogram, meaning) in times.items():
            lines += [*_head(name, "histogram", meaning), *histogram.lines(f"{PREFIX}{name}")]
        return "\n".join(lines) + "\n"


def _head(name: str, kind: str, meaning: str) -> tuple[str, str]:
    return f"# HELP {PREFIX}{name} {meaning}", f"# TYPE {PREFIX}{name} {kind}"
