"""Small models of every family, as tests of what comes after training build them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from scalebench.data import open_data
from scalebench.families import FAMILIES, configure

SHAPE = {"depth": 2, "width": 8, "hidden": 12}


def config_of(name: str, **fields: Any) -> Any:
    family = FAMILIES[name]
    return configure(family, fields, open_data(family.DATA, None, 0.2), 16 if family.SEQUENCES else None)


def model_of(name: str, **fields: Any) -> nn.Module:
    torch.manual_seed(0)
    return FAMILIES[name].build(config_of(name, **fields), "eager")
