"""A model at work: int8 weights, latencies, what a call costs, and whole inference trials."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from drivers import Drivers
from scalekernels import Unsupported
from torch.utils.flop_counter import FlopCounterMode

from scalebench import store
from scalebench.errors import StudyError
from scalebench.families import FAMILIES, gpt, mlp
from scalebench.measure.memory import weight_bytes
from scalebench.running.planning import PlannedTrial, load_study, plan
from scalebench.workloads.building import build_model
from scalebench.workloads.inference_run import latency_columns, make_call, timed
from scalebench.workloads.inference_run import run as run_inference
from scalebench.workloads.inference_spec import InferenceSpec, call_flops
from scalebench.workloads.quantization import with_weights
from scalebench.workloads.recorder import Recorder

STUDY = 'schema = 1\nname = "at-work"\nworkload = "inference"\n'
GPT = STUDY + '[model]\nfamily = "gpt"\nparams = 3000\n[inference]\nprompt_length = 10\nnew_tokens = 6\nrepeats = 3\n'
MLP = STUDY + '[model]\nfamily = "mlp"\nparams = 1000\n[inference]\nrepeats = 25\nbatch_size = 4\n'
PEAK = {"flops_per_s": 1e15, "source": "none"}


@pytest.fixture
def planned(tmp_path: Path) -> Callable[..., PlannedTrial]:
    """Plan a study of one trial."""

    def make(text: str, *settings: str) -> PlannedTrial:
        (tmp_path / "one.toml").write_text(text)
        (trial,) = plan(load_study(tmp_path / "one.toml", settings))
        return trial

    return make


def measured(trial: PlannedTrial, attempt: Path) -> dict[str, object]:
    """Run an inference trial in this process and return its columns."""
    attempt.mkdir(parents=True, exist_ok=True)
    header = {"identity": {"precision": trial.trial.spec.precision}, "checkpoint": False}
    placement = {"exclusive": True, "peaks": dict.fromkeys(("float32", "bfloat16"), PEAK)}
    recorder = Recorder(attempt, header, placement)
    run_inference(trial.trial, recorder)
    return recorder.columns


def spec(**changes: object) -> InferenceSpec:
    plain = {
        "batch_size": 1, "sequence_length": None, "new_tokens": None, "weight_dtype": "float32", "temperature": 0.0,
        "top_k": 0, "top_p": 1.0, "beams": 1, "repeats": 3, "warmups": 1, "implementation": "eager", "seed": 0,
    }  # fmt: skip
    return InferenceSpec(**(plain | changes))


# --- times and costs -------------------------------------------------------------------------------------------------


def test_latencies_are_the_percentiles_of_the_calls() -> None:
    whole = np.arange(1, 101) * 1e-3
    columns = latency_columns(np.stack([whole / 4, whole], 1), spec(new_tokens=4, sequence_length=8))
    assert columns["latency_median_s"] == pytest.approx(50.5e-3)
    assert columns["latency_p95_s"] == pytest.approx(95.05e-3)
    assert columns["latency_p99_s"] == pytest.approx(99.01e-3)
    assert columns["prefill_time_s"] == pytest.approx(50.5e-3 / 4)
    assert columns["decode_time_per_token_s"] == pytest.approx(50.5e-3 * 0.75 / 3)


@pytest.mark.parametrize(("calls", "p95", "p99"), [(19, None, None), (20, 1.0, None), (99, 1.0, None), (100, 1.0, 1.0)])
def test_percentiles_that_too_few_calls_support_are_null(calls: int, p95: float | None, p99: float | None) -> None:
    columns = latency_columns(np.stack([np.full(calls, np.nan), np.ones(calls)], 1), spec())
    assert (columns["latency_p95_s"], columns["latency_p99_s"]) == (p95, p99)
    assert "prefill_time_s" not in columns


def test_a_single_new_token_has_no_time_per_further_token() -> None:
    columns = latency_columns(np.ones((3, 2)), spec(new_tokens=1, sequence_length=8))
    assert columns["decode_time_per_token_s"] is None


def test_the_first_token_is_marked_within_the_call() -> None:
    first, whole = timed(lambda mark: (sum(range(1000)), mark(), sum(range(100_000))), torch.device("cpu"))
    assert 0 < first < whole
    first, _ = timed(lambda _: None, torch.device("cpu"))
    assert np.isnan(first)


@pytest.mark.parametrize(("batch", "beams", "new"), [(1, 1, 9), (3, 1, 1), (2, 4, 5)])
def test_the_flops_of_a_call_are_the_counters(batch: int, beams: int, new: int) -> None:
    config = gpt.config_for(1e4, vocab_size=61, context=40)
    request = spec(batch_size=batch, sequence_length=11, new_tokens=new, beams=beams)
    model = gpt.build(config, "eager").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        make_call(model, torch.zeros(batch, 11, dtype=torch.int64), request)(lambda: None)
    # The written-out prompt computes its future as well; T²/2 counts half of each position's look at itself.
    future = batch * gpt.count(config, 11).attention_flops
    itself = batch * beams * 2 * config.depth * config.inner * (new - 1)
    assert counter.get_total_flops() == call_flops(gpt, config, request) + future + itself


def test_the_flops_of_a_forward_pass_are_the_counters() -> None:
    config = mlp.config_for(1e3)
    with FlopCounterMode(display=False) as counter:
        mlp.build(config, "eager")(torch.zeros(6, config.inputs))
    assert counter.get_total_flops() == call_flops(mlp, config, spec(batch_size=6))


# --- whole trials ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", pytest.param("int8", marks=pytest.mark.slow)])
def test_an_inference_trial_of_a_gpt_records_what_it_took(planned, tmp_path: Path, dtype: str) -> None:
    trial = planned(GPT, f"inference.weight_dtype={dtype}", "inference.batch_size=2", "inference.implementation=sdpa")
    row = measured(trial, tmp_path / "attempt")
    config = gpt.Config(**trial.trial.model)
    element = 2 if dtype == "bfloat16" else 4
    assert config.context == 16
    assert row["kv_cache_bytes"] == 2 * config.depth * config.heads * config.head_dim * 16 * 2 * element
    assert row["precision"] == ("bfloat16" if dtype == "bfloat16" else "float32")
    model = with_weights(build_model(trial.trial, torch.device("cpu")), dtype)
    assert row["weight_bytes"] == weight_bytes(model)
    assert row["memory_at_peak_activations_bytes"] >= row["kv_cache_bytes"]
    calls = pd.read_parquet(tmp_path / "attempt" / "calls.parquet")
    latency = row["latency_median_s"]
    assert latency == calls["latency_s"].median()
    assert 0 < row["prefill_time_s"] < latency
    assert 0 < row["decode_time_per_token_s"] < latency / 5
    assert row["tokens_per_s"] == pytest.approx(2 * 6 / latency)
    assert row["samples_per_s"] == pytest.approx(2 / latency)
    assert row["mfu"] == pytest.approx(row["flops_per_call"] / latency / 1e15)
    assert row["latency_p95_s"] is None
    assert row["stop_step"] == 3
    assert trial.flops == 6 * row["flops_per_call"]


@pytest.mark.parametrize("setting", ["inference.temperature=0.8", "inference.beams=3"])
def test_drawing_and_beams_are_measured_too(planned, tmp_path: Path, setting: str) -> None:
    trial = planned(GPT, setting)
    row = measured(trial, tmp_path / "attempt")
    assert row["latency_median_s"] > row["prefill_time_s"] > 0
    beams = 3 if "beams" in setting else 1
    assert row["kv_cache_bytes"] == beams * measured(planned(GPT), tmp_path / "greedy")["kv_cache_bytes"]


def test_an_inference_trial_of_another_family_is_a_forward_pass(planned, tmp_path: Path) -> None:
    trial = planned(MLP, "inference.weight_dtype=int8")
    row = measured(trial, tmp_path / "attempt")
    assert "kv_cache_bytes" not in row
    assert "tokens_per_s" not in row
    assert row["samples_per_s"] == pytest.approx(4 / row["latency_median_s"])
    assert row["latency_p95_s"] >= row["latency_median_s"]
    family = FAMILIES["mlp"]
    assert row["flops_per_call"] == 4 * family.count(family.Config(**trial.trial.model)).forward_flops


def test_compiling_a_growing_cache_is_refused_with_the_reason(planned) -> None:
    with pytest.raises(StudyError, match=r"inference\.implementation: .*recompile for every length"):
        planned(GPT, "inference.implementation=compile")


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is missing where there is no CUDA device")
def test_the_fused_kernels_are_unsupported_without_a_gpu(planned, tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="no CUDA device"):
        measured(planned(GPT, "inference.implementation=triton"), tmp_path / "attempt")


# --- the study -------------------------------------------------------------------------------------------------------


def test_defaults_of_an_inference_study_are_decided(planned) -> None:
    trial = planned(STUDY + '[model]\nfamily = "gpt"\nparams = 3000\n')
    assert trial.trial.workload == "inference"
    assert (trial.trial.spec.sequence_length, trial.trial.spec.new_tokens) == (128, 32)
    assert trial.trial.model["context"] == 160
    assert trial.steps == 103
    config = gpt.Config(**trial.trial.model)
    layer = trial.counts.activation_bytes // config.depth
    cache = 2 * config.depth * config.inner * 160 * 4
    assert trial.memory_bytes == 4 * trial.counts.total + cache + layer


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            GPT + "[train]\nsteps = 3\n",
            "train.steps: the workload 'inference' reads no [train]; leave it out, or set workload = \"training\"",
        ),
        (GPT.replace("[inference]", "[inferense]"), "inferense: unknown key 'inferense'; did you mean 'inference'?"),
        (GPT.replace('"inference"', '"inferense"'), "workload: unknown 'inferense'; did you mean 'inference'?"),
        (
            MLP.replace('workload = "inference"\n', "").replace("batch_size = 4\n", ""),
            "inference.repeats: the workload 'training' reads no [inference]",
        ),
        (GPT + "batch_sise = 2\n", "inference.batch_sise: unknown key 'batch_sise'; did you mean 'batch_size'?"),
        (GPT + "batch_size = 0\n", "inference.batch_size: input should be greater than 0 (given 0)"),
        (GPT + 'weight_dtype = "int4"\n', "inference.weight_dtype: unknown 'int4'"),
        (GPT + "temperature = -0.5\n", "inference.temperature: input should be greater than or equal to 0"),
        (GPT + "temperature = inf\n", "inference.temperature: input should be a finite number"),
        (GPT + "temperature = 1.0\ntop_p = 1.5\n", "inference.top_p: input should be less than or equal to 1"),
        (GPT + "top_k = 3\n", "inference.temperature: top_k and top_p need sampling; set it above 0"),
        (GPT + "beams = 2\ntemperature = 1.0\n", "inference.beams: beam search does not sample"),
        (
            GPT.replace("params = 3000", 'size = "gpt2"\ncontext = 15'),
            "inference.new_tokens: 10 + 6 tokens do not fit",
        ),
        (MLP + "new_tokens = 3\n", "inference.new_tokens: mlp generates nothing: leave it out; families that can: gpt"),
        (MLP + "beams = 3\n", "inference.beams: mlp generates nothing"),
        (MLP + "prompt_length = 3\n", "inference.prompt_length: mlp takes no sequences: leave it out"),
        (
            GPT.replace('"inference"\n', '"training"\n').split("[inference]")[0] + "[train]\naccumulation = 17\n",
            "train.accumulation: 17 micro-batches of a batch of 16",
        ),
        (
            MLP.replace('"inference"\n', '"training"\n').split("[inference]")[0] + "[train]\ncheckpointing = true\n",
            "train.checkpointing: mlp has no blocks to recompute; families that can: vit, gpt, moe, bert",
        ),
        (
            MLP.replace('"inference"\n', '"training"\n').split("[inference]")[0] + "[train]\ncheckpointing = 1\n",
            "train.checkpointing: input should be a valid boolean (given 1)",
        ),
        (
            MLP.replace('"inference"\n', '"training"\n').split("[inference]")[0] + '[run]\ncheckpoint = "yes"\n',
            "run.checkpoint: input should be a valid boolean (given 'yes')",
        ),
    ],
)
def test_each_mistake_is_one_line_that_names_its_key(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "s.toml").write_text(text)
    with pytest.raises(StudyError) as caught:
        plan(load_study(tmp_path / "s.toml"))
    (line,) = caught.value.lines
    assert expected in line
    assert line.startswith(f"{tmp_path / 's.toml'}: ")


@pytest.mark.slow
def test_an_inference_study_runs_and_is_reported(drivers: Drivers, command, tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(GPT + "batch_size = [1, 2]\n")
    driver = drivers.start(tmp_path, ["run", "s.toml", "--json"])
    assert driver.wait(300) == 0, driver.err + driver.out
    assert json.loads(driver.out.splitlines()[-1])["statuses"] == {"ok": 2}
    frame = store.load_results(tmp_path / "results")
    assert set(frame["workload"]) == {"inference"}
    assert "validation_loss_nats" not in frame  # a column of training
    assert frame["invalid_reason"].isna().all()
    output = json.loads(command("plan", "s.toml", "--json")[1])
    assert output["total"]["missing"] == 0
    assert output["sizes"][0]["flops_per_trial"] == 6 * frame["flops_per_call"].max()
    assert command("report", "results", "-o", "r.html")[0] == 0
    page = (tmp_path / "r.html").read_text()
    assert "Latency against size" in page
    assert "Throughput against batch size" in page
    assert "Training loss over the steps" not in page
