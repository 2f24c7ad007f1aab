"""The section about fine-tuning: gain, LoRA against all weights, forgetting, transfer, and a head of classes."""

from __future__ import annotations

import html
import re

import numpy as np
import pandas as pd
import pytest
from transfer_support import AMOUNTS, LENGTHS, SIZES, from_scratch, row, study, tuned

from scalebench.analysis.finetuning import lora_against_full, tuned_alike
from scalebench.analysis.study import StudyAnalysis, analyse
from scalebench.analysis.transfer import loss_from_scratch
from scalebench.reporting import conclusions, sections
from scalebench.reporting.outcomes import AGREES, UNTESTED
from scalebench.reporting.page import render_page
from scalebench.reporting.sections import finetune
from scalebench.store import Results


def results(*, scratch: bool = True) -> Results:
    """The planted study of ``transfer_support``, and LoRA at one amount of data: 0.1 nats worse, half forgotten."""
    planted = study(noise=0.002)
    full = planted.rows.assign(loss_before_nats=4.0, forgetting_nats=0.4, trainable_params=1000, params=1000,
                               parent_trial_id=[f"p{n}-{s}" for n, s in zip(planted.rows["params_non_embedding"],
                                                planted.rows["seed"], strict=True)])  # fmt: skip
    lora = full[full["tokens_seen"].eq(AMOUNTS[1])].assign(method="lora", rank=4, trainable_params=100)
    noise = 0.001 * np.random.default_rng(0).standard_normal(len(lora))
    lora = lora.assign(validation_loss_nats=lora["validation_loss_nats"] + 0.1 + noise, forgetting_nats=0.2 + noise,
                       trial_id="l" + lora["trial_id"])  # fmt: skip
    frames = [full, lora, *([planted.beside] if scratch else [])]
    return Results(pd.concat(frames, ignore_index=True), (), {"tuned": {}} | ({"scratch": {}} if scratch else {}))


@pytest.fixture(scope="module")
def analysed() -> StudyAnalysis:
    return analyse(results(), "tuned")


def test_groups_are_what_was_tuned_how_on_how_much(analysed: StudyAnalysis) -> None:
    groups = tuned_alike(analysed)
    assert [(group.method, group.tokens, len(group.trials)) for group in groups] == [
        *(("full", amount, 12) for amount in AMOUNTS), ("lora", AMOUNTS[1], 12),
    ]  # fmt: skip
    means = groups[0].means("validation_loss_nats")
    assert means["size"].tolist() == list(SIZES)
    assert means["mean"].tolist() == pytest.approx([tuned(n, AMOUNTS[0]) for n in SIZES], abs=0.01)


def test_lora_is_compared_by_parent_and_seed(analysed: StudyAnalysis) -> None:
    pairs = lora_against_full(analysed, "validation_loss_nats")
    assert [(pair.size, pair.seeds, pair.tokens) for pair in pairs] == [(n, 3, AMOUNTS[1]) for n in SIZES]
    assert all(pair.low < 0.1 < pair.high and pair.clear for pair in pairs)
    assert all(pair.high - pair.low < 0.02 for pair in pairs)  # the spread of the seeds, shared by both, cancels


@pytest.mark.parametrize(("best_over", "pairs"), [(["learning_rate"], 1), ([], 3)])
def test_learning_rates_are_no_seeds_of_one_another(best_over: list[str], pairs: int) -> None:
    """LoRA ends 0.1 nats above all weights at each of three rates, of which the middle one is the best."""
    rng, penalties = np.random.default_rng(0), {0.001: 0.3, 0.01: 0.0, 0.1: 0.5}
    rows = [
        row("tuned", 4e3, 2e4, seed, 3 + penalty + 0.1 * (method == "lora") + 0.001 * rng.standard_normal(),
            workload="finetune", method=method, rank=4 if method == "lora" else None, parent_trial_id=f"p{seed}",
            trial_id=f"{method}{seed}{rate}") | {"learning_rate": rate}
        for seed in range(3) for rate, penalty in penalties.items() for method in ("full", "lora")
    ]  # fmt: skip
    axes = {"learning_rate": [*penalties], "method": ["full", "lora"], "seed": [0, 1, 2]}
    definition = {"axes": axes, "fit": {"best_over": best_over}}
    study = analyse(Results(pd.DataFrame(rows), (), {"tuned": definition}), "tuned")
    compared = lora_against_full(study, "validation_loss_nats")
    assert [pair.seeds for pair in compared] == [3] * pairs
    assert all(pair.low < 0.1 < pair.high and pair.high - pair.low < 0.02 for pair in compared)
    best = min(group.means("validation_loss_nats")["mean"].iloc[0] for group in tuned_alike(study))
    assert best == pytest.approx(3.0, abs=0.01)


def test_the_sentences_have_the_numbers(analysed: StudyAnalysis) -> None:
    assert sections.section_for(analysed) is finetune.SECTION
    text = " ".join(conclusions(analysed)).replace("\u00a0", " ")
    assert re.search(r"Fine-tuned on 320 k tokens .*the loss goes from 4.000 to \d\.\d+ ± 0.00\d+ nats at 4,000", text)
    assert "from scratch" not in text.partition("The earlier training")[0]  # no run from scratch has as many tokens
    assert "The earlier training is worth, to a model that is fine-tuned on 80.0 k tokens" in text
    assert re.search(r"The law of transfer is D_T = k·D_F\^a·N\^b: k = .* b = 0\.[56]\d* \(0\.", text)
    assert "LoRA of rank 4 (trains 10.0 % of the parameters) on 80.0 k tokens ends 0.1" in text
    assert "On the parents' data the loss rises by 0.400 nats" in text


@pytest.mark.parametrize(
    ("means", "expected"),
    [((0.4, 0.2), "rises by 0.4"), ((-0.4, -0.2), "falls by 0.4"), ((-0.4, 0.2), "changes by -0.4")],
)
def test_forgetting_has_its_direction(means: tuple[float, float], expected: str) -> None:
    planted = results(scratch=False)
    rows = planted.frame.assign(forgetting_nats=planted.frame["params_non_embedding"].eq(SIZES[0]).map(
        dict(zip((True, False), means, strict=True))))  # fmt: skip
    groups = tuned_alike(analyse(Results(rows, (), planted.studies), "tuned"))
    (sentence,) = finetune.forgetting_sentences(groups[-1], groups)
    assert expected in sentence.replace("\u00a0", " ")


def test_as_much_data_from_scratch_stands_beside_the_loss() -> None:
    planted = study(amounts=LENGTHS[1:3])
    loss = loss_from_scratch(planted, SIZES[0], LENGTHS[2])
    assert loss == pytest.approx(from_scratch(SIZES[0], LENGTHS[2]))
    assert np.isnan(loss_from_scratch(planted, SIZES[0], 123.0))
    assert f"(from scratch {loss:.3f})" in next(finetune.sentences(planted))


def test_findings_need_their_trials(analysed: StudyAnalysis) -> None:
    law, less, forgets = finetune.outcome(analysed).findings
    assert law.verdict == less.verdict == forgets.verdict == AGREES
    assert law.low < 0.6 < law.high
    alone = analyse(results(scratch=False), "tuned")
    assert finetune.outcome(alone).findings[0].verdict == UNTESTED
    assert "No law of transfer: there are no training runs from scratch" in " ".join(conclusions(alone))


@pytest.mark.slow
def test_the_page_has_every_figure(analysed: StudyAnalysis) -> None:
    text = html.unescape(render_page([analysed]))
    for title in ("Loss before and after fine-tuning", "Effective data transferred", "LoRA against all weights",
                  "Forgetting: loss on the old data"):  # fmt: skip
        assert f">{title}<" in text
    assert "could not be drawn" not in text


def test_one_seed_of_lora_makes_no_claim() -> None:
    rows = [
        row("one", n, 2e4, 0, 0.5 + 0.1 * (method == "lora"), workload="finetune", method=method, rank=4,
            parent_trial_id=f"p{n}", loss_before_nats=1.0, forgetting_nats=0.1, trainable_params=50, params=200,
            trial_id=f"{method}{n}")
        for n in SIZES[:2] for method in ("full", "lora")
    ]  # fmt: skip
    text = " ".join(conclusions(analyse(Results(pd.DataFrame(rows), (), {"one": {}}), "one"))).replace("\u00a0", " ")
    assert "(trains 25.0 % of the parameters)" in text
    assert "nats from all weights at 4,000 parameters (one seed, so its noise is unknown)" in text
    assert "within noise" not in text


def test_an_accuracy_without_f1_as_of_a_users_task_is_shown_alone() -> None:
    rows = [
        row("own", n, 2e4, seed, 0.5 + 1e3 / n, workload="finetune", method="full", loss_before_nats=1.0,
            metric_accuracy=0.8, trial_id=f"o{n}-{seed}")
        for n in SIZES for seed in range(2)
    ]  # fmt: skip
    text = " ".join(conclusions(analyse(Results(pd.DataFrame(rows), (), {"own": {}}), "own"))).replace("\u00a0", " ")
    assert "Accuracy (all weights) is 80.0 % at 4,000 parameters and 80.0 % at" in text
    assert "F1" not in text


def test_a_longest_training_without_accuracy_makes_no_sentence_of_it() -> None:
    rows = [
        row("own", n, tokens, 0, 0.5 + 1e3 / n, workload="finetune", method="full", loss_before_nats=1.0,
            metric_accuracy=0.8 if tokens < 2e4 else None, trial_id=f"o{n}-{tokens}")
        for n in SIZES for tokens in (1e4, 2e4)
    ]  # fmt: skip
    text = " ".join(conclusions(analyse(Results(pd.DataFrame(rows), (), {"own": {}}), "own")))
    assert "Fine-tuned on" in text
    assert "Accuracy" not in text


def test_a_head_of_classes_is_shown_by_its_scores() -> None:
    rows = [
        row("classes", n, 2e4, seed, 0.5 + 1e3 / n + 0.01 * seed, workload="finetune", method="full", head="classes",
            pooling="last", parent_trial_id=f"p{n}", loss_before_nats=np.log(2), forgetting_nats=0.1,
            metric_accuracy=0.8 + 0.02 * seed * (n == SIZES[-1]), metric_f1=0.75, trial_id=f"c{n}-{seed}")
        for n in SIZES for seed in range(3)
    ]  # fmt: skip
    analysed = analyse(Results(pd.DataFrame(rows), (), {"classes": {}}), "classes")
    text = " ".join(conclusions(analysed)).replace("\u00a0", " ")
    assert "Accuracy (all weights) is 80.0 % (macro F1 0.750) at 4,000 parameters" in text
    assert "82.0 ± 1.2 % (macro F1 0.750)" in text
    assert "transfer" not in text
    assert [spec.key for spec in finetune.figures(analysed)][:2] == ["after", "lora"]
    outcome = finetune.outcome(analysed)
    assert "transferred" not in outcome.measured
    assert outcome.law.startswith(("L = E", "full: L = E", "refused: "))
    assert [finding.published for finding in outcome.findings] == ["LoRA learns less than all weights"]
