"""What ``--json`` of every command prints, as types: ``scalebench schema COMMAND`` shows them as JSON Schema.

Quantities are in the unit that their name ends in; a value that was not measured is null. Objects by column have the
columns that ``scalebench list --columns`` explains. The tests check all that the commands print against these types.
"""

# ruff: noqa: D101 - the command that prints an object explains it

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, NotRequired

from pydantic import TypeAdapter
from typing_extensions import TypedDict  # that of typing is not enough for pydantic before Python 3.12

from scalebench.analysis.chain import Link
from scalebench.analysis.difference import Effect
from scalebench.analysis.suite import SuiteSummary
from scalebench.cli.documents_laws import Cheapest, Fit, Next, Optimal, OptimalOnLimitedData, Predict, Row, Tune, Worth
from scalebench.errors import InputError, unknown


class PlanTotal(TypedDict):
    trials: int
    missing: int
    flops: int
    estimated_work_s: float
    assumed_flops_per_s: float | None
    assumed_rate_source: str


class PlanSize(TypedDict):
    family: str
    model: dict[str, Any]
    trials: int
    params: int
    params_non_embedding: int
    steps: list[int]
    flops_per_trial: int
    estimated_time_s: float
    estimated_memory_bytes: int


class Plan(TypedDict):
    command: Literal["plan"]
    study: str
    total: PlanTotal
    sizes: list[PlanSize]
    steps: NotRequired[list[Row]]
    parents: NotRequired[Any]
    ensembles: NotRequired[Row]


class TrialLine(TypedDict):
    command: Literal["run"]
    event: Literal["trial"]
    trial_id: str
    status: str
    error_class: str | None
    error_message: str | None
    params: int | None
    validation_loss_nats: float | None


class SummaryLine(TypedDict):
    command: Literal["run"]
    event: Literal["summary"]
    study: str
    executed: int
    statuses: dict[str, int]
    elapsed_s: float
    results: str
    report: NotRequired[str]


class NotOk(TypedDict):
    study: str
    trial_id: str
    status: str
    stop_step: int | None
    error_class: str | None
    error_message: str | None


class Status(TypedDict):
    command: Literal["status"]
    studies: dict[str, dict[str, int]]
    comparisons: dict[str, dict[str, int]]
    not_ok: list[NotOk]
    damaged: list[str]
    chains: dict[str, list[Link]]
    comparisons_not_measured: list[Row]
    incomplete: list[str]
    copied: list[str]
    unfinished_of_earlier_plans: dict[str, list[str]]
    queued: dict[str, dict[str, int]]


class ShowTrial(TypedDict):
    command: Literal["show"]
    trial_id: str
    study: str
    record: Row | None
    attempts: list[str]
    damaged: list[str]
    log: list[str]


class ShowAll(TypedDict):
    command: Literal["show"]
    trials: list[Row]
    damaged: list[str]


class Diff(TypedDict):
    command: Literal["diff"]
    effects: list[Effect]
    noise: dict[str, float]
    only_old: int
    only_new: int
    shared: list[str]
    notes: list[str]


class Compare(TypedDict):
    command: Literal["compare"]
    run: str
    rows: list[Row]
    summary: list[SuiteSummary]
    ended: NotRequired[str]
    not_measured: NotRequired[list[str]]


class Written(TypedDict):
    path: str
    format: str
    content: Literal["trials", "comparisons", "runs"]
    rows: int
    columns: int | None


class Export(TypedDict):
    command: Literal["export"]
    written: list[Written]
    next_command: str | None


class Generate(TypedDict):
    command: Literal["generate"]
    trial: str
    prompt: str
    seed: int
    text: str
    tokens: int


class FamilyEntry(TypedDict):
    summary: str
    sizes: list[str]
    fields: list[str]
    implementations: list[str]


class Catalogue(TypedDict):
    command: Literal["list"]
    workloads: NotRequired[dict[str, str]]
    families: NotRequired[dict[str, FamilyEntry]]
    studies: NotRequired[dict[str, str]]
    laws: NotRequired[dict[str, str]]
    optimizers: NotRequired[dict[str, str]]
    sources: NotRequired[dict[str, str]]


class ColumnEntry(TypedDict):
    name: str
    unit: str
    meaning: str
    workloads: list[str]


class Columns(TypedDict):
    command: Literal["list"]
    columns: list[ColumnEntry]


class Finding(TypedDict):
    level: Literal["note", "warn", "limit", "error"]
    subject: str
    text: str
    remedy: str


class Doctor(TypedDict):
    command: Literal["doctor"]
    findings: list[Finding]


DOCUMENTS: Mapping[str, Any] = MappingProxyType(
    {
        "plan": Plan, "run": TrialLine | SummaryLine, "status": Status, "show": ShowTrial | ShowAll, "fit": Fit,
        "predict": Predict | Cheapest, "optimal": Optimal | OptimalOnLimitedData, "next": Next, "worth": Worth,
        "tune": Tune, "diff": Diff, "compare": Compare, "export": Export, "generate": Generate,
        "list": Catalogue | Columns, "doctor": Doctor,
    }
)  # fmt: skip


def output_schema(command: str) -> dict[str, Any]:
    """Return the JSON Schema of what ``--json`` of a command prints; of ``run``, of each line."""
    if command not in DOCUMENTS:
        raise InputError(f"schema: {unknown(command, DOCUMENTS)}")
    schema: dict[str, Any] = TypeAdapter(DOCUMENTS[command]).json_schema()
    for definition in (schema, *schema.get("$defs", {}).values()):
        if "properties" in definition:
            definition["additionalProperties"] = False
    title = f"scalebench {command} --json"
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema | {"title": title}
