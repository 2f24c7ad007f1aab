"""Memory against closed forms, peaks against what is known, and an environment that can be traced."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from forking import value_of_forked
from support import train_spec

from scalebench.families import gpt, mlp
from scalebench.measure import environment as environment_module
from scalebench.measure import memory
from scalebench.measure.energy import EnergyMeter
from scalebench.measure.environment import code_fingerprint, environment, environment_file, machine_id
from scalebench.measure.hardware import PEAKS, best_product, datasheet_peak, matmul_ceiling
from scalebench.optim.optimizers import OPTIMIZERS, build_optimizer, hidden_matrices

CPU = torch.device("cpu")


def split(optimizer_name: str, config: gpt.Config, implementation: str = "eager") -> tuple[dict[str, object], int]:
    model = gpt.build(config, implementation)
    optimizer = build_optimizer(model, train_spec(optimizer=optimizer_name))
    tokens = torch.zeros(2, 32, dtype=torch.int64)

    def backward(_step: int) -> None:
        torch.nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward()

    columns = memory.split_columns(model, optimizer, backward)
    return columns, memory.checkpoint_bytes(model, optimizer)


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_memory_by_category_is_the_closed_form(name: str) -> None:
    config = gpt.config_for(5e4, vocab_size=256, context=32)
    counts = gpt.count(config)
    columns, stored = split(name, config)
    tables = 2 * 32 * config.head_dim * 4 * config.depth  # rotary cos and sin
    assert columns["memory_parameters_bytes"] == 4 * counts.total
    assert columns["memory_gradients_bytes"] == 4 * counts.total
    model = gpt.build(config, "eager")
    hidden = [parameter for parameter in model.parameters() if id(parameter) in hidden_matrices(model)]
    by_muon = hidden if name == "muon" else []
    counters = len(list(model.parameters())) - len(by_muon)  # a step count for each tensor, except in these:
    steps = 0 if name in ("sgd", "momentum", "nesterov", "lion") else 4 * counters
    saved = 4 * sum(parameter.numel() for parameter in by_muon)  # Muon keeps one value where AdamW keeps two
    state = 4 * counts.total * OPTIMIZERS[name].state_per_param + steps - saved
    assert columns["memory_optimizer_bytes"] == state
    assert stored == 4 * counts.total + state + tables
    assert columns["memory_activations_bytes"] == pytest.approx(2 * counts_at(config), rel=0.35)
    peak = sum(value for name, value in columns.items() if name.startswith("memory_at_peak_"))
    assert columns["memory_tracked_peak_bytes"] == peak


def test_weights_that_are_not_trained_have_no_gradients_and_no_state() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(8, 8, bias=False), torch.nn.Linear(8, 4, bias=False))
    model[0].requires_grad_(requires_grad=False)
    optimizer = build_optimizer(model, train_spec(optimizer="momentum"))
    columns = memory.split_columns(model, optimizer, lambda _: model(torch.ones(3, 8)).square().sum().backward())
    sizes = [columns[f"memory_{name}_bytes"] for name in ("parameters", "gradients", "optimizer")]
    assert sizes == [4 * 96, 4 * 32, 4 * 32]


@pytest.mark.parametrize("name", ["adamw", "momentum", "sgd"])
def test_a_step_after_training_is_split_as_one_before(name: str) -> None:
    """With the optimizer's state allocated one step is run, else two; left-over gradients count once."""
    model = mlp.build(mlp.config_for(2e3), "eager")
    optimizer, steps = build_optimizer(model, train_spec(optimizer=name)), []

    def backward(_step: int) -> None:
        steps.append(None)
        model(torch.ones(4, 8)).square().mean().backward()

    before = memory.split_columns(model, optimizer, backward)
    assert len(steps) == 2
    backward(0)
    assert memory.split_columns(model, optimizer, backward) == before
    assert len(steps) == (5 if name == "sgd" else 4)  # sgd has no state


def counts_at(config: gpt.Config) -> int:
    return gpt.count(config, 32).activation_bytes


def test_activations_grow_with_the_batch_and_parameters_do_not() -> None:
    model = mlp.build(mlp.config_for(2e3), "eager")
    measured = []
    for batch in (10, 1000):
        optimizer, x = build_optimizer(model, train_spec()), torch.zeros(batch, 8)
        measured.append(memory.split_columns(model, optimizer, lambda _, x=x: model(x).square().mean().backward()))
    assert measured[0]["memory_parameters_bytes"] == measured[1]["memory_parameters_bytes"]
    assert measured[1]["memory_activations_bytes"] > 50 * measured[0]["memory_activations_bytes"]


@pytest.mark.slow
def test_the_resident_set_grows_by_what_is_held() -> None:
    def grown() -> int:
        before = memory.peak_columns(CPU)
        assert before["peak_memory_allocated_bytes"] is None
        assert before["peak_rss_bytes"] is not None
        held = np.ones(max(1, (before["peak_rss_bytes"] + 64 * 2**20) // 8))
        after = memory.peak_columns(CPU)["peak_rss_bytes"]
        assert after is not None
        assert held.size
        return after - before["peak_rss_bytes"]

    growth, _ = value_of_forked(grown)  # a process whose peak is not that of all tests before
    assert growth > 48 * 2**20


def test_energy_on_a_cpu_is_null_with_the_reason() -> None:
    meter = EnergyMeter(CPU)
    meter.start()
    assert meter.columns() == {"energy_j": None, "energy_method": "none: no counter readable on a CPU without root"}


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ("NVIDIA H200", 989.4e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L40", None),
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA H300", None),
        ("", None),
    ],
)
def test_a_device_has_its_own_peak_or_none(device: str, expected: float | None) -> None:
    peak = datasheet_peak(device, "bfloat16")
    assert peak.flops_per_s == expected
    assert peak.source
    assert datasheet_peak("NVIDIA H200", "int3").flops_per_s is None


def test_every_peak_rises_as_precision_falls() -> None:
    assert all(sheet.half > sheet.float32 > 1e13 and sheet.document for sheet in PEAKS.values())


def test_the_measured_ceiling_is_above_an_elementwise_rate_and_is_called_what_it_is() -> None:
    threads = torch.get_num_threads()
    peak = matmul_ceiling("float32", 1, sides=(256,), seconds=0.1)
    assert peak.flops_per_s is not None
    assert peak.flops_per_s > 1e9
    assert peak.source == "measured ceiling: float32 matrix product of 256, 1 thread"
    assert torch.get_num_threads() == threads


def test_the_best_product_is_the_fastest_and_none_is_tried_that_would_take_too_long() -> None:
    def best(call_s: float) -> tuple[float, int]:
        make_timer = lambda work: lambda: work().numel() ** 0 * call_s  # noqa: E731 - what one call takes
        return best_product((8, 16), torch.float32, torch.device("cpu"), 0.0, make_timer)

    assert best(1e-3) == (pytest.approx(2 * 16**3 / 1e-3), 16)
    assert best(1.0) == (2 * 8**3, 8)  # at that rate, a product of 16 would take 8 s


def test_measuring_a_peak_leaves_the_random_numbers_of_a_trial_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    matmul_ceiling("float32", 1, sides=(8,), seconds=0.0)
    assert torch.equal(torch.rand(3), expected)


def test_the_environment_names_versions_code_and_machine() -> None:
    facts = environment("cpu")
    assert facts["torch_version"] == torch.__version__
    assert facts["machine_id"] == machine_id()
    assert len(facts["code_fingerprint"]) == 12
    assert facts["threads"] == torch.get_num_threads()
    whole = json.loads(json.dumps(environment_file("cpu")))
    assert whole["cpu_count"] >= 1
    assert facts.items() <= whole.items()


def test_the_fingerprint_follows_the_code_that_decides_numbers(tmp_path: Path, monkeypatch) -> None:
    import shutil

    from scalebench.measure import environment as module

    copy = tmp_path / "scalebench"
    shutil.copytree(module.PACKAGE, copy)
    monkeypatch.setattr(module, "PACKAGE", copy)

    def fresh() -> str:
        code_fingerprint.cache_clear()
        return code_fingerprint()

    try:
        base = fresh()
        (copy / "cli.py").write_text("changed")
        assert fresh() == base
        for name in module.DECISIVE:
            before, part = fresh(), copy / name
            (part if part.is_file() else part / "__init__.py").write_text("changed")
            assert fresh() != before, name
    finally:
        code_fingerprint.cache_clear()


def test_the_fingerprint_is_that_of_the_source_wherever_it_is_installed(tmp_path: Path, monkeypatch) -> None:
    """In a checkout the kernels lie in a folder that sorts before the package, in an installation after it."""
    fingerprints = []
    for place, kernels in (("checkout", "kernels/scalekernels"), ("site-packages", "scalekernels")):
        package, other = tmp_path / place / "scalebench", tmp_path / place / kernels
        for folder, text in ((package / "data", "a"), (other, "b")):
            folder.mkdir(parents=True)
            (folder / "m.py").write_text(text)
        monkeypatch.setattr(environment_module, "PACKAGE", package)
        monkeypatch.setattr(environment_module, "_kernels_root", lambda other=other: other)
        fingerprints.append(code_fingerprint.__wrapped__())
    assert fingerprints[0] == fingerprints[1]


def test_a_checkout_whose_changes_git_cannot_list_is_not_called_clean(monkeypatch) -> None:
    monkeypatch.setattr(environment_module, "_git", lambda *words: None if words[0] == "status" else "commit")
    assert environment_module.git_state.__wrapped__() == {"git_commit": "commit", "git_dirty": None}


def test_memory_without_another_step_is_the_sizes_of_the_tensors() -> None:
    config = gpt.config_for(5e4, vocab_size=256, context=32)
    model = gpt.build(config, "eager")
    optimizer = build_optimizer(model, train_spec())
    tokens = torch.zeros(2, 32, dtype=torch.int64)
    torch.nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward()
    optimizer.step()
    total = 4 * gpt.count(config).total
    columns = memory.held_columns(model, optimizer, peak_bytes=10 * total, copies_bytes=total // 2)
    tracked, _ = split("adamw", config)
    for name in ("gradients", "optimizer"):
        assert columns[f"memory_{name}_bytes"] == tracked[f"memory_{name}_bytes"]
    assert columns["memory_parameters_bytes"] == total + total // 2
    parts = [
        columns[f"memory_{name}_bytes"] for name in ("parameters", "gradients", "optimizer", "activations", "other")
    ]
    assert sum(parts) == 10 * total
    assert memory.held_columns(model, optimizer, None)["memory_activations_bytes"] is None
