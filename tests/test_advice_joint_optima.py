"""Columns swept together have one joint optimum; what varies within a sweep and is not modelled is an error."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command_support import planted, write_study
from support import reference_case

import scalebench
from scalebench.advice.optima import optimum_law, optimum_laws
from scalebench.advice.settings import unmodelled
from scalebench.advice.vertex import joint_optimum
from scalebench.errors import InputError
from scalebench.laws import FitRefused
from scalebench.study.sampling import fractions_of

RATES, BATCHES = np.geomspace(2e-4, 2e-2, 9), 2.0 ** np.arange(5, 11)
TRUTH = {"lr": {"constant": 1.8, "N": -0.7, "D": 0.3}, "bs": {"constant": 2.85e-4, "N": 0.0, "D": 0.571}}
TOGETHER = 1 - 0.05 / 6  # level at which six intervals hold together in 95 % of studies (Bonferroni)


def grid(noise: float = 0.0, seed: int = 0) -> pd.DataFrame:
    """Every rate with every batch size at 12 sizes, about planted optima; the best rate moves with the batch size."""
    axes = np.meshgrid([5e7, 1e8, 2e8, 4e8], [1e9, 4e9, 1.6e10], RATES, BATCHES)
    table = pd.DataFrame(dict(zip(("N", "D", "lr", "bs"), (axis.ravel() for axis in axes), strict=True)))
    best = {name: law["constant"] * table.N ** law["N"] * table.D ** law["D"] for name, law in TRUTH.items()}
    rate, batch = np.log(table.lr / best["lr"]), np.log(table.bs / best["bs"])
    loss = 3 + 0.02 * rate**2 + 0.012 * batch**2 - 0.014 * rate * batch
    return table.assign(loss=loss + noise * np.random.default_rng(seed).standard_normal(len(table)))


def test_a_planted_joint_optimum_comes_back_exactly() -> None:
    x = np.stack([axis.ravel() for axis in np.meshgrid(RATES, BATCHES)], axis=1)
    z = np.log(x / [3e-3, 200.0])
    rate, batch = joint_optimum(x, 2 + (z @ [[0.02, -0.007], [-0.007, 0.012]] * z).sum(axis=1), ("lr", "bs"))
    assert (rate.x, batch.x, rate.loss) == pytest.approx((3e-3, 200.0, 2.0), rel=1e-9)
    assert (rate.curvature, batch.curvature) == pytest.approx((0.04, 0.024), rel=1e-9)
    assert (rate.n_points, rate.degrees_of_freedom) == (25, 19)


def test_both_planted_laws_come_back() -> None:
    for law in optimum_laws(grid(), ("lr", "bs"), ("N", "D")):
        truth = TRUTH[law.optimised]
        assert {"constant": law.constant, **law.exponents} == pytest.approx(truth, rel=1e-6, abs=1e-9)


def test_the_gain_is_the_scatter_of_the_joint_optimum_per_unit_noise() -> None:
    x = np.stack([axis.ravel() for axis in np.meshgrid(RATES, BATCHES)], axis=1)
    z, rng = np.log(x / [3e-3, 200.0]), np.random.default_rng(0)
    clean = 2 + (z @ [[0.02, -0.007], [-0.007, 0.012]] * z).sum(axis=1)
    draws = [
        np.log([optimum.x for optimum in joint_optimum(x, clean + 3e-4 * rng.standard_normal(54), ("lr", "bs"), None)])
        for _ in range(400)
    ]
    gains = [optimum.gain for optimum in joint_optimum(x, clean, ("lr", "bs"), None)]
    # Standard error of a standard deviation from 400 draws: 3.5 %.
    assert np.std(draws, axis=0) == pytest.approx(3e-4 * np.array(gains), rel=0.12)


def test_one_column_is_the_parabola_of_a_single_sweep() -> None:
    x, loss = RATES, 2 + 0.1 * np.log(RATES / 2e-3) ** 2
    (optimum,) = joint_optimum(x[:, None], loss, ("lr",))
    assert (optimum.x, optimum.loss) == pytest.approx((2e-3, 2))
    low = slice(max(0, loss.argmin() - 2), loss.argmin() + 3)  # the best value and two on each side
    assert optimum.curvature == pytest.approx(2 * np.polyfit(np.log(x[low]), loss[low], 2)[0], rel=1e-6)


@pytest.mark.slow
def test_intervals_of_joint_optima_cover_the_planted_laws() -> None:
    studies, covered = 40, 0
    for seed in range(studies):
        for law in optimum_laws(grid(4e-4, seed), ("lr", "bs"), ("N", "D")):
            covered += sum(
                low <= TRUTH[law.optimised][name] <= high
                for name in ("constant", "N", "D")
                for low, high in [law.interval(name)]
            )
    # 95 % of 240, within three standard errors of 240 independent ones (those of one study are correlated).
    assert 0.90 <= covered / (6 * studies) <= 0.99


def sampled(points: int, seed: int = 0, noise: float = 0.0) -> pd.DataFrame:
    """Rates and batch sizes that [sample] draws, the same at each of six sizes, about planted optima."""
    x = np.exp(np.log([2e-4, 32]) + np.log([100, 32]) * fractions_of(points, 2, seed))
    sizes = pd.DataFrame({"N": np.geomspace(5e7, 1e9, 6), "D": 4e9})
    table = sizes.merge(pd.DataFrame(x, columns=["lr", "bs"]), how="cross")
    best = {name: law["constant"] * table.N ** law["N"] * table.D ** law["D"] for name, law in TRUTH.items()}
    rate, batch = np.log(table.lr / best["lr"]), np.log(table.bs / best["bs"])
    # Losses that rise faster towards high rates, as they do.
    loss = 3 + (0.02 * rate**2 + 0.012 * batch**2 - 0.014 * rate * batch) * (1 + (0.1 * np.tanh(rate) if noise else 0))
    return table.assign(loss=loss + noise * np.random.default_rng(seed).standard_normal(len(table)))


def test_planted_optima_of_samples_come_back() -> None:
    for law in optimum_laws(sampled(16), ("lr", "bs"), ("N",)):
        assert law.exponents["N"] == pytest.approx(TRUTH[law.optimised]["N"], abs=1e-9)
        assert {optimum.n_points for _, optimum in law.optima} == {12}  # two for each coefficient
        assert not law.refused  # although the lowest loss is at the end of a column at some size


def test_few_points_of_a_sample_are_refused_with_how_many_there_should_be() -> None:
    with pytest.raises(FitRefused, match=r"12 combinations of lr and bs that form no grid; .* needs 15"):
        optimum_laws(sampled(12), ("lr", "bs"), ("N",))


@pytest.mark.parametrize("points", [16, 32])
def test_intervals_of_samples_cover_the_planted_laws(points: int) -> None:
    covered = []
    for seed in range(20):
        for law in optimum_laws(sampled(points, seed, 1e-3), ("lr", "bs"), ("N",)):
            low, high = law.interval("N")
            covered.append(low <= TRUTH[law.optimised]["N"] <= high)
    # 95 % of 40, less three standard errors of 20 independent ones.
    assert np.mean(covered) >= 0.8


@pytest.mark.parametrize(
    ("keep", "reason"),
    [
        (lambda lr, bs: bs <= 128, "the lowest loss is at the highest of 3 values, bs = 128"),
        (lambda lr, bs: lr < 2.1e-3, r"the lowest loss is at the highest of 5 values, lr = 0\.002"),
        (lambda lr, bs: bs == 128, "1 value of bs for a parabola"),
        (lambda lr, bs: (np.round(np.log2(bs)) - 7) * (np.abs(np.log(lr / RATES[5])) > 0.1) == 0, "do not determine"),
    ],
)
def test_what_does_not_enclose_a_joint_optimum_is_refused(keep, reason: str) -> None:
    x = np.stack([axis.ravel() for axis in np.meshgrid(RATES, BATCHES)], axis=1)
    x = x[keep(x[:, 0], x[:, 1])]
    z = np.log(x / [RATES[5], 160.0])
    with pytest.raises(FitRefused, match=reason):
        joint_optimum(x, 2 + 0.02 * z[:, 0] ** 2 + 0.012 * z[:, 1] ** 2, ("lr", "bs"))


# --- what varies and is not modelled ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "values", "expected"),
    [
        ("bs", [32, 32, 64, 64], ["32", "64"]),
        ("optimizer", ["adamw", "adamw", "sgd", "sgd"], ["adamw", "sgd"]),
        ("dropout", [0.1, 0.1, 0.2, 0.2], ["0.1", "0.2"]),
        ("seed", [0, 0, 1, 1], None),  # repeats
        ("run", ["a", "b", "c", "d"], None),  # its name
        ("time_s", [1.31, 1.27, 1.31, 1.26], None),  # a result, equal by chance
        ("log_lr", [-3.0, -2.0, -3.0, -2.0], None),  # the swept column in another unit
        ("data", ["text"] * 4, None),
    ],
)
def test_a_setting_that_varies_within_a_sweep_is_named(column: str, values: list, expected: list[str] | None) -> None:
    varying = unmodelled({column: values}, [0, 0, 0, 0], [[1e-3, 1e-2, 1e-3, 1e-2]])
    assert varying == ({} if expected is None else {column: expected})


def test_a_column_sampled_together_with_the_swept_one_is_no_other_unit_of_it() -> None:
    table = sampled(16, 0, 1e-3)
    sizes, swept = pd.factorize(table.N)[0], np.repeat(table.lr, 2)
    columns = {"bs": np.repeat(table.bs, 2), "log_lr": np.log(swept), "name": [f"lr={rate:.2g}" for rate in swept]}
    assert set(unmodelled(columns, np.repeat(sizes, 2), [swept])) == {"bs"}


def test_a_setting_that_moves_with_the_size_is_part_of_its_sweep() -> None:
    assert unmodelled({"depth": [2, 2, 2, 4, 4, 4]}, [0, 0, 0, 1, 1, 1], [[1, 2, 3, 1, 2, 3]]) == {}


def test_tune_refuses_a_swept_column_that_it_ignores_and_offers_what_to_do(command) -> None:
    grid().to_csv("sweep.csv", index=False)
    code, out, err = command("tune", "sweep.csv", "--optimised", "lr", "--against", "N,D")
    assert (code, out) == (2, "")
    assert "'bs' takes 6 values within a sweep" in err
    assert "--optimised lr,bs" in err
    assert command("tune", "sweep.csv", "--optimised", "lr,bs", "--against", "N")[0] == 2  # D varies
    for choice in (["--where", "bs == 128"], ["--replicates", "seed,bs"]):
        assert command("tune", "sweep.csv", "--optimised", "lr", "--against", "N,D", *choice)[0] == 0


def test_tune_prints_and_predicts_the_joint_optimum(command) -> None:
    grid().to_csv("sweep.csv", index=False)
    arguments = ("tune", "sweep.csv", "--optimised", "lr,bs", "--against", "N,D", "--at", "N=1e9,D=1e11")
    laws = {law["optimised"]: law for law in json.loads(command(*arguments, "--json")[1])["laws"]}
    assert laws["lr"]["at"]["value"] == pytest.approx(1.8 * 1e9**-0.7 * 1e11**0.3, rel=1e-6)
    assert laws["bs"]["at"]["value"] == pytest.approx(2.85e-4 * 1e11**0.571, rel=1e-6)
    out = command(*arguments)[1]
    assert "best lr  best bs" in out


def test_a_setting_of_trials_that_varies_within_a_sweep_is_named(command) -> None:
    rows = [
        row | {"trial_id": f"{row['trial_id']}{i}", "learning_rate": 10.0 ** (-3 + i % 3), "batch_size": 8 << i // 3}
        for row in planted()[:6]
        for i in range(6)
    ]
    write_study(Path("results"), rows)
    code, _, err = command("tune", "results")
    assert code == 2
    assert "'batch_size' takes 2 values within a sweep (8, 16)" in err
    assert "seed" not in err.replace("--replicates", "")


def test_tune_in_python_takes_several_columns() -> None:
    laws = scalebench.tune(grid(), ["lr", "bs"], ["N", "D"])
    assert [law.optimised for law in laws] == ["lr", "bs"]
    assert laws[0].exponents == pytest.approx({"N": -0.7, "D": 0.3}, rel=1e-6)
    with pytest.raises(InputError, match="'bs' takes 6 values"):
        scalebench.tune(grid(), "lr", ["N", "D"])


def test_the_joint_sweep_of_the_cases(command) -> None:
    path = reference_case("05-joint-sweep/sweep.csv")
    code, _, err = command("tune", path, "--optimised", "lr", "--against", "N,D")
    assert code == 2
    assert "'bs' takes 6 values within a sweep" in err
    for law in scalebench.tune(path, ["lr", "bs"], ["N", "D"]):
        for name, value in TRUTH[law.optimised].items():
            low, high = law.interval(name, TOGETHER)
            assert low <= value <= high, (law.optimised, name)
    law = optimum_law(pd.read_csv(path), "lr", ("N", "D"))  # what ignoring the batch size gave: far off, and sure of it
    assert law.exponents["D"] == pytest.approx(0.1, abs=0.01)
