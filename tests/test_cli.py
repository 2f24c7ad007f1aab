"""The command line as a user meets it: a process, its output, its exit code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from support import FINISHED, SMALL

from scalebench import store

COMMANDS = (
    "run",
    "plan",
    "status",
    "report",
    "export",
    "fit",
    "predict",
    "generate",
    "serve",
    "list",
    "doctor",
    "demo",
)


@pytest.mark.slow
def test_help_lists_every_command_and_version_prints_the_number(scalebench) -> None:
    done = scalebench("--help")
    assert done.returncode == 0
    assert all(command in done.stdout for command in COMMANDS)
    assert scalebench("--version").stdout.strip() == "0.1.0"


def test_a_misspelt_command_or_option_has_exit_code_2_and_a_suggestion(scalebench, command) -> None:
    for arguments in (("run", "demo", "--jbos", "2"), ("run",), ("run", "demo", "--jobs", "0")):
        code, out, err = command(*arguments)
        assert code == 2, arguments
        assert "Traceback" not in out + err
    done = scalebench("raport")
    assert done.returncode == 2
    assert "report" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("run", "absent.toml"), "absent.toml: cannot be read"),
        (("run", "demmo"), "did you mean 'demo'"),
        (("plan", "bad.toml"), "bad.toml: train.steps: input should be greater than 0 (given 0)"),
        (("run", "demo", "--set", "train.steps"), "--set train.steps: expected key=value"),
        (("run", "demo", "--retry", "faild"), "did you mean 'failed'"),
        (("status", "nowhere"), "nowhere: no results here (no such folder)"),
        (("status", "--results", "x"), "name the folder alone: scalebench status FOLDER"),
        (("report", "--results=x"), "name the folder alone: scalebench report FOLDER"),
        (("report", "nowhere", "-o", "page.pdf"), "page.pdf: a report is HTML: name a file that ends in .html"),
        (("demo", "--output", "."), ".: cannot be written (Is a directory)"),
        (("report", "nowhere"), "nowhere: no results here (no such folder)"),
        (("export", "nowhere", "-o", "x.csv"), "nowhere: no results here (no such folder)"),
        (("run", "demo", "--results", "file/results"), "results cannot be written here"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(command, tmp_path: Path, arguments, expected: str) -> None:
    (tmp_path / "bad.toml").write_text('schema=1\nname="b"\n[model]\nfamily="gpt"\nparams=1e4\n[train]\nsteps=0\n')
    (tmp_path / "file").write_text("")
    code, _, err = command(*arguments)
    assert code == 2
    (line,) = err.strip().splitlines()
    assert expected in line


def test_status_counts_and_gives_reasons(command, finished: Path) -> None:
    code, out, _ = command("status", finished)
    assert code == 1
    assert out.count("unsupported: ") == 2
    output = json.loads(command("status", finished, "--json")[1])
    assert output["studies"] == {"small": {"ok": 2, "unsupported": 2}}
    assert {row["error_class"] for row in output["not_ok"]} == {"Unsupported"}


def test_show_without_ended_trials_says_so(command, tmp_path: Path) -> None:
    store.new_attempt(tmp_path / "results" / "s", "a")
    code, out, _ = command("show")
    assert code == 0
    assert out.startswith("no trial in results has ended")


@pytest.mark.slow
def test_a_damaged_record_is_in_status_report_and_export(command, finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "results"
    shutil.copytree(finished, copy)
    record = sorted(copy.glob("small/trials/*/*/record.json"))[0]
    record.write_bytes(record.read_bytes()[:50])
    code, out, _ = command("status", copy)
    assert code == 1
    assert str(record) in out
    assert command("export", copy, "-o", "out.csv")[1].strip() == "out.csv: 3 trials"
    assert command("report", copy, "-o", "out.html")[0] == 0
    assert record.name in (tmp_path / "out.html").read_text()


def test_export_writes_both_formats(command, finished: Path, tmp_path: Path) -> None:
    assert command("export", finished, "-o", "out.csv")[0] == 0
    assert command("export", finished, "-o", "out.parquet")[0] == 0
    table, same = pd.read_csv(tmp_path / "out.csv"), pd.read_parquet(tmp_path / "out.parquet")
    assert len(table) == len(same) == 4
    assert set(table["status"]) == {"ok", "unsupported"}
    assert table["precision"].value_counts().to_dict() == {"float32": 2, "float16": 2}
    sizes = table[table["status"] == "unsupported"]["params_non_embedding"]
    assert sorted(sizes) == sorted(table[table["status"] == "ok"]["params_non_embedding"])  # it was planned
    assert command("export", finished, "-o", "out.xlsx")[0] == 2


@pytest.mark.slow
def test_two_processes_write_the_same_report(scalebench, command, finished: Path, tmp_path: Path) -> None:
    """Of a fresh process and of this one: they order sets differently."""
    done = scalebench("report", finished, "-o", "one.html")
    assert (done.returncode, done.stdout.strip()) == (0, "one.html"), done.stderr
    assert command("report", finished, "-o", "two/deep.html")[:2] == (0, "two/deep.html\n")
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two/deep.html").read_bytes()


def test_plan_says_what_would_run_and_runs_nothing(command, tmp_path: Path) -> None:
    code, out, _ = command("plan", "demo")
    assert code == 0
    assert "14 trials, 14 to run" in out
    assert not (tmp_path / "results").exists()
    output = json.loads(command("plan", "demo", "--json")[1])
    assert output["total"]["trials"] == output["total"]["missing"] == 14
    assert sum(size["flops_per_trial"] * size["trials"] for size in output["sizes"]) == output["total"]["flops"]
    assert all(size["estimated_time_s"] > 0 and size["estimated_memory_bytes"] > 0 for size in output["sizes"])


def test_plan_measures_nothing_and_names_the_rate_it_assumes(command, monkeypatch) -> None:
    monkeypatch.setattr("scalebench.measure.hardware.best_product", lambda *_: pytest.fail("measured"))
    code, out, _ = command("plan", "demo", "--set", "train.device=cpu", "--json")
    assert code == 0
    total = json.loads(out)["total"]
    assert total["assumed_flops_per_s"] == 5e10
    assert "nominal" in total["assumed_rate_source"]
    code, out, _ = command("plan", "demo", "--set", "train.device=cpu")
    assert "50.0 GFLOP/s (nominal" in out


def test_run_prints_an_event_for_each_trial_or_a_summary_line(command, finished: Path, tmp_path: Path) -> None:
    events = [json.loads(line) for line in (finished.parent / "events.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events] == ["trial"] * 4 + ["summary"]
    assert events[-1]["executed"] == 4
    assert events[-1]["statuses"] == {"ok": 2, "unsupported": 2}
    shutil.copytree(finished, tmp_path / "results")
    again = ("run", *FINISHED, "--results", tmp_path / "results")
    (tmp_path / "small.toml").write_text(SMALL)
    code, out, _ = command(*again, "--json")
    assert code == 1
    assert json.loads(out)["executed"] == 0
    out = command(*again)[1]
    assert "0 executed" in out
    assert "2 ok, 2 unsupported" in out


def test_list_shows_every_kind_of_name(command) -> None:
    output = json.loads(command("list", "--json")[1])
    assert set(output) - {"command"} == {"families", "workloads", "studies", "laws", "optimizers", "sources"}
    assert {"gpt", "mlp", "linear"} <= set(output["families"])
    assert "gpt3-175b" in output["families"]["gpt"]["sizes"]
    assert "demo" in output["studies"]
    assert set(json.loads(command("list", "laws", "--json")[1])) >= {"laws"}
    assert not {"families", "studies"} & set(json.loads(command("list", "laws", "--json")[1]))
    assert "did you mean 'laws'?" in "".join(map(str, command("list", "law")))
    text = command("list")[1]
    assert all(name in text for key, kind in output.items() if key != "command" for name in kind)


@pytest.mark.slow
def test_doctor_names_what_does_not_work_here(command) -> None:
    code, out, _ = command("doctor", "--json")
    assert code == 0
    findings = {finding["subject"]: finding for finding in json.loads(out)["findings"]}
    assert findings["triton kernels"]["level"] == "limit"
    assert "GFLOP/s" in findings["measured ceiling"]["text"]
    lines = command("doctor")[1].splitlines()
    assert sum(not line.startswith("    → ") for line in lines) == len(findings)


def test_progress_is_plain_lines_where_nobody_looks(small_study: Path, tmp_path: Path, monkeypatch) -> None:
    from io import StringIO

    from rich.console import Console

    from scalebench.cli import progress

    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    monkeypatch.setattr(progress, "UPDATE_EVERY_S", 0.0)
    attempt = tmp_path / "t1" / "attempt-1"
    attempt.mkdir(parents=True)
    (attempt / "heartbeat.json").write_text('{"step": 50, "steps": 100}')
    text = StringIO()
    with progress.Progress(console=Console(file=text)) as display:
        sweep = progress.SweepProgress({"t1": (10.0, 100), "t2": (10.0, 100)}, display)
        sweep.tick([attempt])
        sweep.finish(
            {"trial_id": "t1", "status": "failed", "error_message": "no [luck]", "error_class": "E"}, as_json=False
        )
        sweep.tick([])
        comparison = progress.ComparisonProgress(display)
        comparison.tick(0.25)
        comparison.waiting()
        comparison.waiting()
    lines = text.getvalue().splitlines()
    assert lines[0].startswith("0/2 trials done")
    assert lines[0].endswith("(steps 50/100)")
    assert lines[1] == "t1 failed: no [luck]"
    assert lines[2].startswith("1/2 trials done")
    assert lines[3].startswith("25 % compared")
    assert sum("another measurement" in line for line in lines) == 1


def test_the_progress_of_a_trial_without_steps_is_its_beginning(tmp_path: Path) -> None:
    from scalebench.cli.progress import Progress, SweepProgress

    sweep = SweepProgress({"t1": (10.0, 0)}, Progress(quiet=True))
    assert sweep._fraction([tmp_path / "t1" / "attempt-1"]) == 0


def test_json_output_has_no_progress_in_it() -> None:
    from io import StringIO

    from rich.console import Console

    from scalebench.cli.progress import Progress

    text = StringIO()
    with Progress(quiet=True, console=Console(file=text, force_terminal=True)) as display:
        display.update(0.5, "half")
        display.line("a line")
    assert text.getvalue() == ""
