"""What ``--json`` prints of the commands about laws, as types; see ``documents``."""

# ruff: noqa: D101 - the command that prints an object explains it

from __future__ import annotations

from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict  # that of typing is not enough for pydantic before Python 3.12

from scalebench.advice.optima import Refused
from scalebench.laws.intervals.bootstrap import Refits

Row = dict[str, Any]  # values by column
Interval = list[float | None] | None  # lower and upper end, null where there is none


class LackOfFit(TypedDict):
    statistic: float | None
    p_value: float
    flagged: bool


class Forecast(TypedDict):
    row: int
    cut: float
    size: float
    predicted: float
    measured: float
    naive: float
    interval: Interval
    distance: float
    error_percent: float
    naive_error_percent: float
    inside_interval: bool | None
    error_in_widths: float | None


class ErrorsByDistance(TypedDict):
    distance_above: float
    distance_up_to: float | None
    n: int
    median_absolute_error_percent: float
    median_error_percent: float
    median_absolute_error_in_widths: float | None
    coverage: float | None


class PointSource(TypedDict):
    file: str
    columns: dict[str, str]
    where: str | None


class Fit(TypedDict):
    command: Literal["fit"]
    choice: NotRequired[Row]
    law: str
    formula: str
    parameters: dict[str, float | None]
    intervals: dict[str, Interval]
    interval_method: str
    interval_reason: str
    refits: Refits
    lack_of_fit: LackOfFit | None
    objective: float | None
    status: str
    bounds_hit: list[str]
    unresolved: dict[str, str]
    undetermined: dict[str, str]
    condition_number: float | None
    starts_agreeing: int
    starts: int
    n_points: int
    n_configurations: int
    degrees_of_freedom: int
    residuals: list[float | None]
    loss: str
    delta: float
    space: str
    fixed: dict[str, float]
    backtest: list[Forecast] | None
    points: dict[str, list[Any]]
    source: PointSource
    backtest_by_distance: NotRequired[list[ErrorsByDistance]]


class Answer(TypedDict):
    quantity: str
    unit: str
    value: float | None
    by: Literal["counted", "law"] | None
    low: float | None
    high: float | None
    interval: str
    beyond: float | None
    hold_out_percent: float | None
    basis: str
    reason: str


class Predict(TypedDict):
    command: Literal["predict"]
    params: float | None
    tokens: float | None
    answers: dict[str, Answer]
    backtest: list[Forecast]


class Cheapest(TypedDict):
    command: Literal["predict"]
    limits: Row
    candidates: list[Row]
    refused: list[Row]


class Counting(TypedDict):
    params: str
    flops: str


class AllocationAt(TypedDict):
    flops: float
    params: float | None  # null where the points do not determine the optimum
    params_interval: Interval
    tokens: float | None
    tokens_interval: Interval
    determined: bool


class Allocation(TypedDict):
    approach: int
    counting: Counting
    a: float
    b: float
    params_constant: float
    tokens_constant: float
    intervals: dict[str, Interval]
    interval_method: str
    notes: list[str]
    optima: list[Row]
    refused: list[Refused]
    bias: dict[str, float] | None
    at: list[AllocationAt]


class Convention(TypedDict):
    counting_params: str
    counting_flops: str
    a: float | None
    b: float | None
    N: float | None
    D: float | None
    a_interval: Interval
    b_interval: Interval
    refused: str | None


class Conventions(TypedDict):
    flops: float
    rows: list[Convention]


class RefusedApproach(TypedDict):
    approach: int
    reason: str


class Optimal(TypedDict):
    command: Literal["optimal"]
    allocations: list[Allocation]
    refused: list[RefusedApproach]
    conventions: Conventions


class OptimalOnLimitedData(TypedDict):
    command: Literal["optimal"]
    optima: list[Row]


class TunedAt(TypedDict):
    sizes: dict[str, float]
    value: float
    interval: Interval


class TunedLaw(TypedDict):
    optimised: str
    constant: float
    exponents: dict[str, float]
    intervals: dict[str, Interval]
    degrees_of_freedom: int
    optima: list[Row]
    refused: list[Refused]
    at: TunedAt | None


class Tune(TypedDict):
    command: Literal["tune"]
    laws: list[TunedLaw]


class Candidate(TypedDict):
    row: int
    inputs: dict[str, float]
    flops: float | None
    narrowing: float


class Next(TypedDict):
    command: Literal["next"]
    law: str
    interval_new_run: Interval
    target: dict[str, float]
    predicted: float
    interval_now: Interval
    chosen: list[Candidate]
    flops: float | None
    interval_after: Interval
    narrowing: float
    narrowing_interval: Interval
    ranking: list[Candidate]
    unlimited: list[float] | None
    noise: str


class Worth(TypedDict):
    command: Literal["worth"]
    loss: float
    multiplier: float
    interval: Interval
    baseline_flops: float
    changed_flops: float
    unreached: float
    beyond: list[float]
    below: list[bool]
    method: str
