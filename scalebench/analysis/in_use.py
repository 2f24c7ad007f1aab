"""What a call or a request of a larger model will cost, in time and bytes; and whether to predict that or training."""

from __future__ import annotations

from dataclasses import replace

from scalebench.analysis.predictions import PredictedQuantity, SizePrediction, predict_memory, predict_size, predicted
from scalebench.analysis.series import Series
from scalebench.analysis.serving import CAPACITY, TIME_PER_REQUEST
from scalebench.analysis.study import StudyAnalysis
from scalebench.analysis.trends import cost_trend
from scalebench.analysis.trials import LOSS, STEP_TIME, N, numeric

LATENCY = "latency_median_s"
TIMES = {LATENCY: "latency", TIME_PER_REQUEST: "time per request"}  # of trials of inference and serving
BYTES = {"weight_bytes": "weights", "kv_cache_bytes": "cache"}
PREDICTABLE = (LOSS, STEP_TIME, *TIMES)


def predict_selected(study: StudyAnalysis, params: float, tokens: float | None = None) -> SizePrediction:
    """Predict a size from the first series of a study: its training, or where nothing was trained, its use."""
    series = study.series[0]
    trained = any(numeric(series.usable, column).notna().any() for column in (LOSS, STEP_TIME))
    if trained or tokens is not None:
        return predict_size(series, params, tokens, next(iter(study.surfaces), None))
    return predict_in_use(series, params)


def predict_in_use(series: Series, params: float) -> SizePrediction:
    """Predict the time of a call, or of a request with a full batch and with it their rate, and bytes, at a size."""
    usable = series.usable
    alone = usable[usable["timing_exclusive"].ne(False)]
    column = next(name for name in TIMES if numeric(usable, name).notna().any())
    time = predicted(cost_trend(alone, column, N), params, TIMES[column], "s")
    rates = (_rate(time),) if column == TIME_PER_REQUEST else ()
    sizes = tuple(
        predicted(cost_trend(usable, name, N), params, quantity, "B")
        for name, quantity in BYTES.items()
        if numeric(usable, name).notna().any()
    )
    quantities = (time, *rates, predict_memory(series, params), *sizes)
    return SizePrediction(
        params, None, quantities, time.trend.backtest if time.trend else (), held_out=f"the {time.quantity}"
    )


def _rate(time: PredictedQuantity) -> PredictedQuantity:
    """Return the requests per second that a time per request makes."""
    if time.value is None:
        return replace(time, quantity="requests per second", unit="")
    low, high = (None if end is None else 1 / end for end in (time.high, time.low))
    basis = f"one over the time per request ({CAPACITY}); {time.basis}"
    return replace(time, quantity="requests per second", unit="", value=1 / time.value, low=low, high=high, basis=basis)
