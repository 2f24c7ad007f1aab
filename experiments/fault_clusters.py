"""Faults of what several processes or a cluster run, for ``faults.py``: a rank, Ray, Slurm."""

from __future__ import annotations

import importlib.util
import os
import random
import subprocess
import time
from functools import partial

from fault_kinds import ROUNDS, descendants
from fault_support import EVERY, RETRY, Case, Unavailable
from support import ranks_of

from scalebench import store

WITHIN_S = 30  # in which a trial ends after one of its processes


def rank_killed(case: Case) -> None:
    """Kill one process of a trial that two processes train, after its first snapshot.

    The trial ends soon after, and its next attempt goes on from the snapshot.
    """
    disturbed = ""
    for _ in range(ROUNDS):
        driver = case.start()
        if case.wait(lambda: case.files("attempt-*/resume.json"), driver):
            attempt = case.files("attempt-*/resume.json")[0].parent  # another trial may have no snapshot yet
            disturbed = attempt.parent.name
            random.choice(ranks_of(attempt)).kill()
            before, begun = len(case.records()), time.monotonic()
            case.wait(lambda before=before: len(case.records()) > before, driver)
            if (seconds := time.monotonic() - begun) > WITHIN_S:
                case.wrong.append(f"the trial ended {seconds:.0f} s after its process")
        driver.wait(300)
        case.injected = min(case.asked, case.ended("killed"))
        if case.injected == case.asked:
            break
        case.another_folder()
    case.finish()
    frame = store.load_results(case.results).set_index("trial_id")
    step = frame["resumed_from_step"].get(disturbed)
    if not (step and step >= EVERY):
        case.wrong.append(f"trial {disturbed} began anew")
    case.notes.append(f"resumed from step {step}")


def ray_killed(case: Case) -> None:
    """Kill the head of Ray's embedded cluster, then a worker: that driver runs the worker's trial again itself."""
    if importlib.util.find_spec("ray") is None:
        raise Unavailable("Ray is not installed")
    quick = {"RAY_gcs_rpc_server_reconnect_timeout_s": "1"}  # else a driver looks for its head for a minute
    for word in ("gcs_server", "ray::run_worker"):
        driver, before = case.start("--engine", "ray", RETRY, **quick), len(case.records())
        running = partial(descendants, driver, "ray::run_worker")
        case.wait(running if before else lambda: len(case.records()) > 0, driver, 300)
        children = descendants(driver, word)
        if children:
            random.choice(children).kill()
            case.injected += 1
        case.notes.append(f"{word} {'killed' if children else 'missing'}")
        try:
            driver.wait(300)
        except subprocess.TimeoutExpired:
            case.wrong.append(f"the driver went on without {word}")
            driver.kill()
    case.finish()


def slurm_disturbed(case: Case) -> None:
    """Cancel one Slurm task and requeue another."""
    from slurm_node import CannotStartError, slurm_node

    try:
        with slurm_node() as variables:
            driver = case.start("--engine", "slurm", **variables)
            environment = os.environ | variables
            for command in (["scancel"], ["scontrol", "requeue"]):
                if case.wait(lambda: case.files("attempt-*/resume.json"), driver):
                    listed = ["squeue", "--me", "-h", "-r", "-t", "R", "-o", "%i"]
                    tasks = subprocess.run(listed, env=environment, capture_output=True, text=True).stdout.split()
                    done = subprocess.run([*command, *tasks[:1]], env=environment, capture_output=True)
                    case.injected += bool(tasks) and done.returncode == 0
                    time.sleep(1)
            while driver.poll() is None:  # Slurm would wait two minutes before it runs a requeued task again
                listed = ["squeue", "--me", "-h", "-r", "-t", "PD", "-o", "%i"]
                for task in subprocess.run(listed, env=environment, capture_output=True, text=True).stdout.split():
                    update = ["scontrol", "update", f"JobId={task}", "StartTime=now"]
                    subprocess.run(update, env=environment, capture_output=True)
                time.sleep(1)
    except CannotStartError as reason:
        raise Unavailable(f"no Slurm here: {reason}") from reason
    case.finish()
