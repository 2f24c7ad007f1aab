"""A head of classes on gpt and bert: labelled text, scores, what is trained, what it costs, and what is refused."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from family_support import model_of
from parent_support import FINETUNED, PARENT, planned, refused, trained
from safetensors.torch import load_file

from scalebench import store
from scalebench.cli.app import main
from scalebench.data import DataError, open_source
from scalebench.data.labelled import LabelledText
from scalebench.families import FAMILIES
from scalebench.tasks import TextClasses
from scalebench.tasks.scores import class_scores
from scalebench.workloads import columns_of
from scalebench.workloads.classifier import Classifier
from scalebench.workloads.heads import BODIES, counts_with_head
from scalebench.workloads.lora import trainable
from scalebench.workloads.trained import load_trained

WORDS = {"down": "rain falls ", "up": "smoke rises ", "along": "trains run "}
BERT = PARENT.replace('"gpt"', '"bert"').replace("params = 3000", "params = 10000").replace("steps = 50", "steps = 2")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of 30 documents each, with lengths that differ; one document is in two of them."""
    root = tmp_path_factory.mktemp("folders")
    for place, (name, words) in enumerate(WORDS.items()):
        (root / name).mkdir()
        for number in range(30):
            (root / name / f"{number}.txt").write_text(f"{number} {words}" * (10 + 20 * place))
        (root / name / "same.txt").write_text("in two classes " * 10 if place < 2 else "alone " * 10)
    return root


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the results of a gpt, study "parent", and of a bert, study "bert"."""
    folder = tmp_path_factory.mktemp("base")
    trained(folder, PARENT, "train.steps=3")
    trained(folder, BERT, "name=bert")
    return folder


def head(folders: Path, *settings: str, parent: str = "parent") -> list[str]:
    return [f"from.study={parent}", "finetune.head=classes", f"data.source=folders:{folders}", *settings]


# --- labelled text ---------------------------------------------------------------------------------------------------


def test_classes_are_sub_folders_and_a_document_of_two_classes_is_left_out(folders: Path) -> None:
    text = open_source(f"folders:{folders}")
    assert isinstance(text, LabelledText)
    assert text.names == ("along", "down", "up")
    assert np.bincount(text.labels).tolist() == [31, 30, 30]
    assert all(WORDS[text.names[label]].encode() in document
               for document, label in zip(text.documents, text.labels, strict=True)
               if not document.startswith(b"alone"))  # fmt: skip


def test_classes_are_drawn_as_often_whatever_their_bytes_and_held_out_by_document(folders: Path) -> None:
    text = open_source(f"folders:{folders}")
    windows, labels = text.draw_labelled(np.random.default_rng(0), 0.2, 900, 12)
    assert all(250 < count < 350 for count in np.bincount(labels))
    for window, label in zip(windows[:60], labels[:60], strict=True):
        own = b"".join(d + b"\0" for d, of in zip(text.documents, text.labels, strict=True) if of == label)
        assert bytes(window) in own
    held, labels, clusters = text.validation_labelled(0.2, 30, 12)
    assert np.bincount(labels).tolist() == [10, 10, 10]
    assert all(len(set(labels[clusters == cluster])) == 1 for cluster in set(clusters))
    training = b"".join(d for d, of in zip(text.documents, text.labels, strict=True))
    assert all(bytes(window[:-1]) in training for window in held if 0 not in window[:-1])


def test_the_labels_are_part_of_the_data(folders: Path, tmp_path: Path) -> None:
    shutil.copytree(folders, tmp_path / "other")
    path = tmp_path / "other" / "up" / "0.txt"
    path.rename(tmp_path / "other" / "down" / "99.txt")
    first, second = open_source(f"folders:{folders}"), open_source(f"folders:{tmp_path / 'other'}")
    assert set(first.documents) == set(second.documents)
    assert first.sha256 != second.sha256


def test_the_sources_with_labels_that_every_machine_has() -> None:
    for name, classes in (("languages", ("python", "cpp")), ("packages", 4)):
        text = open_source(name)
        assert text.names == classes or len(text.names) == classes
        assert len(text.validation_labelled(0.2, 64, 65)[0]) == 64
    assert set(open_source("packages").documents) < set(open_source("stdlib").documents)


def test_folders_without_classes_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="0 sub-folders; labels need two or more"):
        open_source(f"folders:{tmp_path}")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.txt").write_text(name)
    text = open_source(f"folders:{tmp_path}")
    with pytest.raises(ValueError, match="class 'a': 1 document"):
        text.validation_labelled(0.2, 4, 1)


# --- scores ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("classes", "seen"), [(2, 2), (5, 4), (7, 3)])
def test_scores_are_scikit_learns(classes: int, seen: int) -> None:
    from sklearn.metrics import precision_recall_fscore_support

    rng = np.random.default_rng(classes)
    labels, predicted = rng.integers(seen, size=60), rng.integers(classes, size=60)
    precision, recall, f1, _ = precision_recall_fscore_support(labels, predicted, average="macro", zero_division=0.0)
    expected = {"accuracy": np.mean(labels == predicted), "precision": precision, "recall": recall, "f1": f1}
    assert class_scores(labels.astype(float), predicted.astype(float)) == pytest.approx(expected)


def test_scores_by_hand() -> None:
    """Class 0: 1 of 1 predictions and of 2 labels; class 1: 1 of 3 and 1 of 1; class 3: 0 of 0 and of 1; no class 2."""
    scores = class_scores(np.array([0, 0, 1, 3]), np.array([0, 1, 1, 1]))
    assert scores == pytest.approx(
        {"accuracy": 1 / 2, "precision": (1 + 1 / 3) / 3, "recall": (1 / 2 + 1) / 3, "f1": (2 / 3 + 1 / 2) / 3}
    )


# --- the module ------------------------------------------------------------------------------------------------------


def test_a_piece_stands_between_the_special_tokens_that_bert_knows(folders: Path) -> None:
    text = open_source(f"folders:{folders}")
    tokens, segments, labels = TextClasses(text, 12, 4, 0, 0.2, 8, specials=True).batch(1)
    plain, same = TextClasses(text, 10, 4, 0, 0.2, 8, specials=False).batch(1)
    assert tokens[:, 0].tolist() == [256] * 4
    assert tokens[:, -1].tolist() == [257] * 4
    assert torch.equal(tokens[:, 1:-1], plain)
    assert not segments.any()
    assert torch.equal(labels, same)


@pytest.mark.parametrize(("name", "pooling"), [(name, pooling) for name in BODIES for pooling in BODIES[name].poolings])
def test_what_is_pooled(name: str, pooling: str) -> None:
    body = model_of(name, params=3000 if name == "gpt" else 10_000)
    model = Classifier(body, body.tokens.weight.shape[1], 3, pooling, BODIES[name].unused[pooling]).eval()
    torch.nn.init.normal_(model.classes.weight)
    tokens = torch.randint(256, (2, 16))
    inputs = (tokens,) if name == "gpt" else (tokens, torch.zeros_like(tokens))
    hidden = body.norm(body.hidden(tokens)) if name == "gpt" else body.encode(*inputs)
    state = {
        "last": lambda: hidden[:, 15],
        "mean": lambda: hidden.sum(1) / 16,
        "first": lambda: torch.tanh(hidden[:, 0] @ body.pooler.weight.T + body.pooler.bias),
    }[pooling]()
    torch.testing.assert_close(model(*inputs), state @ model.classes.weight.T)
    for parameter in model.parameters():
        parameter.grad = None
    model(*inputs).sum().backward()
    used = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert used == {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize(("name", "pooling"), [(name, pooling) for name in BODIES for pooling in BODIES[name].poolings])
def test_the_flops_are_those_of_the_products_that_a_forward_pass_computes(name: str, pooling: str) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    family, body = FAMILIES[name], model_of(name, params=3000 if name == "gpt" else 10_000)
    config = body.config if name == "gpt" else None
    if config is None:
        from scalebench.data import open_data
        from scalebench.families import configure

        config = configure(family, {"params": 10_000}, open_data(family.DATA, None, 0.2), 16)
    spec = type("Spec", (), {"head": "classes", "pooling": pooling, "head_classes": 5, "sequence_length": 16})
    counts = counts_with_head(name, config, family.count(config, 16), spec)
    model = Classifier(body, config.width, 5, pooling, BODIES[name].unused[pooling]).eval()
    tokens = torch.randint(256, (1, 16))
    with FlopCounterMode(display=False) as counter:
        model(tokens) if name == "gpt" else model(tokens, torch.zeros_like(tokens))
    causal = counts.attention_flops if name == "gpt" else 0  # the counter sees both halves of a causal product
    assert counter.get_total_flops() == counts.forward_flops + causal
    assert counts.total == sum(parameter.numel() for parameter in model.parameters())


# --- the workload ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("parent", "method"), [("parent", "full"), ("parent", "lora"), ("bert", "full")])
def test_a_head_is_trained_measured_and_loaded_again(
    copied: Path, folders: Path, parent: str, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    # A rate at which a start that differs a little (the parent learns from the standard library's text) makes none.
    settings = head(
        folders, f"finetune.method={method}", "finetune.steps=60", "finetune.learning_rate=0.005", parent=parent
    )
    (row,) = trained(copied, FINETUNED, *settings)
    assert row["loss_before_nats"] == pytest.approx(math.log(3), abs=1e-6)
    assert row["validation_loss_nats"] < 0.8
    assert row["metric_accuracy"] > 0.6
    assert 0 < row["metric_f1"] <= 1
    assert 0 < row["metric_precision"] <= 1
    assert row["forgetting_nats"] == row["old_loss_nats"] - row["old_loss_before_nats"]
    assert (row["head"], row["head_classes"]) == ("classes", 3)
    assert row["pooling"] == BODIES[row["family"]].poolings[0]
    trial, model = load_trained(Path(row["attempt_dir"]))
    assert row["params"] == sum(parameter.numel() for parameter in model.parameters())
    frozen = row["params"] if method == "lora" else trainable(model)
    assert row["trainable_params"] == frozen if method == "full" else row["trainable_params"] < frozen
    saved = load_file(Path(row["attempt_dir"]) / "weights.safetensors")
    assert saved["classes.weight"].shape == (3, row["width"])
    text, correct, labels = open_source(f"folders:{folders}"), [], []
    task = TextClasses(text, 16, 8, 0, 0.2, trial.data.validation_samples, specials=parent == "bert")
    for (*inputs, label), _ in task.validation():
        correct += model(*inputs).argmax(1).eq(label).tolist()
        labels += label.tolist()
    assert np.mean(correct) == pytest.approx(row["metric_accuracy"])
    record = json.loads((Path(row["attempt_dir"]) / "record.json").read_text())
    assert {column.name for column in columns_of("finetune")} <= set(record)
    grandchild = FINETUNED.replace('"parent"', '"child"')
    line = refused(copied, grandchild, "name=grandchild")
    assert "has a head of 3 classes: its weights are no longer those of a" in line
    with pytest.raises(SystemExit) as ended:
        main(["generate", str(copied / "results"), "--trial", row["trial_id"], "--prompt", "a"])
    assert ended.value.code == 2
    assert "has a head of 3 classes, which generates no text" in capsys.readouterr().err


def test_a_head_is_planned_as_what_it_costs(copied: Path, folders: Path) -> None:
    (own,) = planned(copied, FINETUNED, f"data.source=folders:{folders}")
    (trial,) = planned(copied, FINETUNED, *head(folders))
    config = trial.trial.model
    outputs = 2 * 16 * config["width"] * config["vocab_size"]
    assert own.flops - trial.flops == 20 * 8 * 3 * (outputs - 2 * config["width"] * 3)
    assert trial.counts.total - own.counts.total == 3 * (config["width"] + 1)
    assert trial.counts.non_embedding == own.counts.non_embedding


def test_without_a_head_its_settings_make_no_second_trial_and_old_ids_stay(copied: Path, folders: Path) -> None:
    (plain,) = planned(copied, FINETUNED)
    (named,) = planned(copied, FINETUNED, "finetune.head=own", "finetune.pooling=mean", "finetune.head_classes=4")
    assert plain.trial_id == named.trial_id
    heads = planned(copied, FINETUNED, *head(folders, 'finetune.pooling=["last", "mean"]'))
    assert [trial.trial.spec.pooling for trial in heads] == ["last", "mean"]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["finetune.head=clases"], "did you mean 'classes'?"),
        (
            ["data.source=stdlib"],
            "'classes' needs labels, and 'stdlib' has none; with labels: languages, packages",
        ),
        (["finetune.head_classes=2"], "finetune.head_classes: 2 is less than the 3 labels (along, down, up)"),
        (["finetune.pooling=first"], "finetune.pooling: unknown 'first' (known: last, mean) for gpt"),
        (["finetune.implementation=compile"], "finetune.implementation: a head of classes runs with eager or sdpa"),
        (["finetune.sequence_length=17"], "sequence_length = 17 is longer than the context of 16"),
    ],
)
def test_each_mistake_is_one_line(copied: Path, folders: Path, settings: list[str], expected: str) -> None:
    assert expected in refused(copied, FINETUNED, *head(folders), *settings)


def test_a_family_without_such_a_body_is_refused(tmp_path: Path, folders: Path) -> None:
    trained(tmp_path, PARENT.replace('"gpt"', '"rnn"'), "train.steps=1", "model.params=3000")
    assert "finetune.head: 'classes' goes on gpt and bert, not on rnn" in refused(tmp_path, FINETUNED, *head(folders))


def test_a_refused_head_exits_2_and_writes_nothing(
    copied: Path, capsys: pytest.CaptureFixture[str], folders: Path
) -> None:
    (copied / "child.toml").write_text(FINETUNED)
    before = sorted(copied.rglob("*"))
    with pytest.raises(SystemExit) as ended:
        main(
            ["run", str(copied / "child.toml"), "--results", str(copied / "results"), "--set", "finetune.head=classes"]
        )
    assert ended.value.code == 2
    assert "finetune.head: 'classes' needs labels, and 'stdlib' has none" in capsys.readouterr().err
    assert sorted(copied.rglob("*")) == before
    assert store.study_dirs(copied / "results")
