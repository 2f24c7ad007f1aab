"""Nothing read from a results folder, a study or a data file runs code, leads elsewhere or gives a secret away."""

from __future__ import annotations

import ast
import json
import os
import shutil
import socket
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from support import REPOSITORY, edit_record, source_tree

from scalebench import store
from scalebench.measure import environment
from scalebench.measure.secrets import hide, hide_in_variables, hide_in_words
from scalebench.study import Study
from scalebench.workloads.trained import load_trained

SOURCES = [path for name in ("scalebench", "kernels") for path in sorted((REPOSITORY / name).rglob("*.py"))]
ESCAPES = ("../escaped", "/tmp/escaped", "a/b", "..", ".", "", ".hidden", "a\0b", "a\nb", "x" * 101, "ä", "\udcff")


# --- no code ---------------------------------------------------------------------------------------------------------


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """Yield every call in a source file with the dotted name of what is called, or "" for what has none."""
    for node in nodes(path):
        if isinstance(node, ast.Call):
            yield dotted(node.func), node


def dotted(node: ast.expr) -> str:
    """Return the name that an expression is, such as ``os.path.join``, or "" for another expression."""
    if isinstance(node, ast.Attribute):
        return f"{inner}.{node.attr}" if (inner := dotted(node.value)) else ""
    return node.id if isinstance(node, ast.Name) else ""


@cache
def nodes(path: Path) -> list[ast.AST]:
    """Return what the rules are about: the imports and calls of a source file."""
    return [node for node in ast.walk(source_tree(path)) if isinstance(node, ast.Call | ast.Import | ast.ImportFrom)]


# Options of calls that could run what a file holds, with the only value that they may have.
SAFE_OPTIONS = {"weights_only": "True", "allow_pickle": "False", "shell": "False", "trust_remote_code": None}


@pytest.mark.slow
def test_no_file_is_read_by_what_runs_code() -> None:
    unsafe = {"pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
    for path in SOURCES:
        imports = [node for node in nodes(path) if not isinstance(node, ast.Call)]
        names = {alias.name.partition(".")[0] for node in imports for alias in node.names}
        names |= {str(node.module).partition(".")[0] for node in imports if isinstance(node, ast.ImportFrom)}
        assert not names & unsafe, path
        for name, call in calls(path):
            assert name not in ("eval", "exec", "os.system", "os.popen"), (path, name)
            options = {option.arg: ast.unparse(option.value) for option in call.keywords if option.arg in SAFE_OPTIONS}
            assert all(SAFE_OPTIONS[str(option)] == value for option, value in options.items()), path
            assert name != "torch.load" or "weights_only" in options, path


def test_commands_of_child_processes_are_lists() -> None:
    for path in SOURCES:
        for name, call in calls(path):
            if name in ("subprocess.run", "subprocess.Popen", "subprocess.check_output", "subprocess.call"):
                assert not isinstance(call.args[0], ast.Constant | ast.JoinedStr), path


# --- names that become paths -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ESCAPES)
def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(store.StoreError, match="cannot name a file or folder"):
        store.new_attempt(tmp_path / "s", name)
    with pytest.raises(ValueError, match="name"):
        Study.model_validate({"schema": 1, "name": name})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ESCAPES)
def test_the_files_of_a_record_are_beside_it(tmp_path: Path, name: str) -> None:
    attempt = store.new_attempt(tmp_path / "s", "a")
    store.write_record(attempt, {"trial_id": "a", "status": "ok"})
    edit_record(attempt, files={name: 0})
    (line,) = store.read_results(tmp_path).damaged
    assert "cannot name a file or folder" in line


@pytest.mark.parametrize("name", [name for name in ESCAPES if name and "\udcff" not in name])
def test_an_imported_operation_is_a_name(tmp_path: Path, command, name: str) -> None:
    benchmark = {"name": "test_x", "stats": {"median": 1.0, "data": [1.0]}, "extra_info": {"operation": name}}
    content = {"benchmarks": [benchmark], "machine_info": {"node": "n"}, "datetime": "2026"}
    (tmp_path / "b.json").write_text(json.dumps(content))
    before = set(tmp_path.parent.iterdir())
    code, _, err = command("compare", "--import", "b.json", "--baseline", "test_x", "--results", "r")
    assert code == 2
    assert "cannot name a folder" in err
    assert len(err.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.json"]
    assert set(tmp_path.parent.iterdir()) == before


def test_a_record_of_another_trial_does_not_count(tmp_path: Path) -> None:
    attempt = store.new_attempt(tmp_path / "s", "a")
    store.write_record(attempt, {"trial_id": "a", "status": "ok"})
    shutil.copytree(tmp_path / "s" / "trials" / "a", tmp_path / "s" / "trials" / "b")
    results = store.read_results(tmp_path)
    assert results.frame["trial_id"].tolist() == ["a"]
    assert "in the folder of another" in results.damaged[0]


@pytest.mark.parametrize("link", ["s", "s/trials", "s/trials/a"])
def test_symbolic_links_out_of_the_results_are_not_written_through(tmp_path: Path, link: str) -> None:
    (tmp_path / "outside").mkdir()
    path = tmp_path / "results" / link
    path.parent.mkdir(parents=True)
    path.symlink_to(tmp_path / "outside")
    with pytest.raises(store.StoreError, match="symbolic link leads out of"):
        store.new_attempt(tmp_path / "results" / "s", "a")
    assert list((tmp_path / "outside").iterdir()) == []


def test_a_results_folder_that_is_a_link_itself_is_written(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "results").symlink_to(tmp_path / "disk")
    assert store.new_attempt(tmp_path / "results" / "s", "a").is_dir()
    (tmp_path / "disk" / "s" / "trials" / "b").symlink_to(tmp_path / "disk" / "s" / "trials" / "a")
    assert store.new_attempt(tmp_path / "results" / "s", "b").is_dir()  # a link within the results


# --- a stranger's trial ----------------------------------------------------------------------------------------------

TRIAL = {
    "workload": "training", "family": "gpt", "spec": {}, "device_kind": "cpu", "schema_version": 2,
    "model": {}, "data": {"source": "hf:someone/set", "validation_fraction": 0.1, "validation_samples": 8,
    "noise_std": None, "sha256": "0"},
}  # fmt: skip


@pytest.mark.parametrize(
    "trial",
    [None, [], {}, TRIAL, TRIAL | {"family": "/tmp/evil.py"}, TRIAL | {"family": ["gpt"]}, TRIAL | {"workload": "x"},
     TRIAL | {"model": {"width": 10**18}}, {"train": None}, {"train": {"steps": []}}, TRIAL | {"spec": None}],
)  # fmt: skip
def test_a_header_that_holds_no_trial_is_one_line(tmp_path: Path, trial: object) -> None:
    attempt = store.new_attempt(tmp_path / "s", "a")
    store.write_header(attempt, {"trial": trial})
    (attempt / "weights.safetensors").write_bytes(b"x")
    with pytest.raises(store.StoreError, match=r"trial\.json: holds no trial") as refused:
        load_trained(attempt)
    assert len(str(refused.value).splitlines()) == 1


def test_generate_does_not_fetch_data(monkeypatch) -> None:
    from scalebench.cli.commands.generate import check_local

    def connected(*_: object) -> None:
        raise AssertionError("a connection was made")

    monkeypatch.setattr(socket.socket, "connect", connected)
    for source in ("hf:someone/set", "hf:https://example.org/x", "hf:someone/set#text"):
        with pytest.raises(ValueError, match="nothing is downloaded"):
            check_local("a", source)
    check_local("a", "stdlib")
    check_local("a", f"hf:{REPOSITORY}")


# --- secrets ---------------------------------------------------------------------------------------------------------

SECRET = "s3cr3tvalue1234567890"


@pytest.mark.parametrize(
    "words",
    [
        ["--hf-token", SECRET], [f"--token={SECRET}"], ["--password", SECRET], ["--api-key", SECRET],
        ["--set", f"data.source=https://user:{SECRET}@host/x"], ["--set", f"db.passwd={SECRET}"],
        [f"HF_TOKEN={SECRET}"], [f"hf_{SECRET}"], [f"--x=sk-{SECRET}"], [f"AKIA{SECRET.upper()}"],
        [f"text:https://{SECRET}@example.org/"], ["--header", f"Authorization: Bearer-{SECRET}"],
        [f"ghp_{SECRET}"], [f"https://host/?access_key={SECRET}&x=1"],
    ],
)  # fmt: skip
def test_secrets_on_the_command_line_are_not_recorded(monkeypatch, words: list[str]) -> None:
    monkeypatch.setattr("sys.argv", ["/usr/bin/scalebench", "run", *words, "study.toml"])
    line = environment.command_line()
    assert SECRET.lower() not in line.lower()
    assert line.startswith("scalebench run ")
    assert line.endswith(" study.toml")


@pytest.mark.parametrize(
    "words",
    [
        ["--tokens", "1000000000000"], ["--tokens=1e12"], ["--set", "data.source=tokens:/data/shards"],
        ["--set", "train.tokens_per_param=20"], ["--tokens-column", "D"], ["--where", "author == 'x'"],
        ["--set", "model.params=[1000, 2000]"], ["-o", "tokenizer.html"], ["text:/home/me/my-notes_2026/a@b.txt"],
    ],
)  # fmt: skip
def test_what_is_no_secret_is_recorded_as_given(words: list[str]) -> None:
    assert hide_in_words(words) == words


def test_secrets_in_variables_and_settings_are_not_recorded(monkeypatch) -> None:
    monkeypatch.setenv("SCALEBENCH_TOKEN", SECRET)
    monkeypatch.setenv("TORCH_HOME", f"https://me:{SECRET}@host/")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    content = environment.environment_file("cpu")
    assert SECRET not in json.dumps(content)
    assert content["environment_variables"]["CUDA_VISIBLE_DEVICES"] == "0"
    threads = {"OMP_NUM_THREADS": "2"}
    assert hide_in_variables({"AWS_SECRET": "x"} | threads) == {"AWS_SECRET": "***"} | threads
    assert SECRET not in hide(f"# --set data.source=hf:x?token={SECRET}")


def test_nothing_of_the_surroundings_is_in_a_record(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("MY_SECRET", SECRET)
    attempt = store.new_attempt(tmp_path / "s", "a")
    store.write_record(attempt, {"trial_id": "a", "status": "ok"} | environment.environment("cpu"))
    assert SECRET not in (attempt / "record.json").read_text()
    assert os.environ["MY_SECRET"] == SECRET
