"""Results folders to damage, and the ways to damage them: files cut, replaced, retyped, and made by strangers.

``DAMAGES`` maps a name to a function that damages one file of a trial, ``EDITS`` a name to a record with one value
changed, ``SPECIAL`` a name to something that is no regular file. ``COMMANDS`` are the command lines that read results.
"""

from __future__ import annotations

import json
import os
import random
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scalebench import store
from scalebench.running.planning import load_study, plan, trial_header

# A study of real trials that are not run: their records are made up, with a known law.
STUDY = """
schema = 1
name = "planted"
[model]
family = "mlp"
params = [200, 400, 800, 1600, 3200]
depth = 1
[train]
steps = 30
batch_size = 32
weight_decay = 0.0
seed = [0, 1]
[data]
validation_samples = 128
"""
ABSENT = object()  # the value of a field that is left out
TARGET = 4  # the trial whose files are damaged


def planted_results(folder: Path) -> Path:
    """Fill a results folder with the finished trials of ``STUDY`` and return the study's file beside it."""
    from scalebench.running.sweep import save_study, survey

    file = folder.with_name("planted.toml")
    file.write_text(STUDY)
    study = load_study(file)
    rng = np.random.default_rng(0)
    for planned in plan(study, folder):
        attempt = store.new_attempt(folder / study.name, planned.trial_id)
        header = trial_header(study, planned, "scalebench run planted.toml")
        store.write_header(attempt, header)
        steps = {"step": range(30), "train_loss_nats": np.geomspace(3, 1, 30), "step_time_s": [1e-3] * 30}
        pd.DataFrame(steps | {"data_time_s": [1e-4] * 30, "warm": [True] * 30}).to_parquet(attempt / "steps.parquet")
        store.write_record(attempt, header["identity"] | planted_row(planned.counts.total, rng))
    save_study(survey(study, folder), study)
    return file


def planted_row(params: int, rng: np.random.Generator) -> dict[str, Any]:
    """Return what a trial of this size measured."""
    from scalebench.measure.environment import code_fingerprint

    return {
        "status": "ok", "params": params, "params_non_embedding": params,
        "validation_loss_nats": float((1.5 + 20 * params**-0.3) * np.exp(rng.normal(0, 1e-3))),
        "validation_loss_se_nats": 0.001, "step_time_median_s": 2e-3 + 5e-8 * params, "timing_exclusive": True,
        "memory_tracked_peak_bytes": 2**20 + 18 * params, "flops_per_step": 192 * params, "samples_seen": 960,
        "checkpoint_bytes": 5_000 + 12 * params, "device_name": "a processor",
        "code_fingerprint": code_fingerprint(),
    }  # fmt: skip


def trial_files(folder: Path) -> dict[str, Path]:
    """Return the files of the trial to damage, by name."""
    trial = sorted((folder / "planted" / "trials").iterdir())[TARGET]
    (attempt,) = trial.iterdir()
    files = {path.name: path for path in attempt.iterdir()}
    return files | {"study.json": folder / "planted" / "study.json", "attempt": attempt, "trial": trial}


def commands(folder: Path, study: Path) -> dict[str, list[str]]:
    """Return the command lines that read a results folder."""
    own = str(folder / "planted")
    return {
        "status": ["status", str(folder)],
        "status --json": ["status", str(folder), "--json"],
        "export csv": ["export", str(folder), "-o", "out.csv"],
        "export parquet": ["export", str(folder), "-o", "out.parquet"],
        "plan": ["plan", str(study), "--results", str(folder)],
        "run": ["run", str(study), "--results", str(folder)],
        "report": ["report", str(folder), "-o", "out.html"],
        "predict": ["predict", own, "--params", "10000"],
        "fit": ["fit", own, "--law", "power", "--bootstrap", "20"],
        "next": ["next", own, "--predict", "params=20000"],
        "generate": ["generate", str(folder), "--trial", "0", "--prompt", "a"],
        "serve": ["serve", "--trial", "0", "--results", str(folder)],
        "list": ["list", "--columns"],
    }


# --- content ---------------------------------------------------------------------------------------------------------


def contents(original: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield names and contents that a damaged or hostile file may have in the place of ``original``."""
    yield from {
        "empty": b"", "a zero byte": b"\0", "zeros": bytes(4096), "garbage": random.Random(0).randbytes(3000),
        "null": b"null", "a list": b"[]", "a list of objects": b"[{}]", "a number": b"3", "a text": b'"x"',
        "an empty object": b"{}", "a deep list": b"[" * 100_000, "a deep object": b'{"a":' * 100_000,
        "900 levels": b'{"status": ' + b"[" * 900 + b"]" * 900 + b"}",
        "NaN": b'{"schema": 1, "loss": NaN}', "5,000 digits": b'{"schema": ' + b"9" * 5000 + b"}",
        "invalid UTF-8": original.replace(b'"', b'"\xff\xfe', 3), "UTF-16": original.decode("latin-1").encode("utf-16"),
        "a BOM": b"\xef\xbb\xbf" + original, "cut in half": original[: len(original) // 2],
        "cut by one byte": original[:-2], "twice": original * 2, "garbage after": original + b"\0garbage",
        "HTML": b"<!DOCTYPE html><html></html>", "an LFS pointer": b"version https://git-lfs.github.com/spec/v1\n",
        "Parquet magic": b"PAR1" + bytes(100) + b"PAR1",
    }.items()  # fmt: skip


def edits(record: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield names and records that differ from ``record`` in one value."""
    values = {
        "absent": ABSENT, "null": None, "a list": [1, 2], "an object": {"a": {"b": []}}, "a text": "many", "true": True,
        "400 digits": 10**400, "20 digits": 10**20, "-1": -1, "1e308": 1e308, "NaN": float("nan"),
        "infinity": float("inf"), "half a pair": "\ud800", "a path": "../../../escaped", "zero byte": "a\0b",
        "an escape sequence": "\x1b[2J\x1b]0;title\x07", "markup": "<script>alert(1)</script>", "long": "x" * 200_000,
    }  # fmt: skip
    fields = (
        "schema", "files", "status", "trial_id", "study", "attempt", "workload", "code_fingerprint", "invalid_reason",
        "error_message", "params", "params_non_embedding", "validation_loss_nats", "step_time_median_s", "seed",
        "family", "implementation", "device_name", "timing_exclusive", "samples_seen", "command", "stop_step",
    )  # fmt: skip
    for field in fields:
        for name, value in values.items():
            changed = {key: old for key, old in record.items() if key != field}
            yield f"{field}: {name}", changed if value is ABSENT else changed | {field: value}
    for name in ("../record.json", "/etc/passwd", "..", "a/b", "", "x" * 5000, "\0", "\udcff"):
        yield f"files: {name[:20]!r}", dict(record) | {"files": {name: 1}}
    for size in (-1, None, "9", 10**400, 1.5, []):
        yield f"files: size {size!r:.20}", dict(record) | {"files": {"steps.parquet": size}}


def write_loosely(path: Path, value: Any) -> None:
    """Write JSON as a careless program may: NaN, infinity and lone surrogates included."""
    path.write_bytes(json.dumps(value).encode("utf-8", "surrogatepass"))


# --- what is no regular file -----------------------------------------------------------------------------------------


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # the name of a socket has at most 108 bytes
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)
    os.chdir(here)


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


SPECIAL: dict[str, Callable[[Path], None]] = {
    "deleted": lambda _path: None,
    "a directory": lambda path: path.mkdir(),
    "a FIFO": os.mkfifo,
    "a device": _device,
    "a socket": _socket,
    "a symlink to itself": lambda path: path.symlink_to(path.name),
    "a symlink to nothing": lambda path: path.symlink_to("nothing"),
    "a symlink out": lambda path: path.symlink_to("/etc/passwd"),
    "a terabyte of holes": _sparse,
}
