"""The analysis of pruned models on trials made by rule: size, control, dense models of equal bytes, the law."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from law_support import FRANTAR

from scalebench.analysis.pruning import (
    against_control,
    against_dense,
    crossing,
    dense_loss,
    groups,
    pruned,
    slope,
    slopes,
    sparsity_fit,
    tolerated,
)
from scalebench.analysis.study import StudyAnalysis
from scalebench.analysis.trials import prepare
from scalebench.laws import LAWS, Fit
from scalebench.reporting.sections import section_for
from scalebench.reporting.sections.base import Room
from scalebench.reporting.sections.prune import SECTION

pytestmark = pytest.mark.usefixtures("few_refits")

SIZES = (1000, 2000, 4000, 8000)
DENSITIES_TRIED = (0.2, 0.4, 0.6, 0.8)


def rows(method="magnitude-global", *, factor=1.0, exponent=0.0, steps=0, scatter=0.0, sizes=SIZES, seeds=3):
    """Trials whose loss added is factor * (1 - d)^2 * (N / 1000)^exponent; dense losses are 5 - log10 N."""
    noise, records = np.random.default_rng(0), []
    for size in sizes:
        for seed in range(seeds):
            before = 5 - np.log10(size) + scatter * noise.standard_normal()
            for density in DENSITIES_TRIED:
                added = factor * (1 - density) ** 2 * (size / 1000) ** exponent + scatter * noise.standard_normal()
                records.append({
                    "study": "made", "trial_id": f"{method}-{size}-{seed}-{density}-{steps}", "status": "ok",
                    "workload": "prune", "invalid_reason": None, "parent_trial_id": f"{size}-{seed}", "seed": seed,
                    "method": method, "density": density, "density_found": density, "recovery_steps": steps,
                    "params": size, "params_non_embedding": size, "params_non_embedding_before": size,
                    "params_remaining": size * density, "loss_before_nats": before, "loss_added_nats": added,
                    "validation_loss_nats": before + added, "validation_loss_se_nats": 0.01,
                    "weight_bytes": 4 * size, "weight_bytes_before": 4 * size, "packed_bytes": 4 * size * density,
                    "latency_ratio": 1.0, "latency_ratio_low": 0.9, "latency_ratio_high": 1.1,
                    "tokens_before": 1e6, "tokens_seen": 1e5 if steps else None,
                })  # fmt: skip
    return pd.DataFrame(records)


def trials(*frames):
    return pruned(prepare(pd.concat(frames, ignore_index=True)))


def study(*frames):
    return StudyAnalysis("made", {"workload": "prune", "title": "Made"}, pd.concat(frames, ignore_index=True))


def test_a_slope_per_doubling_is_that_of_least_squares_on_log_2():
    change = slope([1, 2, 4, 4], [0.0, 1.0, 2.5, 1.5])
    x = np.array([0, 1, 2, 2])
    expected = np.polyfit(x, [0.0, 1.0, 2.5, 1.5], 1)[0]
    assert change.value == pytest.approx(expected)
    residuals = np.array([0.0, 1.0, 2.5, 1.5]) - np.polyval(np.polyfit(x, [0.0, 1.0, 2.5, 1.5], 1), x)
    half = 4.302652729911275 * np.sqrt((residuals**2).sum() / 2 / ((x - x.mean()) ** 2).sum())  # t of 2 degrees
    assert (change.low, change.high) == pytest.approx((expected - half, expected + half))
    assert slope([3, 3], [1, 2]) is None


def test_intervals_of_the_slope_hold_the_planted_one():
    inside = 0
    for seed in range(200):
        noise = np.random.default_rng(seed).standard_normal(12)
        change = slope(np.repeat(SIZES, 3), -0.1 * np.log2(np.repeat(SIZES, 3)) + noise)
        inside += change.low <= -0.1 <= change.high
    assert 180 <= inside <= 198  # 95 % of 200 is 190; the standard deviation is 3


@pytest.mark.parametrize(
    ("density", "added", "expected"),
    [
        ([0.5, 0.9], [1.0, 0.0], 0.86),  # a tenth of the way from 0.9, where it is 0, to 0.5, where it is 1.0
        ([0.9, 0.5], [0.2, 1.0], 0.95),  # half of the way from 1 to 0.9
        ([0.5, 0.9], [0.05, 0.01], float("nan")),
        ([0.3, 0.6, 0.9], [0.1, 0.3, 0.0], 0.8),
    ],
)
def test_the_density_tolerated_is_interpolated_from_1_downwards(density, added, expected):
    assert crossing(density, added, 0.1) == pytest.approx(expected, nan_ok=True)


def test_models_that_lose_less_with_size_tolerate_a_lower_density():
    falling = tolerated(trials(rows(exponent=-0.3)))
    assert falling["size"].tolist() == sorted(np.repeat(SIZES, 3))
    assert slope(falling["size"], falling["density"]).value < 0
    for density, change in slopes(trials(rows(factor=1.0, exponent=0.0))):
        assert change.value == pytest.approx(0, abs=1e-9), density
    assert all(change.value < 0 for _, change in slopes(trials(rows(exponent=-0.3))))


def test_the_control_is_compared_within_each_parent():
    both = trials(rows(scatter=0.2), rows("random", factor=3.0))
    plain = trials(rows(), rows("random", factor=3.0))
    for (density, difference), (_, exact) in zip(
        against_control(both, "magnitude-global"), against_control(plain, "magnitude-global"), strict=True
    ):
        assert exact.value == pytest.approx(2 * (1 - density) ** 2)
        assert difference.n == 12
        assert difference.low < exact.value < difference.high
    assert [label for label, _ in groups(both)] == ["magnitude-global", "random"]


def test_a_pruned_model_is_compared_with_the_dense_one_of_its_seed_and_bytes():
    """A dense loss that is linear in log N makes the interpolation exact: half the bytes lose log10(2) nats."""
    some = trials(rows(factor=0.0))
    compared = dict(against_dense(some))
    assert compared[0.8].value == pytest.approx(np.log10(0.8))
    assert compared[0.2].value == pytest.approx(np.log10(0.2))
    assert compared[0.2].n == 3  # seeds, not trials
    alone = trials(rows(sizes=(1000,)))
    assert list(against_dense(alone)) == []  # smaller than the smallest dense model


def test_the_dense_loss_between_two_parents_lies_below_the_straight_line_where_it_is_convex():
    """At 2 + 40 N^-1/2 a straight line in log N is up to 0.02 nats too high, which would favour pruned models."""
    sizes = np.array(SIZES, dtype=float)
    parents = pd.DataFrame({"seed": 0, "bytes": sizes, "loss": 2 + 40 * sizes**-0.5})
    between = pd.DataFrame({"seed": 0, "bytes": [1000.0, 2800.0, 8000.0, 999.0, 8001.0]})
    losses = dense_loss(between, parents).to_numpy()
    assert losses[[0, 2]] == pytest.approx(parents["loss"].to_numpy()[[0, -1]])
    assert losses[1] == pytest.approx(2 + 40 * 2800**-0.5, abs=0.004)
    assert np.isnan(losses[3:]).all()


def test_the_best_of_several_densities_is_judged_with_all_of_them():
    some = trials(rows(factor=0.1, scatter=0.01))
    alone, together = (dict(against_dense(some, together=both)) for both in (False, True))
    assert alone.keys() == together.keys()
    t_alone, t_together = 4.3027, 8.8602  # Student's t with 2 degrees of freedom at 0.975 and at 1 - 0.025 / 4
    for density, each in alone.items():
        ratio = (together[density].high - each.value) / (each.high - each.value)
        assert ratio == pytest.approx(t_together / t_alone, rel=1e-3), density


def test_two_seeds_carry_no_claim_about_equal_bytes():
    """Every pruned model is 0.1 nats below the dense one of its bytes, and only three seeds may say so."""
    counts = {}
    for seeds in (2, 3):
        better = rows(factor=0.0, seeds=seeds, scatter=1e-4)
        better["validation_loss_nats"] += -np.log10(better["density"]) - 0.1
        (sentence,) = (text for text in SECTION.conclusions(study(better)) if "equal packed bytes" in text)
        counts[seeds] = sentence
    assert "clearly lower loss at none of" in counts[2]
    assert "clearly lower loss at 4 of 4" in counts[3]


def test_models_trained_after_pruning_are_compared_with_dense_ones_trained_as_long():
    after = rows(factor=0.0, steps=5)
    after["validation_loss_nats"] -= 0.1
    assert list(against_dense(trials(after))) == []  # no dense model was trained on
    control = after[after["density"] == 0.8].assign(density=1.0, density_found=1.0, packed_bytes=None)
    control["trial_id"] += "-control"
    compared = dict(against_dense(trials(after, control)))
    assert compared[0.8].value == pytest.approx(np.log10(0.8))


def law_rows(tokens):
    """Trials whose losses are those of the law, with a little noise."""
    frame = pd.concat([rows(steps=5).assign(tokens_before=each) for each in tokens], ignore_index=True)
    frame["parent_trial_id"] += frame["tokens_before"].astype(str)
    logs = {"density": np.log(frame["density"]), "params": np.log(frame["params_remaining"])}
    logs["tokens"] = np.log(frame["tokens_before"] + frame["tokens_seen"])
    exact = LAWS["sparsity"].predict(FRANTAR, {name: log.to_numpy() for name, log in logs.items()})[0]
    noise = 1 + 1e-5 * np.random.default_rng(0).standard_normal(len(exact))
    return prepare(frame.assign(validation_loss_nats=exact * noise))


def test_the_law_is_fitted_to_models_trained_after_pruning():
    fitted = sparsity_fit(pruned(law_rows([1e6])))
    assert isinstance(fitted, Fit)
    assert fitted.law.name == "sparsity_one_length"
    assert fitted.parameters["b"] == pytest.approx(FRANTAR["b"], rel=0.05)
    assert fitted.parameters["alpha"] == pytest.approx(FRANTAR["alpha"], rel=0.05)
    several = sparsity_fit(pruned(law_rows([1e6, 1e7, 1e8])))
    assert isinstance(several, Fit)
    assert several.law.name == "sparsity"


def test_the_law_is_refused_where_the_design_does_not_support_it():
    assert "these were not (recovery_steps)" in str(sparsity_fit(trials(rows())))
    assert "not for heads, hidden units" in str(sparsity_fit(trials(rows("hidden", steps=5))))
    narrow = trials(rows(steps=5)[lambda frame: frame["density"] > 0.3])
    assert "density varies by a factor of 2" in str(sparsity_fit(narrow))


# --- the section -----------------------------------------------------------------------------------------------------


def test_the_section_answers_the_question_of_size_with_its_noise():
    sentences = " ".join(SECTION.conclusions(study(rows(exponent=-0.3, scatter=0.005), rows("random", factor=3.0))))
    assert "magnitude-global: larger models tolerate more pruning" in sentences
    assert "over 12 models" in sentences
    assert "random: " not in sentences  # the control answers no question of its own
    assert "Pruning at random loses more than magnitude-global" in sentences
    assert "masked models have as many bytes as the unpruned ones and take 1.00 times as long" in sentences
    smaller = " ".join(SECTION.conclusions(study(rows(exponent=0.3, scatter=0.005))))
    assert "larger models tolerate less pruning" in smaller
    gentle = " ".join(SECTION.conclusions(study(rows(factor=0.01))))
    assert "0 of 12 models lose more than 0.1 nats" in gentle


@pytest.mark.slow
def test_the_section_draws_every_figure_and_names_the_law_or_its_refusal():
    subject = study(rows(scatter=0.01), rows("random", factor=3.0), rows(steps=5, factor=0.5, scatter=0.01))
    assert section_for(subject) is SECTION
    view = SECTION.build(subject, "s", Room(10**6))
    drawn = [figure.id for figure in view.figures]
    assert {f"s-{spec.key}" for spec in SECTION.figures(subject)} <= set(drawn)
    assert all(figure.table is not None and figure.table.rows for figure in view.figures)
    (law,) = (table for table in view.tables if table.appendix)
    assert any("these were not (recovery_steps)" in str(cell[0]) for row in law.rows for cell in row)
    assert any(row[1][0] == "α" for row in law.rows)


@pytest.mark.slow
def test_published_findings_are_judged_by_the_effect_and_its_noise():
    def verdicts(*frames):
        return {each.source: each.verdict for each in SECTION.outcome(study(*frames)).findings}

    size, choice = "Li et al. 2020, arXiv:2002.11794", "Han et al. 2015, arXiv:1506.02626"
    equal = "Zhu & Gupta 2017, arXiv:1710.01878"
    judged = verdicts(rows(exponent=-0.3, scatter=0.005), rows("random", factor=3.0))
    assert (judged[size], judged[choice]) == ("agrees", "agrees")
    judged = verdicts(rows(exponent=0.3, scatter=0.005), rows("random", factor=0.5))
    assert (judged[size], judged[choice]) == ("disagrees", "disagrees")
    assert verdicts(rows(scatter=0.02))[size] == "not resolved"
    assert verdicts(rows(factor=0.01))[size] == "not tested"
    for factor, expected in ((0.0, "agrees"), (4.0, "disagrees")):  # nothing or much lost at half the bytes
        assert verdicts(rows(factor=factor, scatter=0.001))[equal] == expected


def test_a_study_whose_trials_all_failed_is_still_shown():
    failed = study(rows().assign(status="failed"))
    assert "No conclusion" in SECTION.conclusions(failed)[0]
    assert SECTION.build(failed, "s", Room(10**6)).problems.rows


def checkpoints(method="magnitude-global", factors=(1.0, 4.0), **changes):
    """Trials of two checkpoints of every parent, of which the later one loses more."""
    made = []
    for factor, step in zip(factors, ("a", "bb"), strict=True):
        one = rows(method, factor=factor, **changes)
        one = one.assign(parent_flops=one["params"] * len(step), trial_id=one["trial_id"] + step)
        made.append(one.assign(parent_weights_sha256=one["parent_trial_id"] + step))
    return pd.concat(made, ignore_index=True)


def test_checkpoints_of_a_run_are_neither_one_model_nor_independent():
    made = trials(checkpoints(), checkpoints("random", (2.0, 6.0)))
    parts = {label: part for label, part in groups(made) if "random" not in label}
    assert [*parts] == [f"magnitude-global, length of training {i} of 2" for i in (1, 2)]
    for part, (_, alone) in zip(parts.values(), ((f, trials(rows(factor=f))) for f in (1.0, 4.0)), strict=True):
        assert tolerated(part)["density"].tolist() == tolerated(alone)["density"].tolist()
        assert {change.n for _, change in slopes(part)} == {len(SIZES) * 3}
    more = dict(against_control(made, "magnitude-global"))
    assert {each.n for each in more.values()} == {len(SIZES) * 3}
    assert more[0.2].value == pytest.approx(((2 - 1) + (6 - 4)) / 2 * 0.8**2)
    assert [*SECTION.sentences(study(checkpoints()))]


def test_repeated_pruning_of_one_model_counts_once():
    """Three random masks of each of six models tell about six models."""
    made = rows("random", sizes=SIZES[:2], scatter=0.01)
    again = pd.concat([made.assign(trial_id=made["trial_id"] + f"-{i}") for i in range(3)], ignore_index=True)
    assert {change.n for _, change in slopes(trials(again))} == {6}


def test_learning_rates_of_the_training_after_pruning_are_apart():
    made = pd.concat([
        rows(steps=100, factor=factor).assign(learning_rate=rate, trial_id=lambda r, n=rate: r["trial_id"] + str(n))
        for rate, factor in ((0.001, 1.0), (0.01, 2.0))
    ])  # fmt: skip
    assert [label for label, _ in groups(trials(made))] == [
        "magnitude-global, learning_rate 0.001", "magnitude-global, learning_rate 0.01",
    ]  # fmt: skip


def test_models_of_other_learning_rates_are_no_seeds_of_one_another():
    """Those of the higher rate lose twice as much: counted as seeds, this was noise of one group."""
    made, parents = [], []
    for rate, factor in ((0.001, 1.0), (0.01, 2.0)):
        part = rows(factor=factor)
        part["parent_trial_id"] += f"-{rate}"
        made.append(part.assign(trial_id=part["trial_id"] + f"-{rate}", learning_rate=None))
        own = part.drop_duplicates("parent_trial_id")[["params", "params_non_embedding", "seed"]]
        trained = {"trial_id": part["parent_trial_id"].unique(), "learning_rate": rate, "tokens_seen": 1e6}
        parents.append(own.assign(study="before", status="ok", **trained))
    together = StudyAnalysis("made", {"workload": "prune"}, pd.concat(made, ignore_index=True))
    apart = replace(together, beside=pd.concat(parents, ignore_index=True))
    assert [label for label, _ in groups(pruned(together.trials))] == ["magnitude-global"]
    by_label = dict(groups(pruned(apart.trials)))
    assert list(by_label) == [f"magnitude-global, parent_learning_rate {rate}" for rate in (0.001, 0.01)]
    lost = [part.loc[part["density"] == 0.2, "loss_added_nats"] for part in by_label.values()]
    assert [each.std() for each in lost] == pytest.approx([0.0, 0.0], abs=1e-12)
    assert [len(series.usable) for series in apart.series] == [len(each) for each in made]
    one_rate = replace(together, beside=parents[0])  # the parents of half of the trials are not known
    assert [label for label, _ in groups(pruned(one_rate.trials))] == ["magnitude-global"]
