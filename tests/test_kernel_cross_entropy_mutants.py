"""Broken copies of the loss kernels fail the acceptance rule; what is launched is what is compiled ahead of time."""

from __future__ import annotations

import pytest
import torch
from cross_entropy_support import RICH, case_failure
from kernel_support import (
    install_mutant,
    poisoned_memory,  # noqa: F401 - a fixture
)
from scalekernels import cross_entropy
from scalekernels.cross_entropy import Case, linear_cross_entropy

# A line of the kernels (or two), the part of it that is changed, and what it becomes.
MUTATIONS = {
    "mask one short": ("present = column < classes", "< classes", "< classes - 1"),
    "padding counted": ("present = column < classes", "< classes", "< stride"),
    "no rescale by the maximum": (
        "return new, total * tl.exp2((highest - new) * LOG2_E)",
        "highest - new",
        "new - new",
    ),
    "threads not rescaled": ("tl.sum(total * tl.exp2((highest - top) * LOG2_E)", "highest - top", "top - top"),
    "whole tiles left out": (
        "for start in range(whole, classes, BLOCK):\n        value",
        "whole, classes",
        "0, classes",
    ),
    "target not subtracted": ("tl.where(column == label, gradient - factor, gradient)", "- factor", "- 0.0"),
    "z loss without gradient": ("share = (amount + 2.0 * z_loss * normaliser) / total", "2.0 *", "0.0 *"),
    "z loss not added": ("entropy + z_loss * normaliser * normaliser", "+ z_loss", "+ 0.0"),
    "cap's derivative": ("4.0 * t / ((1.0 + t) * (1.0 + t))", "4.0", "2.0"),
    "cap's sign": ("return cap * tl.where(u < 0, -tanh, tanh)", "u < 0", "u < -9"),
    "target's logit not capped": (
        "wanted, _slope_there = capped(wanted, softcap)",
        "capped(wanted",
        "capped(2 * wanted",
    ),
    "rows' gradients dropped": ("factor = tl.load(row_gradient + row)", "tl.load", "1.0 + 0.0 * tl.load"),
    "ignored rows left": ("zero = tl.zeros((BLOCK,), logits", "tl.zeros((BLOCK,)", "0.5 + tl.zeros((BLOCK,)"),
    "last factor": (".to(tl.float32) * tl.load(factor)", "tl.load(factor)", "(tl.load(factor) * 0.5)"),
    "factor in place": (".to(tl.float32) * number", "number", "1.0"),
    "only factors above 1": ("if number != 1.0:", "!=", ">"),
}


CASES = [Case(6, 5, 130, torch.float32, reduction, ignored=True, **RICH) for reduction in ("mean", "none")]
CASES.append(Case(9, 5, 13000, torch.float32))  # whole tiles and a rest; the maximum of some rows is in either
CASES.append(Case(6, 5, 130, torch.float16))  # whose gradient of weight is summed in float32


def accepted() -> bool:
    return not any(case_failure(case, backward) for case in CASES for backward in (False, True))


@pytest.mark.filterwarnings("ignore:All-NaN slice encountered:RuntimeWarning")  # a column of nothing but poison
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_broken_kernel_fails_the_same_acceptance(monkeypatch, tmp_path, mutation):
    line, part, changed = MUTATIONS[mutation]
    assert line.count(part) == 1
    install_mutant(monkeypatch, tmp_path, cross_entropy.kernels, line, line.replace(part, changed))
    assert not accepted()


def test_the_cases_that_reveal_broken_kernels_are_accepted_of_sound_ones():
    assert accepted()


@pytest.mark.slow
def test_what_is_launched_is_what_is_compiled_ahead_of_time(monkeypatch):
    kernels = cross_entropy.kernels
    compiled = {
        (
            configuration.function.__name__,
            configuration.num_warps,
            configuration.num_stages,
            *sorted(configuration.constants.items()),
        )
        for configuration in kernels.compilations(90)
    }
    launched = []

    class Spy:
        def __init__(self, kernel):
            self.kernel, self.name = kernel, kernel.fn.__name__

        def __getitem__(self, grid):
            def launch(*arguments, **options):
                names = self.kernel.arg_names
                constants = {name: None for name, value in zip(names, arguments, strict=False) if value is None}
                constants |= {name: value for name, value in options.items() if name in names}
                launched.append((self.name, options["num_warps"], options["num_stages"], *sorted(constants.items())))
                return self.kernel[grid](*arguments, **options)

            return launch

    for name in ("losses", "scaled", "scale"):
        monkeypatch.setattr(kernels, name, Spy(getattr(kernels, name)))
    for softcap in (None, 2.0):
        for reduction in cross_entropy.REDUCTIONS:
            for dtype in cross_entropy.DTYPES:
                case = Case(3, 4, 10, dtype, reduction, softcap)
                for backward in (False, True):
                    cross_entropy.providers()["triton"].prepare(case, cross_entropy.inputs(case), backward)()
                    values = cross_entropy.inputs(case)
                    x, weight = (values[name].requires_grad_(backward) for name in ("x", "weight"))
                    loss = linear_cross_entropy(
                        x, weight, values["target"], reduction=reduction, softcap=softcap, label_smoothing=0.1
                    )
                    if backward:
                        loss.sum().backward()
    assert set(launched) == compiled
