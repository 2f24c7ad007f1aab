"""Values of options: whole numbers are not rounded, shares are between 0 and 1, and no option is silently ignored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from command_support import CHINCHILLA, COLUMNS, planted, surface, write_study
from cyclopts import Token

from scalebench.cli.app import COMMANDS, app
from scalebench.cli.commands.fit import by_configuration
from scalebench.cli.options import Whole, _setting
from scalebench.comparison.options import Options, check_import

NAMES = [name for group in COMMANDS.values() for name in group]


@pytest.mark.parametrize("name", NAMES)
def test_every_option_that_is_a_whole_number_is_read_by_the_one_reader(name: str) -> None:
    target = app
    for word in name.split():
        target = target[word]
    (reader,) = get_args(Whole)[1:]
    for argument in target.assemble_argument_collection():
        kinds = {argument.hint, *get_args(argument.hint)}
        if int in kinds:
            assert argument.parameter.converter is reader.converter, (name, argument.name)


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (("compare", "norm", "--processes", "1.5"), "--processes"),
        (("compare", "norm", "--seed", "1.5"), "--seed"),
        (("run", "demo", "--jobs", "1.5"), "--jobs"),
        (("fit", "p.csv", "--bootstrap", "99.5"), "--bootstrap"),
    ],
)
def test_a_fraction_where_a_whole_number_is_needed_is_refused(command, arguments, option: str) -> None:
    code, _, err = command(*arguments)
    assert code == 2
    assert f"{option}: {arguments[-1]!r} is not a whole number" in err


@pytest.mark.parametrize("value", ["0", "-0.1", "1", "2", "nan"])
@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (("compare", "norm"), "--margin"),
        (("compare", "norm"), "--noise"),
        (("compare", "op", "--import", "b.json"), "--margin"),
        (("diff", "a", "b"), "--margin"),
    ],
)
def test_a_margin_or_noise_is_a_fraction_between_0_and_1(command, arguments, option: str, value: str) -> None:
    code, _, err = command(*arguments, option, value)
    assert code == 2
    (line,) = err.splitlines()
    assert line.startswith(option)
    assert "greater than 0 and less than 1" in line


def test_options_of_measuring_are_refused_for_files_that_are_imported(command) -> None:
    options = ("--processes", 3, "--noise", 0.1, "--backward", "--no-graphs", "--shapes", "ladder")
    code, _, err = command("compare", "op", "--import", "b.json", *options)
    assert code == 2
    refused = [line.split(":")[0] for line in err.splitlines()]
    assert sorted(refused) == ["--backward", "--graphs", "--noise", "--processes", "--shapes"]
    check_import(Options(margin=0.1, baseline="mine"))


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    """A table of points, the JSON of a fit to it, and a recorded study."""
    surface().to_csv(tmp_path / "p.csv", index=False)
    values = {"params": np.geomspace(1e3, 1e6, 6), "loss": 2 + np.geomspace(1e3, 1e6, 6) ** -0.3}
    document = {"law": "power", "points": {name: column.tolist() for name, column in values.items()}}
    document |= {"loss": "huber", "delta": 1e-3, "space": "log", "fixed": {}}
    (tmp_path / "fit.json").write_text(json.dumps(document))
    write_study(tmp_path / "results" / "planted", planted()[:2])
    return tmp_path


NEXT = ("next", "p.csv", "--law", "chinchilla", *COLUMNS, "--predict", "params=1e11,tokens=1e12")
REPEATED = ("optimal", "p.csv", "--unique-tokens", "1e9")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("next", "fit.json", "--law", "chinchilla", "--predict", "params=1e7"), "a fit of power, not of chinchilla"),
        (("worth", "fit.json", "fit.json", "--law", "kaplan"), "a fit of power, not of kaplan"),
        ((*NEXT, "--x-column", "kind"), "not used by chinchilla: column 'kind' for x"),
        ((*NEXT, "--column", "foo=L"), "not used by chinchilla: column 'L' for foo"),
        ((*NEXT, "--candidates", "p.csv", "--reach", "2"), "--reach 2: extends the grid, which --candidates replaces"),
        ((*NEXT, "--reach", "inf"), "--reach inf: a positive finite number is needed"),
        (("predict", "fit.json", "--params", "1e7", "--input", "params=2e7"), "--input params: --params has it"),
        (("worth", "p.csv", "p.csv", *CHINCHILLA, "--flops-column", "C", "--tokens-column", "D"),
         "column 'C' for flops"),
        ((*REPEATED, *COLUMNS, "--unique-tokens-column", "D", "--non-embedding-column", "C"),
         "column 'C' for params_non_embedding"),
        (("worth", "p.csv", "p.csv", "--params-column", "N"), "--params-column: power of compute takes flops and loss"),
        (("fit", "p.csv", *CHINCHILLA, "--loss", "squares", "--delta", "0.1"), "--loss squares has no delta"),
        (("fit", "p.csv", "--run-column", "kind", "--config-column", "kind"), "--config-column and --run-column"),
        (("predict", "results", "--max-loss", "2", "--input", "bits=4"), "--input is for predictions of one size"),
        ((*REPEATED, "--approach", "3"), "--approach: has no effect with --unique"),
        ((*REPEATED, "--count-flops", "exact"), "--count-flops: has no effect"),
        (("optimal", "p.csv", "--unique-tokens-column", "U"), "--unique-tokens-column: is for --unique-tokens"),
        (("optimal", "p.csv", "--approach", "2", "--run-column", "kind"), "--run-column: is for"),
        (("tune", "p.csv", "--optimised", "D", "--against", "N", "--loss-column", "L", "--replicates", "sed"),
         "--replicates: column unknown 'sed'"),
        (("plan", "demo", "--ceilings", "700", "450", "3"), "give --speed, too"),
        (("list", "laws", "--columns"), "--columns lists columns, not laws"),
        (("diff", "results", "results", "--markdown", "--json"), "--markdown and --json"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("tables", "few_refits")
def test_an_option_without_effect_is_refused_with_what_to_do(command, arguments, expected: str) -> None:
    code, _, err = command(*arguments)
    assert code == 2
    assert expected in err
    assert len(err.splitlines()) == 1


@pytest.mark.usefixtures("tables", "few_refits")
def test_the_law_of_a_fit_may_be_named(command) -> None:
    assert command("next", "fit.json", "--law", "power", "--predict", "params=1e7")[0] == 0


@pytest.mark.usefixtures("tables", "few_refits")
def test_next_counts_the_rows_of_a_run_as_one_configuration_as_fit_does(command) -> None:
    surface(0.01).assign(run=np.repeat(np.arange(12), 3)[:25]).to_csv("p.csv", index=False)
    power = ("next", "p.csv", "--params-column", "N", "--loss-column", "L", "--predict", "params=1e11", "--json")
    apart, together = (json.loads(command(*power, *more)[1])["interval_now"] for more in ((), ("--run-column", "run")))
    assert together != apart
    assert by_configuration(Path("p.csv"), {"run": "run"}) == ({"config": "run"}, None)


@pytest.mark.usefixtures("tables")
def test_what_is_watched_leaves_json_alone_on_standard_output(command) -> None:
    _, out, err = command("status", "results", "--watch", "--json")
    assert json.loads(out)["command"] == "status"
    assert "planted: " in err


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ('data.source="text:/data/corpus 10M clean.txt"', 'data.source="text:/data/corpus 10M clean.txt"'),
        ("title='from 1M to 5M'", "title='from 1M to 5M'"),
        (r'title="a \" 1M b"', r'title="a \" 1M b"'),
        ("model.params=[1k, 1.5M]", "model.params=[1000, 1500000]"),
    ],
)
def test_numbers_with_a_suffix_are_read_outside_quotes_alone(setting: str, text: str) -> None:
    assert _setting(str, [Token(value=setting)]) == text
