"""[from] and the data: no child validates on what its parent was trained on."""

from __future__ import annotations

from pathlib import Path

from parent_support import CHILD, CONTINUED, planned, refused, trained

DIGITS = """
schema = 1
name = "parent"
[model]
family = "cnn"
params = 1000
[train]
steps = 1
batch_size = 4
seed = 2
[data]
source = "digits"
validation_samples = 8
[run]
checkpoint = true
memory = "allocator"
"""


def test_a_child_does_not_validate_on_images_that_its_parent_was_trained_on(tmp_path: Path) -> None:
    trained(tmp_path, DIGITS)
    (trial,) = planned(tmp_path, CHILD)
    assert (trial.trial.spec.seed, trial.trial.data.validation_fraction) == (2, 0.2)
    (same_fold,) = planned(tmp_path, CHILD, "train.seed=7")  # of five
    assert same_fold.trial.spec.seed == 7
    for text in (CHILD, CONTINUED):
        assert "train.seed: 3: " in refused(tmp_path, text, "train.seed=3")
        assert "data.validation_fraction: 0.5: " in refused(tmp_path, text, "data.validation_fraction=0.5")
