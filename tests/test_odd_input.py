"""Input that is sound by its form and odd by its content: refused or warned of by name, never passed over."""

from __future__ import annotations

import json
import shutil
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from damage import planted_results

from scalebench.cli.app import main
from scalebench.data import DataError, open_source
from scalebench.laws import LAWS
from scalebench.running.claims import last_claim
from scalebench.store import read_results
from scalebench.study.file import idle_exclusions, parse_study
from scalebench.workloads import WORKLOADS

STUDY = 'schema = 1\nname = "x"\n[model]\nfamily = "linear"\nparams = [10, 20]\n[train]\nsteps = 3\n'


@pytest.fixture
def study_file(tmp_path: Path) -> Path:
    path = tmp_path / "x.toml"
    path.write_text(STUDY)
    return path


@pytest.mark.parametrize(
    ("field", "meant"), [("model.parms = 10", "params"), ("model.size = 'a'", None), ("train.tokens = 9", None)]
)
def test_an_exclusion_by_a_field_that_no_combination_has_is_an_error(field: str, meant: str | None) -> None:
    _, lines = parse_study(tomllib.loads(f"{STUDY}[[exclude]]\n{field}\n"), WORKLOADS)
    (line,) = lines
    assert line.startswith(f"exclude[0].{field.split(maxsplit=1)[0]}: ")
    assert meant is None or f"did you mean {meant!r}?" in line


def test_an_exclusion_of_values_that_no_axis_has_is_a_warning(command, study_file: Path) -> None:
    study_file.write_text(f"{STUDY}[[exclude]]\nmodel.params = [20, 21]\ntrain.seed = 7\n")
    code, _, warnings = command("plan", study_file)
    assert code == 0
    (line,) = warnings.splitlines()
    assert "exclude[0].train.seed = 7" in line
    study, _ = parse_study(tomllib.loads(f"{STUDY}[[exclude]]\nmodel.params = 20\n"), WORKLOADS)
    assert study is not None
    assert not idle_exclusions(study)


def test_a_setting_of_several_lines_is_no_other_setting(command, study_file: Path) -> None:
    code, _, error = command("plan", study_file, "--set", "train.steps=4\nseed=5")
    assert code == 2
    assert "train.steps" in error


def test_a_study_in_another_encoding_is_told_which_to_use(command, study_file: Path) -> None:
    study_file.write_bytes(STUDY.encode("utf-16"))
    assert "save it as UTF-8" in command("plan", study_file)[2]


def test_a_home_folder_of_nobody_is_a_line() -> None:
    with pytest.raises(DataError, match="write the whole path"):
        open_source("text:~nobody-of-this-name/x")


@pytest.mark.parametrize("rates", [("0", "1", "1"), ("1", "nan", "1"), ("1", "1", "inf"), ("-1", "1", "1")])
def test_ceilings_are_positive_numbers(command, rates: tuple[str, ...]) -> None:
    code, _, error = command("plan", "gpu-speed", "--speed", "--ceilings", *rates)
    assert code == 2
    assert "--ceilings" in error


def test_copies_of_claims_by_other_programs_are_no_claims(tmp_path: Path) -> None:
    for number in (9, 10):
        (tmp_path / f"claim-{number:06d}").write_text('{"attempt": "a", "driver": "d"}')
    for name in ("claim-000011 (conflicted copy)", "claim-.nfs01", "claim-000012.tmp"):
        (tmp_path / name).write_text("{}")
    claim = last_claim(tmp_path)
    assert claim is not None
    assert claim.number == 10


def test_a_law_without_slopes_predicts_its_floor() -> None:
    flat = {"E": 2.0, "A": 0.0, "alpha": 0.5, "B": 0.0, "beta": 0.5, "k": 1.0}
    logs = {"params": np.log([1e6, 1e9]), "tokens": np.log([1e7, 1e8])}
    np.testing.assert_allclose(LAWS["skaling"].predict(flat, logs)[0], 2.0)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from scalebench import fit

    sizes = np.geomspace(1e6, 1e9, 8)
    points = {"params": sizes, "loss": 1.7 + 400 * sizes**-0.34 + 1e-3 * np.cos(np.arange(8.0))}
    path = tmp_path_factory.mktemp("fit") / "fit.json"
    content = {**fit(points, "power").to_dict(), "points": {name: list(values) for name, values in points.items()}}
    path.write_text(json.dumps(content | {"refits": {"method": "auto", "n": 20, "seed": 0}, "source": {}}))
    return path


@pytest.mark.parametrize(
    "change",
    [
        {"refits": {"n": 1e3}}, {"refits": {"n": 10**12}}, {"refits": {"seed": 1.5}}, {"source": "x"}, {"points": "x"},
        {"source": {"columns": 3}}, {"source": {"columns": {"loss": 3}}}, {"delta": "1"}, {"fixed": [1]},
        {"points": {"params": [1, [2]], "loss": [1, 2]}},
    ],
    ids=str,
)  # fmt: skip
def test_a_changed_fit_is_one_line(command, fitted: Path, tmp_path: Path, change: dict[str, object]) -> None:
    path = tmp_path / "fit.json"
    path.write_text(json.dumps(json.loads(fitted.read_text()) | change))
    code, _, error = command("predict", path, "--params", "1e9")
    assert code == 2
    assert error.startswith(f"{path}: ")
    assert error.count("\n") == 1


def test_a_fit_that_nobody_changed_predicts(command, fitted: Path) -> None:
    assert command("predict", fitted, "--params", "1e9")[0] == 0


@pytest.mark.parametrize("value", [1e308, 1e-320, 1e101])
def test_points_whose_products_overflow_are_refused_by_place(command, tmp_path: Path, value: float) -> None:
    rows = "\n".join(f"{size:g},{loss}" for size, loss in zip([1e6, 1e7, 1e8, 1e9], [4, 3, value, 2.5], strict=True))
    (tmp_path / "points.csv").write_text(f"params,loss\n{rows}\n")
    code, _, error = command("fit", "points.csv", "--law", "power")
    assert code == 2
    assert "points.csv, line 4, column 'loss': " in error
    assert "beyond 1e-100 to 1e+100" in error


@pytest.mark.slow
def test_refits_whose_derivatives_overflow_end_without_an_error() -> None:
    """Losses of small models that hardly fall, measured: some refits of their bootstrap run to the end of the range."""
    from scalebench import fit

    losses = [
        (1.6632355504137792, 1.89309392724418), (1.373851650510491, 1.5388465206354842),
        (1.48386811207423, 1.8634031965394167), (1.2905139018778644, 1.4025314718419888),
        (1.3290226126317066, 1.4099661130477703),
    ]  # fmt: skip
    sizes = np.repeat([103, 313, 1027, 3163, 10071], 4).astype(float)
    points = {"params": sizes, "loss": np.array([[*pair, *pair] for pair in losses]).ravel()}
    with pytest.warns(UserWarning, match="repeat an earlier one"):
        fitted = fit(points, "power")
    with np.errstate(invalid="raise"):
        assert all(np.isfinite(row.predicted) for row in fitted.backtest("rolling").forecasts)


def test_a_copy_of_an_attempt_counts_once(tmp_path: Path) -> None:
    planted_results(tmp_path / "r")
    shutil.copytree(tmp_path / "r", tmp_path / "copy")
    shutil.copytree(tmp_path / "r" / "planted", tmp_path / "r" / "planted-backup")
    alone = read_results(tmp_path / "copy").frame
    for paths in ((tmp_path / "r",), (tmp_path / "copy", tmp_path / "r")):
        results = read_results(*paths)
        assert sorted(results.frame["attempt"]) == sorted(alone["attempt"])
        assert results.frame.index.is_unique
        assert set(results.frame["study"]) == {"planted"}
        assert results.copied == (
            f"planted-backup: copies of {len(alone)} trials of planted, which count there and not here",
        )


def test_a_renamed_folder_holds_a_study_of_its_own_name(tmp_path: Path, monkeypatch) -> None:
    planted_results(tmp_path)
    (tmp_path / "planted").rename(tmp_path / "renamed")
    results = read_results(tmp_path)
    assert set(results.frame["study"]) == set(results.studies) == {"renamed"}
    monkeypatch.chdir(tmp_path / "renamed")
    assert set(read_results(".").studies) == {"renamed"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("parms = 10", "did you mean 'params'?"), ("params = 1e300", "model.params"), ("params = 1e16", "model.params"),
        ("params = 10\n[train]\nflops = 1e30", "train.flops: 1e+30 takes "),
        ("params = 10\n[train]\ntokens_per_param = 1e300", "train.tokens_per_param: 1e+300 takes "),
    ],
)  # fmt: skip
def test_sizes_and_budgets_beyond_all_that_is_trained_are_refused(command, study_file: Path, line, message) -> None:
    study_file.write_text(f'schema = 1\nname = "x"\n[model]\nfamily = "linear"\n{line}\n')
    code, _, error = command("plan", study_file)
    assert code == 2
    assert message in error


@pytest.mark.parametrize("budget", ["inf", "nan", "0", "1e-300", "1e60"])
def test_a_budget_is_a_number_of_flops(command, budget: str) -> None:
    for options in ((), ("--unique-tokens", "1e9")):
        code, _, error = command("optimal", "points.csv", *options, "--budget", budget)
        assert code == 2
        assert "--budget" in error


def test_a_value_that_is_given_twice_is_an_error(command, fitted: Path) -> None:
    code, _, error = command("next", fitted, "--predict", "params=1e9,params=1e10")
    assert code == 2
    assert "params is given twice" in error


def test_closed_standard_streams_are_replaced(monkeypatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    with pytest.raises(SystemExit) as end:
        main(["list"])
    for stream in (sys.stdout, sys.stderr):
        stream.close()
    assert end.value.code == 0


@pytest.mark.slow
def test_refits_without_an_optimum_widen_its_interval() -> None:
    """Losses in which a fifth of the refits have a term at 0: N* is infinite or 0 in these, and not determined."""
    from scalebench import fit
    from scalebench.advice.closed_form import closed_form, parametric

    rng = np.random.default_rng(2)
    sizes, tokens = (axis.ravel() for axis in np.meshgrid(np.geomspace(1e7, 1e9, 5), np.geomspace(1e9, 1e11, 4)))
    clean = 1.7 + 400 * sizes**-0.34 + 600 * tokens**-0.3
    surface = fit({"params": sizes, "tokens": tokens, "loss": clean * np.exp(rng.normal(0, 0.3, 20))}, "chinchilla")
    refits = closed_form(surface.bootstrap(n=100).samples)
    share = 1 - np.isfinite(refits).all(axis=1).mean()
    assert 0.05 < share < 0.5
    allocation = parametric(surface, n=100)
    low, high = allocation.params_interval(1e20)
    assert not allocation.determined(1e20)[0]
    assert high / low > 1e100
