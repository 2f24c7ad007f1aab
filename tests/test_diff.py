"""The command `diff`: planted changes are found, and noise is called noise."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command_support import SIZES, record, write_study

from scalebench.analysis.configuration_labels import labels_by_size
from scalebench.analysis.difference import BETTER, NOISE, SAME, WORSE, difference
from scalebench.errors import InputError


def rows(seeds: int, noise: float, seed: int, **factors: float) -> list[dict[str, object]]:
    """Trials of seven sizes; ``factors`` multiply columns, ``noise`` is that of log time and log loss."""
    rng = np.random.default_rng(seed)
    records = []
    for size in SIZES:
        for repeat in range(seeds):
            row = record(size, repeat, np.random.default_rng(0)) | {"depth": size}
            for name in ("step_time_median_s", "validation_loss_nats"):
                row[name] = float(str(row[name])) * np.exp(noise * rng.standard_normal())
            for name, factor in factors.items():
                row[name] = float(str(row[name])) * factor
            records.append(row)
    return records


def frame(**changes: object) -> pd.DataFrame:
    arguments = {"seeds": 4, "noise": 0.01, "seed": 1} | changes
    return pd.DataFrame(rows(**arguments)).assign(invalid_reason=None)  # type: ignore[arg-type]


def verdicts(old: pd.DataFrame, new: pd.DataFrame, margin: float = 0.01) -> dict[tuple[str, str], str]:
    return {(effect.label, effect.quantity): effect.verdict for effect in difference(old, new, margin).effects}


def test_a_planted_slowdown_is_found_and_the_loss_is_within_noise() -> None:
    differences = difference(frame(), frame(seed=2, step_time_median_s=1.1), 0.01)
    overall = {effect.quantity: effect for effect in differences.effects if effect.label == "all"}
    time = overall["step time"]
    assert time.verdict == WORSE
    assert time.low is not None
    assert time.high is not None
    assert time.low < 1.1 < time.high
    assert time.high - time.low < 0.02
    assert overall["validation loss"].verdict in (NOISE, SAME)
    assert overall["memory (tracked)"].verdict == SAME  # bit for bit the same
    assert differences.noise["step time"] == pytest.approx(0.01, rel=0.4)
    assert all(effect.verdict == WORSE for effect in differences.effects if effect.quantity == "step time")


def test_repeats_of_a_time_that_agree_to_the_last_digit_tell_no_noise() -> None:
    """10.4 and 10.6 ms by a clock of 1 ms are 10 and 11 in every repeat: not 10 % slower for certain."""
    old, new = (frame().assign(step_time_median_s=seconds) for seconds in (0.010, 0.011))
    effects = [each for each in difference(old, new, 0.01).effects if each.quantity == "step time"]
    assert {(each.verdict, each.low) for each in effects} == {("no repeats", None)}


def test_a_gain_below_the_noise_of_seeds_has_no_verdict() -> None:
    judged = verdicts(frame(noise=0.05), frame(noise=0.05, seed=2, validation_loss_nats=0.985))
    assert judged["all", "validation loss"] == NOISE
    assert verdicts(frame(), frame(seed=2, validation_loss_nats=0.9))["all", "validation loss"] == BETTER


@pytest.mark.slow
def test_many_comparisons_without_a_difference_rarely_have_a_verdict() -> None:
    wrong = 0
    for seed in range(60):
        judged = verdicts(frame(seed=2 * seed, noise=0.02), frame(seed=2 * seed + 1, noise=0.02), margin=1e-6)
        wrong += any(word in (WORSE, BETTER) for word in judged.values())
    assert wrong <= 9  # 5 % of 60, and three standard deviations


def test_without_repeats_there_is_no_verdict() -> None:
    differences = difference(frame(seeds=1), frame(seeds=1, seed=2, step_time_median_s=2), 0.01)
    assert {effect.verdict for effect in differences.effects} == {"no repeats"}
    assert all(effect.low is None for effect in differences.effects)
    assert differences.regressions == ()


def test_the_command_has_exit_code_1_on_a_regression(command, tmp_path: Path) -> None:
    for name, changes in (("old", {}), ("new", {"step_time_median_s": 1.2}), ("same", {})):
        write_study(tmp_path / name, rows(3, 0.01, len(name), **changes))
    code, out, _ = command("diff", "old", "new")
    assert code == 1
    assert "step time +2" in out
    assert "the intervals do not hold the drift between sessions (1 of OLD, 1 of NEW)" in " ".join(out.split())
    code, out, _ = command("diff", "old", "same")
    assert code == 0
    assert out.startswith("nothing became worse")
    code, out, _ = command("diff", "old", "new", "--json")
    document = json.loads(out)
    assert {effect["label"] for effect in document["effects"]} == {"all", *(f"{size:,} params" for size in SIZES)}
    code, out, _ = command("diff", "old", "new", "--markdown")
    assert "| configuration | quantity |" in out
    assert "| --- |" in out


def test_other_machines_are_refused_unless_named(command, tmp_path: Path) -> None:
    write_study(tmp_path / "old", rows(2, 0.01, 1))
    write_study(tmp_path / "new", [row | {"device_name": "another processor"} for row in rows(2, 0.01, 2)])
    code, out, err = command("diff", "old", "new")
    assert (code, out) == (2, "")
    assert "a processor and another processor" in err
    assert command("diff", "old", "new", "--other-machine")[0] == 0


def test_nothing_in_common_is_one_line(command, tmp_path: Path) -> None:
    write_study(tmp_path / "old", rows(2, 0.01, 1))
    write_study(tmp_path / "new", [row | {"family": "mlp"} for row in rows(2, 0.01, 2)])
    code, _, err = command("diff", "old", "new")
    assert code == 2
    assert "no configuration is in both; they differ in" in err
    assert len(err.splitlines()) == 1


def test_folders_without_a_valid_trial_are_one_line(command, tmp_path: Path) -> None:
    write_study(tmp_path / "good", rows(2, 0.01, 1))
    write_study(tmp_path / "failed", [row | {"status": "failed"} for row in rows(1, 0.01, 2)])
    for old, new, side in (
        ("good", "failed", "NEW"),
        ("failed", "good", "OLD"),
        ("failed", "failed", "OLD and of NEW"),
    ):
        code, out, err = command("diff", old, new)
        assert (code, out) == (2, "")
        assert err.splitlines() == [f"{old} and {new}: no trial of {side} ended ok with valid numbers"]
    for path in (tmp_path / "good").rglob("record.json"):
        path.write_bytes(bytes(50))
    code, _, err = command("diff", "good", "failed")
    assert code == 2
    assert len(err.splitlines()) == 2
    assert "more like it" in err.splitlines()[0]


def test_times_taken_beside_other_programs_are_left_out_and_named(command, tmp_path: Path) -> None:
    busy = frame(seed=2, step_time_median_s=2.0).assign(timing_exclusive=False)
    changes = difference(frame(), busy, 0.01)
    assert changes.shared == ("step time",)
    assert "step time" not in {effect.quantity for effect in changes.effects}
    assert difference(frame(), frame(seed=2), 0.01).shared == ()
    for name, seed in (("old", 1), ("new", 2)):
        write_study(tmp_path / name / "s", [row | {"timing_exclusive": False} for row in rows(4, 0.01, seed)])
    code, out, _ = command("diff", "old", "new")
    assert code == 0
    assert "step time: not compared" in out


def test_configurations_are_named_by_size_and_by_what_it_does_not_decide() -> None:
    names = ("learning_rate", "batch_size", "params_non_embedding", "width", "optimizer")
    keys = [
        (str(1 / size), str(batch), str(size), str(size // 100), kind)
        for batch in (16, 8) for size in (12000, 900, 4000) for kind in ("lion", "adam")
    ]  # fmt: skip
    labels = list(labels_by_size(names, keys).values())
    sizes = ("900", "4,000", "12,000")
    assert labels == [
        f"{size} params, batch size {batch}, optimizer {kind}"
        for size in sizes for batch in (8, 16) for kind in ("adam", "lion")
    ]  # fmt: skip
    # A rate that the size decides is in no label, one that was varied is; sizes are in order of number, not of text.
    assert list(labels_by_size(names, keys[1:6:2]).values()) == [f"{size} params" for size in sizes]
    varied = [("0.0123456789", *keys[0][1:]), ("0.001", *keys[0][1:])]
    assert list(labels_by_size(names, varied).values()) == ["learning rate 0.001", "learning rate 0.01235"]
    assert list(labels_by_size(names, keys[:1]).values()) == ["the configuration"]


def test_effects_are_in_order_of_size_and_fit_the_terminal(command, tmp_path: Path) -> None:
    for name in ("old", "new"):
        write_study(tmp_path / name, rows(3, 0.01, len(name))[::-1])
    _, out, _ = command("diff", "old", "new")
    table = [line for line in out.splitlines() if " params " in line]
    shown = [line.split()[0] for line in table]
    by_size = [f"{size:,}" for size in sorted(SIZES)]
    assert shown[: len(SIZES)] == shown[len(SIZES) : 2 * len(SIZES)] == by_size
    assert "nats" in out
    assert max(map(len, table)) <= 80


def test_configurations_that_changed_machines_are_not_compared() -> None:
    """Both folders ran on A and on B, each with the other's sizes; B is half as fast."""
    small = frame()["depth"] <= SIZES[2]
    sides = [
        each.assign(
            machine_id=np.where(small == first, "A", "B"), step_time_median_s=np.where(small == first, 0.1, 0.2)
        )
        for each, first in ((frame(), True), (frame(seed=2), False))
    ]
    with pytest.raises(InputError, match=r"1,000 params ran on different machines \(machine_id: A and B\)"):
        difference(*sides, 0.01)
    assert difference(*sides, 0.01, other_machine=True).effects


def test_losses_on_other_data_are_not_compared() -> None:
    old = frame().assign(data_sha256="a")
    new = frame(seed=2, validation_loss_nats=1.2)
    changes = difference(old, new.assign(data_sha256="b"), 0.01)
    assert {effect.quantity for effect in changes.effects} == {"step time", "memory (tracked)"}
    assert f"validation loss: not compared at {len(SIZES)} of {len(SIZES)} configurations: other data_sha256" in (
        changes.notes
    )
    one = difference(old, new.assign(data_sha256=np.where(new["depth"] == SIZES[0], "b", "a")), 0.01)
    losses = [effect.label for effect in one.effects if effect.quantity == "validation loss"]
    assert len(losses) == len(SIZES)  # that of all, and six of the seven sizes


def test_configurations_with_more_noise_have_their_own() -> None:
    """Two of seven sizes vary by 8 %, the others by 0.5 %: with the noise of all, a third of the intervals misses."""
    rng, missed, wrong = np.random.default_rng(0), 0, 0
    made = frame(seeds=2)[["depth", "seed", "params", "status", "invalid_reason"]]
    noise = np.where(made["depth"] <= SIZES[1], 0.08, 0.005)
    for _ in range(15):
        sides = [made.assign(step_time_median_s=0.01 * np.exp(noise * rng.standard_normal(len(made)))) for _ in "on"]
        changes = difference(*sides, 0.01)
        missed += sum(not effect.low <= 1 <= effect.high for effect in changes.effects[1:3])  # type: ignore[operator]
        wrong += any(effect.verdict in (WORSE, BETTER) for effect in changes.effects)
        assert any("step time: configurations differ in their noise" in note for note in changes.notes)
        assert changes.effects[7].high - changes.effects[7].low < 0.1  # type: ignore[operator] # with that of all: 0.17
    assert missed <= 5  # of 30
    assert wrong <= 2
