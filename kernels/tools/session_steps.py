"""The steps of the two phases of the GPU session, in order."""

from __future__ import annotations

import json
import lzma
import re
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import session_jobs
from session import KERNELS, RESERVE_S, ROOT, ProgramFailedError, Session, Step, last_words
from session_after import after_training
from session_compile import CHECKS_S, COMPILING_S, TUNING_S, compile_and_measure, pack_cache
from session_measures import measuring_steps
from session_pool import Job, Pool
from tuning_workers import problems

from scalebench.running import processes

TOOLS = KERNELS / "tools"
GPU_MEMORY_SHARE = 0.75  # of the device, for all concurrent checks


def first() -> list[Step]:
    """Compile the kernels and measure what they are compared with, check them, then find the fastest tiles."""
    return [
        *BEGINNING,
        Step("compile and baselines", compile_and_measure, least_s=20, most_s=COMPILING_S),
        Step("checks", checks, least_s=20, most_s=CHECKS_S),
        Step("tuning", tuning, least_s=15, most_s=TUNING_S),
        Step("racecheck", racecheck, least_s=15, most_s=30),
        Step("launch shapes", launch_shapes, least_s=25, most_s=45),
        Step("cache", pack_cache, least_s=-RESERVE_S),
    ]


def second() -> list[Step]:
    """Check what has changed, time the shipped tiles, measure at the shapes of the goals, train."""
    return [
        *BEGINNING,
        Step("checks", checks, least_s=20, most_s=60),
        Step("tuning", partial(tuning, quick=True), least_s=15, most_s=35),
        Step("after training", after_training, least_s=25, most_s=60),
        *measuring_steps(),
        Step("cache", pack_cache, least_s=-RESERVE_S),
    ]


# --- common first steps --------------------------------------------------------------------------------------------


def setup(session: Session) -> str:
    """Install the carried wheels, unpack the carried assembler, and load an earlier session's results."""
    carried, done = session.carried, []
    if carried is None:
        _open_data(session)
        return "nothing was carried"
    if wheels := sorted((carried / "wheels").glob("*.whl")):
        install = ("-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile", "--no-cache-dir")
        session.python(*install, "--upgrade", "--target", session.work / "packages", *wheels)
        done.append(f"{len(wheels)} packages")
    if (packed := carried / "ptxas.xz").exists():
        path = session.work / "ptxas"
        with lzma.open(packed) as source, path.open("wb") as target:
            shutil.copyfileobj(source, target)
        path.chmod(0o755)
        done.append("an assembler")
    done += _previous(session, carried / "previous")
    _open_data(session)
    return f"{', '.join(done) or 'nothing'} carried"


DATA = """
from scalebench.running.planning import load_study, plan
from scalebench.workloads.building import planned_data
trial = plan(load_study("gpu-speed"))[0].trial
planned_data(trial).training_tokens(trial.data.validation_fraction)
"""


def _open_data(session: Session) -> None:
    """Start a process that creates the vocabulary of the training text (about 15 s) while the next steps run."""
    if session.phase == "second" and session.device == "cuda":
        with (session.work / "data.log").open("ab") as log:
            processes.start([sys.executable, "-c", DATA], session.environment, stdout=log, stderr=log, cwd=ROOT)


def _previous(session: Session, folder: Path) -> list[str]:
    """Load the checks, tiles and compiled kernels of an earlier session."""
    done = []
    if (path := folder / "check.json").exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        session.versions_before, checks = before.get("versions", {}), before["checks"]
        today = {operation: session_jobs.source_sha256(operation) for operation in session.operations}
        session.checks = {name: check for name, check in checks.items() if _still_valid(name, check, today)}
        done.append(f"{len(session.checks)} checks")
    if (path := folder / "tune.json").exists():
        session.tuned = json.loads(path.read_text(encoding="utf-8"))["winners"]
    if (path := folder / "cache.tar.xz").exists() and not (session.work / "triton").exists():
        session.command("tar", "-xJf", path, "-C", session.work)
        done.append("compiled kernels")
    return done


def _still_valid(name: str, check: dict[str, Any], today: dict[str, str]) -> bool:
    """Return whether an earlier check passed with the current source; checks without an operation never count."""
    return check["status"] == "ok" and check.get("source") == today.get(_operation(name), "changed")


VERSIONS = """
import datetime, json, platform, sys, torch, triton
found = {"python": platform.python_version(), "torch": torch.__version__, "triton": triton.__version__}
found["date"] = datetime.date.today().isoformat()
if torch.cuda.is_available():
    p = torch.cuda.get_device_properties(0)
    found |= {"device": p.name, "memory_bytes": p.total_memory, "capability": 10 * p.major + p.minor}
    found |= {"processors": p.multi_processor_count, "cuda": torch.version.cuda}
    found |= {"cudnn": torch.backends.cudnn.version()}
print(json.dumps(found))
"""


def versions(session: Session) -> str:
    """Record versions, the device and its driver."""
    printed = session.python("-c", VERSIONS).strip().splitlines()[-1]
    session.versions |= json.loads(printed)
    if session.device == "cuda":
        fields = "driver_version,clocks.max.sm,power.limit,temperature.gpu"
        queried = session.command("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader")
        session.versions["driver, most SM clock, power limit, temperature"] = queried.strip()
    return printed


def assembler(session: Session) -> str:
    """Run the canary with every ptxas and use the newest correct one from here on.

    Raises ``RuntimeError`` if none is correct, since no result could be trusted.
    """
    if session.device == "cpu":
        return "the interpreter assembles nothing"
    carried = session.work / "ptxas"
    candidates = {"carried": {"TRITON_PTXAS_PATH": str(carried)}} if carried.exists() else {}
    known = _verdict_before(session, candidates)
    verdicts: dict[str, str] = dict.fromkeys([*candidates, "bundled"], "sound") if known else {}
    with ThreadPoolExecutor(8) as together:
        running = {
            name: together.map(partial(_witness, session, name, settings), range(4))
            for name, settings in (candidates | {"bundled": {}}).items()
            if name not in verdicts
        }
        for name, problems in running.items():
            verdicts[name] = "; ".join(filter(None, problems)) or "sound"
    session.versions["assemblers"] = "; ".join(f"{name}: {verdict}" for name, verdict in verdicts.items())
    sound = [name for name, verdict in verdicts.items() if verdict == "sound"]
    if not sound:
        raise RuntimeError(session.versions["assemblers"])
    session.environment |= candidates.get(sound[0], {})
    path = session.environment.get("TRITON_PTXAS_PATH")
    printed = session.command(path or _bundled(session), "--version").strip().splitlines()
    session.versions["ptxas"] = f"{sound[0]}: {printed[-2] if len(printed) > 1 else printed}"
    where = " (found by the session before)" if known else ""
    return f"{session.versions['assemblers']}{where}; {session.versions['ptxas']}"


BEGINNING = (
    Step("setup", setup, most_s=30),
    Step("versions", versions, most_s=30),
    Step("assembler", assembler, most_s=45),
)


def _verdict_before(session: Session, candidates: dict[str, dict[str, str]]) -> bool:
    """Return whether the previous session passed the canary with the same assemblers, versions and device."""
    before, now = session.versions_before, session.versions
    driver = "driver, most SM clock, power limit, temperature"
    if any(not before.get(name) or before[name] != now.get(name) for name in ("torch", "triton", "device")):
        return False
    if before.get(driver, "").split(",")[0] != now.get(driver, "-").split(",")[0]:
        return False
    if before.get("assemblers") != "; ".join(f"{name}: sound" for name in [*candidates, "bundled"]):
        return False
    # The bundled ptxas is that of the same triton; a carried one may have changed.
    used = next(iter(candidates.values()), {}).get("TRITON_PTXAS_PATH")
    if used is None:
        return str(before.get("ptxas", "")).startswith("bundled: ")
    said = session.command(used, "--version").strip().splitlines()
    return bool(before.get("ptxas") == f"carried: {said[-2] if len(said) > 1 else said}")


def _bundled(session: Session) -> str:
    return session.python("-c", "from triton import knobs; print(knobs.nvidia.ptxas.path)").strip().splitlines()[-1]


def _witness(session: Session, name: str, settings: dict[str, str], index: int) -> str:
    """Return what is wrong with the canary of one tile, "" if it is exact."""
    output = session.work / f"canary-{name}-{index}.json"
    try:
        session.python(
            TOOLS / "check_case.py", "canary", index, "--device", "cuda", "--output", output,
            most_s=20, environment=settings,
        )  # fmt: skip
    except RuntimeError as error:
        return f"tile {index}: {str(error)[-200:]}"
    return ""


# --- checks ----------------------------------------------------------------------------------------------------------


def checks(session: Session) -> str:
    """Check every case that has not passed with the same source before, most urgent first."""
    sources = {operation: session_jobs.source_sha256(operation) for operation in session.operations}
    jobs = session_jobs.check_jobs(session.device, session.operations)
    jobs = [job for job in jobs if job.name not in session.checks]
    if session.device == "cuda":
        few = session.phase == "second"
        jobs = [*session_jobs.training_jobs(session.device, few), *jobs, *session_jobs.candidate_jobs(few)]

    def keep(result: dict[str, Any]) -> None:
        session.checks[result["name"]] = result | {"source": sources.get(_operation(result["name"]), "")}
        if result["status"] not in ("ok", "not run"):
            session.say(f"{result['name']}: {result['status']}: {str(result.get('problem'))[:300]}")
        for information in result.get("information", ()):
            session.say(information)
        session.write()

    budget = GPU_MEMORY_SHARE * session.versions.get("memory_bytes", 16e9)
    deadline = session.clock() + session.left_s()
    pool = Pool(session.workers, session.environment, deadline, budget, session.work / "worker.log", keep)
    loaded = loaded_kernels(jobs, pool.run(jobs))
    session.coverage = coverage(session)
    counts = sorted(Counter(check["status"] for check in session.checks.values()).items())
    return ", ".join([*(f"{count} {status}" for status, count in counts), *loaded])


def loaded_kernels(jobs: Sequence[Job], results: Iterable[dict[str, Any]]) -> list[str]:
    """Return how many of the kernels that the cases launched were compiled before, if any were launched.

    All are, if the keys that were found without a GPU are those of the launches; see ``launch_requests``.
    """
    cases = {job.name for job in jobs if job.what["kind"] == "case"}
    launched = [entry for result in results if result["name"] in cases for entry in result.get("launched", ())]
    compiled = [entry["function"] for entry in launched if not entry["cached"]]
    text = f"{len(launched) - len(compiled)} of {len(launched)} kernels of the cases were compiled before"
    names = ", ".join(f"{count} of {name}" for name, count in Counter(compiled).most_common(3))
    return [text + (f" (not: {names}, …)" if names else "")] if launched else []


def _operation(name: str) -> str:
    return name.partition(":")[0]


def coverage(session: Session) -> dict[str, Any]:
    """Return how many shipped configurations the checks launched, and the names of the others."""
    from importlib import import_module

    from check_coverage import is_launch_of

    arch = session.versions.get("capability")
    if arch is None:
        return {}
    launched = [entry for check in session.checks.values() for entry in check.get("launched", ())]
    shipped = [
        compilation
        for name in session.operations
        for compilation in import_module(f"scalekernels.{name}").compilations(arch)
        if not compilation.candidate
    ]
    missing = [
        f"{compilation.kernel} {compilation.label}"
        for compilation in shipped
        if not any(is_launch_of(e, compilation) for e in launched)
    ]
    return {"shipped": len(shipped), "launched": len(shipped) - len(missing), "missing": missing}


# --- tuning and races ------------------------------------------------------------------------------------------------


def tuning(session: Session, quick: bool = False) -> str:
    """Time the candidates of every tunable kernel, alone on the device; later steps use the fastest."""
    if session.device == "cpu":
        return "needs a GPU"
    output, table, failed = (session.work / f"{name}.json" for name in ("tuned-rows", "tuned", "failed-candidates"))
    jobs = session_jobs.candidate_jobs(few=session.phase == "second")
    failed.write_text(json.dumps(problems(jobs, session.checks)), encoding="utf-8")
    try:
        session.python(TOOLS / "tuning.py", "--output", output, "--failed", failed, *(["--quick"] if quick else []))
    finally:  # the program writes after every kernel
        if output.exists():
            session.tuned = json.loads(output.read_text(encoding="utf-8"))
            session.write()
            session.python(TOOLS / "tuning.py", "--adopt", session.out / "tune.json", "--table", table)
            session.environment["SCALEKERNELS_TUNED"] = str(table)
    winners = [row for row in session.tuned if row.get("winner")]
    return "; ".join(f"{row['kernel']}: {row['tflops']:.0f} TFLOP/s {row['candidate']}" for row in winners)


def launch_shapes(session: Session) -> str:
    """Time AdamW and the loss by several launch shapes, one program after the other; their rows join tune.json.

    Raises ``RuntimeError`` with what both printed if one failed.
    """
    if session.device == "cpu":
        return "needs a GPU"
    lines, failed = [], False
    for name in ("tuning_optimizer", "tuning_loss"):
        try:
            lines += [" ".join(line.split()) for line in _rows_of(session, name).splitlines() if " ms" in line]
        except RuntimeError as error:
            lines, failed = [*lines, f"{name}: {error}"], True
    if failed:
        raise RuntimeError("; ".join(lines))
    return "; ".join(lines)


def _rows_of(session: Session, program: str) -> str:
    """Run a program that times shapes, keep the rows that it wrote even if it failed, and return what it printed."""
    output = session.work / f"{program}-rows.json"
    try:
        return session.python(TOOLS / f"{program}.py", "--output", output)
    finally:
        if output.exists():
            rows = json.loads(output.read_text(encoding="utf-8"))
            own = {row["kernel"] for row in rows}
            session.tuned = [row for row in session.tuned if row["kernel"] not in own] + rows


SANITIZER = Path("/usr/local/cuda/bin/compute-sanitizer")  # where it is not on the path
SUMMARY = re.compile(r"RACECHECK SUMMARY: (\d+) hazards?")


def racecheck(session: Session) -> str:
    """Check one small case of the attention kernels for races in shared memory; some machines do not let it.

    Raises ``RuntimeError`` if there are hazards, or if compute-sanitizer ends without a summary.
    """
    if session.device == "cpu":
        return "needs a GPU"
    program = shutil.which("compute-sanitizer") or (str(SANITIZER) if SANITIZER.exists() else None)
    if program is None:
        return "not checked: compute-sanitizer is not installed"
    label = "B1 H2/1 T193 D64 bf16 causal"
    case = (TOOLS / "check_case.py", "case", "scalekernels.attention", label, "--device", "cuda")
    options = ("--tool", "racecheck", "--kernel-name", "kns=hopper", "--print-limit", 5)
    try:
        output = session.command(program, *options, sys.executable, *case, "--output", session.work / "racecheck.json")
    except ProgramFailedError as error:
        if "Device not supported" in error.output:
            return "not checked: compute-sanitizer does not support the device here"
        raise
    summary = SUMMARY.search(output)
    if summary is None or int(summary[1]):
        raise RuntimeError(last_words(output))
    return summary[0]
