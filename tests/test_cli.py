"""The command line as a user meets it: a process, its output, its exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

COMMANDS = ("run", "plan", "status", "report", "export", "fit", "predict", "generate", "list", "doctor", "demo")


def test_help_names_every_command_and_version_is_told(scalebench) -> None:
    done = scalebench("--help")
    assert done.returncode == 0
    assert all(command in done.stdout for command in COMMANDS)
    assert scalebench("--version").stdout.strip() == "0.1.0"


def test_a_misspelt_command_or_option_is_told_in_a_line_with_exit_code_2(scalebench) -> None:
    for arguments in (("raport",), ("run", "demo", "--jbos", "2"), ("run",), ("run", "demo", "--jobs", "0")):
        done = scalebench(*arguments)
        assert done.returncode == 2, arguments
        assert "Traceback" not in done.stderr + done.stdout
    done = scalebench("raport")
    assert "report" in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("run", "absent.toml"), "absent.toml: cannot be read"),
        (("run", "demmo"), "did you mean 'demo'"),
        (("plan", "bad.toml"), "bad.toml: train.steps: input should be greater than 0 (given 0)"),
        (("run", "demo", "--set", "train.steps"), "--set train.steps: expected key=value"),
        (("run", "demo", "--retry", "faild"), "did you mean 'failed'"),
        (("status", "nowhere"), "nowhere: no results here"),
        (("report", "nowhere"), "nowhere: no results here"),
        (("export", "nowhere", "-o", "x.csv"), "nowhere: no results here"),
        (("run", "demo", "--results", "file/results"), "results cannot be written here"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(scalebench, tmp_path: Path, arguments, expected: str) -> None:
    (tmp_path / "bad.toml").write_text('schema=1\nname="b"\n[model]\nfamily="gpt"\nparams=1e4\n[train]\nsteps=0\n')
    (tmp_path / "file").write_text("")
    done = scalebench(*arguments)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert expected in line


def test_status_counts_and_gives_reasons(scalebench, finished: Path) -> None:
    done = scalebench("status", finished)
    assert done.returncode == 1
    assert done.stdout.count("unsupported: ") == 2
    found = json.loads(scalebench("status", finished, "--json").stdout)
    assert found["studies"] == {"small": {"ok": 2, "unsupported": 2}}
    assert {row["error_class"] for row in found["not_ok"]} == {"Unsupported"}


def test_a_damaged_record_is_told_by_status_report_and_export(scalebench, finished: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "results"
    shutil.copytree(finished, copy)
    record = sorted(copy.glob("small/trials/*/*/record.json"))[0]
    record.write_bytes(record.read_bytes()[:50])
    done = scalebench("status", copy)
    assert done.returncode == 1
    assert str(record) in done.stdout
    assert scalebench("export", copy, "-o", "out.csv").stdout.strip() == "out.csv: 3 trials"
    assert scalebench("report", copy, "-o", "out.html").returncode == 0
    assert record.name in (tmp_path / "out.html").read_text()


def test_export_writes_both_formats(scalebench, finished: Path, tmp_path: Path) -> None:
    assert scalebench("export", finished, "-o", "out.csv").returncode == 0
    assert scalebench("export", finished, "-o", "out.parquet").returncode == 0
    table, same = pd.read_csv(tmp_path / "out.csv"), pd.read_parquet(tmp_path / "out.parquet")
    assert len(table) == len(same) == 4
    assert set(table["status"]) == {"ok", "unsupported"}
    assert table["implementation"].value_counts().to_dict() == {"eager": 2, "triton": 2}
    assert scalebench("export", finished, "-o", "out.xlsx").returncode == 2


def test_report_is_written_where_asked_and_the_same_again(scalebench, finished: Path, tmp_path: Path) -> None:
    for name in ("one.html", "two/deep.html"):
        done = scalebench("report", finished, "-o", name)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == name
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two/deep.html").read_bytes()


def test_plan_says_what_would_run_and_runs_nothing(scalebench, tmp_path: Path) -> None:
    done = scalebench("plan", "demo")
    assert done.returncode == 0
    assert "14 trials, 14 to run" in done.stdout
    assert not (tmp_path / "results").exists()
    found = json.loads(scalebench("plan", "demo", "--json").stdout)
    assert found["total"]["trials"] == found["total"]["missing"] == 14
    assert sum(size["flops_per_trial"] * size["trials"] for size in found["sizes"]) == found["total"]["flops"]
    assert all(size["estimated_time_s"] > 0 and size["estimated_memory_bytes"] > 0 for size in found["sizes"])


def test_run_as_json_is_lines_that_machines_read(scalebench, small_study: Path) -> None:
    done = scalebench("run", small_study, "--json", "--set", "train.seed=0")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["event"] for event in events] == ["trial", "trial", "summary"]
    assert events[-1]["statuses"] == {"ok": 2}
    again = json.loads(scalebench("run", small_study, "--json", "--set", "train.seed=0").stdout)
    assert again["executed"] == 0


def test_list_shows_every_kind_of_name(scalebench) -> None:
    found = json.loads(scalebench("list", "--json").stdout)
    assert set(found) == {"families", "studies", "laws", "optimizers", "sources"}
    assert {"gpt", "mlp", "linear"} <= set(found["families"])
    assert "gpt3-175b" in found["families"]["gpt"]["sizes"]
    assert "demo" in found["studies"]
    text = scalebench("list").stdout
    assert all(name in text for kind in found.values() for name in kind)


def test_doctor_says_what_will_not_work(scalebench) -> None:
    done = scalebench("doctor", "--json")
    assert done.returncode == 0
    findings = {finding["subject"]: finding for finding in json.loads(done.stdout)}
    assert findings["triton kernels"]["level"] == "limit"
    assert "GFLOP/s" in findings["measured ceiling"]["text"]
    assert scalebench("doctor").stdout.count("\n") == len(findings)


def test_progress_is_plain_lines_where_nobody_looks(small_study: Path, tmp_path: Path, monkeypatch) -> None:
    from io import StringIO

    from rich.console import Console

    from scalebench.cli import progress

    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    monkeypatch.setattr(progress, "LOOK_EVERY_S", 0.0)
    attempt = tmp_path / "t1" / "attempt-1"
    attempt.mkdir(parents=True)
    (attempt / "heartbeat.json").write_text('{"step": 50, "steps": 100}')
    text = StringIO()
    with progress.RunProgress({"t1": (10.0, 100), "t2": (10.0, 100)}, console=Console(file=text)) as bar:
        bar.tick([attempt])
        bar.trial(
            {"trial_id": "t1", "status": "failed", "error_message": "no [luck]", "error_class": "E"}, as_json=False
        )
        bar.tick([])
    lines = text.getvalue().splitlines()
    assert lines[0].startswith("0/2 trials done")
    assert lines[0].endswith("(steps 50/100)")
    assert lines[1] == "t1 failed: no [luck]"
    assert lines[2].startswith("1/2 trials done")
