"""Trials of several processes: the losses of one process, whatever a rank's end is, and what a plan refuses."""

from __future__ import annotations

import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from drivers import Drivers
from support import REPOSITORY, SMALL, ranks_of, run_here, shared_folder

from scalebench import store
from scalebench.errors import StudyError
from scalebench.families import FAMILIES
from scalebench.running.attempts import resources_of
from scalebench.running.planning import load_study, plan, trial_header

# What each family needs beside its name to be small; a family's default where there is nothing.
SIZES = {
    "linear": "params = 100", "mlp": "params = 800", "attention": "params = 3000", "cnn": "params = 5000",
    "rnn": "params = 3000", "transformer": "params = 6000\ndepth = 1", "bert": "params = 4000\ndepth = 1",
    "gpt": "params = 2000\ndepth = 2", "vit": "params = 8000", "moe": "params = 4000\ndepth = 1",
    "resnet": 'params = 20000',
}  # fmt: skip
# Their loss is not a mean over samples: batch norm uses the statistics of a process' own rows, and so does the loss
# that balances the experts.
DEPENDS_ON_THE_WHOLE_BATCH = {"resnet": 0.2, "moe": 1e-2}
BEFORE = "b8b52d84a615cf23"  # id of the first trial of SMALL when there were no trials of several processes
EXPLODING = ("optimizer=sgd", "learning_rate=1e30", "gradient_clip=1e30", "warmup_steps=0")
# A rank that is forked instead of started, which saves its imports.
RANK = f"""
import sys
sys.path.insert(0, {str(REPOSITORY / "tests")!r})
import parallel_ranks
parallel_ranks.{{call}}
sys.exit(0)
"""
STUDY = """
schema = 1
name = "{family}"
[model]
family = "{family}"
{size}
[train]
steps = 3
batch_size = 8
{sequence}accumulation = {accumulation}
{how}
[data]
validation_samples = 32
"""


def study_of(folder: Path, family: str, how: str = "") -> Any:
    sequence = "sequence_length = 12\n" if FAMILIES[family].SEQUENCES else ""
    path = folder / f"{family}.toml"
    accumulation = [1, 2] if family == "gpt" else [2]
    path.write_text(STUDY.format(**locals() | {"size": SIZES[family]}))
    return load_study(path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, drivers: Drivers) -> Path:
    """A folder per trial of two processes, of every family under ddp and fsdp, with the records of both ranks."""

    def fill(folder: Path) -> None:
        for family in FAMILIES:
            study = study_of(folder, family, 'processes = 2\nparallel = ["ddp", "fsdp"]')
            for planned in plan(study):
                spec = planned.trial.spec
                attempt = folder / f"{family}-{spec.parallel}-{spec.accumulation}"
                attempt.mkdir()
                store.write_json(attempt / "trial.json", trial_header(study, planned, "a test") | {"most_processes": 2})
        exploding = two(folder, *(f"train.{setting}" for setting in EXPLODING))
        (folder / "exploding").mkdir()
        header = trial_header(exploding, plan(exploding)[0], "a test") | {"most_processes": 2}
        store.write_json(folder / "exploding" / "trial.json", header)
        ranks = [
            drivers.start(folder, [], before=RANK.format(call=f"train({str(folder)!r}, {rank})")) for rank in range(2)
        ]
        for rank in ranks:
            assert rank.wait(300) == 0, rank.err[-2000:]

    return shared_folder(tmp_path_factory, "parallel", fill)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_two_processes_have_the_losses_of_one(trained: Path, tmp_path: Path, family: str) -> None:
    alone = {row["accumulation"]: row for row in run_here(study_of(tmp_path, family), tmp_path / "r").values()}
    tolerance = DEPENDS_ON_THE_WHOLE_BATCH.get(family, 1e-5)
    for parallel in ("ddp", "fsdp"):
        for accumulation, single in alone.items():
            rows = [
                store.read_json(trained / f"{family}-{parallel}-{accumulation}" / f"rank-{rank}.json")
                for rank in range(2)
            ]
            assert [row["status"] for row in rows] == ["ok", "ok"], rows[0].get("error_message")
            for name in ("train_loss_nats", "validation_loss_nats"):
                assert rows[0][name] == rows[1][name]
                assert rows[0][name] == pytest.approx(single[name], rel=tolerance), (parallel, accumulation, name)
            assert {row["flops_per_step"] for row in rows} == {single["flops_per_step"]}
            assert rows[0]["checkpoint_bytes"] == single["checkpoint_bytes"]
            # AdamW: two float32 values for each parameter, and a count of the steps for each tensor in each process.
            state, copies = sum(row["memory_optimizer_bytes"] for row in rows), 2 if parallel == "ddp" else 1
            assert 1 <= state / (8 * copies * single["params"]) < 1.05


@pytest.mark.slow
def test_every_step_of_both_kinds_is_the_step_of_one_process(trained: Path, tmp_path: Path) -> None:
    (single, _) = run_here(study_of(tmp_path, "gpt"), tmp_path / "r").values()
    expected = store.read_steps(single["attempt_dir"])["train_loss_nats"]
    for parallel in ("ddp", "fsdp"):
        for rank in range(2):
            steps = store.read_steps(trained / f"gpt-{parallel}-1" / f"rank-{rank}")["train_loss_nats"]
            assert steps.tolist() == pytest.approx(expected.tolist(), rel=1e-5)


# --- whole trials under torchrun -------------------------------------------------------------------------------------


def two(folder: Path, *settings: str) -> Any:
    """A study of one trial of two processes."""
    path = folder / "two.toml"
    path.write_text(SMALL.replace("params = [200, 800]", "params = 200").replace("seed = [0, 1]", "processes = 2"))
    return load_study(path, settings)


def by_command(
    drivers: Drivers, folder: Path, *settings: str, tick: Callable[[], object] = lambda: None
) -> list[dict[str, Any]]:
    """Run that study with the command, calling ``tick`` while it runs; return its records."""
    two(folder)
    words = [word for setting in settings for word in ("--set", setting)]
    driver = drivers.start(folder, ["run", "two.toml", "--results", "r", *words])
    while driver.poll() is None:
        tick()
        time.sleep(0.02)
    return store.load_results(folder / "r").to_dict("records")


@pytest.mark.slow
def test_a_trial_of_two_processes_is_one_record_with_weights_to_continue_from(tmp_path: Path, drivers: Drivers) -> None:
    (row,) = by_command(drivers, tmp_path, 'train.parallel=["fsdp"]', "run.checkpoint=true")
    assert (row["status"], row["processes"], row["parallel"], row["threads"]) == ("ok", 2, "fsdp", 1), row
    (alone,) = run_here(two(tmp_path, "train.processes=1", "run.checkpoint=true"), tmp_path / "alone").values()
    assert row["validation_loss_nats"] == pytest.approx(alone["validation_loss_nats"], rel=1e-5)
    assert row["weights_file_bytes"] == alone["weights_file_bytes"]
    attempt = Path(row["attempt_dir"])
    assert len(store.read_steps(attempt)) == 30
    assert not (attempt / "torchrun").exists()
    child = tmp_path / "child.toml"
    child.write_text(
        'schema = 1\nname = "child"\n[from]\nstudy = "small"\noptimizer_state = true\n[train]\nsteps = 5\n'
    )
    parent = load_study(child, ["from.where=processes == 2", "train.processes=1"])
    (row,) = run_here(parent, tmp_path / "r").values()
    assert (row["status"], row["first_step"], row["parallel"]) == ("ok", 30, "none"), row


@pytest.mark.slow
def test_a_rank_that_dies_ends_its_trial_with_its_own_error_and_the_next_attempt_goes_on(
    tmp_path: Path, drivers: Drivers
) -> None:
    killed: list[float] = []

    def kill() -> None:
        running = [path.parent for path in tmp_path.glob("r/*/trials/*/*/resume.json")]
        if running and not killed:
            ranks_of(running[0])[1].kill()
            killed.append(time.monotonic())

    (row,) = by_command(drivers, tmp_path, "train.steps=200", "run.checkpoint_every_steps=10", tick=kill)
    assert time.monotonic() - killed[0] < 30
    assert (row["status"], row["error_class"]) == ("killed", "ProcessEnded"), row
    assert row["error_message"] == "process 1 of 2 ended: SIGKILL"
    attempt = Path(row["attempt_dir"])
    assert not ranks_of(attempt)
    step = store.read_json(attempt / "resume.json")["step"]
    resumed = go_on(drivers, attempt)
    assert {(row["status"], row["resumed_from_step"], row["resumed_attempts"]) for row in resumed} == {("ok", step, 1)}
    assert step in range(10, 200, 10)
    (alone,) = run_here(two(tmp_path, "train.steps=200", "train.processes=1"), tmp_path / "alone").values()
    assert resumed[0]["validation_loss_nats"] == pytest.approx(alone["validation_loss_nats"], rel=1e-5)


def go_on(drivers: Drivers, earlier: Path) -> list[dict[str, Any]]:
    """Run the next attempt at a trial, by processes that need not start; return what they record, by rank."""
    attempt = earlier.with_name("attempt-29990101T000000000000Z-b")
    attempt.mkdir()
    for name in ("trial.json", "placement.json"):
        shutil.copy(earlier / name, attempt)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    calls = [f"go_on({str(attempt)!r}, {rank}, {port})" for rank in range(2)]
    ranks = [drivers.start(earlier.parent, [], before=RANK.format(call=call)) for call in calls]
    for rank in ranks:
        assert rank.wait(300) == 0, rank.err[-2000:]
    return [store.read_json(attempt / f"rank-{rank}.json") for rank in range(2)]


@pytest.mark.slow
def test_a_loss_that_explodes_ends_both_processes_as_diverged(trained: Path) -> None:
    for rank in range(2):
        row = store.read_json(trained / "exploding" / f"rank-{rank}.json")
        assert (row["status"], row["error_class"], row["stop_step"]) == ("diverged", "Diverged", 20), row


# --- what a plan says ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "field", "words"),
    [
        (["processes=3"], "train.processes", ["3 processes", "batch of 32"]),
        (["processes=2", "accumulation=17"], "train.accumulation", ["17", "16"]),
        (["processes=2", "implementation=compile"], "train.processes", ["compile", "eager or sdpa"]),
        (["processes=2", "parallel=fsdp", "optimizer=muon"], "train.parallel", ["muon", "adamw"]),
        (["processes=2", "parallel=fsdp", "precision=float16"], "train.parallel", ["float16", "bfloat16"]),
        (["processes=2", "parallel=fdsp"], "train.parallel", ["'fsdp'"]),
    ],
)
def test_what_cannot_be_shared_is_refused_in_the_plan(
    small_study: Path, settings: list[str], field: str, words: list[str]
) -> None:
    with pytest.raises(StudyError) as refused:
        plan(load_study(small_study, [f"train.{setting}" for setting in settings]))
    (line,) = refused.value.lines
    assert field in line
    assert all(word in line for word in words), line


def test_one_process_shares_nothing_and_has_the_id_that_it_had_before(small_study: Path) -> None:
    before = [planned.trial_id for planned in plan(load_study(small_study))]
    assert [planned.trial_id for planned in plan(load_study(small_study, ["train.parallel=ddp"]))] == before
    assert before[0] == BEFORE
    more = plan(load_study(small_study, ["train.processes=[1, 2]", 'train.parallel=["ddp", "fsdp"]']))
    assert len({planned.trial_id for planned in more}) == len(more) == 3 * len(before)
    assert set(before) < {planned.trial_id for planned in more}


def test_a_trial_asks_for_a_core_and_a_gpu_per_process_and_for_the_memory_of_all(small_study: Path) -> None:
    def needs(*settings: str) -> Any:
        study = load_study(small_study, ["model.params=800", "train.seed=0", *settings])
        return resources_of(plan(study)[0], study)

    single, ddp, fsdp = needs(), needs("train.processes=4"), needs("train.processes=4", "train.parallel=fsdp")
    assert [(need.cpus, need.gpus, need.processes) for need in (single, ddp, fsdp)] == [(1, 0, 1), (4, 0, 4), (4, 0, 4)]
    assert needs("train.processes=2", "train.device=cuda").gpus == 2
    assert single.memory_bytes < fsdp.memory_bytes < ddp.memory_bytes < 4 * single.memory_bytes
    assert ddp.expected_s < single.expected_s
