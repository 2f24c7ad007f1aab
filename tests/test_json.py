"""--json is one thing everywhere: one object that names its command, strict JSON, numbers with units in their names."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pandas as pd
import pytest
from command_support import planted, readme_tables, surface, write_study

from scalebench.cli.app import COMMANDS, app, main
from scalebench.cli.documents import DOCUMENTS, output_schema

RESULTS = ("results/planted", "--params", "3e6")
BENCHMARK = {"benchmarks": [{"name": f"test_x[{name}]", "fullname": f"t.py::test_x[{name}]", "group": None,
                             "param": name, "params": {"provider": name},
                             "stats": {"median": 1e-3, "rounds": 3, "data": [1e-3, 1.1e-3, 1.2e-3]}}
                            for name in ("eager", "mine")],
             "machine_info": {"node": "here", "cpu": {"brand_raw": "a processor"}}}  # fmt: skip
CASES = {
    "plan": ("plan", "demo"),
    "status": ("status",),
    "show all": ("show",),
    "show": ("show", "000003e800000000"),
    "fit": ("fit", "points.csv", "--law", "chinchilla", "--backtest", "--bootstrap", "20"),
    "fit results": ("fit", "results", "--law", "auto", "--bootstrap", "20"),
    "fit rising": ("fit", "rising.csv", "--bootstrap", "20"),
    "predict": ("predict", *RESULTS),
    "predict fit": ("predict", "fit.json", "--params", "1e11", "--tokens", "1e12"),
    "optimal": ("optimal", "points.csv", "--budget", "1e21"),
    "next": ("next", "fit.json", "--predict", "params=2e9,tokens=1e12"),
    "worth": ("worth", "old.csv", "new.csv"),
    "tune": ("tune", "sweep.csv", "--optimised", "lr", "--against", "params", "--at", "params=1e9"),
    "diff": ("diff", "results/planted", "results/slower"),
    "export": ("export", "results", "-o", "trials.csv"),
    "list": ("list",),
    "list columns": ("list", "--columns"),
    "doctor": ("doctor",),
    "compare": ("compare", "mine", "--import", "bench.json"),
}
SLOW = ("fit results", "predict", "doctor")  # of seven laws by hold-out; the first that reads a study; peaks
# Names of quantities that need their unit in them.
BARE = {"time", "memory", "duration", "latency", "energy", "elapsed", "power"}
NUMBER = re.compile(r"[+-]?\d+\.\d*(e[+-]?\d+)?|[+-]?\d+e[+-]?\d+", re.IGNORECASE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tables, a fit and recorded studies, one of them with a trial that failed and one that measured little."""
    path = tmp_path_factory.mktemp("json")
    for name, text in readme_tables().items():
        (path / name).write_text(text)
    (path / "rising.csv").write_text("params,loss\n1e3,2.2\n2e3,3.1\n4e3,4.2\n8e3,5.6\n")
    (path / "bench.json").write_text(json.dumps(BENCHMARK))
    rows = planted()
    rows[0] |= {
        "status": "failed",
        "error_class": "ValueError",
        "error_message": "a reason",
        "validation_loss_nats": None,
    }
    write_study(path / "results" / "planted", rows)
    write_study(path / "results" / "slower", planted(study="slower", step_time_median_s=9.0))
    surface(0.01).rename(columns={"N": "params", "D": "tokens", "L": "loss"}).to_csv(path / "s.csv", index=False)
    with pytest.raises(SystemExit):
        main(["fit", str(path / "s.csv"), "--law", "chinchilla", "--bootstrap", "20", "-o", str(path / "fit.json")])
    return path


def no_constant(name: str) -> None:
    pytest.fail(f"{name} is not JSON")


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every value that is no object or list, with the name of the field that it is in."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, key)
    elif isinstance(value, list):
        for item in value:
            yield from leaves(item, name)
    else:
        yield name, value


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.slow) if case in SLOW else case for case in CASES]
)
@pytest.mark.usefixtures("few_refits")
def test_json_is_one_object_of_the_command(command, folder: Path, monkeypatch, case: str) -> None:
    words = CASES[case]
    monkeypatch.chdir(folder)
    code, out, err = command(*words, "--json")
    assert code in (0, 1), err
    document = json.loads(out, parse_constant=no_constant)
    assert isinstance(document, dict)
    assert next(iter(document.items())) == ("command", words[0])
    for name, value in leaves(document):
        if isinstance(value, str) and name != "trial_id":  # hexadecimal digits
            assert not NUMBER.fullmatch(value), f"{name}: {value!r} is a number as text"
        elif isinstance(value, float | int) and not isinstance(value, bool):
            assert name not in BARE, f"{name}: a number without its unit"


@pytest.mark.parametrize(
    "case", ["plan", "status", "show", "show all", "fit rising", "next", "tune", "diff", "compare"]
)
@pytest.mark.parametrize("columns", [60, 120])
def test_tables_and_sentences_fit_the_terminal(command, folder: Path, monkeypatch, case: str, columns: int) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", str(columns))
    code, out, err = command(*CASES[case])
    assert code in (0, 1), err
    assert out
    assert [line for line in out.splitlines() if len(line) > columns and " " in line.strip()] == []


def test_comparisons_of_one_process_are_in_the_report(command, folder: Path, monkeypatch) -> None:
    """They have no interval."""
    monkeypatch.chdir(folder)
    assert command(*CASES["compare"], "--results", "compared")[0] == 0
    assert command("report", "compared", "-o", "compared.html")[0] == 0
    assert "no interval" in (folder / "compared.html").read_text(encoding="utf-8")


def test_every_command_with_json_is_in_the_table() -> None:
    having = set()
    for group in COMMANDS.values():
        for name in group:
            target = app
            for part in name.split():
                target = target[part]
            arguments = target.assemble_argument_collection(parse_docstring=True)
            having |= {name for argument in arguments if "--json" in argument.names}
    tested_elsewhere = {"run", "generate"}  # below, and in test_generate_command.py, which trains a model
    assert having - tested_elsewhere == {words[0] for words in CASES.values()}
    assert having == DOCUMENTS.keys()


def test_an_error_leaves_standard_output_empty(command) -> None:
    for words in (("fit", "none.csv"), ("status", "none"), ("plan", "none.toml"), ("show", "3f"), ("diff", "a", "b")):
        code, out, err = command(*words, "--json")
        assert (code, out) == (2, ""), words
        assert len(err.splitlines()) == 1


def test_export_names_the_files_it_wrote(command, folder: Path, monkeypatch) -> None:
    monkeypatch.chdir(folder)
    assert command(*CASES["compare"], "--results", "both")[0] == 0
    write_study(folder / "both" / "planted", planted())
    code, out, _ = command("export", "both", "-o", "all.parquet", "--json")
    assert code == 0
    trials, compared = json.loads(out)["written"]
    assert [trials["path"], compared["path"]] == ["all.parquet", "all-comparisons.parquet"]
    assert [trials["content"], compared["content"]] == ["trials", "comparisons"]
    for file in (trials, compared):
        table = pd.read_parquet(file["path"])
        assert (file["format"], file["rows"], file["columns"]) == ("parquet", *table.shape)


def test_each_line_of_a_run_is_an_object(finished: Path) -> None:
    lines = [
        json.loads(line, parse_constant=no_constant)
        for line in (finished.parent / "events.jsonl").read_text().splitlines()
    ]
    assert {line["command"] for line in lines} == {"run"}
    assert [line["event"] for line in lines] == ["trial"] * (len(lines) - 1) + ["summary"]
    for line in lines:
        jsonschema.validate(line, output_schema("run"), jsonschema.Draft202012Validator)


def test_the_schema_of_an_output_is_printed(command) -> None:
    code, out, _ = command("schema", "worth")
    assert code == 0
    schema = json.loads(out)
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["properties"]["multiplier"]["type"] == "number"
    assert schema["additionalProperties"] is False
    code, out, err = command("schema", "worht")
    assert (code, out) == (2, "")
    assert "unknown 'worht'; did you mean 'worth'?" in err
