"""An error of a study names what causes it: the option ``--set``, or the study's file."""

from __future__ import annotations

from pathlib import Path

import pytest

from scalebench.running.planning import load_study

STUDY = """
schema = 1
name = "s"
[model]
family = "gpt"
params = [2e3, 4e3]
[train]
steps = 20
warmup_steps = 10
"""


@pytest.fixture
def refused(command, tmp_path: Path):
    """Plan a study of this content with settings; return the lines of the error."""

    def lines(*settings: str, study: str = STUDY) -> list[str]:
        (tmp_path / "s.toml").write_text(study)
        code, out, err = command("plan", "s.toml", *(word for setting in settings for word in ("--set", setting)))
        assert (code, out) == (2, "")
        return err.splitlines()

    return lines


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("train.stepz=3", "unknown key 'stepz'; did you mean 'steps'?"),
        ("train.steps=abc", "input should be a valid integer (given 'abc')"),
        ("train.steps=-3", "input should be greater than 0 (given -3)"),
        ("model.family=gtp", "unknown 'gtp'; did you mean 'gpt'?"),
        (
            'name="a b"',
            "expected letters, digits, '.', '_' and '-', at most 100, the first a letter or digit (given 'a b')",
        ),
        ("fit.best_over=3", "expected a list (given 3)"),
        ("exclude=3", "expected tables headed [[exclude]] (given 3)"),
        ("nme=3", "unknown key 'nme'; did you mean 'name'?"),
    ],
)
def test_a_wrong_setting_is_named_and_the_file_is_not(refused, setting: str, reason: str) -> None:
    (line,) = refused(setting)
    assert line.startswith(f"--set {setting}: {setting.partition('=')[0]}: {reason}")


def test_an_error_that_a_setting_brings_about_names_the_file_and_the_setting(refused) -> None:
    lines = refused("model.heads=3", "title=x")
    assert [line.partition(": model: ")[0] for line in lines] == ["s.toml with --set model.heads=3"] * 2
    (line,) = refused("foo.bar=1")
    assert line.startswith("s.toml with --set foo.bar=1: foo: unknown key 'foo'")


def test_a_list_without_brackets_is_shown_with_them(refused) -> None:
    (line,) = refused("train.optimizer=adamw,sgd")
    assert line.startswith("--set train.optimizer=adamw,sgd: train.optimizer: unknown 'adamw,sgd'")
    assert line.endswith("; a list is written [adamw,sgd]")


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("[adamw,sgd]", ("adamw", "sgd")),
        (" [ adamw , sgd ] ", ("adamw", "sgd")),
        ('["adamw", "sgd"]', ("adamw", "sgd")),
        ("['adamw','sgd']", ("adamw", "sgd")),
        ("[sgd]", ("sgd",)),
        ("sgd", ("sgd",)),
    ],
)
def test_a_list_of_words_needs_no_quotes(tmp_path: Path, text: str, values: tuple[str, ...]) -> None:
    (tmp_path / "s.toml").write_text(STUDY)
    assert load_study(tmp_path / "s.toml", [f"train.optimizer={text}"]).axes()["train.optimizer"] == values


def test_words_and_numbers_may_be_mixed_and_a_broken_list_is_no_list(tmp_path: Path, refused) -> None:
    (tmp_path / "s.toml").write_text(STUDY)
    axes = load_study(tmp_path / "s.toml", ["train.learning_rate=[auto,0.01]"]).axes()
    assert axes["train.learning_rate"] == ("auto", 0.01)
    (line,) = refused("train.optimizer=[adamw,sgd")
    assert "unknown '[adamw,sgd'" in line


def test_one_value_of_an_axis_is_blamed_on_the_setting_of_the_axis(refused) -> None:
    (line,) = refused('train.learning_rate=[0.1,"x"]')
    assert line.startswith('--set train.learning_rate=[0.1,"x"]: train.learning_rate[1]: expected a positive number')


def test_errors_of_the_file_stay_its_own_beside_a_wrong_setting(refused) -> None:
    lines = refused("train.seed=x", study=STUDY.replace("steps = 20", "stepz = 20"))
    assert {line.partition(": ")[0] for line in lines} == {"s.toml", "--set train.seed=x"}
    too_small = STUDY.replace("[2e3, 4e3]", "[1.0, 4e3]")
    assert refused("train.steps=30", study=too_small) == refused(study=too_small)


def test_a_secret_in_a_setting_is_not_printed(refused) -> None:
    (line,) = refused("data.source=hub://user:hf_abcdefghijklmnop@x")
    assert "abcdefghijklmnop" not in line.partition(": ")[0]


def test_a_field_without_its_table_is_given_one(refused) -> None:
    (line,) = refused("steps=30")
    assert line.startswith("--set steps=30: steps: unknown key 'steps'")
    assert line.endswith("; the field is train.steps")


def test_what_every_file_needs_is_shown(refused) -> None:
    assert refused(study="") == [
        "s.toml: schema: missing; write schema = 1",
        's.toml: name: missing; as in name = "my-study"',
    ]
    (line,) = refused(study=STUDY + "[zip]\ntrain.seed = [1, 2]\n")
    assert line.startswith("s.toml: zip: expected tables headed [[zip]] (given ")
