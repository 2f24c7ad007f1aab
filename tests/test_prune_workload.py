"""The workload "prune": trials that start from a trained model, what they record and keep, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from family_support import SHAPE, config_of
from parent_support import PARENT, planned, refused, trained
from resuming_support import finish, interrupt
from safetensors.torch import load_file
from support import PLACEMENT, edit_record

from scalebench import store
from scalebench.data import open_data
from scalebench.errors import InputError
from scalebench.families import FAMILIES, model_fields
from scalebench.running.planning import load_study, plan, trial_header
from scalebench.workloads import columns_of
from scalebench.workloads.base import Request
from scalebench.workloads.prune import decide
from scalebench.workloads.prune_masks import prunable
from scalebench.workloads.trained import load_trained

SMALL = PARENT.replace("params = 3000", "depth = 2\nwidth = 8\nheads = 4\nhead_dim = 2\nhidden = 16").replace(
    "steps = 50", "steps = 30"
)
CHILD = """
schema = 1
name = "child"
workload = "prune"
[from]
study = "parent"
[prune]
implementation = "sdpa"
[run]
checkpoint = true
"""
GRANDCHILD = CHILD.replace('"parent"', '"child"').replace('name = "child"', 'name = "grandchild"')
BIAS_FREE = 2 * (4 * 8 * 8 + 2 * 8 * 16)  # weights of the hidden matrices of the parent


DATA = open_data("stdlib", None, 0.2)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    trained(folder, SMALL)
    return folder


def parent_of(folder: Path) -> dict[str, Any]:
    (row,) = store.load_results(folder / "results" / "parent").to_dict("records")
    return row


@pytest.mark.parametrize("method", ["magnitude-global", "magnitude-layer", "random", "2:4"])
def test_a_mask_removes_weights_but_neither_bytes_nor_parameters(copied: Path, method: str) -> None:
    parent = parent_of(copied)
    (row,) = trained(copied, CHILD, f"prune.method={method}")
    assert row["loss_before_nats"] == pytest.approx(parent["validation_loss_nats"], abs=1e-6)
    assert row["loss_added_nats"] == pytest.approx(row["validation_loss_nats"] - row["loss_before_nats"], abs=1e-9)
    assert row["loss_added_nats"] != 0
    assert (row["density"], row["density_found"]) == (0.5, 0.5)
    assert row["params"] == row["params_before"] == parent["params"]
    assert row["params_remaining"] == row["params_non_embedding"] - BIAS_FREE // 2
    assert row["density_overall"] == pytest.approx(1 - BIAS_FREE / 2 / row["params"])
    groups = json.loads(row["density_by_group"])
    assert groups.keys() == {"qkv", "out", "up", "down"}
    assert (set(groups.values()) == {0.5}) is (method in ("magnitude-layer", "2:4"))
    assert row["weight_bytes_before"] == 4 * row["params"]
    assert row["packed_bytes"] == 4 * row["params"] - 4 * BIAS_FREE // 2 + BIAS_FREE // 8
    if method == "2:4":
        assert "need a GPU" in row["sparse_kernel"]
        assert (row["weight_bytes"], row["latency_s"], row["latency_ratio"]) == (None, None, None)
    else:
        assert row["weight_bytes"] == row["weight_bytes_before"]
        assert row["latency_s"] > 0
    _, model = load_trained(Path(row["attempt_dir"]))
    weights = [getattr(module, name) for module, name in prunable(model).values()]
    assert sum(int(weight.count_nonzero()) for weight in weights) == BIAS_FREE // 2


def test_bytes_and_time_of_2_4_are_those_of_the_compressed_16_bit_model(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With stand-ins for the device and for the compressed form, which a CPU has neither of."""
    monkeypatch.setattr("scalebench.workloads.prune_kernels.unavailable", lambda *_: None)
    monkeypatch.setitem(PLACEMENT["peaks"], "bfloat16", PLACEMENT["peaks"]["float32"])  # type: ignore[arg-type]
    shapes: list[tuple[int, ...]] = []

    def compress(weight: torch.Tensor) -> torch.Tensor:
        assert weight.dtype == torch.bfloat16
        shapes.append(tuple(weight.shape))
        return weight[:, ::2].repeat_interleave(2, dim=1)

    monkeypatch.setattr("torch.sparse.to_sparse_semi_structured", compress)
    settings = ["prune.method=2:4", "prune.precision=bfloat16"]
    (row,) = trained(copied, CHILD, *settings)
    assert shapes == 2 * [(24, 8), (8, 8), (16, 8), (8, 16)]
    assert row["weight_bytes"] == row["weight_bytes_before"] == 2 * row["params"]
    assert row["latency_ratio_low"] <= row["latency_ratio"] <= row["latency_ratio_high"]
    assert row["sparse_kernel"] == "torch.sparse.to_sparse_semi_structured"
    _, model = load_trained(Path(row["attempt_dir"]))
    assert next(model.parameters()).dtype == torch.float32  # the trial's weights are what was trained

    def refuse(_: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("Error original_tensor.shape torch.Size([24, 8]) is not supported!")

    monkeypatch.setattr("torch.sparse.to_sparse_semi_structured", refuse)
    (row,) = trained(copied, CHILD, *settings)
    assert "blocks.0.attention.qkv.weight: Error original_tensor.shape" in row["sparse_kernel"]
    assert (row["weight_bytes"], row["latency_s"]) == (None, None)
    assert row["loss_added_nats"] is not None


@pytest.mark.parametrize(
    ("method", "field", "left"), [("heads", "heads", 2), ("hidden", "hidden", 8), ("layers", "depth", 1)]
)
def test_fewer_units_are_a_smaller_model_that_can_be_loaded_and_be_a_parent(
    copied: Path, method: str, field: str, left: int
) -> None:
    parent = parent_of(copied)
    (row,) = trained(copied, CHILD, f"prune.method={method}")
    assert row[field] == left == parent[field] // 2
    assert row["density_found"] == 0.5
    assert row["tokens_before"] == 30 * 4 * 16
    assert row["params_before"] == parent["params"]
    assert row["params"] < parent["params"]
    assert row["weight_bytes"] == 4 * row["params"] < row["weight_bytes_before"] == 4 * parent["params"]
    assert row["params_remaining"] == row["params_non_embedding"]
    assert row["packed_bytes"] is None
    trial, model = load_trained(Path(row["attempt_dir"]))
    assert trial.model[field] == left
    assert sum(parameter.numel() for parameter in model.parameters()) == row["params"]
    (next_row,) = trained(copied, GRANDCHILD, "prune.density=0.8")
    assert next_row["loss_before_nats"] == pytest.approx(row["validation_loss_nats"], abs=1e-6)
    assert next_row["params_before"] == row["params"]
    assert next_row["tokens_before"] is None


@pytest.mark.slow
def test_the_data_of_a_checkpoint_and_of_a_continued_run_are_counted(tmp_path: Path) -> None:
    trained(tmp_path, SMALL, "train.steps=6", "run.checkpoint_steps=[2]")
    (early,) = trained(tmp_path, CHILD, "from.step=2")
    branch = SMALL.replace('"parent"', '"branch"') + '[from]\nstudy = "parent"\noptimizer_state = true\n'
    branch = branch.replace('family = "gpt"\ndepth = 2\nwidth = 8\nheads = 4\nhead_dim = 2\nhidden = 16\n', "")
    trained(tmp_path, branch.replace("[model]\n", ""), "train.steps=3")
    (late,) = trained(tmp_path, CHILD.replace('"parent"', '"branch"'))
    assert (early["tokens_before"], late["tokens_before"]) == (2 * 4 * 16, 9 * 4 * 16)


def test_recovery_steps_train_the_remaining_weights_only(copied: Path) -> None:
    parent = parent_of(copied)
    settings = ["prune.density=0.25", "prune.recovery_steps=5", "prune.learning_rate=0.01", "prune.batch_size=4"]
    (row,) = trained(copied, CHILD, *settings)
    (alone,) = trained(copied, CHILD, "prune.density=0.25")
    assert row["validation_loss_nats"] < alone["validation_loss_nats"]
    assert row["loss_before_nats"] == alone["loss_before_nats"]
    assert (row["steps"], alone["steps"], row["samples_seen"], alone["samples_seen"]) == (5, 0, 20, None)
    assert row["step_time_median_s"] is None or row["step_time_median_s"] > 0
    saved, whole = (load_file(Path(each["attempt_dir"]) / "weights.safetensors") for each in (row, parent))
    _, model = load_trained(Path(row["attempt_dir"]))
    zeros = {path: getattr(module, name) == 0 for path, (module, name) in prunable(model).items()}
    assert sum(int(each.sum()) for each in zeros.values()) == BIAS_FREE * 3 // 4
    # Which weights are the smallest depends on the text, the standard library's: a matrix may have lost every one.
    rest = {path: ~zero for path, zero in zeros.items() if not zero.all()}
    assert rest
    assert all((saved[path] != whole[path])[kept].any() for path, kept in rest.items())
    (child,) = trained(copied, GRANDCHILD, "from.where=steps == 5", "prune.density=1.0")
    assert child["parent_flops"] == 30 * parent["flops_per_step"] + 5 * row["flops_per_step"]
    assert alone["parent_flops"] == 30 * parent["flops_per_step"]
    assert child["loss_before_nats"] == pytest.approx(row["validation_loss_nats"], abs=1e-6)


@pytest.mark.slow
def test_an_interrupted_recovery_goes_on_bit_for_bit_with_its_mask(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ["prune.method=random", "prune.recovery_steps=6", "run.checkpoint_every_steps=2"]
    (whole,) = trained(copied, CHILD, *settings[:2])
    study = load_study(copied / "study.toml", settings)
    (trial,) = plan(study, copied / "results")
    header = trial_header(study, trial, "a test")
    attempts = [store.new_attempt(copied / "results" / study.name, trial.trial_id) for _ in range(2)]
    for attempt in attempts:
        store.write_header(attempt, header)
    interrupt(monkeypatch, attempts[0], store.read_header(attempts[0]), after=3)
    row = finish(attempts[1], store.read_header(attempts[1]))
    assert row["resumed_from_step"] == 2
    assert row["weights_sha256"] == whole["weights_sha256"]
    assert row["loss_added_nats"] == whole["loss_added_nats"]


def test_a_smaller_model_is_trained_on_too(copied: Path) -> None:
    (row,) = trained(copied, CHILD, "prune.method=layers", "prune.recovery_steps=8", "prune.learning_rate=0.01")
    (alone,) = trained(copied, CHILD, "prune.method=layers")
    assert row["validation_loss_nats"] < alone["validation_loss_nats"]


def test_density_1_is_the_parent(copied: Path) -> None:
    (row,) = trained(copied, CHILD, "prune.density=1.0")
    assert (row["loss_added_nats"], row["density_found"], row["density_overall"]) == (0, 1, 1)
    saved, whole = (load_file(Path(each["attempt_dir"]) / "weights.safetensors") for each in (row, parent_of(copied)))
    assert all(torch.equal(saved[name], whole[name]) for name in whole)


def test_the_columns_of_a_record_are_the_declared_ones(copied: Path) -> None:
    (row,) = trained(copied, CHILD, "prune.recovery_steps=2")
    record = json.loads((Path(row["attempt_dir"]) / "record.json").read_text())
    declared = {column.name for column in columns_of("prune")}
    assert declared | set(model_fields(FAMILIES["gpt"])) >= set(record) - {"schema", "files", "sha256"} >= declared


def test_settings_without_effect_make_no_second_trial(copied: Path) -> None:
    settings = ["prune.recovery_steps=[0, 5]", "prune.learning_rate=[0.01, 0.02]"]
    specs = [each.trial.spec for each in planned(copied, CHILD, *settings)]
    assert [(spec.steps, spec.learning_rate) for spec in specs if spec.steps] == [(5, 0.01), (5, 0.02)]
    assert len([spec for spec in specs if not spec.steps]) == 1


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["prune.density=0.0"], "prune.density"),
        (["prune.density=1.5"], "prune.density"),
        (["prune.density=1e-9"], "weights rounds to none; give more than "),
        (["prune.density=1e-3", "prune.method=magnitude-layer"], "prune.density: 0.001 of 64 weights rounds to none"),
        (["prune.method=magnitude"], "did you mean 'magnitude-"),
        (["prune.method=2:4", "prune.density=0.25"], "prune.density: 0.25: 2:4 keeps half"),
        (
            ["prune.method=heads", "prune.density=0.1"],
            "prune.density: 0.1 of 4 heads rounds to none; give more than 0.125",
        ),
        (["prune.method=layers", "prune.density=0.2"], "prune.density: 0.2 of 2 layers rounds to none"),
        (["prune.steps=5"], "prune.steps: 5: training after pruning is given as recovery_steps"),
        (["prune.implementation=fused"], "prune.implementation: fused"),
        (
            ["prune.recovery_steps=2", "prune.batch_size=2", "prune.accumulation=3"],
            "prune.accumulation: 3 micro-batches",
        ),
        (["from.optimizer_state=true"], "from.optimizer_state: pruning does not continue"),
        (["model.hidden=8"], "model: hidden = 8: the weights of "),
        (["model.family=mlp"], "family 'gpt', not 'mlp'"),
        (["from.where=seed == 7"], "from"),
    ],
)
def test_each_mistake_is_one_line(copied: Path, settings: list[str], expected: str) -> None:
    assert expected in refused(copied, CHILD, *settings)


@pytest.mark.parametrize(
    ("family", "fields", "method", "expected"),
    [
        (
            "bert",
            SHAPE | {"heads": 2},
            "heads",
            "prune.method: heads: bert cannot have fewer of them; families that can: vit",
        ),
        ("mlp", {"width": 8}, "hidden", "prune.method: hidden: mlp cannot have fewer of them"),
        ("linear", {"params": 100}, "random", "prune.method: random: linear has no hidden matrices to prune"),
        ("gpt", SHAPE | {"heads": 2, "head_dim": 5, "positions": "learned"}, "2:4", "out.weight have 10"),
    ],
)
def test_a_family_that_has_no_such_units_is_named(
    copied: Path, family: str, fields: dict[str, Any], method: str, expected: str
) -> None:
    (parent,) = planned(copied, SMALL)
    config = config_of(family, **fields)
    counts = FAMILIES[family].count(config, 16)
    request = Request(family, {"method": method}, lambda _: (config, counts), DATA, parent.trial.data, parent.trial)
    if not FAMILIES[family].SEQUENCES:
        request = replace(request, parent=parent.trial.model_copy(
            update={"spec": parent.trial.spec.model_copy(update={"sequence_length": None})}))  # fmt: skip
    with pytest.raises(InputError, match=expected):
        decide(request)


def test_a_parent_that_is_not_ok_is_refused(copied: Path) -> None:
    edit_record(Path(parent_of(copied)["attempt_dir"]), status="diverged")
    assert "has no ok trial: 1 diverged" in refused(copied, CHILD)


def test_pruning_without_a_parent_is_refused(tmp_path: Path) -> None:
    alone = CHILD.replace('[from]\nstudy = "parent"\n', '[model]\nfamily = "gpt"\nparams = 3000\n')
    assert "add a [from] table" in refused(tmp_path, alone)
