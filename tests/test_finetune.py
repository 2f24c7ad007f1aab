"""Fine-tuning: all weights or LoRA, on other data, measured on the old data, too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from family_support import model_of
from parent_support import FINETUNED, PARENT, planned, refused, trained
from safetensors.torch import load_file
from support import PLACEMENT, saved_for_backward
from torch import nn

from scalebench import store
from scalebench.data import open_data
from scalebench.families import FAMILIES, model_fields
from scalebench.running.planning import load_study, plan, trial_header
from scalebench.running.worker import run_trial
from scalebench.workloads import columns_of
from scalebench.workloads.lora import LowRank, adapt, chosen, matrices, merge, trainable
from scalebench.workloads.trained import load_trained
from scalebench.workloads.training_memory import activation_bytes


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the results of a parent, and another text: lower-case words in place of Python."""
    folder = tmp_path_factory.mktemp("base")
    trained(folder, PARENT)
    text = folder / "text"
    text.mkdir()
    for number in range(40):
        (text / f"{number}.txt").write_text(f"der Fluss {number} fließt ins Meer; " * 20)
    return folder


def other(folder: Path) -> list[str]:
    return [f"data.source=text:{folder / 'text'}"]


# --- LoRA ------------------------------------------------------------------------------------------------------------


def test_an_adapted_model_starts_as_it_was_and_trains_only_the_products() -> None:
    model, tokens = model_of("gpt", params=3000), torch.randint(256, (2, 16))
    before = model(tokens)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    adapt(model, ["qkv", "down"], 2, 4.0)
    assert torch.equal(model(tokens), before)
    optimizer = torch.optim.SGD([value for value in model.parameters() if value.requires_grad], 0.1)
    for _ in range(2):  # B starts at zero, so the first step changes B alone
        optimizer.zero_grad()
        model(tokens).square().mean().backward()
        optimizer.step()
    adapted = model(tokens)
    assert not torch.equal(adapted, before)
    merge(model)
    assert torch.equal(model(tokens), adapted)
    after = model.state_dict()
    assert after.keys() == weights.keys()
    changed = {name for name in weights if not torch.equal(weights[name], after[name])}
    assert changed == {name for name in weights if name.endswith(("qkv.weight", "down.weight"))}
    for name in changed:
        assert torch.linalg.matrix_rank((after[name] - weights[name]).double(), atol=1e-6) == 2


def test_the_product_is_the_written_out_formula() -> None:
    part = LowRank(torch.zeros(5, 3), 2, 6.0)
    nn.init.normal_(part.b)
    weight = torch.randn(5, 3)
    expected = weight + 3.0 * torch.einsum("or,ri->oi", part.b, part.a)
    torch.testing.assert_close(part(weight), expected)


@pytest.mark.parametrize("rank", [1, 3])
def test_the_trained_parameters_are_counted_exactly(rank: int) -> None:
    model = model_of("gpt", depth=2, width=16, heads=2, head_dim=6, hidden=30)
    adapt(model, ["qkv", "out", "up", "down"], rank, 1.0)
    inner, width, hidden = 12, 16, 30
    sides = (width + 3 * inner) + (inner + width) + 2 * (width + hidden)
    assert trainable(model) == 2 * rank * sides


def test_a_tied_head_is_no_matrix_to_adapt_and_an_outer_one_only_by_name() -> None:
    assert "head" not in matrices(model_of("gpt", params=3000))
    untied = model_of("gpt", params=3000, tied=False)
    assert chosen(untied, "all", 2) == "qkv,out,up,down"
    assert chosen(untied, "head, qkv", 2) == chosen(untied, "qkv,head", 2) == "qkv,head"  # one trial, not two


# --- the workload ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("method", "matrices_held"), [("full", 0), ("lora", 1)])
def test_the_memory_of_a_plan_has_gradients_and_state_of_what_is_trained(
    copied: Path, method: str, matrices_held: int
) -> None:
    """Weights, gradients and moments as torch holds them after a step, beside activations and the adapted matrices."""
    (trial,) = planned(copied, FINETUNED, f"finetune.method={method}")
    family, spec = FAMILIES["gpt"], trial.trial.spec
    config = family.Config(**trial.trial.model)
    model = family.build(config, "eager")
    adapted = sum(layer.weight.numel() for name, layer in model.named_modules()
                  if isinstance(layer, nn.Linear) and name != "head")  # fmt: skip
    if method == "lora":
        adapt(model, spec.matrices.split(","), spec.rank, spec.alpha)
    optimizer = torch.optim.AdamW(value for value in model.parameters() if value.requires_grad)
    model(torch.randint(config.vocab_size, (1, 16))).square().mean().backward()
    optimizer.step()
    moments = [value for state in optimizer.state.values() for name, value in state.items() if name != "step"]
    tensors = [*model.parameters(), *(value.grad for value in model.parameters() if value.requires_grad), *moments]
    held = sum(4 * tensor.numel() for tensor in tensors)
    activations = spec.batch_size * activation_bytes(trial.counts, spec, config.depth)
    assert trial.memory_bytes == held + activations + 4 * adapted * matrices_held


def test_the_sum_of_a_matrix_and_its_product_is_kept_for_the_backward_pass() -> None:
    model, x = nn.Sequential(nn.Linear(64, 48)), torch.randn(1, 64, requires_grad=True)
    plain = saved_for_backward(model, lambda: model(x).square().sum())
    adapt(model, ["0"], 2, 4.0)
    assert 4 * 64 * 48 <= saved_for_backward(model, lambda: model(x).square().sum()) - plain < 4 * 64 * 48 * 1.2


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_model_is_fine_tuned_on_another_text_and_forgets_some_of_the_old(copied: Path, method: str) -> None:
    (parent,) = store.load_results(copied / "results").to_dict("records")
    (row,) = trained(copied, FINETUNED, f"finetune.method={method}", *other(copied))
    assert row["old_loss_before_nats"] == pytest.approx(parent["validation_loss_nats"], abs=1e-6)
    assert row["validation_loss_nats"] < row["loss_before_nats"] - 0.1
    assert row["forgetting_nats"] == row["old_loss_nats"] - row["old_loss_before_nats"] > 0
    assert row["parent_flops"] == 50 * parent["flops_per_step"]
    assert (row["trainable_params"] == row["params"]) is (method == "full")
    assert row["samples_seen"] == 20 * 8
    assert not (Path(row["attempt_dir"]) / "state.safetensors").exists()
    saved, old = (load_file(Path(each["attempt_dir"]) / "weights.safetensors") for each in (row, parent))
    assert saved.keys() == old.keys()
    frozen = {name for name in old if torch.equal(saved[name], old[name])}
    names = ("qkv.weight", "out.weight", "up.weight", "down.weight")
    assert frozen == (set() if method == "full" else {name for name in old if not name.endswith(names)})
    _, model = load_trained(Path(row["attempt_dir"]))
    assert trainable(model) == row["params"]


def test_the_columns_of_a_record_are_the_declared_ones(copied: Path) -> None:
    (row,) = trained(copied, FINETUNED, "finetune.steps=2", "finetune.method=lora", *other(copied))
    record = json.loads((Path(row["attempt_dir"]) / "record.json").read_text())
    declared = {column.name for column in columns_of("finetune")}
    assert declared | set(model_fields(FAMILIES["gpt"])) >= set(record) - {"schema", "files", "sha256"} >= declared
    filled = {"trainable_params", "loss_before_nats", "old_loss_before_nats", "old_loss_nats", "forgetting_nats"}
    assert all(record[name] is not None for name in filled | {"old_loss_se_nats", "rank", "alpha", "matrices"})
    assert (record["rank"], record["alpha"], record["matrices"]) == (8, 16.0, "qkv,out,up,down")


@pytest.mark.slow
def test_all_weights_on_the_same_data_train_as_the_workload_training_does(copied: Path) -> None:
    same = FINETUNED.replace('workload = "finetune"\n', "").replace("[finetune]", "[train]")
    (tuned,) = trained(copied, FINETUNED)
    (continued,) = trained(copied, same.replace('"child"', '"same"'))
    assert tuned["validation_loss_nats"] == continued["validation_loss_nats"] == tuned["old_loss_nats"]
    assert tuned["weights_sha256"] == continued["weights_sha256"]


def test_settings_without_effect_make_no_second_trial(copied: Path) -> None:
    trials = planned(copied, FINETUNED, 'finetune.method=["full", "lora"]', "finetune.rank=[2, 4]")
    assert [(trial.trial.spec.method, trial.trial.spec.rank) for trial in trials] == [
        ("full", None), ("lora", 2), ("lora", 4),
    ]  # fmt: skip


def test_a_fine_tuned_model_can_be_a_parent(copied: Path) -> None:
    (child,) = trained(copied, FINETUNED, "finetune.steps=2", *other(copied))
    (grandchild,) = trained(copied, FINETUNED.replace('"parent"', '"child"'), "name=grandchild", "finetune.steps=1")
    assert grandchild["parent_flops"] == child["parent_flops"] + 2 * child["flops_per_step"]
    assert grandchild["old_loss_before_nats"] == pytest.approx(child["validation_loss_nats"], abs=1e-6)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["finetune.method=lorra"], "did you mean 'lora'?"),
        (["finetune.method=lora", "finetune.matrices=query"], "finetune.matrices: unknown 'query'"),
        (["finetune.method=lora", "finetune.matrices=head"], "known: all, qkv, out, up, down"),
        (["finetune.method=lora", 'finetune.matrices=""'], "finetune.matrices: unknown ''"),
        (["finetune.method=lora", "finetune.rank=500"], "finetune.rank: 500"),
        (["finetune.method=lora", "finetune.optimizer=muon"], "finetune.optimizer: muon"),
        (["finetune.method=lora", "finetune.implementation=compile"], "finetune.implementation: lora runs with"),
        (["finetune.batch_size=2", "finetune.accumulation=3"], "finetune.accumulation: 3 micro-batches"),
        (["from.optimizer_state=true"], "from.optimizer_state: fine-tuning does not continue"),
        (["model.family=mlp"], "family 'gpt', not 'mlp'"),
    ],
)
def test_each_mistake_is_one_line(copied: Path, settings: list[str], expected: str) -> None:
    assert expected in refused(copied, FINETUNED, *settings)


def status_of(folder: Path, *settings: str) -> str:
    """Fine-tune the parent of a folder and return the status of the trial."""
    path = folder / "study.toml"
    path.write_text(FINETUNED)
    study = load_study(path, settings)
    (trial,) = plan(study, folder / "results")
    attempt = store.new_attempt(folder / "results" / study.name, trial.trial_id)
    store.write_json(attempt / "trial.json", trial_header(study, trial, "a test"))
    return run_trial(attempt, json.loads((attempt / "trial.json").read_text()), PLACEMENT)


DIVERGING = ("finetune.steps=5", "finetune.optimizer=sgd")


def test_fine_tuning_that_diverges_is_no_result(copied: Path) -> None:
    """Its loss of millions of nats was recorded as ok, and was fitted with the others."""
    assert status_of(copied, *DIVERGING, "finetune.learning_rate=1e6") == "diverged"


@pytest.mark.parametrize("model", ['family = "mlp"\nparams = 300', 'family = "attention"\nparams = 2000'])
def test_regression_from_trained_weights_that_diverges_is_no_result(tmp_path: Path, model: str) -> None:
    """Losses of little noise begin below 0 where the weights are trained, so that no ratio of them says anything."""
    parent = PARENT.replace('family = "gpt"\nparams = 3000', model).replace("steps = 50", "steps = 20")
    if "attention" not in model:
        parent = parent.replace("sequence_length = 16\n", "")
    trained(tmp_path, parent, "data.noise_std=0.05")
    assert status_of(tmp_path, "finetune.steps=2", "finetune.learning_rate=1e-5") == "ok"
    assert status_of(tmp_path, *DIVERGING, "finetune.learning_rate=1e3") == "diverged"


def test_fine_tuning_without_a_parent_is_refused(tmp_path: Path) -> None:
    alone = FINETUNED.replace('[from]\nstudy = "parent"\n', '[model]\nfamily = "gpt"\nparams = 3000\n')
    assert "add a [from] table" in refused(tmp_path, alone)


def test_a_family_without_linear_layers_inside_is_refused() -> None:
    from scalebench.errors import InputError

    with pytest.raises(InputError, match="this family has none"):
        chosen(model_of("linear", params=100), "all", 1)


def test_the_cpp_source_is_other_text_than_pythons() -> None:
    cpp, python = open_data("cpp", None, 0.2), open_data("stdlib", None, 0.2)
    assert cpp.training_tokens(0.2) > 1_000_000
    assert not set(cpp.documents) & set(python.documents)
    assert sum(b"#include" in document for document in cpp.documents) > len(cpp.documents) / 2
