"""The columns of the times of served requests; ``serving_times`` fills them."""

from __future__ import annotations

from scalebench.store import Column

# A percentile needs samples beyond it: with fewer of them than these it is null.
SAMPLES_FOR = {"median": (50, 1), "p95": (95, 20), "p99": (99, 100)}

TIMES = {
    "first_token_time": "from the arrival of a request to its first token",
    "token_time": "between the tokens of a request after the first, averaged over the request",
    "request_time": "from the arrival of a request to its last token",
}
ORDINALS = {"median": "median time", "p95": "95th percentile of the time", "p99": "99th percentile of the time"}
COLUMNS = (
    *(
        Column(f"{name}_{quantile}_s", "s", f"{ORDINALS[quantile]} {meaning}{needs}")
        for name, meaning in TIMES.items()
        for quantile, needs in (("median", ""), ("p95", "; needs 20 requests"), ("p99", "; needs 100 requests"))
    ),
    Column("answered_requests_per_s", "1/s", "measured requests answered per second"),
    Column("generated_tokens_per_s", "1/s", "tokens generated per second"),
    Column("within_objectives", "1", "share of the requests that met the objectives; null where none is set"),
    Column("goodput_requests_per_s", "1/s", "requests answered per second that met the objectives"),
    Column("in_flight_mean", "1", "mean number of requests, waiting or in the batch, that an arriving one found"),
    Column("batch_mean", "1", "mean number of sequences that a pass generated a token of"),
    Column("decode_step_time_median_s", "s", "median time of a pass that generates a token of each sequence"),
    Column("saturated", "", "whether requests piled up: more in flight, and longer waits, the later they arrived"),
)
