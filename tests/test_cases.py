"""The failing inputs from the field (SCALEBENCH_CASES): each gives now what its README calls right, and has a test.

A case that takes processes or minutes has its test elsewhere, with inputs of the same kind: ``ELSEWHERE``.
"""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from command_support import planted, write_study
from support import REPOSITORY, child_environment, reference_case

TESTS = REPOSITORY / "tests"
ELSEWHERE = {
    "04-cheating-providers": "test_compare_cheating.py",
    "05-joint-sweep": "test_advice_joint_optima.py",
    "12-import-drops-benchmarks": "test_compare_import.py",
    "13-exclusive-timing-is-not": "test_contention.py",
    "14-orphan-worker": "test_claims.py",
    "18-import-tracebacks": "test_compare_import.py",
    "24-wide-file-error": "test_exports.py",
    "25-mixed-series-nonsense-optimum": "test_exports.py",
    "27-sep-line-and-gz": "test_exports.py",
}
QUICK = ("--law", "chinchilla", "--bootstrap", "20")


def words(text: str) -> str:
    """A text without the line breaks that fit it to a terminal."""
    return " ".join(text.split())


def test_every_case_has_a_test_that_names_it() -> None:
    folder = reference_case("README.md").parent
    here = Path(__file__).read_text(encoding="utf-8")
    for case in sorted(path.name for path in folder.iterdir() if path.is_dir()):
        text = (TESTS / ELSEWHERE[case]).read_text(encoding="utf-8") if case in ELSEWHERE else here
        assert f'"{case}' in text or f"case {case}" in text, case


def test_a_loss_that_rises_is_a_sentence_and_no_answer(command) -> None:
    path = reference_case("01-rising-loss/points.csv")
    code, out, _ = command("fit", path, "--law", "power", "--bootstrap", "20")
    assert code == 0
    assert "the points do not fall as the law does" in words(out)
    assert re.search(r"alpha +not determined", out)


@pytest.mark.slow
@pytest.mark.usefixtures("forked_trials")
def test_a_finite_loss_far_above_its_start_is_diverged(command, tmp_path: Path) -> None:
    study = reference_case("02-diverged-but-finite/study.toml")
    code, out, _ = command("run", study, "--set", "model.params=2000", "--set", "train.steps=10", "--jobs", "1")
    assert code == 1
    assert "1 diverged, 1 ok" in out
    assert re.search(
        r"diverged: the training loss ended at \S+, more than 3 times as far from \S+ as the \S+ where it began",
        words(out),
    )
    assert command("report", "results", "-o", "x.html")[0] == 0
    page = (tmp_path / "x.html").read_text(encoding="utf-8")
    assert ">diverged</td>" in page
    assert "1 of 2 recorded trials did not end ok" in page


@pytest.mark.parametrize("verb", ["plan", "run"])
def test_an_impossible_combination_is_refused_with_what_to_exclude(command, tmp_path: Path, verb: str) -> None:
    study = reference_case("03-impossible-combination/study.toml")
    code, _, err = command(verb, study)
    assert code == 2
    (line,) = err.splitlines()
    assert line.endswith('add [[exclude]] with train.optimizer = "muon"')
    mended = tmp_path / "mended.toml"
    mended.write_text(study.read_text(encoding="utf-8") + '\n[[exclude]]\ntrain.optimizer = "muon"\n')
    assert command("plan", mended)[0] == 0


def test_a_size_off_the_law_is_named(command) -> None:
    path = reference_case("07-one-bad-rung/points.csv")
    _, _, err = command("fit", path, "--law", "power", "--bootstrap", "20")
    assert "loss at params 1.39e+08 is 5.1 % above the law" in err


def test_outputs_are_written_through_links_fifos_and_devices(command, tmp_path: Path) -> None:
    points = reference_case("11-output-replaces-device-symlink/points.csv")
    target, link, fifo = tmp_path / "target.json", tmp_path / "link.json", tmp_path / "pipe"
    target.write_text("old")
    target.chmod(0o640)
    link.symlink_to(target)
    os.mkfifo(fifo)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(fifo.read_bytes()))
    reader.start()
    for output in (link, fifo, "/dev/null"):
        assert command("fit", points, *QUICK, "-o", output)[0] == 0
    reader.join(timeout=10)
    assert (link.is_symlink(), stat.S_IMODE(target.stat().st_mode)) == (True, 0o640)
    assert read == [target.read_bytes()]
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    (circle := tmp_path / "circle.json").symlink_to(circle)
    code, _, err = command("fit", points, *QUICK, "-o", circle)
    assert (code, circle.is_symlink()) == (2, True)
    assert "cannot be written (Too many levels of symbolic links)" in err


@pytest.mark.slow
def test_what_a_terminal_cannot_show_is_replaced() -> None:
    points = reference_case("15-non-utf8-terminal/points.csv")
    done = subprocess.run(
        [sys.executable, "-m", "scalebench", "fit", str(points), *QUICK], capture_output=True, check=True,
        env=child_environment(PYTHONIOENCODING="ascii"),
    )  # fmt: skip
    out = done.stdout.decode("ascii")
    assert "delta = 0.001" in out
    assert "\\x" not in out
    assert "\\u" not in out


@pytest.mark.parametrize(
    ("arguments", "doubt"),
    [
        (("fit", "params_in_millions.csv", *QUICK), "are the parameters in millions?"),
        (("fit", "both_scaled_whole.csv", *QUICK), "are both in millions?"),
        (("fit", "tokens_in_millions.csv", *QUICK), "are the tokens in millions?"),
        (("optimal", "gflops.csv", "--approach", "3", "--count-flops", "exact"), "1e-09 times 6ND"),
        (("worth", "gflops.csv", "flops.csv"), "a multiplier of 1e-09"),
    ],
)
@pytest.mark.usefixtures("few_refits")
def test_a_slip_of_units_is_one_line_of_doubt(command, monkeypatch, arguments: tuple[str, ...], doubt: str) -> None:
    folder = reference_case("16-unit-slips-unsaid")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(os, "chdir", lambda _: None)
    paths = [folder / word if word.endswith(".csv") else word for word in arguments]
    code, _, err = command(*paths)
    assert code == 0
    assert sum(doubt in line for line in err.splitlines()) == 1


def test_a_full_disk_ends_a_run_in_one_line_that_can_go_on(command, monkeypatch) -> None:
    study = reference_case("20-disk-full/three.toml")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device", "results")

    monkeypatch.setattr("scalebench.running.sweep.execute", full)
    code, _, err = command("run", study)
    assert code == 3
    assert "No space left on device" in err.splitlines()[-1]
    assert "finished trials are kept" in err.splitlines()[-1]


def test_a_study_file_with_a_byte_order_mark_is_planned(command) -> None:
    assert command("plan", reference_case("21-toml-with-bom/bom.toml"))[0] == 0


@pytest.mark.parametrize("verb", ["plan", "run"])
def test_a_head_dimension_without_a_kernel_is_refused_by_the_plan(command, verb: str) -> None:
    code, _, err = command(verb, reference_case("23-head-dim-80-is-failed/hd2.toml"))
    assert code == 2
    assert "'triton' has kernels for 16, 32, 64, 128, 256, not for 80" in err


def test_the_name_of_an_operation_stays_within_the_results(command, tmp_path: Path) -> None:
    file = reference_case("26-operation-name-escapes/m1.json")
    results = tmp_path / "a" / "b" / "r_esc"
    code, _, err = command("compare", "../../../escaped", "--import", file, "--results", results)
    assert code == 2
    assert "cannot name a folder" in err
    assert list(tmp_path.rglob("*escaped*")) == []


def test_many_missing_files_of_samples_are_one_line_and_their_trials_count(command, tmp_path: Path) -> None:
    """The case 28-many-damaged-lines is a recipe: records that name a steps.parquet that was deleted."""
    reference_case("28-many-damaged-lines")
    rows = planted(files={"steps.parquet": 4181})
    write_study(tmp_path / "results" / "planted", rows)
    _, out, _ = command("status", "results")
    assert f"missing, as in {len(rows) - 1} more trials; what is in the records counts" in words(out)
    assert out.count("steps.parquet") == 1
    assert command("export", "results", "-o", "t.csv")[1].strip() == f"t.csv: {len(rows)} trials"
