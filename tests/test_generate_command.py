"""From a study that keeps its weights to text: the whole way through the command line, and every refusal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from support import SMALL, run_here

from scalebench import store
from scalebench.data import open_source
from scalebench.families import FAMILIES
from scalebench.running.planning import load_study
from scalebench.running.sweep import survey
from scalebench.study import Trial
from scalebench.workloads.loop import validate
from scalebench.workloads.trained import load_trained
from scalebench.workloads.weights import WEIGHTS

STUDY = """
schema = 1
name = "story"
[model]
family = "gpt"
params = 4000
[train]
steps = 60
batch_size = 8
sequence_length = 32
implementation = "sdpa"
[data]
source = "text:{story}"
validation_samples = 16
[run]
checkpoint = true
memory = "allocator"
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder: a GPT with weights, and an mlp of another study with and without them."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "story.txt").write_text("".join(f"{i:03d}\n{'abcabcabd ' * 20}\n" for i in range(900)))
    (folder / "story.toml").write_text(STUDY.format(story=folder / "story.txt"))
    (folder / "small.toml").write_text(SMALL)
    small = ["model.params=200", "train.seed=0"]
    settings = {"story.toml": [[]], "small.toml": [small, [*small, "name=kept", "run.checkpoint=true"]]}
    for study in (load_study(folder / name, each) for name, some in settings.items() for each in some):
        assert [row["status"] for row in run_here(study, folder / "results").values()] == ["ok"]
    return folder / "results"


def row_of(results: Path, study: str) -> dict[str, object]:
    frame = store.load_results(results / study)
    return frame.iloc[0].to_dict()


@pytest.mark.slow
def test_weights_are_kept_whole_and_vouched_for_by_the_record(results: Path) -> None:
    row = row_of(results, "story")
    weights = Path(str(row["attempt_dir"])) / WEIGHTS
    assert row["weights_file_bytes"] == weights.stat().st_size
    assert 0 < weights.stat().st_size - 4 * row["params"] < 4096  # a header beside the float32 values
    assert store.read_json(weights.with_name("record.json"))["files"][WEIGHTS] == weights.stat().st_size
    assert not list(weights.parent.glob(".*"))
    assert row_of(results, "small")["weights_file_bytes"] is None


@pytest.mark.parametrize("study", ["story", "kept"])
def test_the_model_read_back_has_the_loss_of_the_record(results: Path, study: str) -> None:
    row = row_of(results, study)
    trial, model = load_trained(Path(str(row["attempt_dir"])))
    assert isinstance(trial, Trial)
    family, data = FAMILIES[trial.family], open_source(trial.data.source)
    task = family.task(family.Config(**trial.model), data, trial.data, trial.spec)
    validation = validate(model, task, trial.spec, torch.device("cpu"))
    assert validation.loss_nats == pytest.approx(row["validation_loss_nats"], rel=1e-6)


def test_a_trained_model_writes_what_it_learned(results: Path, command) -> None:
    name = str(row_of(results, "story")["trial_id"])
    request = ("generate", results, "--trial", name, "--prompt", "abcabcabd abc", "--tokens", "12")
    code, out, _ = command(*request, "--temperature", "0")
    assert code == 0
    assert out == "abcabcabd abcabcabd abcab\n"
    assert command("generate", results, "--trial", name[:6], *request[4:], "--beams", "3")[1] == out
    assert json.loads(command(*request, "--temperature", "0", "--json")[1]) == {
        "command": "generate", "trial": name, "prompt": "abcabcabd abc", "seed": 0, "text": out.rstrip("\n"),
        "tokens": 12,
    }  # fmt: skip
    drawn = [command(*request, "--temperature", "3", "--seed", str(seed))[1] for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_without_a_number_of_tokens_the_context_is_filled(results: Path, command) -> None:
    name = str(row_of(results, "story")["trial_id"])
    code, out, _ = command("generate", results, "--trial", name, "--prompt", "abc", "--top-k", "2")
    assert code == 0
    assert len(out.removesuffix("\n").encode(errors="replace")) >= 32


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--prompt", "x" * 32), "--prompt: 32 tokens, and the model's context holds 32"),
        (("--prompt", "abc", "--tokens", "30"), "--tokens: 30 after a prompt of 3 outgrow the context; 29 fit"),
        (("--prompt", "abc", "--tokens", "0"), "--tokens: must be at least 1, given 0"),
        (("--prompt", ""), "--prompt: is empty"),
        (("--prompt", "abc", "--temperature", "-1"), "--temperature: must be 0"),
        (("--prompt", "abc", "--temperature", "nan"), "--temperature: must be 0"),
        (("--prompt", "abc", "--top-k", "-1"), "--top-k: must be 0"),
        (("--prompt", "abc", "--top-p", "1.5"), "--top-p: must be above 0 and at most 1, given 1.5"),
        (("--prompt", "abc", "--beams", "0"), "--beams: must be at least 1"),
        (("--prompt", "abc", "--beams", "2", "--temperature", "1"), "--beams: beam search does not sample"),
        (("--prompt", "abc", "--temperature", "0", "--top-k", "3"), "--temperature: --top-k and --top-p"),
        (("--prompt", "abc", "--family", "gpt"), "--family: gpt: has no effect"),
        (("--prompt", "abc", "--family", "mine.py"), "--family: mine.py: has no effect"),
    ],
)
def test_what_cannot_be_written_is_one_line_and_exit_code_2(results: Path, command, options, expected: str) -> None:
    name = str(row_of(results, "story")["trial_id"])
    code, out, err = command("generate", results, "--trial", name, *options)
    assert (code, out) == (2, "")
    assert err.startswith(expected)
    assert err.count("\n") == 1


def test_trials_that_cannot_write_are_refused_with_the_reason(results: Path, command) -> None:
    story, small, quantised = (str(row_of(results, study)["trial_id"]) for study in ("story", "small", "kept"))
    assert small == quantised  # the same trial, in two studies
    _, _, err = command("generate", results / "small", "--trial", small, "--prompt", "abc")
    assert err == f"--trial: {small} kept no weights; run its study with --set run.checkpoint=true\n"
    code, _, err = command("generate", results / "kept", "--trial", quantised, "--prompt", "abc")
    assert code == 2
    assert err.startswith(f"--trial: {quantised} has family mlp, which cannot generate text (families that can: gpt")
    code, _, err = command("generate", results / "story", "--trial", story[:-1] + "x", "--prompt", "abc")
    assert code == 2
    assert f"did you mean {story!r}?" in err


def test_damaged_weights_and_changed_data_are_told(results: Path, command, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(results / "story", copy)
    name = str(row_of(results, "story")["trial_id"])
    (weights,) = copy.glob(f"trials/*/*/{WEIGHTS}")
    weights.write_bytes(weights.read_bytes()[:-100])
    code, _, err = command("generate", copy, "--trial", name, "--prompt", "abc")
    assert code == 2
    assert f"{weights}: not the weights of this trial" in err
    assert "cut short or changed" in store.read_results(copy).damaged[0]
    (original,) = (results / "story").glob(f"trials/*/*/{WEIGHTS}")
    whole = bytearray(original.read_bytes())
    whole[-1] ^= 1
    weights.write_bytes(whole)
    code, _, err = command("generate", copy, "--trial", name, "--prompt", "abc")
    assert code == 2
    assert f"{weights}: SHA-256" in err


def test_a_study_that_comes_to_want_weights_trains_again_what_has_none(results: Path) -> None:
    settings = ["model.params=200", "train.seed=0"]
    file = results.parent / "small.toml"
    assert not survey(load_study(file, settings), results).missing
    assert len(survey(load_study(file, [*settings, "run.checkpoint=true"]), results).missing) == 1
    assert not survey(load_study(file, [*settings, "run.checkpoint=true", "name=kept"]), results).missing
