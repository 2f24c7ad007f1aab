"""A chain of studies: what status, report, export and generate show of parents and children."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from parent_support import CHILD, PARENT, planned, refused, trained
from safetensors.torch import load_file

from scalebench import store
from scalebench.analysis.chain import chain_of, cost_of
from scalebench.analysis.study import analyse
from scalebench.cli.app import main
from scalebench.cli.commands.generate import find_weights
from scalebench.reporting.chains import chain_tables
from scalebench.workloads.trained import load_trained

TRUNK = PARENT.replace("steps = 50", "steps = 4") + "checkpoint_steps = [2, 3]\n"
BRANCH = CHILD.replace('"child"', '"branch"').replace("steps = 50", "steps = 3") + "step = [2, 3]\n"
TUNED = """
schema = 1
name = "tuned"
workload = "finetune"
[from]
study = "branch"
[finetune]
steps = 2
[run]
checkpoint = true
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with checkpoints (study "parent"), two branches of it ("branch"), each fine-tuned ("tuned")."""
    folder = tmp_path_factory.mktemp("base")
    for text in (TRUNK, BRANCH, TUNED):
        name = text.partition('name = "')[2].partition('"')[0]
        trained(folder, text, *([] if name == "parent" else ["data.validation_samples=16"]))
        about = {"name": name, "planned": [{"trial_id": path.name} for path in folder.glob(f"results/{name}/trials/*")]}
        store.write_json(folder / "results" / name / "study.json", about)
    return folder


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(str(ended.value.code))


@pytest.mark.slow
def test_a_chain_counts_every_step_once(base: Path) -> None:
    rows = store.load_results(base / "results")
    step = rows.set_index("study")["flops_per_step"].groupby(level=0).max()
    chain = chain_of("tuned", rows)
    assert [(link.study, link.trials, link.whole) for link in chain] == [
        ("parent", 1, False), ("branch", 2, False), ("tuned", 2, False),
    ]  # fmt: skip
    assert [link.flops for link in chain] == [3 * step["parent"], 6 * step["branch"], 4 * step["tuned"]]
    assert [link.place for link in chain] == [str(base / "results" / name) for name in ("parent", "branch")] + [""]
    assert len(chain_of("parent", rows)) == 1


@pytest.mark.parametrize("gone", [("parent", "branch"), ("branch",), ("parent",)])
def test_grandparents_count_once_where_the_parents_are_gone(base: Path, gone: tuple[str, ...]) -> None:
    rows = store.load_results(base / "results")
    chain, left = chain_of("tuned", rows), chain_of("tuned", rows[~rows["study"].isin(gone)])
    assert [(link.study, link.trials, link.flops, link.whole) for link in left] == [
        (link.study, link.trials, link.flops, False) for link in chain
    ]


@pytest.fixture
def earlier(base: Path, tmp_path: Path) -> Path:
    """The fine-tuned trials alone, as an earlier version recorded them: without their grandparents."""
    moved = shutil.copytree(base / "results" / "tuned", tmp_path / "earlier" / "tuned")
    for path in moved.glob("trials/*/*/trial.json"):
        header = {name: value for name, value in json.loads(path.read_text()).items() if name != "ancestors"}
        path.write_text(json.dumps(header))
    return moved


def test_what_is_not_recorded_of_a_chain_counts_at_most(
    base: Path, earlier: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = store.load_results(base / "results")
    step = rows.set_index("study")["flops_per_step"].groupby(level=0).max()
    alone = chain_of("tuned", store.load_results(earlier))
    assert [(link.study, link.trials, link.whole) for link in alone] == [("branch", 2, True), ("tuned", 2, False)]
    assert cost_of(alone) == cost_of(chain_of("tuned", rows)) + 2 * step["parent"]  # both branches' first two steps
    assert run("status", earlier) == 0
    assert "; at most " in capsys.readouterr().out
    (table,) = chain_tables(analyse(store.read_results(earlier), "tuned"))
    assert [row[0][0] for row in table.rows] == ["branch and all before it", "tuned", "the chain, at most"]


def test_a_child_of_an_earlier_version_names_its_parent(base: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(base, tmp_path / "copied")
    for path in copied.glob("results/branch/trials/*/*/trial.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"ancestors": None}))
    (path, other) = sorted(planned(copied, TUNED), key=lambda trial: trial.parent.flops)
    assert [entry["study"] for entry in path.parent.ancestors()] == ["branch", "parent"]
    assert path.parent.ancestors()[1]["flops"] < other.parent.ancestors()[1]["flops"]


@pytest.mark.parametrize("ancestors", [3, [3], [{"study": "a"}], [{"study": "a", "trial_id": 3, "flops": 3}]])
def test_ancestors_that_are_none_are_not_read(earlier: Path, ancestors: object) -> None:
    for path in earlier.glob("trials/*/*/trial.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"ancestors": ancestors}))
    assert [link.whole for link in chain_of("tuned", store.load_results(earlier))] == [True, False]


def test_studies_that_were_moved_together_are_found_where_they_are(base: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "results"
    shutil.copytree(base / "results", moved)
    for path in moved.glob("*/trials/*/*/trial.json"):
        path.write_text(path.read_text().replace(str(base), str(tmp_path / "gone")))
    chain = chain_of("tuned", store.load_results(moved))
    assert [link.place for link in chain] == [str(moved / "parent"), str(moved / "branch"), ""]


def test_a_chain_that_goes_in_a_circle_ends(base: Path) -> None:
    rows = store.load_results(base / "results").astype(object)
    trunk, branch = rows["study"] == "parent", rows["study"] == "branch"
    rows.loc[trunk, ["parent_trial_id", "parent_study"]] = [rows.loc[branch, "trial_id"].iloc[0], "branch"]
    assert len(chain_of("tuned", rows)) <= 4


def test_status_shows_the_chain_where_it_is_and_what_it_cost(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("status", base / "results") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "tuned started from: parent (1 trial, " in text
    assert "→ branch (2 trials, " in text
    assert f"itsparentsarein{base / 'results' / 'branch'}" in text.replace(" ", "")
    assert run("status", base / "results", "--json") == 0
    chains = json.loads(capsys.readouterr().out)["chains"]
    assert set(chains) == {"branch", "tuned"}
    assert [link["study"] for link in chains["tuned"]] == ["parent", "branch", "tuned"]
    moved = shutil.copytree(base / "results" / "tuned", tmp_path / "tuned")
    assert run("status", moved) == 0
    assert "branch (2 trials" in " ".join(capsys.readouterr().out.split())


def test_the_report_has_the_chain(base: Path) -> None:
    results = store.read_results(base / "results")
    (table,) = chain_tables(analyse(results, "tuned"))
    assert [row[0][0] for row in table.rows] == ["parent", "branch", "tuned", "the chain"]
    assert table.rows[-1][2][1] == sum(row[2][1] for row in table.rows[:-1])
    assert list(chain_tables(analyse(results, "parent"))) == []
    (alone,) = chain_tables(analyse(store.read_results(base / "results" / "tuned"), "tuned"))
    assert [row[0][0] for row in alone.rows] == ["parent", "branch", "tuned", "the chain"]


def test_export_has_the_parents_columns(base: Path, tmp_path: Path) -> None:
    assert run("export", base / "results", "-o", tmp_path / "all.csv") == 0
    frame = pd.read_csv(tmp_path / "all.csv").set_index("study")
    branch = frame.loc[["branch"]]
    assert branch["parent_study"].tolist() == ["parent"] * 2
    assert set(branch["parent_trial_id"]) == {frame.loc["parent", "trial_id"]}
    assert set(frame.loc[["tuned"], "parent_weights_sha256"]) == set(branch["weights_sha256"])
    assert (branch["parent_flops"] > 0).all()
    assert pd.isna(frame.loc["parent", "parent_study"])


def test_generate_takes_children_and_checkpoints(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = store.load_results(base / "results").set_index("study")
    trunk = rows.loc["parent", "trial_id"]
    children = (*rows.loc["branch", "trial_id"], *rows.loc["tuned", "trial_id"])
    for trial in (trunk, f"{trunk}/step-2", f"{trunk}/step-3", *children):
        greedy = ("--prompt", "import ", "--tokens", "8", "--temperature", "0")
        assert run("generate", base / "results", "--trial", trial, *greedy) == 0
        assert capsys.readouterr().out.startswith("import ")
    attempt, checkpoint = find_weights(base / "results", f"{trunk[:6]}/step-2")
    assert checkpoint == attempt / "step-2"
    _, model = load_trained(attempt, checkpoint)
    saved = load_file(checkpoint / "weights.safetensors")
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in saved.items())


@pytest.mark.parametrize(
    ("change", "trial", "expected"),
    [
        ("", "{}/step-9", "has no 'step-9'; it has step-2, step-3"),
        ("", "{}/end", "has no 'end'; it has step-2, step-3"),
        ("no weights", "{}", "kept no weights of its end; "),
        ("no checkpoints", "{}/step-2", "kept no checkpoints (run.checkpoint_steps)"),
    ],
)
def test_weights_that_are_not_there_exit_2(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str, trial: str, expected: str
) -> None:
    results = shutil.copytree(base / "results" / "parent", tmp_path / "results" / "parent").parent
    (attempt,) = results.glob("parent/trials/*/*")
    if change == "no weights":
        (attempt / "weights.safetensors").unlink()
    if change == "no checkpoints":
        (attempt / "checkpoints.json").unlink()
    assert run("generate", results, "--trial", trial.format(attempt.parent.name), "--prompt", "a") == 2
    assert expected in " ".join(capsys.readouterr().err.split())


def test_a_branch_of_another_familys_run_is_refused(base: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(base, tmp_path / "copied")
    assert "family 'gpt', not 'mlp'" in refused(copied, BRANCH, "model.family=mlp")
