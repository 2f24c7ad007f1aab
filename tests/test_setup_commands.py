"""The commands `new study`, `schema`, `show` and `doctor`, and what their users look up."""

from __future__ import annotations

import errno
import json
import tomllib
from pathlib import Path

import jsonschema
import pytest
from command_support import planted, write_study
from support import REPOSITORY

from scalebench.cli.commands import doctor
from scalebench.cli.commands.schema import study_schema
from scalebench.cli.commands.template import study_template
from scalebench.errors import StudyError
from scalebench.families import FAMILIES
from scalebench.running.planning import load_study, plan
from scalebench.store import outputs

NOMINAL_FLOPS_PER_S = 5e10  # of a CPU that has not been measured
STUDIES = sorted((REPOSITORY / "studies").glob("*.toml"))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_new_study_can_be_planned(tmp_path: Path, family: str) -> None:
    path = tmp_path / "s.toml"
    path.write_text(study_template("s", family), encoding="utf-8")
    trials = plan(load_study(path), tmp_path)
    assert len(trials) == 10
    assert {trial.trial.family for trial in trials} == {family}
    lines = path.read_text(encoding="utf-8").splitlines()[2:]  # after what the file is for
    fields = {line.removeprefix("# ").partition(" = ")[0]: line for line in lines if " = " in line}
    assert fields.keys() >= {*FAMILIES[family].Config.__dataclass_fields__, "steps", "seed", "validation_samples"}
    assert [line for line in fields.values() if len(line.partition("  # ")[2]) < 8] == []  # each has a comment
    assert sum(trial.seconds(NOMINAL_FLOPS_PER_S) for trial in trials) < 150  # of one worker


def test_the_sample_of_a_new_study_can_be_planned_as_it_stands(tmp_path: Path) -> None:
    before, heading, after = study_template("s", "mlp").partition("# [sample]")
    sample, gap, rest = (heading + after).partition("\n\n")
    path = tmp_path / "s.toml"
    path.write_text(before + sample.replace("# ", "", 1).replace("\n# ", "\n") + gap + rest, encoding="utf-8")
    assert len(plan(load_study(path), tmp_path)) == 10 * 16


@pytest.mark.parametrize(
    ("file", "name"),
    [("two words.toml", "two-words"), ("größe 2.toml", "gr-e-2"), ("_x.toml", "x"), ("日本.toml", "mlp-study")],
)
def test_a_new_study_in_a_file_of_any_name_can_be_planned(command, tmp_path: Path, file: str, name: str) -> None:
    assert command("new", "study", "mlp", "-o", file)[0] == 0
    assert load_study(tmp_path / file).name == name
    assert command("plan", file)[0] == 0


def test_a_new_study_replaces_no_file_and_names_families(command, tmp_path: Path) -> None:
    assert command("new", "study", "mlp", "-o", "mine.toml")[0] == 0
    assert tomllib.loads((tmp_path / "mine.toml").read_text())["name"] == "mine"
    code, _, err = command("new", "study", "mlp", "-o", "mine.toml")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "exists already" in err
    assert "did you mean 'gpt'" in command("new", "study", "gptt")[2]
    assert 'write one of a family that ships, such as mlp, and set its family to "m.py"' in (
        command("new", "study", "m.py")[2].replace("\n  ", " ")
    )


def test_a_new_study_that_cannot_be_written_leaves_no_file(command, tmp_path: Path, monkeypatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(outputs.os, "fsync", full)
        code, _, err = command("new", "study", "mlp", "-o", "deep/mine.toml")
    assert (code, err) == (2, "deep/mine.toml: cannot be written (No space left on device)\n")
    assert command("new", "study", "mlp", "-o", "deep/mine.toml")[0] == 0


@pytest.mark.slow
def test_the_schema_is_sound_and_every_shipped_study_is_valid(command) -> None:
    schema = json.loads(command("schema")[1])
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for path in STUDIES:
        assert list(validator.iter_errors(tomllib.loads(path.read_text(encoding="utf-8")))) == [], path


@pytest.mark.parametrize(
    "wrong",
    [
        "[train]\nstep = 3", '[train]\noptimizer = "adamv"', "[train]\nsteps = 0", '[model]\nfamily = "gtp"',
        '[train]\noptimizer = ["adamw", "adamv"]', '[fit]\nlaw = "pover"', "[run]\ncheckpoint = 1",
        "[train]\nseed = { geom = [1], points = 3 }", "[other]\nx = 1",
    ],
)  # fmt: skip
def test_the_schema_refuses_what_the_reader_refuses(tmp_path: Path, wrong: str) -> None:
    path = tmp_path / "s.toml"
    family = "" if "family" in wrong else '[model]\nfamily = "gpt"\nparams = 1e4\n'
    path.write_text(f'schema = 1\nname = "s"\n{family}{wrong}\n')
    with pytest.raises(StudyError):
        load_study(path)
    validator = jsonschema.Draft202012Validator(study_schema())
    assert list(validator.iter_errors(tomllib.loads(path.read_text())))


def test_a_study_file_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    path = tmp_path / "bom.toml"
    text = 'schema = 1\nname = "bom"\n[model]\nfamily = "mlp"\nparams = 1e3\n'
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    study = load_study(path)
    assert study.name == "bom"
    assert study.text == text


def test_show_prints_a_trial_by_the_first_digits_of_its_id(command, tmp_path: Path) -> None:
    rows = planted()
    rows[0] |= {"status": "failed", "error_class": "ValueError", "error_message": "a reason", "mfu": 8.92067e-05}
    write_study(tmp_path / "results" / "planted", rows)
    (attempt,) = (tmp_path / "results" / "planted" / "trials" / str(rows[0]["trial_id"])).iterdir()
    (attempt / "stderr.log").write_text("first line\nlast line\n")
    code, out, _ = command("show", str(rows[0]["trial_id"]))
    assert code == 1
    assert f"planted/{rows[0]['trial_id']}: failed" in out
    assert "ValueError: a reason" in out
    assert "8.921e−05" in out
    assert "  last line" in out
    assert str(attempt.relative_to(tmp_path)) in out
    good = str(rows[5]["trial_id"])
    code, out, _ = command("show", good, "--json")
    assert code == 0
    assert json.loads(out)["record"]["params_non_embedding"] == rows[5]["params_non_embedding"]
    code, _, err = command("show", "00000")
    assert code == 2
    assert "begins 4 ids" in err
    assert command("show", "zz")[0] == 2
    last = str(rows[-1]["trial_id"])  # farther back than the ids that a message lists
    assert f"did you mean {last!r}?" in command("show", "x" + last[1:])[2]


@pytest.mark.slow
def test_doctor_has_a_remedy_for_each_finding_and_a_code_by_severity(command, tmp_path: Path, monkeypatch) -> None:
    findings = doctor.examine(tmp_path)
    assert all(finding.remedy for finding in findings if finding.level != "note")
    assert command("doctor")[0] == 0  # what this machine lacks is no error
    monkeypatch.setattr(doctor, "package_version", lambda name: None if name == "scipy" else "1.0")
    code, out, _ = command("doctor")
    assert code == 1
    assert "scipy: not installed" in out
    assert "pip install scipy" in out
    (tmp_path / "file").write_text("")
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert command("doctor", "--results", tmp_path / "file" / "results")[0] == 1
