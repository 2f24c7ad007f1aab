"""Values of options: whole numbers are not rounded, shares are between 0 and 1, and no option is silently ignored."""

from __future__ import annotations

from typing import get_args

import pytest

from scalebench.cli.app import COMMANDS, app
from scalebench.cli.options import Whole

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
    assert command("compare", "op", "--import", "b.json", "--margin", 0.1)[2].startswith("b.json")
