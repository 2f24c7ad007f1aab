"""What a study of serving concludes and shows, on synthetic records whose numbers are known."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from scalebench.analysis.in_use import predict_in_use
from scalebench.analysis.serving import capacity_trends, objectives, served, spread
from scalebench.analysis.study import StudyAnalysis, analyse
from scalebench.reporting import render
from scalebench.reporting.figures.serving import capacity_figure, goodput_figure, waiting_figure
from scalebench.reporting.sections import section_for, serving
from scalebench.reporting.svg import canvas
from scalebench.store import Results

pytestmark = pytest.mark.usefixtures("few_refits")
SIZES, LOADS = (10_000, 100_000, 1_000_000, 10_000_000), (0.3, 0.6, 0.9, 1.3)
MET = dict(zip(LOADS, (1.0, 0.995, 0.9, 0.4), strict=True))


def capacity(size: int) -> float:
    """Requests per second: 2 ms and 10 ns a parameter for each."""
    return 1 / (2e-3 + 1e-8 * size)


def row(size: int, load: float | None, **values: object) -> dict[str, object]:
    per_s = None if load is None else load * capacity(size)
    answered = min(capacity(size), per_s or math.inf)
    wait = 0.01 * (1 + 10 * (load or 1.0) ** 4)
    plain = {
        "study": "s", "workload": "serving", "status": "ok", "invalid_reason": None, "error_message": None,
        "trial_id": f"{size:08x}{int(100 * (load or 0)):04x}", "family": "gpt", "params": size + 500,
        "params_non_embedding": size, "seed": 0, "load": load, "requests_per_s": None, "concurrency": None,
        "capacity_requests_per_s": capacity(size), "capacity_time_per_request_s": 1 / capacity(size),
        "offered_requests_per_s": per_s, "answered_requests_per_s": answered, "first_token_time_median_s": wait,
        "first_token_time_p95_s": 2 * wait, "first_token_time_p99_s": 3 * wait, "token_time_median_s": 1e-3,
        "token_time_p99_s": 2e-3, "request_time_median_s": wait + 0.02, "in_flight_mean": 3.0, "batch_mean": 2.5,
        "within_objectives": MET.get(load or 0.0), "goodput_requests_per_s": MET.get(load or 0.0, 0.0) * answered,
        "first_token_within_s": 0.05, "token_within_s": 0.01, "saturated": None if load is None else load > 1,
        "timing_exclusive": True, "attempt_dir": None, "wall_time_s": 1.0,
    }  # fmt: skip
    return plain | values


def analysed(rows: list[dict[str, object]]) -> StudyAnalysis:
    axes = {"params": sorted({float(str(r["params"])) for r in rows}), "load": sorted({r["load"] or 0.0 for r in rows})}
    definition = {"title": "Served", "workload": "serving", "axes": axes,
                  "planned": [{"trial_id": r["trial_id"]} for r in rows]}  # fmt: skip
    return analyse(Results(pd.DataFrame(rows), (), {"s": definition}), "s")


def said(study: StudyAnalysis) -> list[str]:
    return [sentence.replace("\xa0", " ") for sentence in serving.sentences(study)]


@pytest.fixture(scope="module")
def study() -> StudyAnalysis:
    return analysed([row(size, load) for size in SIZES for load in LOADS])


def test_a_model_is_its_trials_of_every_load(study: StudyAnalysis) -> None:
    assert section_for(study) is serving.SECTION
    models = served(study)
    assert [(model.size, len(model.trials), model.label) for model in models] == [(size, 4, "") for size in SIZES]
    for model in models:
        assert model.capacity == pytest.approx([capacity(int(model.size))] * 3)
        assert model.trials["arrived"].is_monotonic_increasing
    assert spread(study) == 1
    assert objectives(study.trials) == {"first_token_within_s": 0.05, "token_within_s": 0.01}


def test_loads_up_to_which_the_objectives_were_met_are_those_tried(study: StudyAnalysis) -> None:
    reach = served(study)[0].reach
    assert reach == pytest.approx((0.6 * capacity(10_000), 0.9 * capacity(10_000), 0.9))
    always = served(analysed([row(1000, load, within_objectives=1.0) for load in LOADS]))[0].reach
    assert always == (1.3 * capacity(1000), None, None)
    never = served(analysed([row(1000, load, within_objectives=0.9) for load in LOADS]))[0].reach
    assert never == (None, 0.3 * capacity(1000), 0.9)
    # A lucky higher load is no reach: requests are answered at every load up to it.
    lucky = [row(1000, load, within_objectives=met) for load, met in zip(LOADS, (1.0, 0.9, 1.0, 0.3), strict=True)]
    assert served(analysed(lucky))[0].reach == (0.3 * capacity(1000), 0.6 * capacity(1000), 0.9)
    mixed = [row(1000, load, first_token_within_s=load) for load in LOADS]
    assert served(analysed(mixed))[0].reach is None


def test_capacity_is_the_mean_over_trials_that_had_the_machine(study: StudyAnalysis) -> None:
    rows = [
        row(1000, load, capacity_requests_per_s=value, timing_exclusive=alone)
        for load, value, alone in zip(LOADS, (100.0, 400.0, 200.0, 9.0), (True, True, True, False), strict=True)
    ]
    (model,) = served(analysed(rows))
    assert model.capacity is not None
    assert model.capacity.value == pytest.approx(200)
    assert model.capacity.low < 100
    assert model.capacity.high > 400
    assert spread(analysed(rows)) == 4
    (single,) = served(analysed(rows[:1]))
    assert single.capacity is not None
    assert (single.capacity.value, math.isnan(single.capacity.low)) == (pytest.approx(100), True)


def test_the_planted_cost_of_a_request_is_recovered(study: StudyAnalysis) -> None:
    (trend,) = capacity_trends(study).values()
    assert trend.fit is not None
    predicted, low, high = trend.predict_at({"x": 1e8})
    assert predicted == pytest.approx(2e-3 + 1.0, rel=0.01)
    assert low <= predicted <= high


def test_sentences_have_the_numbers(study: StudyAnalysis) -> None:
    first, largest, smallest = said(study)
    assert "10.0 k parameters answers 476" in first
    assert "10.0 M parameters answers 9.8" in first
    assert largest.startswith("With 10.0 M parameters, 99 % of the requests had their first token within 50.0")
    assert "and each further one within 10.0" in largest
    assert "5.88" in largest
    assert "(at 8.82" in largest
    assert "90 %)" in largest
    assert smallest.startswith("With 10.0 k parameters")
    (none,) = said(analysed([row(1000, 0.3, capacity_requests_per_s=None)]))
    assert none.endswith("is not known: no trial measured it.")
    (shared,) = said(analysed([row(1000, 0.3, timing_exclusive=False)]))
    assert shared.endswith("every trial shared the machine.")
    uneven = [row(1000, load, capacity_requests_per_s=100 * (1 + load)) for load in LOADS]
    assert "up to a factor of 1.77 between trials" in said(analysed(uneven))[-1]
    low = [row(1000, load, within_objectives=0.5) for load in LOADS]
    assert "no load tried reached 99 %" in said(analysed(low))[1]
    high = [row(1000, load, within_objectives=1.0) for load in LOADS]
    assert "no higher load was tried" in said(analysed(high))[1]


def test_figures_mark_what_piled_up_and_leave_out_what_was_not_measured(study: StudyAnalysis) -> None:
    with canvas("waiting") as marks:
        caption = waiting_figure(marks, study)
    assert caption is not None
    assert {"hollow", "filled", "bars"} <= marks.drawn
    assert "Hollow: requests piled up" in caption.text
    assert len(caption.table.rows) == 16
    with canvas("goodput") as marks:
        caption = goodput_figure(marks, study)
    assert caption is not None
    assert len(caption.table.rows) == 16
    with canvas("capacity") as marks:
        caption = capacity_figure(marks, study)
    assert caption is not None
    assert "curve" in marks.drawn
    assert [cells[1][1] for cells in caption.table.rows] == pytest.approx([capacity(size) for size in SIZES])
    plain = analysed([row(1000, load, goodput_requests_per_s=None, saturated=False) for load in LOADS])
    with canvas("plain") as marks:
        assert goodput_figure(marks, plain) is None
        assert capacity_figure(marks, plain) is None  # one size
        caption = waiting_figure(marks, plain)
    assert caption is not None
    assert "Hollow" not in caption.text


def test_settings_besides_the_load_separate_models_and_users_arrive_as_they_are_answered() -> None:
    rows = [
        row(size, None, concurrency=users, weight_dtype=dtype, trial_id=f"{size}{users}{dtype}")
        for size in SIZES[:2] for users in (1, 8) for dtype in ("float32", "int8")
    ]  # fmt: skip
    axes = {"params": [*SIZES[:2]], "concurrency": [1, 8], "weight_dtype": ["float32", "int8"]}
    definition = {"workload": "serving", "axes": axes, "planned": [{"trial_id": r["trial_id"]} for r in rows]}
    study = analyse(Results(pd.DataFrame(rows), (), {"s": definition}), "s")
    models = served(study)
    assert [model.label for model in models] == ["weight_dtype float32", "weight_dtype int8"] * 2
    assert models[0].trials["arrived"].tolist() == [capacity(10_000)] * 2
    assert models[0].reach is None
    assert len(capacity_trends(study)) == 2
    assert "weight_dtype float32" in next(iter(serving.sentences(study)))


def test_the_page_has_the_law_of_what_a_request_costs(study: StudyAnalysis) -> None:
    rows = study.trials
    definition = {"title": "Served", "workload": "serving", "axes": {"params": [*SIZES], "load": [*LOADS]},
                  "planned": [{"trial_id": name} for name in rows["trial_id"]]}  # fmt: skip
    results = Results(rows, (), {"s": definition})
    page = render(results)
    assert "Time to the first token against load" in page
    assert "Time per request at capacity, against size" in page
    outcome = serving.SECTION.outcome(study)
    assert outcome.law.startswith("y = c0 + c1·x: c0 = 0.00200 (no spread), c1 = 1.00e−08")


def test_a_larger_model_is_predicted_to_answer_fewer_requests() -> None:
    study = analysed([row(size, 0.6, weight_bytes=4 * size, kv_cache_bytes=1000) for size in SIZES])
    prediction = predict_in_use(study.series[0], 1e8)
    answers = {each.quantity: each for each in prediction.quantities}
    assert list(answers) == ["time per request", "requests per second", "memory", "weights", "cache"]
    time, rate = answers["time per request"], answers["requests per second"]
    assert time.value == pytest.approx(1.002, rel=1e-3)
    assert rate.value == pytest.approx(1 / time.value)
    assert (rate.low, rate.high) == pytest.approx((1 / time.high, 1 / time.low))
    assert answers["weights"].value == pytest.approx(4e8)
    assert (answers["memory"].value, answers["memory"].reason) == (None, "memory was not measured")
    shared = analysed([row(size, 0.6, timing_exclusive=False) for size in SIZES])
    refused = predict_in_use(shared.series[0], 1e8).quantities[:2]
    assert [each.value for each in refused] == [None, None]
    assert "no valid trial has a" in refused[0].reason
