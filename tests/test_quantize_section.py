"""The law of precision, trends of the loss added, and the section of a study of quantisation, on synthetic records."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from scalebench.analysis.quantising import data_trends, levels, precision_law, quantised, size_trends
from scalebench.analysis.study import StudyAnalysis, analyse
from scalebench.laws import LAWS, FitRefused, fit
from scalebench.reporting import render
from scalebench.reporting.outcomes import AGREES, DISAGREES, OPEN
from scalebench.reporting.sections import quantize, section_for
from scalebench.store import Results

PLANTED = {"C": 0.02, "gamma_D": 0.5, "gamma_N": 0.35, "gamma": 1.2}
SIZES, DATA, BITS = (2_000, 8_000, 32_000), (200_000, 400_000, 800_000), (2, 3, 4, 6)


def added(law: dict[str, float], n: float, d: float, bits: float) -> float:
    return law["C"] * d ** law["gamma_D"] * n ** -law["gamma_N"] * float(np.exp(-bits / law["gamma"]))


def row(size: int, seed: int, data: int, loss: float, **values: object) -> dict[str, object]:
    """A record of simulated bits; those of one size and seed are of one run."""
    plain = {
        "study": "q", "workload": "quantize", "status": "ok", "invalid_reason": None, "error_message": None,
        "trial_id": f"{size:06x}{seed:02x}{data:06x}{values['bits']:02x}{values.get('scheme', '')!s:.4}",
        "parent_trial_id": f"{size:06x}{seed:02x}", "scheme": "simulated", "group_size": None, "outer_layers": False,
        "params": size + 500, "params_non_embedding": size, "seed": seed, "tokens_seen": data,
        "samples_seen": data // 64, "loss_before_nats": 2.0, "validation_loss_nats": 2.0 + loss,
        "loss_added_nats": loss, "loss_added_se_nats": 1e-4, "weight_bytes": None, "weight_bytes_before": 4 * size,
        "closed_form_bytes": size, "quantized_matrices": 8, "quantized_share": 0.75,
        "round_trip_equal": True, "timing_exclusive": True, "latency_ratio": None,
        "latency_ratio_low": None, "latency_ratio_high": None, "latency_s": None, "latency_before_s": None,
        "family": "gpt", "attempt_dir": None, "wall_time_s": 1.0,
    }  # fmt: skip
    return plain | values


def analysed(rows: Sequence[dict[str, object]]) -> StudyAnalysis:
    definition = {"title": "Fewer bits", "workload": "quantize", "planned": [{"trial_id": r["trial_id"]} for r in rows]}
    return analyse(results(rows, definition), "q")


def results(rows: Sequence[dict[str, object]], definition: dict[str, object]) -> Results:
    return Results(pd.DataFrame(rows), (), {"q": definition})


def by_law(noise: float = 0.05, data: Sequence[int] = DATA, law: dict[str, float] = PLANTED) -> list[dict[str, object]]:
    """Three seeds of each size; the noise of a run is that of all its checkpoints, and a quarter of it is its own."""
    rng = np.random.default_rng(1)
    rows = []
    for size in SIZES:
        for seed in range(3):
            run = noise * rng.standard_normal()
            for tokens in data:
                for bits in BITS:
                    loss = added(law, size, tokens, bits) * np.exp(run + noise / 4 * rng.standard_normal())
                    rows.append(row(size, seed, tokens, loss, bits=bits))
    return rows


@pytest.fixture(scope="module")
def study() -> StudyAnalysis:
    int8 = {"scheme": "int8-weight-only", "bits": 8, "weight_bytes": SIZES[-1], "latency_ratio": 1.25}
    bars = {"latency_ratio_low": 1.2, "latency_ratio_high": 1.3, "latency_s": 1.25e-3, "latency_before_s": 1e-3}
    rng = np.random.default_rng(2)
    eight = [row(n, s, DATA[-1], 1e-4 * rng.standard_normal(), **int8, **bars) for n in SIZES for s in range(3)]
    return analysed(by_law() + eight)


# --- the law ---------------------------------------------------------------------------------------------------------


def grid() -> dict[str, np.ndarray]:
    n, d, bits = (axis.ravel() for axis in np.meshgrid(SIZES, DATA, BITS, indexing="ij"))
    return {"params": n.astype(float), "tokens": d.astype(float), "bits": bits.astype(float)}


def test_planted_parameters_are_recovered() -> None:
    points = grid()
    loss = [added(PLANTED, *place) for place in zip(*points.values(), strict=True)]
    fitted = fit({**points, "loss_added": loss}, "precision")
    assert fitted.parameters == pytest.approx(PLANTED, rel=1e-6)
    assert fitted.status == "converged"
    assert fitted.predict(params=[1e5], tokens=[1e6], bits=[5.0]) == pytest.approx(added(PLANTED, 1e5, 1e6, 5))


def test_bits_vary_by_their_difference_and_sizes_by_their_ratio() -> None:
    points = grid()
    loss = [added(PLANTED, *place) for place in zip(*points.values(), strict=True)]
    two = np.isin(points["bits"], (2, 4))  # a factor of 2, of e^2 in what they do
    assert fit({k: v[two] for k, v in {**points, "loss_added": np.array(loss)}.items()}, "precision")
    near = np.isin(points["bits"], (3, 4))
    with pytest.raises(FitRefused, match=r"bits differs by 1 at most \(3 to 4\); .* needs a difference above "):
        fit({k: v[near] for k, v in {**points, "loss_added": np.array(loss)}.items()}, "precision")
    assert LAWS["precision"].by_difference == ("bits",)


def test_the_law_of_a_study_covers_the_planted_one(study: StudyAnalysis) -> None:
    trend = precision_law(study)
    assert trend.fit is not None
    assert (trend.fit.n_points, trend.fit.n_configurations) == (9 * 3 * 4, 9)  # runs, not their checkpoints
    for name, value in PLANTED.items():
        low, high = trend.interval(name)
        assert low < value < high, name
        assert name == "C" or high - low < 0.3


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (by_law(data=DATA[:1]), "tokens is "),
        ([r for r in by_law() if r["bits"] == 2], "bits is 2 in every point"),
        ([r | {"loss_added_nats": -0.1} if r["seed"] == 0 else r for r in by_law()], "adds to the loss of every model"),
        ([r | {"scheme": "int8-dynamic"} for r in by_law()], "no trial has 2 simulated bits or more"),
        ([r | {"group_size": 8.0} if r["seed"] == 0 else r for r in by_law()], "different groups"),
    ],
)
def test_designs_that_do_not_support_the_law_are_refused(rows: list[dict[str, object]], reason: str) -> None:
    trend = precision_law(analysed(rows))
    assert trend.fit is None
    assert reason in trend.reason


def test_bits_at_which_one_trial_did_not_lose_are_left_out_whole() -> None:
    rows = by_law()
    first = next(i for i, r in enumerate(rows) if r["bits"] == 6)
    rows[first] = rows[first] | {"loss_added_nats": -1e-5}
    trend = precision_law(analysed(rows))
    assert trend.fit is not None
    assert sorted(set(np.exp(trend.fit.points.logs["bits"]).round(9))) == [2, 3, 4]


# --- trends ----------------------------------------------------------------------------------------------------------


def test_trends_have_the_signs_and_slopes_of_the_law(study: StudyAnalysis) -> None:
    rows = quantised(study)
    sizes, data = ({slope.level: slope for slope in trends(rows)} for trends in (size_trends, data_trends))
    for bits in BITS:
        name = f"{bits} bits"
        assert (sizes[name].sign, data[name].sign) == (-1, 1)
        assert (sizes[name].runs, data[name].runs) == (9, 9)
        near = np.mean([(added(PLANTED, n, DATA[-1], bits) - added(PLANTED, n, DATA[0], bits)) / 2 for n in SIZES])
        assert data[name].value == pytest.approx(near, rel=0.1)  # two doublings
        assert data[name].low < near < data[name].high
    assert (sizes["int8-weight-only"].sign, "int8-weight-only" in data) == (0, False)


@pytest.mark.slow
def test_intervals_hold_for_all_levels_together() -> None:
    """Without any effect at most one study in twenty has a level with a sign: of 20 at most 4 (3 standard errors)."""
    runs = pd.DataFrame({"params_non_embedding": np.repeat(SIZES, 3), "run": range(9)})
    rows, rng = pd.concat([runs.assign(level=f"{bits} bits") for bits in range(2, 9)]), np.random.default_rng(0)
    studies = [rows.assign(added=rng.standard_normal(len(rows))) for _ in range(20)]
    assert sum(any(slope.sign for slope in size_trends(study)) for study in studies) <= 4


def test_one_run_tells_no_noise() -> None:
    rows = [r for r in by_law() if (r["seed"], r["params_non_embedding"]) == (0, SIZES[0])]
    (slope, *_) = data_trends(quantised(analysed(rows)))
    assert np.isnan(slope.low)
    assert slope.sign == 0


# --- the section -----------------------------------------------------------------------------------------------------


def test_the_verdict_answers_whether_longer_trained_and_larger_models_lose_more(study: StudyAnalysis) -> None:
    assert section_for(study) is quantize.SECTION
    longer, larger, losses, law, costs, *_ = quantize.SECTION.conclusions(study)
    assert longer.startswith("Models trained longer lose more at 2 bits (+")
    assert "lose less at 2 bits (−" in larger
    assert "at int8-weight-only the noise between runs hides any change" in larger
    assert "32.0\xa0k parameters" in losses
    low, high = precision_law(study).interval("gamma_D")
    assert f"({low:.4f} to {high:.4f})" in law
    assert "int8-weight-only 25 % of the bytes and 1.25 times the latency" in costs


def test_times_of_trials_that_shared_the_machine_are_in_no_sentence(study: StudyAnalysis) -> None:
    rows = study.rows.assign(timing_exclusive=False)
    costs = quantize.SECTION.conclusions(StudyAnalysis("q", study.definition, rows))[4]
    assert "25 % of the bytes" in costs
    assert "latency" not in costs


def test_without_a_clear_level_the_verdict_says_so() -> None:
    rng = np.random.default_rng(0)
    rows = [
        row(n, s, DATA[0], 0.1 + 0.01 * rng.standard_normal(), bits=b) for n in SIZES for s in range(3) for b in BITS
    ]
    lead, *_ = quantize.SECTION.conclusions(analysed(rows))
    assert "lose neither more nor less at any of 4 levels, beyond the noise between 9 runs" in lead


@pytest.mark.parametrize(("gamma_N", "verdict"), [(0.35, AGREES), (-0.35, DISAGREES), (0.0, OPEN)])
def test_published_findings_are_judged_by_seeds(gamma_N: float, verdict: str) -> None:
    law = PLANTED | {"gamma_N": gamma_N, "C": PLANTED["C"] * 8_000 ** (gamma_N - 0.35)}
    outcome = quantize.outcome(analysed(by_law(noise=0.05, law=law)))
    by_size, by_data = outcome.findings
    assert (by_size.verdict, by_data.verdict) == (verdict, AGREES)
    assert (by_size.seeds, by_data.seeds) == (3, 3)
    assert "2.00" in by_size.effect.replace("2,000", "2.00")


@pytest.mark.slow
def test_the_page_has_the_figures_the_bytes_and_the_law(study: StudyAnalysis) -> None:
    page = html.unescape(render(results(study.rows.to_dict("records"), dict(study.definition))))
    for title in ("Loss added against data per parameter", "Loss added against size", "Latency against the unchanged"):
        assert title in page
    assert "Simulated bits save no bytes" in page
    assert "4 bits, 2,000 parameters, 400 tokens per parameter" in page
    assert "int8-weight-only, 32.0\xa0k parameters: 1.25 (1.20 to 1.30)" in page


def test_a_study_of_one_size_and_no_seeds_is_shown() -> None:
    few = [row(2_000, 0, DATA[0], loss, bits=bits) for bits, loss in ((2, 0.4), (8, -0.001))]
    lead, law, *_ = quantize.SECTION.conclusions(analysed(few))
    assert "2 bits 0.40000\xa0±\xa00.00010 nats, 8 bits −0.00100" in lead
    assert "not fitted" in law
    failed = [r | {"status": "unsupported", "loss_added_nats": None} for r in few]
    assert quantize.SECTION.conclusions(analysed(failed)) == (
        "No conclusion: none of the 2 recorded trials ended ok with valid numbers.",
    )
    assert "Fewer bits" in render(results(failed, {"title": "Fewer bits", "workload": "quantize"}))


def test_models_of_other_learning_rates_are_levels_apart() -> None:
    rows, parents = by_law(data=DATA[-1:]), []
    for made in rows:
        rate = 0.01 if made["seed"] else 0.001
        made |= {"seed": 0, "parent_trial_id": f"{made['params']}-{rate}"}
        parents.append({"trial_id": made["parent_trial_id"], "seed": 0, "params_non_embedding": made["params"],
                        "learning_rate": rate, "tokens_seen": DATA[-1]})  # fmt: skip
    study = replace(analysed(rows), beside=pd.DataFrame(parents))
    names = {level for level, _ in levels(quantised(study))}
    assert names == {f"{bits} bits, parent_learning_rate {rate}" for bits in BITS for rate in (0.001, 0.01)}
    assert precision_law(study).reason == "the models differ in parent_learning_rate: choose some with [from] where"
