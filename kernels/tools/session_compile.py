"""The step "compile and baselines": while processes compile the kernels, one measures what they are compared with.

Processes without a GPU compile what the checks will launch into the session's Triton cache, with the ptxas that passed
the canary, unless an earlier session's cache has it. Meanwhile ``scalebench compare`` has the device to itself: it
measures ceilings on random data, stored for later steps, and PyTorch's own attention at the shapes of the goals.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import session_rehearsed
from session import KERNELS, MOST_BYTES, RESERVE_S, Session
from session_measures import GOALS, SDPA, Table, compare, together
from session_pool import Job, Pool

COMPILING_S, CHECKS_S, TUNING_S = 50.0, 130.0, 50.0  # limits of the steps; compiling leaves the others theirs
LEAST_S = 20.0  # of this step, however little time is left
MEASURING_S = 40.0  # of the comparisons, whatever there is to compile
KEEP_EVERY_S = 10.0
REHEARSED = 90  # compute capability times ten for which a rehearsal on a CPU compiles
ONE_S = 40.0  # of compiling one kernel; most take less than four
WITHOUT_GPU = {"CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "0"}
BASELINES = (
    Table("attention", GOALS, SDPA, "sdpa-cudnn", seconds=0.2),
    Table("attention", GOALS, SDPA, "sdpa-cudnn", backward=True, seconds=0.2),
)


def compile_and_measure(session: Session) -> str:
    """Compile and measure at the same time, and return a line for each program.

    Raises ``RuntimeError`` with all lines if a kernel did not compile or a comparison failed.
    """
    left = session.deadline - RESERVE_S - session.clock()
    session.limit = min(session.limit, session.clock() + max(LEAST_S, left - CHECKS_S - TUNING_S))
    programs = {f"{table.name} baselines": partial(compare, session, table, MEASURING_S) for table in BASELINES}
    return together(session, {"kernels": partial(compile_kernels, session)} | programs, KEEP_EVERY_S)


def compile_kernels(session: Session) -> str:
    """Compile the kernels that the cache lacks, the most urgent first, pack the cache, and return how many there were.

    A kernel that fails is a failed check; those that there was no time for are compiled when they are launched. Raises
    ``RuntimeError`` with the counts if any failed.
    """
    begun, listed = time.monotonic(), requests(session)
    jobs, ended = compile_jobs(listed["missing"], capability(session)), Counter[str]()

    def keep(result: dict[str, Any]) -> None:
        ended[result["status"]] += 1
        if result["status"] not in ("ok", "not run"):
            session.checks[result["name"]] = {name: value for name, value in result.items() if name != "launched"}
            session.say(f"{result['name']}: {result['status']}: {str(result.get('problem'))[:300]}")
            session.write()

    if jobs:
        environment = dict(session.environment) | WITHOUT_GPU
        deadline, log = time.monotonic() + session.left_s(), session.work / "compile.log"
        Pool(session.workers, environment, deadline, 0.0, log, keep).run(jobs)
    packed = pack_cache(session) if ended["ok"] else ""
    line = report(listed, ended, time.monotonic() - begun)
    if sum(ended.values()) > ended["ok"] + ended["not run"]:
        raise RuntimeError(line)
    return "; cache: ".join(filter(None, (line, packed)))


def report(listed: Mapping[str, Any], ended: Mapping[str, int], seconds: float) -> str:
    """Return in one line what was compiled."""
    missing, left = len(listed["missing"]), ended["not run"]
    failed = missing - left - ended["ok"]
    words = [
        f"{ended['ok']} of {missing} compiled in {seconds:.0f} s, {listed['distinct'] - missing} were in the cache"
    ]
    words += [f"{failed} failed"] * bool(failed) + [f"{left} left to the checks"] * bool(left)
    unreached = listed["unreached"]
    words += [f"{len(unreached)} configurations without a case, such as {unreached[0]}"] if unreached else []
    return ", ".join(words)


def capability(session: Session) -> int:
    """Return the device's compute capability times ten; in a rehearsal REHEARSED."""
    return int(session.versions.get("capability", REHEARSED))


def requests(session: Session) -> dict[str, Any]:
    """Return what the checks will launch that the cache lacks; see ``launch_requests.found``."""
    output = session.work / "requests.json"
    options = ["--arch", capability(session), "--output", output]
    options += ["--few", session_rehearsed.COMPILED] if session.device == "cpu" else []
    if processors := session.versions.get("processors"):
        options += ["--processors", processors]
    program = KERNELS / "tools" / "launch_requests.py"
    session.python(program, ",".join(session.operations), *options, environment=WITHOUT_GPU)
    listed: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
    return listed


def compile_jobs(missing: Sequence[Mapping[str, Any]], arch: int) -> list[Job]:
    """Return a job for each request; bfloat16 comes first, as in the checks."""
    jobs = []
    for index, request in enumerate(missing):
        what = {name: request[name] for name in ("function", "data")} | {"kind": "compile", "capability": arch}
        kinds = request["launched"]["pointers"].values()
        urgent = any("bf16" in kind for kind in kinds) or not any("fp" in kind for kind in kinds)
        name = f"compile: {request['function'].rpartition(':')[2]} of {request['operation']} {request['case']}, {index}"
        jobs.append(Job(name, what, 0 if urgent else 1, memory_bytes=0.0, timeout_s=ONE_S))
    return jobs


def pack_cache(session: Session) -> str:
    """Pack the compiled kernels without intermediate text, unless they are too large; an older archive is removed."""
    folder, target = session.work / "triton", session.out / "cache.tar.xz"
    if not folder.exists():
        return "nothing compiled"
    files = [p for p in folder.rglob("*") if p.suffix in (".cubin", ".json", ".so")]
    listed = "\n".join(str(p.relative_to(session.work)) for p in files)
    with session.replacing(target.name) as path:
        pack = subprocess.run(
            ["tar", "-cf", str(path), "--use-compress-program=xz -T0 -2", "-C", str(session.work), "-T", "-"],
            input=listed, text=True, capture_output=True, timeout=max(1.0, session.deadline - session.clock() - 2),
        )  # fmt: skip
        size = path.stat().st_size if path.exists() else 0
        if pack.returncode or size > MOST_BYTES:
            path.unlink(missing_ok=True)
            target.unlink(missing_ok=True)
            return f"left out: {size >> 20} MiB; {pack.stderr[-200:]}"
    return f"{len(files)} files, {size >> 10} KiB"
