"""``run --with-parents``: the chain of studies that [from] names runs first, or is refused before anything runs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from parent_support import CHILD, PARENT, trained
from support import PLACEMENT

from scalebench import store
from scalebench.cli.app import main
from scalebench.errors import StudyError
from scalebench.running.chain import ancestors
from scalebench.running.engines.base import Begin
from scalebench.running.planning import load_study, plan, trial_header
from scalebench.running.worker import run_trial

SMALL = PARENT.replace("steps = 50", "steps = 3").replace("checkpoint = true", "checkpoint = false")
MIDDLE = CHILD.replace("steps = 50", "steps = 2").replace('"child"', '"middle"').replace("checkpoint = true", "")
LAST = MIDDLE.replace('"middle"', '"last"').replace('study = "parent"', 'study = "middle"')


def written(folder: Path, **texts: str) -> Path:
    """Write studies as NAME.toml and return the folder."""
    for name, text in texts.items():
        (folder / f"{name}.toml").write_text(text)
    return folder


class Here:
    """An engine that runs trials in this process, one after the other."""

    @staticmethod
    def check(_needs: object) -> None:
        """Take every trial."""

    @staticmethod
    def place(attempts: list[Path], _needs: object, *, begin: Begin, **_options: object) -> Iterator[Path]:
        for attempt in attempts:
            assert begin(attempt)
            run_trial(attempt, store.read_json(attempt / "trial.json"), PLACEMENT)
            yield attempt


def refused(path: Path) -> str:
    with pytest.raises(StudyError) as caught:
        ancestors(load_study(path))
    (line,) = caught.value.lines
    return line


def test_the_studies_of_a_chain_are_oldest_first_and_keep_their_weights(tmp_path: Path) -> None:
    written(tmp_path, parent=SMALL, middle=MIDDLE, last=LAST)
    chain = ancestors(load_study(tmp_path / "last.toml"))
    assert [study.name for study in chain] == ["parent", "middle"]
    assert all(study.run.checkpoint for study in chain)
    assert ancestors(load_study(tmp_path / "parent.toml")) == []


def test_a_study_that_ships_can_be_a_parent(tmp_path: Path) -> None:
    written(tmp_path, child=CHILD.replace('study = "parent"', 'study = "gpt"'))
    (parent,) = ancestors(load_study(tmp_path / "child.toml"))
    assert (parent.name, parent.run.checkpoint) == ("gpt", True)


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ({"middle": MIDDLE.replace('study = "parent"', 'study = "last"')}, "last → middle → last"),
        ({"middle": MIDDLE.replace('study = "parent"', 'study = "parrent"')}, "did you mean 'parent'?"),
        ({"middle": MIDDLE + '[model]\nfamily = "mlp"\n'}, "model.family: 'mlp', but its parents are of family gpt"),
        ({"parent": SMALL.replace('"parent"', '"another"')}, "name: 'another'"),
        ({"parent": SMALL.replace('"gpt"', '"gptt"')}, "model.family"),
    ],
)
def test_a_chain_that_cannot_be_is_one_line(tmp_path: Path, texts: dict[str, str], expected: str) -> None:
    written(tmp_path, **({"parent": SMALL, "middle": MIDDLE, "last": LAST} | texts))
    assert expected in refused(tmp_path / "last.toml")
    with pytest.raises(SystemExit) as ended:
        main(["run", str(tmp_path / "last.toml"), "--with-parents", "--results", str(tmp_path / "results")])
    assert ended.value.code == 2
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("option", ["--with-parents", "--keep-going"])
def test_a_circle_is_named_whether_or_not_parents_are_run(
    tmp_path: Path, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    written(tmp_path, middle=MIDDLE.replace('study = "parent"', 'study = "last"'), last=LAST)
    with pytest.raises(SystemExit) as ended:
        main(["run", str(tmp_path / "last.toml"), option, "--results", str(tmp_path / "results")])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"{tmp_path / 'middle.toml'}: from.study: last → middle → last: these studies need each other"
    assert not (tmp_path / "results").exists()


@pytest.mark.slow
def test_run_with_parents_runs_what_is_missing_of_the_whole_chain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scalebench.running.sweep.find_engine", lambda _name, _slots: Here)
    written(tmp_path, parent=SMALL, middle=MIDDLE, last=LAST)
    arguments = ["run", str(tmp_path / "last.toml"), "--with-parents", "--results", str(tmp_path / "results")]
    for executed in (3, 3):  # the second time nothing is run again
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 0
        assert len(list((tmp_path / "results").glob("*/trials/*/*/record.json"))) == executed
    rows = {row["study"]: row for row in store.load_results(tmp_path / "results").to_dict("records")}
    assert rows["last"]["parent_trial_id"] == rows["middle"]["trial_id"]
    assert rows["middle"]["parent_trial_id"] == rows["parent"]["trial_id"]
    cost = {name: row["flops_per_step"] * row["stop_step"] for name, row in rows.items()}
    assert rows["last"]["parent_flops"] == cost["middle"] + cost["parent"]


def test_parents_that_did_not_end_ok_are_counted_by_status(tmp_path: Path) -> None:
    path = written(tmp_path, parent=PARENT) / "parent.toml"
    study = load_study(path)
    (trial,) = plan(study, tmp_path / "results")
    attempt = store.new_attempt(tmp_path / "results" / "parent", trial.trial_id)
    header = trial_header(study, trial, "a test")
    store.write_json(attempt / "trial.json", header)
    store.write_record(attempt, header["identity"] | {"status": "diverged"})
    written(tmp_path, child=CHILD)
    command = f"scalebench run {re.escape(str(path))} --set .* --retry diverged"  # a study beside the child's, by path
    with pytest.raises(StudyError, match=f"has no ok trial: 1 diverged; to make its parents: {command}$"):
        plan(load_study(tmp_path / "child.toml"), tmp_path / "results")


def test_a_parent_study_without_results_is_refused_with_those_that_have_some(tmp_path: Path) -> None:
    trained(tmp_path, PARENT, "train.steps=1")
    written(tmp_path, child=CHILD.replace('study = "parent"', 'study = "parrent"'))
    with pytest.raises(StudyError, match="studies with results there: parent;"):
        plan(load_study(tmp_path / "child.toml"), tmp_path / "results")


def test_json_has_the_events_of_parents_and_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("scalebench.running.sweep.find_engine", lambda _name, _slots: Here)
    written(tmp_path, parent=SMALL, middle=MIDDLE)
    with pytest.raises(SystemExit):
        main(["run", str(tmp_path / "middle.toml"), "--with-parents", "--json", "--results", str(tmp_path / "results")])
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert [event["study"] for event in events if event["event"] == "summary"] == ["parent", "middle"]
