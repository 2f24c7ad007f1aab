"""Commands read what `export` wrote as they read the results folder: the same trials, columns and law."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from command_support import planted, write_study

from scalebench.analysis.compute import open_compute_fit

FAILED = {"status": "failed", "error_class": "ValueError", "error_message": "a reason", "validation_loss_nats": None}


def rows() -> list[dict[str, Any]]:
    """Fourteen trials, of which one failed, one has impossible numbers and one has none of its loss."""
    trials = planted()
    trials[0] |= FAILED
    trials[3] |= {"invalid_reason": "MFU above 100 %", "validation_loss_nats": 0.01}
    trials[4] |= {"validation_loss_nats": None}
    return trials


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.usefixtures("few_refits")
def test_an_export_gives_the_fit_of_its_results_folder(command, tmp_path: Path, suffix: str) -> None:
    write_study(tmp_path / "results" / "planted", rows())
    assert command("export", "results", "-o", f"x.{suffix}")[0] == 0
    fits = []
    for source in ("results", f"x.{suffix}"):
        code, out, err = command("fit", source, "--json")
        assert (code, err) == (0, "")
        fits.append(json.loads(out))
    assert fits[1]["source"]["columns"] == {"params": "params_non_embedding", "loss": "validation_loss_nats"}
    assert len(fits[1]["points"]["params"]) == 11
    assert fits[1]["points"] == fits[0]["points"]
    assert fits[1]["parameters"] == fits[0]["parameters"]


def test_a_wrong_cell_of_an_export_is_named_by_its_own_line(command, tmp_path: Path) -> None:
    write_study(tmp_path / "results" / "planted", rows())
    assert command("export", "results", "-o", "x.csv")[0] == 0
    table = pd.read_csv("x.csv", dtype={"trial_id": str}).astype({"validation_loss_nats": object})
    table.loc[table.index[-1], "validation_loss_nats"] = "oops"
    table.to_csv("x.csv", index=False)
    code, _, err = command("fit", "x.csv")
    assert code == 2
    assert err.startswith(f"x.csv, line {len(table) + 1}, column 'validation_loss_nats': 'oops' is not a number")


def test_mixed_experiments_in_an_export_are_named_unless_selected(command, tmp_path: Path) -> None:
    write_study(tmp_path / "results" / "a", planted(study="a"))
    write_study(tmp_path / "results" / "b", planted(study="b", trial_id="b", optimizer="sgd")[:1])
    assert command("export", "results", "-o", "x.csv")[0] == 0
    code, _, err = command("fit", "x.csv", "--bootstrap", "9")
    assert code == 0
    assert "x.csv: these trials differ in study, optimizer: choose with --where" in err
    assert "differ" not in command("fit", "x.csv", "--bootstrap", "9", "--where", "study == 'a'")[2]


def test_an_export_without_a_valid_trial_is_one_line(command, tmp_path: Path) -> None:
    write_study(tmp_path / "results" / "planted", planted(**FAILED))
    assert command("export", "results", "-o", "x.csv")[0] == 0
    code, out, err = command("fit", "x.csv")
    assert (code, out, err) == (2, "", "x.csv: none of its 14 trials ended ok with valid numbers\n")


def test_an_export_of_inference_is_read_by_size_and_without_failures(command, tmp_path: Path) -> None:
    trials = [
        {name: value for name, value in row.items() if not name.startswith("validation_loss")}
        | {"workload": "inference", "latency_median_s": 1e-3 + 1e-8 * float(str(row["params_non_embedding"]))}
        for row in planted()
    ]
    trials[1] |= {"status": "failed", "latency_median_s": 9.0}
    write_study(tmp_path / "results" / "planted", trials)
    assert command("export", "results", "-o", "x.csv")[0] == 0
    law = ("--law", "offset_linear", "--y-column", "latency_median_s", "--x-column", "params_non_embedding", "--json")
    code, out, err = command("fit", "x.csv", *law, "--bootstrap", "9")
    assert code == 0, err
    table = json.loads(out)
    assert len(table["points"]["x"]) == 13
    assert table["parameters"] == pytest.approx({"c0": 1e-3, "c1": 1e-8}, rel=1e-3)


def test_a_part_of_an_export_is_refused_with_the_name_of_its_loss(command, tmp_path: Path) -> None:
    table = pd.DataFrame({"params": [1e3, 2e3], "validation_loss_nats": [3.0, 2.0]})
    table.to_csv(tmp_path / "part.csv", index=False)
    code, _, err = command("fit", "part.csv")
    assert code == 2
    assert "of trials it is called 'validation_loss_nats'; name it with --loss-column" in err


def test_tune_reads_an_export_as_its_results_folder(command, tmp_path: Path) -> None:
    first, trials = planted()[0], []
    for size in (1e4, 1e5, 1e6):
        for i, rate in enumerate(0.1 * size**-0.3 * np.geomspace(0.1, 10, 5)):
            loss = 2 + 0.1 * np.log(rate / (0.1 * size**-0.3)) ** 2
            trials.append(
                first
                | {"trial_id": f"{int(size):014x}{i:02x}", "params_non_embedding": size, "learning_rate": rate,
                   "validation_loss_nats": loss, "peak_rss_bytes": 1000 + i % 2}
            )  # fmt: skip
    write_study(tmp_path / "results" / "planted", trials, {"train.learning_rate": [0.1]})
    assert command("export", "results", "-o", "x.csv")[0] == 0
    laws = [json.loads(command("tune", source, "--json")[1]) for source in ("results", "x.csv")]
    assert laws[1] == laws[0]
    (law,) = laws[1]["laws"]
    assert law["exponents"] == pytest.approx({"params_non_embedding": -0.3})
    for trial in trials[::2]:
        trial["weight_decay"] = 0.1
    pd.DataFrame(trials).assign(invalid_reason=None).to_csv(tmp_path / "mixed.csv", index=False)
    code, _, err = command("tune", "mixed.csv")
    assert code == 2
    assert "column 'weight_decay' takes 2 values within a sweep" in err


def test_worth_reads_an_export_as_its_results_folder(command, tmp_path: Path) -> None:
    trials = rows()
    for trial in trials[:10]:
        trial |= {"first_step": 100, "parent_flops": 1e9}
    write_study(tmp_path / "results" / "planted", trials)
    assert command("export", "results", "-o", "x.csv")[0] == 0
    valid = [trial for trial in trials if trial["validation_loss_nats"] and not trial.get("invalid_reason")][1:]
    flops = [trial["flops_per_step"] * 500 + trial.get("parent_flops", 0) for trial in valid]
    for source in ("results", "x.csv"):
        points = open_compute_fit(Path(source), "power", {}, "params_non_embedding > 1000").points
        assert np.exp(points.logs["params"]) == pytest.approx(flops)
        assert points.response == pytest.approx([trial["validation_loss_nats"] for trial in valid])
    named = open_compute_fit(Path("x.csv"), "power", {"flops": "params", "loss": "checkpoint_bytes"}, None).points
    assert named.response.min() > 5_000
