"""GPT on the fused kernels, under the interpreter: the same model as the eager one, in loss, gradients and training."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch
from kernel_support import Operations
from scalekernels import device
from support import run_here, train_spec
from torch import Tensor, nn

from scalebench.families import gpt
from scalebench.optim.fused import FUSED, clips
from scalebench.optim.optimizers import OPTIMIZERS, build_optimizer
from scalebench.running.planning import load_study
from scalebench.store import load_results
from scalebench.tasks import NextToken
from scalebench.workloads.decoding import Sampling, beam_search, chooser, generate
from scalebench.workloads.loop import backward, loss_scaler
from scalebench.workloads.training_spec import TrainSpec

SHAPE = {"depth": 2, "width": 16, "vocab_size": 61, "context": 32, "head_dim": 16}
FORMS = {
    "rms, rotary, tied": {},
    "layer, learned, bias": {"norm": "layer", "positions": "learned", "bias": True, "tied": False},
}


def model(implementation: str, **fields: object) -> nn.Module:
    """A tiny GPT of seed 0."""
    torch.manual_seed(0)
    return gpt.build(gpt.explicit(**SHAPE, **fields), implementation)


def batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Tokens and targets (2, 19)."""
    drawn = torch.randint(0, 61, (2, 20), generator=torch.Generator().manual_seed(seed))
    return drawn[:, :-1], drawn[:, 1:]


def losses(built: nn.Module, seed: int = 0) -> Tensor:
    """The loss of each sequence, as the task asks for it."""
    return NextToken.losses(NextToken.__new__(NextToken), built, batch(seed))


@pytest.mark.parametrize("form", FORMS)
def test_eager_and_triton_agree_in_parameters_loss_logits_and_gradients(form: str) -> None:
    eager, fused = model("eager", **FORMS[form]), model("triton", **FORMS[form])
    assert list(eager.state_dict()) == list(fused.state_dict())
    exact = model("eager", **FORMS[form]).double()
    results = {}
    for name, built in (("eager", eager), ("triton", fused), ("exact", exact)):
        loss = losses(built)
        assert loss.shape == (2,)
        loss.mean().backward()
        gradients = {name: parameter.grad.double() for name, parameter in built.named_parameters()}
        results[name] = {"loss": loss.detach().double(), "logits": built(batch()[0]).detach().double()} | gradients
    for name, truth in results["exact"].items():
        theirs, ours = ((results[key][name] - truth).abs().max().item() for key in ("eager", "triton"))
        allowed = max(4 * theirs, 64 * torch.finfo(torch.float32).eps * truth.abs().max().item())
        assert ours <= allowed, f"{name}: {ours:.3g} > {allowed:.3g} (eager {theirs:.3g})"


def step_gradients(built: nn.Module, spec: TrainSpec) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients of a training step as ``train`` makes them, of three sequences."""
    tokens = torch.randint(0, 61, (3, 20), generator=torch.Generator().manual_seed(5))
    task = NextToken.__new__(NextToken)
    loss = backward(built, task, (tokens[:, :-1], tokens[:, 1:]), spec, loss_scaler(torch.device("cpu"), spec))
    return loss, {name: parameter.grad.double() for name, parameter in built.named_parameters()}


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_training_step_has_the_eager_gradients_and_computes_the_logits_once(accumulation: int) -> None:
    spec = train_spec(accumulation=accumulation)
    with Operations() as seen:
        loss, grads = step_gradients(model("triton"), spec)
    of_the_loss = [name for name in seen.names if "cross_entropy" in name or "scale" in name]
    assert of_the_loss == ["linear_cross_entropy", "scale_gradient_", "scale_gradient_"] * accumulation
    eager_loss, eager = step_gradients(model("eager"), spec)
    exact_loss, exact = step_gradients(model("eager").double(), spec)
    assert abs(loss - exact_loss) <= 2 * abs(eager_loss - exact_loss) + 1e-6
    for name, truth in exact.items():
        theirs, ours = ((gradient[name] - truth).abs().max().item() for gradient in (eager, grads))
        assert ours <= max(4 * theirs, 64 * torch.finfo(torch.float32).eps * truth.abs().max().item()), name


def test_the_mean_that_training_makes_small_is_that_of_the_losses() -> None:
    built, task = model("triton"), NextToken.__new__(NextToken)
    assert task.loss(built, batch()).item() == pytest.approx(task.losses(built, batch()).mean().item(), rel=1e-6)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("pieces", [[13], [5, 1, 6, 1], [1, 12]])
@torch.no_grad()
def test_logits_read_piece_by_piece_are_those_read_at_once(form: str, pieces: list[int]) -> None:
    """One token after a past, several after a past, and all of them on an empty cache."""
    fused, tokens = model("triton", **FORMS[form]), batch()[0][:, :13]
    exact = model("eager", **FORMS[form]).double()(tokens)
    theirs = (model("eager", **FORMS[form])(tokens) - exact).abs().max().item()
    cache = fused.cache(2, 13)
    logits = torch.cat([fused(part, cache) for part in tokens.split(pieces, dim=1)], 1)
    assert cache.length == 13
    allowed = max(4 * theirs, 64 * torch.finfo(torch.float32).eps * exact.abs().max().item())
    assert (logits - exact).abs().max().item() <= allowed
    assert (fused(tokens) - exact).abs().max().item() <= allowed


@pytest.mark.parametrize("form", [pytest.param("rms, rotary, tied", marks=pytest.mark.slow), "layer, learned, bias"])
@torch.no_grad()
def test_greedy_with_the_cache_is_greedy_without_it_and_eager(form: str) -> None:
    """Every token that the cache led to is the likeliest after its prefix, read whole by either model."""
    fields = FORMS[form] | {"tied": False}  # tied weights predict the token that was read, for ever
    fused, eager, start = model("triton", **fields), model("eager", **fields), batch()[0][:, :7]
    tokens = generate(fused, start, 12, chooser(Sampling()))
    for built in (fused, eager):
        assert torch.equal(tokens[:, 7:], built(tokens[:, :-1]).argmax(-1)[:, 6:])
    assert len(set(tokens[0, 7:].tolist())) > 3  # a model that repeats one token would show nothing
    beams, scores = beam_search(fused, start, 4, beams=3)
    expected, expected_scores = beam_search(eager, start, 4, beams=3)
    assert torch.equal(beams, expected)
    torch.testing.assert_close(scores, expected_scores, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_the_fused_loss_holds_no_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    built = model("triton")
    monkeypatch.setattr(built.head, "forward", lambda hidden: pytest.fail("the logits were asked for"))
    losses(built).mean().backward()
    NextToken.__new__(NextToken).loss(built, batch()).backward()


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "momentum"])
def test_training_agrees_step_by_step_and_gradients_are_clipped_once(optimizer: str) -> None:
    histories, norms = {}, {}
    for implementation in ("eager", "triton"):
        spec = train_spec(optimizer=optimizer, implementation=implementation, gradient_clip=0.5, learning_rate=0.003)
        built = model(implementation)
        update = build_optimizer(built, spec)
        assert clips(update) is (implementation == "triton")
        history = []
        for step in range(3):
            loss = NextToken.__new__(NextToken).loss(built, batch(step))
            loss.backward()
            if not clips(update):
                norms[step] = nn.utils.clip_grad_norm_(built.parameters(), spec.gradient_clip).item()
            update.step()
            update.zero_grad()
            history.append(loss.item())
        histories[implementation] = history
    assert min(norms.values()) > 0.5  # clipping mattered
    assert histories["triton"] == pytest.approx(histories["eager"], rel=2e-5)
    assert histories["eager"][0] != pytest.approx(histories["eager"][-1], rel=1e-4)


def test_every_optimizer_has_a_fused_one_or_is_refused_by_name() -> None:
    built = nn.Linear(3, 2)
    for name in set(OPTIMIZERS) & set(FUSED):
        update = build_optimizer(built, train_spec(optimizer=name, implementation="triton", gradient_clip=2.0))
        assert type(update).__name__ == FUSED[name]
        assert update.max_grad_norm == 2.0


STUDY = """
schema = 1
name = "tiny"
[model]
family = "gpt"
depth = 2
width = 16
head_dim = 16
[train]
steps = 2
batch_size = 1
sequence_length = 16
learning_rate = 0.003
implementation = ["eager", "triton"]
[data]
validation_samples = 2
"""


INFERENCE = """
schema = 1
name = "written"
workload = "inference"
[model]
family = "gpt"
depth = 2
width = 16
head_dim = 16
[inference]
prompt_length = 5
new_tokens = 3
repeats = 2
warmups = 1
weight_dtype = ["float32", "int8"]
implementation = "triton"
"""


def run_study(text: str, folder: Path) -> pd.DataFrame:
    """Run a study's trials in this process, whose kernels are interpreted, and return their records."""
    (folder / "study.toml").write_text(text)
    run_here(load_study(folder / "study.toml"), folder / "results")
    return load_results(folder / "results")


@pytest.mark.slow
def test_inference_runs_under_the_interpreter(tmp_path: Path) -> None:
    rows = run_study(INFERENCE, tmp_path)
    assert rows["status"].tolist() == ["ok", "ok"], rows["error_message"].tolist()
    assert (rows["decode_time_per_token_s"] > 0).all()
    assert set(rows["kv_cache_bytes"]) == {2 * 2 * 16 * 8 * 4}  # keys and values, layers, features, tokens, bytes


@pytest.mark.slow
def test_training_runs_under_the_interpreter_with_the_eager_loss(tmp_path: Path) -> None:
    """Without the interpreter it is unsupported on a CPU: test_engine.py."""
    rows = run_study(STUDY, tmp_path).set_index("implementation")
    assert rows["status"].to_dict() == {"eager": "ok", "triton": "ok"}, rows["error_message"].tolist()
    loss = rows["validation_loss_nats"]
    assert loss["triton"] == pytest.approx(loss["eager"], rel=1e-5)
    assert device.unavailable_reason() is None  # here: interpreted
