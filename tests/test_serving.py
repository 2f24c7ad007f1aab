"""Serving: continuous batching, loads, and what the times of requests say."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from serving_support import serving_spec, simulated
from support import run_here

from scalebench import store
from scalebench.analysis.difference import difference
from scalebench.errors import StudyError
from scalebench.families import FAMILIES
from scalebench.families.modules.slots import Slots
from scalebench.running.planning import load_study, plan
from scalebench.running.sweep import Sweep, execute
from scalebench.workloads.continuous import Batch, Job
from scalebench.workloads.decoding import Sampling, chooser, generate
from scalebench.workloads.load import Request
from scalebench.workloads.serving_spec import bounds
from scalebench.workloads.serving_times import (
    frame_of,
    grew,
    per_request,
    percentile,
    piled_up,
    rate,
    steady,
    time_columns,
)

GPT = {"depth": 2, "width": 16, "heads": 2, "vocab_size": 17, "context": 24}
JOBS = ((3, 5), (9, 2), (1, 12), (6, 1), (4, 7), (2, 3), (8, 9))  # tokens of prompt and answer
STUDY = """
schema = 1
name = "s"
workload = "serving"
[model]
family = "gpt"
params = 2000
[serving]
max_batch = 3
prompt_length = 6
new_tokens = 3
requests = 10
"""


def model_of(family: str, implementation: str = "eager", **fields: object) -> torch.nn.Module:
    """A small model with random weights, in float64, so that no two tokens are equally likely."""
    torch.manual_seed(3)
    config = FAMILIES[family].explicit(**(GPT | fields))
    return FAMILIES[family].build(config, implementation).double().eval()


def prompts(seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(17, size=length).tolist() for length, _ in JOBS]


# --- sequences of different lengths ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("gpt", {"implementation": "eager"}),
        ("gpt", {"implementation": "sdpa", "norm": "layer", "positions": "learned", "bias": True}),
        ("moe", {"implementation": "sdpa", "experts": 4}),
    ],
)
def test_each_sequence_of_a_batch_is_continued_as_if_alone(family: str, fields: dict[str, object]) -> None:
    """They join and leave at different times, and rows are used again."""
    model = model_of(family, **fields)
    jobs = [Job(prompt, new) for prompt, (_, new) in zip(prompts(), JOBS, strict=True)]
    batch, waiting, done = Batch(model, 3, 24), list(jobs), []
    while waiting or batch.jobs:
        while waiting and batch.free:
            batch.join(waiting.pop(0))
        done += batch.leave()
        if batch.jobs:
            batch.step()
            done += batch.leave()
    assert sorted(map(id, done)) == sorted(map(id, jobs))
    for job in jobs:
        alone = generate(model, torch.tensor([job.prompt]), job.new_tokens, chooser(Sampling()))
        assert job.tokens == alone[0, len(job.prompt) :].tolist()


def test_a_sampled_sequence_draws_the_same_tokens_beside_others() -> None:
    model, prompt = model_of("gpt"), [1, 2, 3]
    draws = chooser(Sampling(0.9, 0, 0.95), torch.Generator().manual_seed(7))
    alone = generate(model, torch.tensor([prompt]), 8, draws)[0, 3:].tolist()
    batch = Batch(model, 2, 24)
    batch.join(Job([5] * 9, 8))
    sampled = Job(prompt, 8, chooser(Sampling(0.9, 0, 0.95), torch.Generator().manual_seed(7)))
    batch.join(sampled)
    for _ in range(7):
        batch.step()
    assert sampled.tokens == alone


def test_a_cancelled_sequence_leaves_and_the_others_go_on() -> None:
    model = model_of("gpt")
    first, second = Job([1, 2], 9), Job([3, 4, 5], 6)
    batch = Batch(model, 2, 24)
    batch.join(first)
    batch.join(second)
    batch.step()
    first.cancelled = True
    assert batch.leave() == [first]
    assert (batch.free, batch.jobs, batch.cached_tokens) == (1, [second], 4)
    while not second.done:
        batch.step()
    assert second.tokens == generate(model, torch.tensor([second.prompt]), 6, chooser(Sampling()))[0, 3:].tolist()


def test_what_does_not_fit_is_refused() -> None:
    batch = Batch(model_of("gpt"), 1, 10)
    for job in (Job([1] * 8, 3), Job([], 3)):
        with pytest.raises(ValueError, match="a row holds 1 to 10"):
            batch.join(job)
    batch.join(Job([1] * 8, 2))
    with pytest.raises(ValueError, match="0 rows are free"):
        batch.join(Job([1], 1))
    slots = Slots(model_of("gpt").cache(2, 4))
    slots.begin(4)
    with pytest.raises(ValueError, match="exceed the cache's capacity of 4"):
        slots.grow()
    slots.end(0)
    slots.begin(2)
    with pytest.raises(ValueError, match="grow by one token"):
        slots.grow().positions(2)


def test_what_is_in_unused_memory_changes_nothing() -> None:
    """A row's masked positions may hold anything, such as NaN from memory that was not written."""
    model = model_of("gpt", "sdpa")
    cache = model.cache(2, 12)
    for layer in cache.layers:
        layer.keys.fill_(math.nan)
        layer.values.fill_(math.nan)
    slots = Slots(cache)
    with torch.inference_mode():
        for tokens in ([1, 2, 3, 4, 5], [6]):
            model(torch.tensor([tokens]), slots.begin(len(tokens)))
        both = model(torch.tensor([[7], [8]]), slots.grow())
        alone = model(torch.tensor([[6, 8]]))
    torch.testing.assert_close(both[1], alone[0, -1:])


# --- loads -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("load", [0.5, 0.8])
def test_random_arrivals_wait_as_queueing_theory_says(load: float) -> None:
    """One row, requests of one length: the mean wait is that of Pollaczek and Khinchine, load / (2 (1 - load))."""
    frame = frame_of(simulated(20_000, rows=1, new_tokens=1, join_s=1.0, step_s=0.0, per_s=load).requests)
    waits = (frame["first_token_s"] - frame["arrived_s"] - 1.0).iloc[1000:20_000]
    assert waits.mean() == pytest.approx(load / (2 * (1 - load)), rel=0.1)
    assert frame["arrived_s"].diff().iloc[1:].mean() == pytest.approx(1 / load, rel=0.03)
    # By Little's law and as Poisson arrivals see averages: arrival rate times time in the system.
    assert frame["in_flight"].iloc[1000:20_000].mean() == pytest.approx(load * (waits.mean() + 1), rel=0.1)


def test_users_keep_the_batch_full() -> None:
    """Four rows, five tokens each: a request takes one row for a prompt and four passes."""
    loop = simulated(400, rows=4, new_tokens=5, join_s=0.01, step_s=0.1, users=4)
    spec = serving_spec(requests=300)
    columns = time_columns(frame_of(loop.requests), loop.steps, serving_spec(requests=300, concurrency=4))
    # Each pass is shared by all rows; each prompt holds up the others.
    assert rate(steady(frame_of(loop.requests), spec)) == pytest.approx(4 / (4 * 0.1 + 4 * 0.01), rel=0.05)
    assert columns["batch_mean"] == pytest.approx(4, rel=0.01)
    assert columns["generated_tokens_per_s"] == pytest.approx(5 * columns["answered_requests_per_s"])
    assert columns["decode_step_time_median_s"] == pytest.approx(0.1)


def test_waiting_requests_are_served_in_the_order_of_their_arrival_and_all_that_were_asked_for() -> None:
    loop = simulated(50, rows=2, new_tokens=3, join_s=0.1, step_s=0.1, per_s=20.0)
    first = [request.first_token_s for request in loop.requests if not math.isnan(request.first_token_s)]
    assert first == sorted(first)
    assert not any(math.isnan(request.answered_s) for request in loop.requests[:50])
    assert len(loop.requests) > 50  # others go on arriving


def test_a_flood_of_requests_takes_no_more_than_those_that_count_and_a_batch() -> None:
    """A million requests a second arrive at a model that answers two."""
    loop = simulated(100, rows=2, new_tokens=3, join_s=0.1, step_s=0.1, per_s=1e6)
    assert len(loop.requests) <= 100 + 3 * 2
    arrived = [request.arrived_s for request in loop.requests]
    assert len(set(arrived)) == len(arrived)
    assert arrived == sorted(arrived)


def test_a_request_is_timed_from_its_arrival_also_where_a_pass_delays_it() -> None:
    """Timing from when it was noticed would leave out the waits that matter (coordinated omission)."""
    loop = simulated(300, rows=1, new_tokens=2, join_s=1.0, step_s=9.0, per_s=0.05)
    frame = frame_of(loop.requests)
    expected = np.cumsum(np.random.default_rng([0, 1]).exponential(20.0, size=len(frame)))
    assert frame["arrived_s"].to_numpy() == pytest.approx(expected)


@pytest.mark.slow
def test_requests_pile_up_beyond_the_capacity_and_hardly_below_it() -> None:
    """Of 150 runs each 1 % at 0.7 of the capacity, 3 % at 0.8, 6 % at 0.9, where queues are long, and 99 % at 1.3."""
    spec, found = serving_spec(load=1.0), {}
    for load in (0.7, 1.3):
        per_s = load * 4 / (4 * 0.1 + 4 * 0.02)
        frames = [
            frame_of(
                simulated(250, rows=4, new_tokens=5, join_s=0.02, step_s=0.1, per_s=per_s, seed=seed).requests
            ).iloc[50:250]
            for seed in range(60)
        ]
        found[load] = sum(bool(piled_up(frame, spec)) for frame in frames)
    assert found[0.7] <= 2
    assert found[1.3] >= 57
    assert piled_up(frames[0], serving_spec(concurrency=4)) is None
    assert piled_up(frames[0].iloc[:99], spec) is None


def test_growth_is_kendalls_test_at_one_percent() -> None:
    from scipy.stats import kendalltau

    rng = np.random.default_rng(5)
    for slope in np.linspace(0, 0.6, 40):
        values = rng.standard_normal(10) + slope * np.arange(10)
        assert grew(values) == (kendalltau(np.arange(10), values, alternative="greater").pvalue < 0.01)
    assert grew(np.arange(1000.0))
    assert not grew(np.ones(1000))


# --- what times say --------------------------------------------------------------------------------------------------


def answered(*rows: tuple[float, float, float, int]) -> pd.DataFrame:
    """Requests by arrival, first token, end and number of tokens."""
    return frame_of([Request(Job([1], n, tokens=[0] * n), a, b, c) for a, b, c, n in rows])


def test_times_of_a_request_begin_with_its_arrival_and_tokens_with_the_first() -> None:
    times = per_request(answered((1.0, 1.5, 3.5, 5), (2.0, 4.0, 4.0, 1)))
    assert times["first_token_time"].tolist() == [0.5, 2.0]
    assert times["token_time"][0] == 0.5
    assert math.isnan(times["token_time"][1])
    assert times["request_time"].tolist() == [2.5, 2.0]
    assert answered((1.0, 1.5, 3.5, 5), (2.0, 4.0, 4.0, 1), (3.7, 5, 6, 1))["in_flight"].tolist() == [0, 1, 1]


def test_percentiles_need_enough_requests() -> None:
    samples = np.arange(99.0)
    assert percentile(samples, "median") == 49
    assert percentile(samples, "p95") == pytest.approx(93.1)
    assert percentile(samples, "p99") is None
    assert percentile(samples[:19], "p95") is None
    assert percentile(np.array([math.nan]), "median") is None
    assert math.isnan(rate(np.array([1.0])))
    assert rate(np.array([1.0, 1.5, 3.0])) == 1.0


def test_goodput_counts_the_requests_that_met_every_objective() -> None:
    spec = serving_spec(requests=4, max_batch=1, first_token_within_s=1.0, token_within_s=0.5)
    frame = answered((0, 9, 9, 1), (0, 0.5, 1, 2), (0, 0.5, 2, 2), (0, 2, 2.4, 2), (0, 1, 3, 1), (0, 9, 9, 1))
    columns = time_columns(frame, [], spec)
    assert columns["within_objectives"] == 0.5
    assert columns["goodput_requests_per_s"] == 0.5 * columns["answered_requests_per_s"]
    one = time_columns(frame, [], serving_spec(requests=4, max_batch=1, first_token_within_s=1.0))
    assert one["within_objectives"] == 0.75
    none = time_columns(frame, [], serving_spec(requests=4, max_batch=1))
    assert (none["within_objectives"], none["goodput_requests_per_s"]) == (None, None)


def test_lengths_are_even_around_their_mean() -> None:
    assert bounds(10, 0.5) == (5, 15)
    assert bounds(1, 0.9) == (1, 1)
    assert bounds(7, 0.0) == (7, 7)


# --- trials ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def study_path(tmp_path: Path) -> Path:
    path = tmp_path / "s.toml"
    path.write_text(STUDY)
    return path


@pytest.mark.parametrize("setting", ["serving.load=0.5", "serving.requests_per_s=200", "serving.concurrency=2"])
def test_a_trial_measures_capacity_and_load(study_path: Path, tmp_path: Path, setting: str) -> None:
    (row,) = run_here(load_study(study_path, [setting]), tmp_path).values()
    assert row["status"] == "ok", row
    assert row["capacity_time_per_request_s"] == pytest.approx(1 / row["capacity_requests_per_s"])
    offered = {"serving.load=0.5": 0.5 * row["capacity_requests_per_s"], "serving.requests_per_s=200": 200}
    assert row["offered_requests_per_s"] == offered.get(setting)
    assert row["first_token_time_median_s"] < row["request_time_median_s"]
    assert row["answered_requests_per_s"] > 0
    assert row["first_token_time_p95_s"] is None
    (attempt,) = store.read_results(tmp_path).frame["attempt_dir"]
    samples = pd.read_parquet(Path(attempt) / "requests.parquet")
    assert set(samples["phase"]) == {"capacity", "load"}
    for phase in ("capacity", "load"):
        known = samples[(samples["phase"] == phase) & samples["answered_s"].notna()]
        assert len(known) >= 13
        assert known["new_tokens"].between(2, 4).all()
        assert known["prompt_tokens"].between(3, 9).all()


def test_as_many_users_as_rows_are_the_capacity_itself(study_path: Path, tmp_path: Path) -> None:
    (row,) = run_here(load_study(study_path, ["serving.concurrency=3"]), tmp_path).values()
    assert row["answered_requests_per_s"] == row["capacity_requests_per_s"]
    assert row["batch_mean"] > 1


def test_costs_are_planned(study_path: Path) -> None:
    (trial,) = plan(load_study(study_path))
    spec, config = trial.trial.spec, FAMILIES["gpt"].Config(**trial.trial.model)
    assert (spec.load, spec.sequence_length, spec.capacity, spec.warmups) == (0.7, 9, 13, 3)
    assert trial.cost.flops == 2 * 13 * FAMILIES["gpt"].count(config, 8).forward_flops
    assert config.context >= 13
    (larger,) = plan(load_study(study_path, ["serving.max_batch=300"]))
    added = 2 * config.depth * config.heads * config.head_dim * 13 * 4 * (300 - 3)
    (slow,) = plan(load_study(study_path, ["serving.requests_per_s=0.5"]))
    assert slow.cost.seconds(None) > 13 / 0.5  # the requests of the load arrive two seconds apart
    assert larger.cost.memory_bytes - trial.cost.memory_bytes == added


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["serving.load=0.5", "serving.concurrency=2"], "serving.concurrency: requests arrive in one way"),
        (["model.family=mlp"], "mlp continues no batch of sequences; families that can: gpt, moe"),
        (["serving.implementation=fused"], "serving.implementation"),
        (["serving.spread=1"], "serving.spread"),
        (["serving.load=0"], "serving.load"),
        (["serving.load=0.001"], "greater than or equal to 0.01"),
        (["serving.max_batch=0"], "serving.max_batch"),
        (["model.context=12"], "9 + 4 tokens, does not fit a context of 12"),
        (["serving.requests=2.5"], "serving.requests"),
        (["serving.requests=9"], "greater than or equal to 10"),
        (["serving.lod=0.5"], "did you mean 'load'"),
    ],
)
def test_bad_studies_are_refused(study_path: Path, settings: list[str], message: str) -> None:
    with pytest.raises(StudyError) as refused:
        plan(load_study(study_path, settings))
    assert message in str(refused.value)


@pytest.mark.slow
def test_predict_joins_the_loads_of_a_size(
    study_path: Path, tmp_path: Path, command: Callable[..., tuple[int, str, str]]
) -> None:
    study = load_study(study_path, ["model.params=[2000,8000,32000]", "serving.load=[0.5,0.8]"])
    run_here(study, tmp_path / "results")
    list(execute(Sweep(tmp_path / "results" / study.name, []), study))  # writes study.json
    code, out, _ = command("predict", tmp_path / "results" / "s", "--params", "1e5", "--json")
    answers = json.loads(out)["answers"]
    assert code == 0
    assert list(answers) == ["time_per_request", "requests_per_second", "memory", "weights", "cache"]
    assert answers["weights"]["value"] > 4e5
    assert "3 configurations" in answers["weights"]["basis"]


def test_runs_are_compared_by_what_a_request_costs() -> None:
    """What was measured of the load tells no configurations apart; the load itself does."""
    rows = [
        {"trial_id": f"{n}{seed}", "status": "ok", "params": 100, "requests_per_s": float(n), "seed": seed,
         "timing_exclusive": True, "capacity_time_per_request_s": 1e-3 * (1 + 0.01 * seed), "in_flight_mean": seed / 7,
         "batch_mean": 1.5 + seed, "saturated": bool(seed), "machine_id": "m"}
        for n in (1, 2) for seed in (0, 1, 2)
    ]  # fmt: skip
    old = pd.DataFrame(rows)
    new = old.assign(capacity_time_per_request_s=2 * old["capacity_time_per_request_s"], batch_mean=3.0)
    result = difference(old, new, 0.05)
    assert [effect.verdict for effect in result.effects] == ["WORSE"] * 3
    assert [effect.quantity for effect in result.effects] == ["time per request"] * 3
