"""Work is bounded before it is done: what asks for too much is refused at once, with what is given and allowed."""

from __future__ import annotations

import contextlib
import gzip
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from scalebench import store
from scalebench.data import DataError, open_data, open_source
from scalebench.errors import InputError, StudyError
from scalebench.points.exports import READERS
from scalebench.points.where import parse
from scalebench.running.planning import load_study, plan
from scalebench.running.processes import last_lines
from scalebench.workloads.weights import check_sha256

STUDY = """
schema = 1
name = "large"
{top}
[model]
family = "mlp"
{model}
[train]
steps = 10
{train}
[data]
{data}
"""
HUGE = "9" * 4000
CASES = {
    "a grid of 1e9 points": (
        {"model": "width = {geom=[10, 1000], points=1000}", "train": f"seed = {list(range(1000))}",
         "data": f"noise_std = {[i + 0.5 for i in range(1000)]}"}, "1,000,000,000 combinations"),
    "an axis of 1e12 points": ({"model": "params = {geom=[1e3, 1e9], points=1000000000000}"}, "at most 100,000"),
    "powers of two without end": ({"model": "params = {log2=[1, 5000]}"}, "-996 to 996"),
    "powers of two below all": ({"model": "params = {log2=[-5000, 1]}"}, "-996 to 996"),
    "a range beyond floats": ({"model": "params = {geom=[1, 1e305], points=3}"}, "up to 1e+300"),
    "an integer of 4,000 digits": ({"train": f"seed = {HUGE}"}, "4,000 digits"),
    "an integer of 5,000 digits": ({"train": f"seed = 9{'9' * 4999}"}, "not valid TOML"),
    "a float field of 4,000 digits": ({"model": f"params = {HUGE}"}, "4,000 digits"),
    "a size of 4,000 digits": ({"model": f"width = {HUGE}"}, "4,000 digits"),
    "a range of 4,000 digits": ({"model": f"params = {{geom=[1, {HUGE}], points=3}}"}, "4,000 digits"),
    "1e12 validation samples": ({"model": "params = 1e3", "data": "validation_samples = 1000000000000"}, "10000000"),
    "1e12 validation samples as a float": ({"model": "params = 1e3", "data": "validation_samples = 1e12"}, "10000000"),
    "1e300 steps": ({"model": "params = 1e3", "train": "batch_size = 1e300"}, "1000000000000000"),
    "a seed beyond 64 bits": ({"model": "params = 1e3", "train": "seed = 1e40"}, "9223372036854775807"),
    "a deep list": ({"train": f"seed = {'[' * 5000}1{']' * 5000}"}, "not valid TOML"),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _at_once() -> Iterator[None]:
    """Fail what takes longer than seconds: it did the work, or waits."""

    def late(*_: object) -> None:
        raise AssertionError("not refused at once")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("case", CASES)
def test_a_study_that_asks_for_too_much_is_refused_at_once(tmp_path: Path, case: str) -> None:
    fields, expected = CASES[case]
    path = tmp_path / "study.toml"
    path.write_text(STUDY.format(**dict.fromkeys(("top", "model", "train", "data"), "") | fields))
    begun = time.monotonic()
    with pytest.raises(StudyError) as refused:
        load_study(path)
    assert time.monotonic() - begun < 5
    assert expected in str(refused.value)
    assert all(len(line) < 1000 for line in str(refused.value).splitlines())


def test_large_but_possible_studies_are_planned(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text(STUDY.format(top="", model="params = {log2=[11, 20]}", train=f"seed = {list(range(20))}", data=""))
    assert len(plan(load_study(path), tmp_path)) == 200


@pytest.mark.parametrize("setting", [f"train.seed={'9' * 5000}", f"train.seed={HUGE}", f"train.seed={'[' * 5000}"])
def test_settings_are_bounded_as_the_file_is(tmp_path: Path, setting: str) -> None:
    path = tmp_path / "study.toml"
    path.write_text(STUDY.format(top="", model="params = 1e3", train="", data=""))
    with pytest.raises(StudyError) as refused:
        load_study(path, [setting])
    assert all(len(line) < 1000 for line in str(refused.value).splitlines())


def test_a_study_file_without_end_is_refused() -> None:
    with pytest.raises(StudyError, match="at most 16,777,216 bytes"):
        load_study("/dev/zero")


def sources(folder: Path) -> dict[str, str]:
    """Return sources that never end, or are far too large."""
    os.mkfifo(folder / "fifo")
    with (folder / "sparse").open("wb") as file:
        file.truncate(1 << 42)
    many = folder / "many"
    many.mkdir()
    for name in "ab":
        with (many / name).open("wb") as file:
            file.truncate(6 << 30)
    tokens = folder / "tokens.bin"
    os.mkfifo(tokens)
    cifar = folder / "cifar"
    cifar.mkdir()
    os.mkfifo(cifar / "data_batch_1.bin")
    (cifar / "test_batch.bin").write_bytes(bytes(3073))
    return {
        "text of a device": "text:/dev/zero", "text of a FIFO": f"text:{folder / 'fifo'}",
        "text of 4 TiB": f"text:{folder / 'sparse'}", "texts of 12 GiB": f"text:{many}",
        "tokens of a FIFO": f"tokens:{tokens}", "images of a FIFO": f"cifar10:{cifar}",
    }  # fmt: skip


def test_data_that_never_end_are_refused_at_once(tmp_path: Path) -> None:
    for name, source in sources(tmp_path).items():
        with pytest.raises(DataError) as refused:
            open_source(source)
        assert str(tmp_path) in str(refused.value) or "/dev/zero" in str(refused.value), name


@pytest.mark.parametrize("what", ["/dev/zero", "fifo", "folder"])
def test_no_command_waits_for_what_is_no_file(tmp_path: Path, command, what: str) -> None:
    path = tmp_path / what  # an absolute name stays what it is
    if what == "fifo":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    attempt = store.new_attempt(tmp_path / "results" / "s", "a")
    store.write_record(attempt, {"trial_id": "a", "status": "ok", "study": "s"})
    for name in ("stderr.log", "weights.safetensors", "trainer_state.json"):
        (attempt / name).symlink_to(path)
    code, _, err = command("compare", "--import", path, "--baseline", "x")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "not a regular file" in err
    code, out, _ = command("show", "a")
    assert code == 0
    assert "not a regular file" in " ".join(out.split())
    with pytest.raises(store.StoreError, match="not a regular file"):
        check_sha256(attempt / "weights.safetensors", "0")
    with pytest.raises(InputError, match="not a regular file"):
        READERS["trainer"](attempt / "trainer_state.json")


def test_the_log_of_a_trial_is_read_from_its_end(tmp_path: Path) -> None:
    log = tmp_path / "stderr.log"
    with log.open("wb") as file:
        file.truncate(1 << 42)
        file.seek(0, os.SEEK_END)
        file.write(b"\nlast\n")
    assert last_lines(log) == "last"
    assert store.read_tail(log, 5) == b"last\n"


def test_a_file_that_unpacks_to_more_than_memory_is_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("scalebench.data.image_files.IMAGE_BYTES", 1 << 20)
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (tmp_path / f"{name}-ubyte.gz").write_bytes(gzip.compress(bytes(2 << 20)))
    with pytest.raises(DataError, match="unpacks to more than 1,048,576 bytes"):
        open_source(f"idx:{tmp_path}")


@pytest.mark.parametrize(("source", "symbols"), [("markov", 10**6), ("stdlib", 10**9)])
def test_a_vocabulary_of_any_size_is_refused_or_bounded(source: str, symbols: int) -> None:
    with pytest.raises(DataError, match=str(symbols)):
        open_data(source, symbols, 0.2)


@pytest.mark.parametrize(
    "condition",
    ["n == 9**9**9**9", "n < 9**9**9", f"n == {'9' * 900}", f"n in [{'9' * 900}]", "(" * 400 + "n" + ")" * 400,
     "n" + "+n" * 400, "-" * 900 + "n == 1", "n == 1e999", "n == 9//0"],
)  # fmt: skip
def test_expressions_are_evaluated_as_floats_or_refused(condition: str) -> None:
    with contextlib.suppress(InputError):
        parse(condition)


def test_a_study_that_is_a_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "study.toml")
    with pytest.raises(StudyError, match="a pipe; a study is a regular file"):
        load_study(tmp_path / "study.toml")
