"""Loss against bytes and time after training: points of children and parents, fronts against brute force, chains."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from chain_support import (
    BITS,
    SEEDS,
    SIZES,
    analysed,
    base,
    bytes_of,
    flops_of,
    latency_of,
    loss_of,
    quant,
    quantised,
    trained,
)

from scalebench.analysis.chain import chain_of
from scalebench.analysis.pareto import pareto_front
from scalebench.analysis.study import StudyAnalysis
from scalebench.analysis.tradeoff import by_weights, chain, chain_flops, main_group, tradeoff_points
from scalebench.analysis.trials import training_flops
from scalebench.reporting.figures.after_training import OF_ALL, OF_STUDY
from scalebench.reporting.views import Caption, draw_figure

MODELS = len(SIZES) * len(SEEDS)


@pytest.fixture(scope="module")
def studies() -> list[StudyAnalysis]:
    return [base(), quant()]


def test_parents_have_the_time_measured_beside_their_children(studies) -> None:
    points = tradeoff_points(studies)
    assert len(points) == MODELS * (1 + len(BITS))
    assert points["trial_id"].is_unique
    for row in points[points["study"] == "base"].to_dict("records"):
        assert row["unchanged"]
        assert row["latency"] == pytest.approx(latency_of(row["size"]))
        assert row["bytes"] == bytes_of(row["size"])
        assert row["flops"] == pytest.approx(flops_of(row["size"]))


def test_a_child_costs_what_its_whole_chain_cost(studies) -> None:
    points = tradeoff_points(studies).set_index("trial_id")
    child = points.loc[f"b8{16_000:06x}{2:08x}"]
    assert child["flops"] == pytest.approx(flops_of(16_000))
    assert child["loss"] == pytest.approx(loss_of(16_000, 2) + 0.05)
    assert child["settings"] == "bits 8"
    assert not child["unchanged"]
    known = by_weights(points.reset_index())
    assert chain(known[f"b8{16_000:06x}{2:08x}"], known) == "base a0003e80 → quant b8003e80 (bits 8)"


def test_parents_of_another_folder_are_points_too() -> None:
    points = tradeoff_points([quant()])
    unchanged = points[points["unchanged"].astype(bool)]
    assert len(unchanged) == MODELS
    assert len(points) == MODELS * (1 + len(BITS))
    assert sorted(unchanged["loss"]) == pytest.approx(sorted(loss_of(size, seed) for size in SIZES for seed in SEEDS))
    assert set(unchanged["bytes"]) == {bytes_of(size) for size in SIZES}


def test_a_student_pays_for_its_teacher_and_the_teachers_passes() -> None:
    student = quantised(4_000, 0, 8) | {"total_flops": 5e9, "flops_per_step": 1e7, "steps": 100,
                                        "teacher_params_non_embedding": 32_000}  # fmt: skip
    points = tradeoff_points([analysed("distill", [student])]).set_index("unchanged")
    assert points.loc[False, "flops"] == pytest.approx(5e9 + flops_of(4_000))
    assert points.loc[True, "size"] == 32_000


def test_two_checkpoints_of_a_run_are_two_models() -> None:
    early = [quantised(4_000, 0, bits) | {"trial_id": f"e{bits:015x}", "parent_weights_sha256": "ea",
                                          "parent_flops": 1e9, "loss_before_nats": 3.0} for bits in BITS]  # fmt: skip
    late = [quantised(4_000, 0, bits) | {"parent_weights_sha256": "1a"} for bits in BITS]
    points = tradeoff_points([analysed("tokens", [*early, *late], bits=[*BITS])])
    unchanged = points[points["unchanged"].astype(bool)].set_index("weights")
    assert dict(unchanged["loss"]) == {"ea": 3.0, "1a": pytest.approx(loss_of(4_000, 0))}
    assert dict(unchanged["flops"]) == {"ea": 1e9, "1a": pytest.approx(flops_of(4_000))}


def test_trials_validated_on_other_data_and_failed_ones_are_not_compared(studies) -> None:
    other = analysed("other", [quantised(4_000, 0, 8) | {"trial_id": "c" * 16, "source": "cpp", "data_sha256": "77"}])
    failed = analysed("failed", [quantised(4_000, 0, 8) | {"trial_id": "d" * 16, "status": "failed"}])
    points = tradeoff_points([*studies, other, failed])
    assert "d" * 16 not in set(points["trial_id"])
    assert "c" * 16 in set(points["trial_id"])
    assert set(main_group(points)["trial_id"]) == set(tradeoff_points(studies)["trial_id"])


def test_times_of_trials_that_shared_their_cores_are_left_out() -> None:
    shared = quantised(4_000, 0, 8) | {"timing_exclusive": False}
    points = tradeoff_points([analysed("quant", [shared])])
    assert points["latency"].isna().all()
    assert points["bytes"].notna().all()
    view = draw_figure("a", OF_STUDY[1], analysed("quant", [shared]))
    assert view is not None
    assert view.caption.startswith("Of 1 trials that were timed none")


def test_settings_leave_out_what_the_others_decide() -> None:
    formats = {8: "int8", 4: "simulated", 3: "simulated"}
    rows = [quantised(4_000, 0, bits) | {"scheme": scheme, "precision": "bfloat16" if bits == 8 else "float32"}
            for bits, scheme in formats.items()]  # fmt: skip
    study = analysed("quant", rows, precision=["a", "b"], scheme=["a", "b"], bits=[3, 4, 8])
    assert set(tradeoff_points([study]).query("study == 'quant'")["settings"]) == {"bits 3", "bits 4", "bits 8"}


def beaten(points: pd.DataFrame, cost: str) -> set[str]:
    """The ids of points for which another one has no higher loss and cost, and is lower in one, by brute force."""
    rows: list[dict[str, Any]] = points.to_dict("records")  # type: ignore[assignment]
    return {
        a["trial_id"] for a in rows for b in rows
        if b["loss"] <= a["loss"] and b[cost] <= a[cost] and (b["loss"] < a["loss"] or b[cost] < a[cost])
    }  # fmt: skip


@pytest.mark.parametrize("place", [0, 1])
def test_the_named_front_is_what_nothing_beats(studies, place: int) -> None:
    view = draw_figure("overview", OF_ALL[place], studies)
    assert view is not None
    assert view.table is not None
    points = tradeoff_points(studies)
    front = {row[0][0] for row in view.table.rows if row[-1][0] == "yes"}
    assert front == set(points["trial_id"]) - beaten(points, ("bytes", "latency")[place])
    assert f"{len(front)} of {len(points)} are on it" in view.caption
    costs = [row[3][1] for row in view.table.rows]
    assert costs == sorted(costs)


def test_a_study_of_training_alone_has_no_such_figure_and_one_of_children_has_both(studies) -> None:
    trained, changed = studies
    assert [draw_figure("a", spec, trained) for spec in OF_STUDY] == [None, None]
    views = [draw_figure("a", spec, changed) for spec in OF_STUDY]
    assert [view is not None and isinstance(Caption(view.caption, view.table), Caption) for view in views] == [True] * 2
    assert "b8" in views[0].svg
    assert "bits 8" in views[0].svg


def test_what_was_not_measured_is_on_no_front_and_hides_no_other() -> None:
    cost, loss = [1.0, 2.0, np.nan, 3.0, 4.0], [5.0, np.nan, 0.1, 3.0, 4.0]
    assert pareto_front(cost, loss).tolist() == [0, 3]


def test_the_forward_passes_of_a_stored_teacher_are_in_the_cost_of_its_student_everywhere() -> None:
    """With top_k they are in no step: a student of 600 FLOPs in its steps and 400 of its teacher's has cost 1000."""
    student = trained(4_000, 0) | {"study": "distill", "steps": 3, "flops_per_step": 200.0, "total_flops": 1000.0,
                                   "parent_trial_id": "t", "parent_flops": 50.0}  # fmt: skip
    study = analysed("distill", [student])
    assert training_flops(study.trials).tolist() == [1000.0]
    assert chain_flops(study.trials).tolist() == [1050.0]
    assert chain_of("distill", study.rows.assign(parent_study="base", attempt_dir=None))[-1].flops == 1000.0
