"""One bad file costs one trial and one line: whatever it holds or is, no command fails, waits, or changes a number."""

from __future__ import annotations

import contextlib
import io
import json
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest
from damage import SPECIAL, commands, contents, edits, planted_results, trial_files, write_loosely
from support import edit_record, shared_folder

from scalebench import store
from scalebench.running.engines import local
from scalebench.store.files import checksum

pytestmark = pytest.mark.usefixtures("few_refits")

FILES = ("record.json", "trial.json", "study.json", "steps.parquet")
PATIENCE_S = 20


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder of ten made-up trials, to read only."""
    return shared_folder(tmp_path_factory, "planted", lambda folder: planted_results(folder / "results")) / "results"


@pytest.fixture
def copied(planted: Path, tmp_path: Path) -> Path:
    """A copy of it to damage."""
    shutil.copytree(planted.parent, tmp_path / "all")
    return tmp_path / "all" / "results"


@pytest.fixture(scope="module")
def undamaged(planted: Path) -> store.Results:
    """The trials of a folder before any damage."""
    return store.read_results(planted)


@contextmanager
def no_longer_than(seconds: int) -> Iterator[None]:
    """Fail what waits for longer, such as for the other end of a FIFO."""

    def late(*_: object) -> None:
        raise AssertionError(f"no answer in {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def restore(original: bytes, path: Path) -> None:
    """Put a regular file with this content in the place of whatever is there."""
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    path.unlink(missing_ok=True)
    path.write_bytes(original)


def check_others(folder: Path, undamaged: store.Results, name: str) -> store.Results:
    """Read the results and compare all trials but the damaged one with those of the undamaged folder."""
    with no_longer_than(PATIENCE_S):
        results = store.read_results(folder)
    damaged = trial_files(folder)["trial"].name
    now, before = (
        frame[frame["trial_id"] != damaged].set_index("trial_id")[["validation_loss_nats", "params", "status"]]
        for frame in (results.frame, undamaged.frame)
    )
    pd.testing.assert_frame_equal(now, before, check_dtype=False, obj=name)
    return results


@pytest.mark.slow
def test_no_content_of_a_file_changes_other_trials_or_is_taken_for_a_record(
    copied: Path, undamaged: store.Results
) -> None:
    path = trial_files(copied)["record.json"]
    original = path.read_bytes()
    for name, content in contents(original):
        path.write_bytes(content)
        results = check_others(copied, undamaged, name)
        if name in ("a BOM", "UTF-16"):  # of the same content
            continue
        assert len(results.damaged) == 1, name
        assert "record.json" in results.damaged[0], name


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("name", SPECIAL)
def test_only_regular_files_are_read_and_nothing_is_waited_for(
    copied: Path, undamaged: store.Results, file: str, name: str
) -> None:
    path = trial_files(copied)[file]
    path.unlink()
    SPECIAL[name](path)
    results = check_others(copied, undamaged, name)
    assert len(results.damaged) <= 1
    with no_longer_than(PATIENCE_S), pytest.raises(store.StoreError, match=file):
        store.read_steps(path.parent) if file == "steps.parquet" else store.read_json(path)


def test_a_file_cut_at_any_byte_is_damage(copied: Path) -> None:
    attempt = trial_files(copied)["attempt"]
    original = (attempt / "record.json").read_bytes()
    for end in range(0, len(original) - 2, 7):
        (attempt / "record.json").write_bytes(original[:end])
        with pytest.raises(store.StoreError, match=r"record\.json"):
            store.read_record(attempt)


def flipped(content: bytes, bit: int) -> bytes:
    """Return ``content`` with one bit changed."""
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def accepts_other_content(
    read: Callable[[], object], path: Path, original: bytes, bits: range | list[int]
) -> list[int]:
    """Return the bits whose change ``read`` accepts with another result than that of the original file."""
    expected, wrong = read(), []
    for bit in bits:
        path.write_bytes(flipped(original, bit))
        with contextlib.suppress(store.StoreError):
            wrong += [bit] * (read() != expected)
    path.write_bytes(original)
    return wrong


@pytest.mark.parametrize(
    ("file", "share"),
    [
        *(("record.json", 0.003), ("trial.json", 0.003), ("study.json", 0.001)),
        *(pytest.param(name, 0.05, marks=pytest.mark.slow) for name in ("record.json", "trial.json")),
    ],
)
def test_no_changed_bit_is_read_as_another_value(copied: Path, file: str, share: float) -> None:
    files = trial_files(copied)
    path, attempt = files[file], files["attempt"]
    original = path.read_bytes()
    bits = random.Random(0).sample(range(8 * len(original)), round(8 * share * len(original)))

    def study() -> object:
        damaged: list[str] = []
        content = store.read_study(path.parent, damaged)
        if damaged:
            raise store.StoreError(damaged[0])
        return {name: value for name, value in content.items() if name in ("planned", "axes", "fit", "fields")}

    def header() -> object:
        return {name: value for name, value in store.read_header(attempt).items() if name in ("trial", "identity")}

    read = {"record.json": lambda: store.read_record(attempt), "trial.json": header, "study.json": study}[file]
    assert accepts_other_content(read, path, original, bits) == []


@pytest.mark.slow
def test_no_bit_of_a_record_can_change(tmp_path: Path) -> None:
    """Every bit, of a record that has a value of every type."""
    attempt = store.new_attempt(tmp_path / "s", "a")
    values = {"params": 201, "loss": 1.25e-3, "timing_exclusive": True, "reason": None, "device_name": "é"}
    store.write_record(attempt, {"trial_id": "a", "status": "ok"} | values)
    path = attempt / "record.json"
    original = path.read_bytes()
    assert accepts_other_content(lambda: store.read_record(attempt), path, original, range(8 * len(original))) == []


def test_the_checksum_is_of_the_canonical_content(copied: Path) -> None:
    path = trial_files(copied)["record.json"]
    content = json.loads(path.read_bytes())
    expected = content.pop("sha256")
    assert checksum(content) == expected
    reordered = dict(sorted(content.items(), reverse=True)) | {"sha256": expected}
    path.write_text(json.dumps(reordered, indent=7))
    assert store.read_record(path.parent)["checked"]


def test_records_without_a_checksum_are_read_and_marked(copied: Path) -> None:
    path = trial_files(copied)["record.json"]
    content = json.loads(path.read_bytes())
    del content["sha256"]
    store.write_json(path, content | {"schema": 1})
    frame = store.load_results(copied)
    assert frame.loc[~frame["checked"], "trial_id"].tolist() == [content["trial_id"]]
    store.write_json(path, content)  # of a schema that has one
    assert "checksum is missing" in store.read_results(copied).damaged[0]


def many_bad_records(folder: Path) -> int:
    """Add to a study a trial for every edit of a record, as an earlier version might have written it unchecked."""
    attempt = trial_files(folder)["attempt"]
    record = {name: value for name, value in store.read_json(attempt / "record.json").items() if name != "sha256"}
    record |= {"schema": 1, "params": 1, "params_non_embedding": 1, "status": "failed"}
    names = []
    for number, (name, edit) in enumerate(edits(record)):
        bad = folder / "planted" / "trials" / f"bad{number:013}" / "attempt-1"
        bad.mkdir(parents=True)
        own = {"trial_id": bad.parent.name} if name.partition(":")[0] != "trial_id" else {}
        write_loosely(bad / "record.json", edit | own)
        names.append(name)
    return len(names)


def test_bad_records_by_the_hundred_cost_a_line_each(copied: Path, undamaged: store.Results) -> None:
    number = many_bad_records(copied)
    results = store.read_results(copied)
    known = set(undamaged.frame["trial_id"])
    own = results.frame[results.frame["trial_id"].isin(known)]
    assert own["validation_loss_nats"].tolist() == undamaged.frame["validation_loss_nats"].tolist()
    assert len(results.damaged) + len(results.frame) == number + len(undamaged.frame)
    assert len(results.damaged) > number / 3


@pytest.mark.slow
def test_commands_read_a_folder_of_hundreds_of_bad_records(copied: Path, command, monkeypatch) -> None:
    before = store.read_results(copied).frame
    assert many_bad_records(copied) > 400
    monkeypatch.setattr(local, "place", lambda *_, **__: iter(()))
    for name, line in commands(copied, copied.parent / "planted.toml").items():
        with no_longer_than(PATIENCE_S):
            code, _, err = command(*line)
        assert code == {"generate": 2, "serve": 2, "status": 1, "status --json": 1}.get(name, 0), (name, err)
    after = pd.read_csv("out.csv", low_memory=False).set_index("trial_id")
    for trial_id, loss in zip(before["trial_id"], before["validation_loss_nats"], strict=True):
        assert float(after.loc[trial_id, "validation_loss_nats"]) == pytest.approx(loss, rel=1e-12)


def test_mixed_columns_are_exported_as_text(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": [1, "x", None], "b": [True, 2.5, "é"], "c": [1, 2, 3]})
    store.write_table(frame, tmp_path / "x.parquet")
    read = pd.read_parquet(io.BytesIO((tmp_path / "x.parquet").read_bytes()))
    assert read["a"].tolist()[:2] == ["1", "x"]
    assert read["a"].isna().tolist() == [False, False, True]
    assert read["c"].tolist() == [1, 2, 3]


def test_a_path_in_another_encoding_is_written_read_and_shown(tmp_path: Path, planted: Path, command) -> None:
    folder = Path(str(tmp_path).encode().decode() + "/r\udce9sultats")
    shutil.copytree(planted, folder)
    attempt = store.new_attempt(folder / "planted", "abc")
    store.write_record(attempt, {"trial_id": "abc", "status": "failed", "study": "planted", "command": f"run {folder}"})
    row = store.read_record(attempt)
    assert row["command"].endswith("r\\udce9sultats")
    frame = store.load_results(folder)
    assert len(store.read_steps(frame["attempt_dir"].iloc[0])) == 30
    for line in (["status", folder], ["export", folder, "-o", "x.csv"], ["export", folder, "-o", "x.parquet"]):
        assert command(*line)[0] in (0, 1)


@pytest.mark.slow
def test_the_report_of_a_study_with_an_infinite_loss_has_its_curves(copied: Path, command) -> None:
    path = trial_files(copied)["steps.parquet"]
    steps = pd.read_parquet(path)
    steps.loc[20:, "train_loss_nats"] = float("inf")
    steps.to_parquet(path)
    edit_record(path.parent, status="diverged", files={"steps.parquet": path.stat().st_size})
    assert command("report", copied, "-o", "page.html")[0] == 0
    assert "Each line is one trial; the loss is averaged" in Path("page.html").read_text()
