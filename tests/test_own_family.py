"""A family of a user's own: the README's file trained, edited, miscounted; files that define none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from scalebench.errors import StudyError
from scalebench.families import FAMILIES, file_sha256
from scalebench.families.own import REQUIRED
from scalebench.running.planning import load_study, plan, resolve
from scalebench.running.worker import invalid_reason
from scalebench.store import load_results
from scalebench.study import trial_id
from scalebench.workloads.building import build_model, configuration

README = Path(__file__).parents[1] / "README.md"
STUDY = """
schema = 1
name = "own"
[model]
family = "model.py"
params = [600, 2000]
[train]
steps = 3
batch_size = 2
sequence_length = 16
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the README's model and a study of it, as the working directory."""
    blocks = README.read_text().split("```python\n")
    example = next(block.partition("```")[0] for block in blocks if block.startswith('"""Language model of causal'))
    (tmp_path / "model.py").write_text(example)
    (tmp_path / "own.toml").write_text(STUDY)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_readme_model_is_planned_and_built_with_the_size_asked_for(folder: Path) -> None:
    import torch

    small, large = plan(load_study("own.toml"))
    assert [t.counts.non_embedding / size for t, size in ((small, 600), (large, 2000))] == pytest.approx(
        [1, 1], abs=0.1
    )
    assert small.trial.family_sha256 == file_sha256("model.py")
    model = build_model(small.trial, torch.device("cpu"))
    logits = model(torch.zeros(2, 16, dtype=torch.int64))
    assert logits.shape == (2, 16, 256)
    tokens = torch.arange(16)[None]
    changed = tokens.clone()
    changed[0, 9] = 0
    assert torch.equal(model(tokens)[0, :9], model(changed)[0, :9])  # causal
    assert not torch.equal(model(tokens)[0, 9:], model(changed)[0, 9:])
    assert FAMILIES["model.py"].SUMMARY == "Language model of causal convolutions."


def test_an_edited_file_is_another_trial_and_what_was_planned_before_is_not_run_with_it(folder: Path) -> None:
    before = plan(load_study("own.toml"))[0]
    path = folder / "model.py"
    path.write_text(path.read_text().replace("WINDOW = 8", "WINDOW = 4"))
    after = plan(load_study("own.toml"))[0]
    assert before.trial_id != after.trial_id
    assert before.counts != after.counts
    with pytest.raises(RuntimeError, match=r"model\.py changed since the trial was planned"):
        configuration(before.trial)
    assert configuration(after.trial).width == after.trial.model["width"]


def test_a_count_that_is_not_the_modules_is_an_error(folder: Path) -> None:
    import torch

    path = folder / "model.py"
    path.write_text(path.read_text().replace("tables = 2 *", "tables = 3 *"))
    trial = plan(load_study("own.toml"))[0].trial
    with pytest.raises(RuntimeError, match=r"count\(\) returns .* parameters, the module has "):
        build_model(trial, torch.device("cpu"))


def test_families_that_ship_keep_the_ids_of_their_trials() -> None:
    point = next(iter(load_study("mlp").points()))
    trial = resolve("training", point).trial
    assert trial.family_sha256 is None
    named = trial.model_copy(update={"family_sha256": "0" * 64})
    assert trial_id(trial) != trial_id(named)
    assert trial_id(type(trial).model_validate(trial.model_dump())) == trial_id(trial)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (None, "no such file"),
        ("", f"lacks {', '.join(REQUIRED)}"),
        ("x = 1\nimport nowhere_at_all\n", "model.py:2: ModuleNotFoundError"),
        ("def f(:\n", "model.py:1: SyntaxError"),
        ("\n\n1 / 0\n", "model.py:3: ZeroDivisionError"),
        ("raise SystemExit(3)\n", "model.py:1: SystemExit: 3"),
        ("\nopen('not here')\n", "model.py:2: FileNotFoundError"),
        ("raise RuntimeError('no GPU')\n", "model.py:1: RuntimeError: no GPU"),
        ("import beside_it\n", "No module named 'beside_it'; set PYTHONPATH to the folder that has it"),
    ],
)
def test_a_file_that_defines_no_family_is_one_line(folder: Path, content: str | None, line: str) -> None:
    (folder / "model.py").unlink()
    if content is not None:
        (folder / "model.py").write_text(content)
    with pytest.raises(StudyError) as caught:
        load_study("own.toml")
    (only,) = caught.value.lines
    assert only.startswith("own.toml: model.family: model.py")
    assert line in only


@pytest.mark.parametrize(
    ("before", "after", "line"),
    [
        ("return 0.08 / config.width**0.5", "return 1 / 0", "model.py:{number}: ZeroDivisionError"),
        ("return 0.08 / config.width**0.5", "return float('nan')", "learning_rate() of model.py returns nan"),
        ("return 0.08 / config.width**0.5", "pass", "model.py: learning_rate returns nothing"),
        ("length = sequence_length or 1", "length = [][1]", "model.py:{number}: IndexError"),
        (
            "vocab_size: int = 256",
            "vocab_size: int = 256\n    seed: int = 1",
            "model.seed: the Config of model.py has a field with the name of",
        ),
    ],
)
def test_an_error_in_a_function_of_the_file_is_one_line(folder: Path, before: str, after: str, line: str) -> None:
    example = (folder / "model.py").read_text()
    assert before in example
    (folder / "model.py").write_text(example.replace(before, after))
    line = line.format(number=1 + example[: example.index(before)].count("\n"))
    with pytest.raises(StudyError) as caught:
        plan(load_study("own.toml"))
    assert all(line in each for each in caught.value.lines)


@pytest.mark.parametrize("written", ["@dataclass", "class Plain: pass\n\n@dataclass(frozen=False)"])
def test_a_configuration_that_could_be_changed_is_refused(folder: Path, written: str) -> None:
    example = (folder / "model.py").read_text()
    assert "@dataclass(frozen=True)" in example
    (folder / "model.py").write_text(example.replace("@dataclass(frozen=True)", written))
    with pytest.raises(StudyError, match="Config must be a frozen dataclass"):
        load_study("own.toml")


def test_an_unknown_name_mentions_files(folder: Path) -> None:
    with pytest.raises(StudyError, match=r"unknown 'gtp'; did you mean 'gpt'\?.*path of a Python file"):
        load_study("own.toml", ["model.family=gtp"])
    os.mkfifo(folder / "pipe.py")
    with pytest.raises(StudyError, match=r"pipe\.py: no such file"):
        load_study("own.toml", ["model.family=pipe.py"])


CHILD = """
schema = 1
name = "child"
[from]
results = "results/own"
[model]
%s
[train]
steps = 2
batch_size = 2
"""


@pytest.mark.slow
def test_it_is_swept_by_workers_and_recorded_and_its_code_runs_where_it_is_named(folder: Path, command) -> None:
    import scalebench

    scalebench.run(load_study("own.toml", ["run.checkpoint=true"]), folder / "results")
    frame = load_results(folder / "results" / "own")
    assert list(frame.status) == ["ok", "ok"]
    assert set(frame.family) == {"model.py"}
    assert set(frame.family_sha256) == {file_sha256("model.py")}

    (folder / "child.toml").write_text(CHILD % 'family = "model.py"')
    assert [trial.trial.family for trial in plan(load_study("child.toml"))] == ["model.py"] * 2
    # Results may come from anyone: what they alone name is not run.
    (folder / "child.toml").write_text(CHILD % "")
    sentinel = folder / "ran"
    file = folder / "model.py"
    original = file.read_text()
    file.write_text(original + f"\nimport pathlib\npathlib.Path({str(sentinel)!r}).touch()\n")
    with pytest.raises(StudyError, match=r"Python file 'model\.py', whose code runs only where you name it"):
        plan(load_study("child.toml"))
    trial = frame.trial_id[0]
    code, _, err = command("generate", folder / "results", "--trial", trial, "--prompt", "a")
    assert (code, "--family" in err, sentinel.exists()) == (2, True, False)
    for name in ("status", "report", "export", "show"):
        target = ("-o", folder / f"{name}.out.html") if name in ("report", "export") else ()
        command(name, folder / "results", *target)
    assert not sentinel.exists()
    asked = ("generate", folder / "results", "--trial", trial, "--prompt", "a", "--family", "model.py")
    code, _, err = command(*asked)  # another file than it was
    assert (code, "changed" in err, sentinel.exists()) == (2, True, False)
    file.write_text(original)
    code, _, err = command(*asked)
    assert "which cannot generate text" in err


@pytest.mark.parametrize(("row", "reason"), [
    ({"mixer_s": "gated", "pool_bytes": True, "mfu": None}, None),
    ({"step_time_s": -1.0}, "negative step_time_s"),
])  # fmt: skip
def test_a_text_in_a_field_whose_name_ends_like_a_time_is_no_time(row: dict[str, object], reason: str | None) -> None:
    assert invalid_reason(row) == reason
