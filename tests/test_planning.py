"""From a study file to trials: names, defaults, budgets, sizes, and every mistake at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from scalekernels import Unsupported

from scalebench.errors import StudyError
from scalebench.families import gpt
from scalebench.optim.optimizers import OPTIMIZERS
from scalebench.running.chain import ancestors
from scalebench.running.planning import load_study, plan
from scalebench.running.shipped import find_study, studies_dir
from scalebench.study import trial_id
from scalebench.workloads import read_trial
from scalebench.workloads.building import usable_device

GPT = 'schema = 1\nname = "s"\n[model]\nfamily = "gpt"\n'


@pytest.fixture
def load(tmp_path: Path):
    def loader(text: str, *settings: str):
        path = tmp_path / "study.toml"
        path.write_text(text)
        return load_study(path, settings)

    return loader


def refused(load, text: str, *settings: str) -> list[str]:
    with pytest.raises(StudyError) as caught:
        plan(load(text, *settings))
    return list(caught.value.lines)


def test_defaults_are_filled_in_and_decided(load) -> None:
    (planned,) = plan(load(GPT + "params = 1e4"))
    trial = planned.trial
    assert read_trial(trial.model_dump()) == trial
    assert trial.data.source == "stdlib"
    assert len(trial.data.sha256) == 64
    assert trial.spec.steps == 400
    assert trial.spec.sequence_length == 128
    assert trial.model["vocab_size"] == 256
    assert trial.model["context"] == 128
    assert trial.spec.learning_rate == gpt.learning_rate(gpt.Config(**trial.model))
    assert planned.trial_id == trial_id(trial)


def test_only_an_optimizer_that_decays_apart_from_the_gradient_decays_unless_asked(load) -> None:
    names = ", ".join(f'"{name}"' for name in OPTIMIZERS)
    study = GPT + f"params = 1e4\n[train]\noptimizer = [{names}]\n"
    decays = {planned.trial.spec.optimizer: planned.trial.spec.weight_decay for planned in plan(load(study))}
    assert decays == dict.fromkeys(OPTIMIZERS, 0.0) | {"adamw": 0.1, "lion": 0.1, "muon": 0.1}
    trials = plan(load(study, "train.weight_decay=0.01"))
    assert {planned.trial.spec.weight_decay for planned in trials} == {0.01}


def test_the_same_trial_written_in_two_ways_has_one_identity(load) -> None:
    (by_default,) = plan(load(GPT + "params = 1e4"))
    shape = by_default.trial.model
    explicit = "".join(
        f"{name} = {str(value).lower() if isinstance(value, bool) else repr(value)}\n" for name, value in shape.items()
    )
    rate = by_default.trial.spec.learning_rate
    (written_out,) = plan(load(GPT + explicit + f"[train]\nlearning_rate = {rate!r}\nsteps = 400\nseed = [0]"))
    assert written_out.trial_id == by_default.trial_id


def test_points_that_give_the_same_trial_are_planned_once(load) -> None:
    assert len(plan(load(GPT + "params = [1e4, 1.0001e4]"))) == 1


@pytest.mark.parametrize(
    ("budget", "steps"),
    [
        ("steps = 7", 7),
        ("tokens = 1e6", round(1e6 / (16 * 128))),
        ("tokens_per_param = 20", None),
        ("flops = 1e12", None),
        ("tokens = 5", 1),
    ],
)
def test_every_budget_gives_steps(load, budget: str, steps: int | None) -> None:
    (planned,) = plan(load(GPT + f"params = 1e5\n[train]\n{budget}"))
    counts, train = planned.counts, planned.trial.spec
    if budget.startswith("tokens_per_param"):
        steps = round(20 * counts.non_embedding / (16 * 128))
    if budget.startswith("flops"):
        assert planned.flops == pytest.approx(1e12, rel=0.5 / train.steps)
        return
    assert train.steps == steps


def test_an_isoflop_study_trades_size_against_steps(load) -> None:
    trials = plan(load(GPT + "params = [1e4, 1e5]\n[train]\nflops = [1e12, 1e13]"))
    assert [round(trial.flops, -11) for trial in trials] == pytest.approx([1e12, 1e13, 1e12, 1e13], rel=0.05)
    assert trials[0].trial.spec.steps > trials[2].trial.spec.steps


def test_all_kinds_of_errors_are_reported_at_once(load) -> None:
    lines = refused(
        load,
        GPT + "params = [10, 1e5]\n"
        '[train]\nstepz = 3\noptimizer = "adamww"\nbatch_size = 0\n'
        '[data]\nsource = "stdlob"\n[fit]\nlaw = "pover"\nbest_over = ["learning_rat"]',
    )
    text = "\n".join(lines)
    for expected in (
        "train.stepz: unknown key 'stepz'; did you mean 'steps'?",
        "train.batch_size: input should be greater than 0 (given 0)",
        "train.optimizer: unknown 'adamww'; did you mean 'adamw'? (known: sgd, momentum, nesterov, adagrad, rmsprop, "
        "adam, adamw, lion, muon)",
        "data.source: unknown 'stdlob'; did you mean 'stdlib'? (known: stdlib, cpp, languages, packages, folders:PATH, "
        "text:PATH, tokens:PATH, hf:NAME, markov, teacher, glyphs, digits, cifar10:PATH, idx:PATH, retrieval, "
        "transduction:KIND)",
        "fit.law: unknown 'pover'; did you mean 'power'?",
        "fit.best_over: unknown 'learning_rat'; did you mean 'learning_rate'?",
    ):
        assert expected in text
    assert all(line.count("study.toml: ") == 1 and "\n" not in line for line in lines)


def test_an_impossible_size_is_reported_beside_a_wrong_type_and_a_wrong_name(load) -> None:
    lines = refused(load, GPT + 'params = [10, 1e5]\n[train]\nbatch_size = "many"\noptimizer = "adamww"')
    assert [line.partition("study.toml: ")[2].partition(":")[0] for line in lines] == [
        "train.batch_size", "train.optimizer", "model",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('schema=1\nname="s"\n[model]\nfamily="gtp"\nparams=1e4', "model.family: unknown 'gtp'; did you mean 'gpt'?"),
        (GPT + "params = [10, 1e4]", "model: 10 non-embedding parameters"),
        (GPT + 'size = "gpt9"', "model.size: unknown 'gpt9'"),
        (GPT + "params = 1e4\ndepht = 2", "model.depht: unknown key 'depht'; did you mean 'depth'?"),
        (GPT + "params = 1e4\ndepth = -2", "model.depth: expected a positive whole number (given -2)"),
        (GPT + "depth = 2", "model: width missing"),
        (GPT + 'size = "gpt2"\n[train]\nsequence_length = 2000', "sequence_length = 2000 is longer than the context"),
        (GPT + "params = 1e4\n[train]\nsequence_length = 9e7", "exceeds the"),
        (GPT + 'params = 1e4\n[data]\nsource = "teacher"', "gpt cannot learn from 'teacher'"),
        (GPT + 'params = 1e4\n[data]\nsource = "text:/no/such"', "data.source: text path '/no/such' does not exist"),
        (GPT + "params = 1e4\n[[exclude]]\ntrain.seed = 0", "every combination is excluded"),
        ('schema=1\nname="s"\n[model]\nfamily="mlp"\nparams=1e4\n[train]\nsequence_length=8', "mlp takes no sequences"),
    ],
)
def test_each_mistake_names_file_and_key(load, text: str, expected: str) -> None:
    (line,) = refused(load, text)
    assert "study.toml: " in line
    assert expected in line


def test_an_empty_text_file_is_refused_before_any_trial(load, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    (line,) = refused(load, GPT + f'params = 1e4\n[data]\nsource = "text:{tmp_path}/empty.txt"')
    assert "is empty" in line


def test_shipped_studies_are_found_by_name_and_misspelt_ones_suggested() -> None:
    assert find_study("demo") == studies_dir() / "demo.toml"
    with pytest.raises(StudyError, match="did you mean 'demo'"):
        find_study("demmo")


@pytest.mark.parametrize("path", sorted(studies_dir().glob("*.toml")), ids=lambda path: path.stem)
def test_every_shipped_study_plans(path: Path) -> None:
    study = load_study(path)
    assert study.name == path.stem
    assert study.title
    assert all(plan(parent) for parent in ancestors(study)[:1])  # the oldest; its children need its weights
    if study.parents is None:
        assert plan(study)


def test_the_estimate_of_memory_in_float32_is_what_the_closed_form_says(load) -> None:
    (planned,) = plan(load(GPT + "params = 1e5"))
    state = 16 * planned.counts.total
    assert planned.memory_bytes == state + 16 * planned.counts.activation_bytes
    assert planned.seconds(1e11) > planned.seconds(1e12)


@pytest.mark.slow
def test_a_study_of_ten_thousand_trials_plans_each_once(load) -> None:
    trials = plan(load(GPT + "params = { geom = [2e3, 1e9], points = 100 }\n[train]\nseed = " + str(list(range(100)))))
    assert len({trial.trial_id for trial in trials}) == 10_000


@pytest.mark.parametrize(
    ("settings", "graph"),
    [
        ({}, "none"),
        ({"implementation": "compile"}, "model"),
        ({"implementation": "fused"}, "blocks"),
        ({"implementation": "fused", "graph": "step", "precision": "bfloat16"}, "step"),
    ],
)
def test_the_implementation_decides_the_graph(load, settings: dict[str, str], graph: str) -> None:
    (planned,) = plan(load(GPT + "params = 1e4", *(f"train.{key}={value}" for key, value in settings.items())))
    assert planned.trial.spec.graph == graph


@pytest.mark.parametrize("implementation", ["triton", "fused"])
def test_a_head_dimension_that_the_kernels_lack_is_refused_with_what_to_do(load, implementation: str) -> None:
    shape = GPT + "depth = 1\nwidth = 160\nheads = 2\nhead_dim = {}\n"
    table = f'[train]\nimplementation = ["eager", "{implementation}"]\n'
    (line,) = refused(load, shape.format(80) + table)
    allowed = f"'{implementation}' has kernels for 16, 32, 64, 128, 256, not for 80"
    assert f"model.head_dim: {allowed}; choose another implementation" in line
    advice = f'[[exclude]] with train.implementation = "{implementation}"'
    assert line.endswith(advice)
    excluded = advice.replace(" with ", "\n") + "\n"
    assert len(plan(load(shape.format(80) + table + excluded))) == 1
    assert len(plan(load(shape.format(64) + table))) == 2
    # A trial that was planned before is recorded as unsupported.
    (planned,) = plan(load(shape.format(80)))
    spec = planned.trial.spec.model_copy(update={"implementation": implementation})
    with pytest.raises(Unsupported, match="not for 80"):
        usable_device(planned.trial.model_copy(update={"spec": spec}))


def test_the_kernels_of_a_gpt_have_the_same_head_dimensions() -> None:
    from scalekernels import attention, rotary

    assert attention.HEAD_DIMENSIONS == rotary.HEAD_DIMENSIONS


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"graph": "step"}, "'step' is not for every implementation"),
        ({"implementation": "compile", "graph": "step"}, 'compile" has model, blocks'),
        ({"implementation": "fused", "graph": "step"}, "only a step in bfloat16"),
        ({"implementation": "fused", "graph": "step", "precision": "bfloat16", "accumulation": "3"}, "of one size"),
    ],
)
def test_impossible_graphs_are_refused_with_the_field(load, settings: dict[str, str], message: str) -> None:
    with pytest.raises(StudyError, match=r"train\.graph: ") as caught:
        plan(load(GPT + "params = 1e4", *(f"train.{key}={value}" for key, value in settings.items())))
    assert message in str(caught.value)


MLP = 'schema = 1\nname = "m"\n[model]\nfamily = "{}"\nparams = [200, 300]\n'


@pytest.mark.parametrize(
    ("family", "settings", "line"),
    [
        ("mlp", ["train.implementation=sdpa"], "train.implementation: mlp has no implementation 'sdpa', it has eager"),
        ("linear", ["train.optimizer=muon"], "train.optimizer: muon needs hidden matrices, and linear of this size"),
        ("gpt", ["train.optimizer=muon", "train.implementation=triton"], "train.optimizer: no fused kernel for 'muon'"),
        ("mlp", ["train.precision=float16", "train.device=cpu"], "train.precision: float16 needs a GPU"),
        (
            "gpt",
            ["train.implementation=fused", "train.precision=bfloat16", "train.graph=step", "train.device=cpu"],
            "train.graph: a step is captured as a CUDA graph, which a CPU does not have",
        ),
        ("mlp", ["workload=inference", "inference.implementation=sdpa"], "inference.implementation: mlp has no"),
    ],
)
def test_what_no_machine_can_run_is_refused_once_with_the_field(load, family, settings, line) -> None:
    text = MLP.format(family).replace("200, 300", "1e4, 2e4" if family == "gpt" else "200, 300")
    (message,) = refused(load, text, *settings)
    assert line in message


def test_what_another_machine_could_run_is_planned(load) -> None:
    """The trial ends as unsupported where there is no GPU."""
    settings = ['train.precision=["float16", "float32"]', 'train.device=["auto", "cuda"]']
    assert len(plan(load(MLP.format("mlp").replace("200, 300", "1e4, 2e4"), *settings))) == (
        4 if torch.cuda.is_available() else 8
    )
