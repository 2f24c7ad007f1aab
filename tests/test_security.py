"""Nothing read from a results folder, a study or a data file runs code, leads elsewhere or gives a secret away."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from support import REPOSITORY, edit_record

from scalebench import store
from scalebench.measure import environment
from scalebench.measure.secrets import hide, hide_in_variables, hide_in_words
from scalebench.running.engines import Resources, slurm, slurm_queue
from scalebench.running.node import node_peaks
from scalebench.store.locks import FileLock
from scalebench.study import Study
from scalebench.workloads.trained import load_trained

SOURCES = [path for name in ("scalebench", "kernels") for path in sorted((REPOSITORY / name).rglob("*.py"))]
ESCAPES = ("../escaped", "/tmp/escaped", "a/b", "..", ".", "", ".hidden", "a\0b", "a\nb", "x" * 101, "ä", "\udcff")


# --- no code ---------------------------------------------------------------------------------------------------------


def calls(tree: ast.Module) -> Iterator[tuple[str, ast.Call]]:
    """Yield every call in a source file with the dotted name of what is called."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def sources_with(words: Iterable[str]) -> Iterator[tuple[Path, ast.Module]]:
    """Yield the source files that contain one of these words, parsed."""
    pattern = re.compile("|".join(words))
    for path in SOURCES:
        if pattern.search(text := path.read_text(encoding="utf-8")):
            yield path, ast.parse(text)


@pytest.mark.slow
def test_no_file_is_read_by_what_runs_code() -> None:
    unsafe = {"pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
    functions = ("eval", "exec", "os.system", "os.popen")
    words = (r"\beval\(", r"\bexec\(", r"\bos\.", r"torch\.load", "allow_pickle", "shell", "trust_remote_code")
    for path, tree in sources_with({*unsafe, *words}):
        imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
        names = {alias.name.partition(".")[0] for node in imports for alias in node.names}
        names |= {str(node.module).partition(".")[0] for node in imports if isinstance(node, ast.ImportFrom)}
        assert not names & unsafe, path
        for name, call in calls(tree):
            options = {option.arg: option.value for option in call.keywords}
            own_family = path.name == "own.py" and name == "exec"  # the file that a study names as its family
            assert name not in functions or own_family, (path, name)
            assert name != "torch.load" or is_constant(options.get("weights_only"), value=True), path
            for option in ("allow_pickle", "shell"):
                assert option not in options or is_constant(options[option], value=False), path
            assert "trust_remote_code" not in options, path


def is_constant(node: ast.expr | None, *, value: bool) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def test_commands_of_child_processes_are_lists() -> None:
    functions = [f"subprocess.{name}" for name in ("run", "Popen", "check_output", "call")]
    seen = 0
    for path, tree in sources_with(["subprocess"]):
        for name, call in calls(tree):
            if name in functions:
                seen += 1
                assert not isinstance(call.args[0], ast.Constant | ast.JoinedStr), path
    assert seen > 5


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


@pytest.mark.parametrize("link", ["small", "small/drivers"])
def test_a_run_writes_nothing_through_links_out_of_the_results(
    tmp_path: Path, small_study: Path, command, link: str
) -> None:
    (tmp_path / "outside").mkdir()
    path = tmp_path / "results" / link
    path.parent.mkdir(parents=True)
    path.symlink_to(tmp_path / "outside")
    code, _, err = command("run", small_study)
    assert code == 2
    (line,) = err.strip().splitlines()
    assert "symbolic link leads out of" in line
    assert list((tmp_path / "outside").iterdir()) == []


def test_measured_peaks_and_lists_of_jobs_are_not_written_through_links(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    attempt = store.new_attempt(tmp_path / "results" / "s", "a")
    for name in ("nodes", "slurm"):
        (tmp_path / "results" / "s" / name).symlink_to(tmp_path / "outside")
    peaks = node_peaks(tmp_path / "results" / "s" / "nodes", "cpu", ["float32"], 1)
    assert "symbolic link" in peaks["float32"].source
    assert peaks["float32"].flops_per_s is None
    with pytest.raises(store.StoreError, match="symbolic link leads out of"):
        slurm.submit([attempt], Resources(), None, several=False)
    assert list((tmp_path / "outside").iterdir()) == []
    (tmp_path / "lock").symlink_to(tmp_path / "outside" / "made")
    with pytest.raises(OSError, match="symbolic links"):
        FileLock(tmp_path / "lock").try_take()
    assert list((tmp_path / "outside").iterdir()) == []


def test_a_list_of_slurm_jobs_names_only_attempts_of_its_study(tmp_path: Path) -> None:
    """What a stranger's results folder names as a task would be read, and given a record."""
    attempt = store.new_attempt(tmp_path / "s", "a")
    trials = attempt.parents[1]
    (tmp_path / "s" / "slurm").mkdir()
    lines = [attempt, tmp_path / "elsewhere", trials / ".." / "a", trials / "a" / "..", "x"]
    for number, line in enumerate(lines):
        (tmp_path / "s" / "slurm" / f"{number}.tasks").write_text(f"{line}\n")
        (tmp_path / "s" / "slurm" / f"{number}.job").write_text(f"{number}")
    (tmp_path / "s" / "slurm" / "8.job").write_bytes(b"\xff")
    (tmp_path / "s" / "slurm" / "9.job").write_text("9")
    os.mkfifo(tmp_path / "s" / "slurm" / "9.tasks")
    assert slurm_queue.submitted(tmp_path / "s") == {slurm_queue.Task("0", 0): attempt}


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


def test_a_password_with_an_at_sign_is_hidden_as_a_whole() -> None:
    assert hide("https://user:p@ss@host/x?y=1") == "https://***@host/x?y=1"
