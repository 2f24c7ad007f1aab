"""The GPU session: runs steps within a deadline and writes complete result files after every step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scalebench.running import processes

KERNELS = Path(__file__).resolve().parents[1]
ROOT = KERNELS.parent
RESERVE_S = 8.0  # at the end, for packing
MOST_BYTES = 16 << 20  # of a file in OUT
GOOD = ("ok", "unavailable")


class ProgramFailedError(RuntimeError):
    """A program failed or was stopped; ``output`` is what it printed."""

    def __init__(self, message: str, output: str) -> None:
        super().__init__(message)
        self.output = output


@dataclass(frozen=True)
class Step:
    """One step: its function, which returns a line for the summary, and its minimum and maximum time."""

    name: str
    do: Callable[[Session], str]
    least_s: float = 5.0
    most_s: float = 600.0


@dataclass
class Session:
    """State and results of the session. Times are readings of ``clock`` in seconds."""

    phase: str
    out: Path
    staging: Path  # where files are written before they replace those in ``out``
    work: Path
    carried: Path | None
    workers: int
    device: str
    deadline: float
    environment: dict[str, str]
    operations: Sequence[str] = ()
    clock: Callable[[], float] = time.monotonic
    begun: float = 0.0
    limit: float = 0.0  # of the current step
    steps: list[dict[str, Any]] = field(default_factory=list)
    checks: dict[str, dict[str, Any]] = field(default_factory=dict)
    versions: dict[str, Any] = field(default_factory=dict)
    versions_before: dict[str, Any] = field(default_factory=dict)  # of the session whose files are carried
    tuned: list[dict[str, Any]] = field(default_factory=list)
    coverage: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def begin(cls, *, out: Path, work: Path, clock: Callable[[], float] = time.monotonic, **settings: Any) -> Session:
        """Create the folders and the environment for the session's processes."""
        for folder in (out, work, work / "results"):
            folder.mkdir(parents=True, exist_ok=True)
        out, work = out.resolve(), work.resolve()
        return cls(
            out=out, staging=staging_of(out, work), work=work, clock=clock, begun=clock(),
            environment=environment_of(work, settings["device"]), **settings,
        )  # fmt: skip

    @property
    def good(self) -> bool:
        """Whether every step succeeded, every check passed, and every shipped configuration was launched."""
        steps = all(step["status"] == "ok" for step in self.steps)
        checks = all(check["status"] in GOOD for check in self.checks.values())
        return steps and checks and not self.coverage.get("missing")

    def left_s(self) -> float:
        """Return the seconds until the deadline of the current step."""
        return min(self.limit or self.deadline, self.deadline - RESERVE_S) - self.clock()

    def say(self, text: str) -> None:
        """Print a line with the time since the start, and append it to log.txt."""
        line = f"[{self.clock() - self.begun:5.0f} s] {text}"
        print(line, flush=True)
        with (self.out / "log.txt").open("a", encoding="utf-8") as log:
            log.write(line + "\n")

    def command(
        self, *arguments: object, most_s: float = 600.0, least_s: float = 0.1,
        environment: Mapping[str, str] | None = None,
    ) -> str:  # fmt: skip
        """Run a program of this checkout until it ends or the step's time is over, and return what it printed.

        It has at least ``least_s``, whatever time the step has left. Raises ``ProgramFailedError`` with its last words
        when it fails or is stopped.
        """
        command = [str(argument) for argument in arguments]
        settings = self.environment | dict(environment or {})
        process = processes.start(command, settings, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=ROOT)
        try:
            printed, _ = process.communicate(timeout=max(least_s, min(most_s, self.left_s())))
        except subprocess.TimeoutExpired:
            processes.stop(process)
            printed, _ = process.communicate()
            output = printed.decode(errors="replace")
            self._log(command, output)
            raise ProgramFailedError(f"stopped after its time: {last_words(output)}", output) from None
        except BaseException:
            processes.stop(process)
            raise
        output = printed.decode(errors="replace")
        self._log(command, output)
        if process.returncode:
            raise ProgramFailedError(f"exit status {process.returncode}: {last_words(output)}", output)
        return output

    def python(self, *arguments: object, **options: Any) -> str:
        """Run this Python with arguments; see :meth:`command`."""
        return self.command(sys.executable, *arguments, **options)

    def _log(self, command: Sequence[str], output: str) -> None:
        with (self.out / "log.txt").open("a", encoding="utf-8") as log:
            log.write(f"$ {' '.join(command)}\n{output[-20_000:]}\n")

    # --- the files ---------------------------------------------------------------------------------------------------

    def write(self) -> None:
        """Write the results so far; each file is replaced atomically."""
        self._put("check.json", json.dumps(
            {"versions": self.versions, "coverage": self.coverage, "checks": self.checks}, indent=1, default=str
        ))  # fmt: skip
        self._put("tune.json", json.dumps({"versions": self.versions, "winners": self.tuned}, indent=1, default=str))
        self._put("summary.md", self.summary())

    def _put(self, name: str, text: str) -> None:
        with self.replacing(name) as path:
            path.write_text(text, encoding="utf-8")

    @contextmanager
    def replacing(self, name: str) -> Iterator[Path]:
        """Give the path where a new version of a file of OUT is to be written; it replaces the old one at the end.

        If nothing was written there, or an exception is raised, the old file stays.
        """
        path = self.staging / (name if self.staging != self.out else f".{name}")
        path.unlink(missing_ok=True)
        try:
            yield path
            if path.exists():
                path.replace(self.out / name)
        finally:
            path.unlink(missing_ok=True)

    def summary(self) -> str:
        """Return the outcome of every step, and every check that failed."""
        lines = [f"# GPU session, {self.phase}", ""]
        lines += [f"- {name}: {value}" for name, value in self.versions.items() if not isinstance(value, dict | list)]
        lines += ["", "| step | status | seconds | result |", "|---|---|--:|---|"]
        lines += [f"| {s['name']} | {s['status']} | {s['seconds']:.0f} | {cell(s['result'])} |" for s in self.steps]
        wrong = {name: check for name, check in self.checks.items() if check["status"] not in GOOD}
        lines += ["", f"{len(self.checks) - len(wrong)} of {len(self.checks)} checks passed.", ""]
        lines += [f"- **{name}**: {c['status']}: {cell(str(c.get('problem')))}" for name, c in wrong.items()]
        if self.coverage:
            lines += ["", f"{self.coverage['launched']} of {self.coverage['shipped']} shipped configurations launched."]
        return "\n".join(lines) + "\n"


def staging_of(out: Path, work: Path) -> Path:
    """Return a folder outside ``out`` from where files can be renamed into it, so that ``out`` never has more files.

    Renaming works only within one file system, so the scratch folder is tried first, then a folder beside ``out``. If
    ``out`` is a mount point, neither works and ``out`` itself is returned. log.txt is created if missing, and replaced
    to test whether renaming works.
    """
    log = out / "log.txt"
    for folder in (work / "staging", out.parent / f".{out.name}-staging"):
        try:
            folder.mkdir(exist_ok=True)
            copy = folder / log.name
            copy.write_bytes(log.read_bytes() if log.exists() else b"")
            copy.replace(log)
        except OSError:  # on another file system, or read-only
            continue
        return folder
    return out


def cell(text: str) -> str:
    """Return text for a cell of a table."""
    return text.replace("|", "/").replace("\n", "<br>")[:600]


def last_words(output: str) -> str:
    """Return the last lines of what a program printed."""
    return " / ".join(output.strip().splitlines()[-6:])[-1200:] or "no output"


def environment_of(work: Path, device: str) -> dict[str, str]:
    """Return the environment of the session's processes: this source on the path, caches under ``work``.

    Paths of the caches are always the same, since compiled kernels remember them.
    """
    paths = [str(ROOT), str(KERNELS), str(KERNELS / "tools"), str(work / "packages"), os.environ.get("PYTHONPATH", "")]
    environment = dict(os.environ) | {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}
    environment |= {"TRITON_CACHE_DIR": str(work / "triton"), "TORCHINDUCTOR_CACHE_DIR": str(work / "inductor")}
    environment |= {"PYTHONUNBUFFERED": "1", "SCALEBENCH_RESULTS": str(work / "results")}
    environment |= {"SCALEBENCH_CEILINGS": str(work / "ceilings.json")}
    return environment | ({"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"} if device == "cpu" else {})


def run_steps(session: Session, steps: Sequence[Step]) -> None:
    """Run the steps in order, continuing after failures, and write the results after every one."""
    for step in steps:
        begun = session.clock()
        left = session.deadline - RESERVE_S - begun
        session.limit = min(begun + step.most_s, session.deadline - RESERVE_S)
        row = {"name": step.name, "status": "not run", "seconds": 0.0, "result": f"{left:.0f} s were left"}
        if left >= step.least_s:
            session.say(f"{step.name} …")
            row |= _outcome(session, step)
        row["seconds"] = session.clock() - begun
        session.steps.append(row)
        session.say(f"{step.name}: {row['status']}: {row['result']}")
        session.write()


def _outcome(session: Session, step: Step) -> dict[str, str]:
    try:
        return {"status": "ok", "result": step.do(session)}
    except Exception as error:  # noqa: BLE001 - the next step still has its time
        with (session.out / "log.txt").open("a", encoding="utf-8") as log:
            log.write(traceback.format_exc())
        return {"status": "failed", "result": f"{type(error).__name__}: {error}"}
