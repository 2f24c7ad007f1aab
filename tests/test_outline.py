"""The outline of a model: names and shapes of the built model, without values."""

from __future__ import annotations

import pytest
import torch
from family_support import config_of, model_of

from scalebench.families import FAMILIES
from scalebench.families.outline import outline


@pytest.mark.parametrize("name", FAMILIES)
def test_names_and_shapes_are_those_of_the_built_model(name: str) -> None:
    built = model_of(name, params=10_000)
    outlined = outline(FAMILIES[name], config_of(name, params=10_000))
    assert all(tensor.is_meta for tensor in outlined.state_dict().values())
    shapes, expected = ({key: value.shape for key, value in model.state_dict().items()} for model in (outlined, built))
    assert shapes == expected
    assert [key for key, _ in outlined.named_parameters()] == [key for key, _ in built.named_parameters()]


def test_no_memory_is_taken_and_no_random_number_drawn() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    config = FAMILIES["gpt"].SIZES["gpt2-xl"]  # 1.5 billion parameters
    model = outline(FAMILIES["gpt"], config)
    assert sum(parameter.numel() for parameter in model.parameters()) > 1e9
    assert torch.rand(1) == expected
