"""Vision families: published counts, built modules group by group, the dial, FLOPs, and what residuals do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support import train_spec
from torch.utils.flop_counter import FlopCounterMode

from scalebench.data import open_source
from scalebench.errors import InputError
from scalebench.families import cnn, configure, mlp, resnet, vit
from scalebench.families.modules.resnet import ResidualBlock
from scalebench.families.outline import outline
from scalebench.measure.clock import StepClock
from scalebench.optim.optimizers import build_optimizer
from scalebench.study import DataSpec
from scalebench.workloads.loop import train, validate

GLYPHS = {"channels": 1, "classes": 47}
PUBLISHED = [
    (cnn, "lenet", 62_006),
    (resnet, "resnet18", 11_689_512),
    (resnet, "resnet34", 21_797_672),
    (resnet, "resnet50", 25_557_032),
    (resnet, "resnet101", 44_549_160),
    (resnet, "resnet152", 60_192_808),
    (resnet, "resnet20-cifar", 269_722),
    (vit, "vit-tiny", 5_717_416),
    (vit, "vit-small", 22_050_664),
    (vit, "vit-base", 86_567_656),
]


def built_groups(family, module: torch.nn.Module) -> dict[str, int]:
    """Count a built module's parameters by the names of the modules that hold them."""
    groups: dict[str, int] = {}
    for name, parameter in module.named_parameters():
        group = GROUPS[family](name, parameter)
        groups[group] = groups.get(group, 0) + parameter.numel()
    return groups


def _resnet_group(name: str, parameter: torch.nn.Parameter) -> str:
    if name.startswith("head"):
        return "head"
    if parameter.ndim == 1:
        return "norm"
    return "stem" if name.startswith("stem") else "projections" if "projection" in name else "blocks"


def _vit_group(name: str, _: torch.nn.Parameter) -> str:
    top = name.split(".", maxsplit=1)[0]
    if top != "blocks":
        return top
    part = name.split(".")[2]
    return "norm" if "norm" in part else "attention" if part in ("qkv", "out") else "mlp"


GROUPS = {cnn: lambda name, _: name.split(".")[0], resnet: _resnet_group, vit: _vit_group}


@pytest.mark.parametrize(("family", "size", "params"), PUBLISHED)
def test_published_sizes_are_counted_exactly_and_built_so(family, size: str, params: int) -> None:
    config = family.SIZES[size]
    assert family.count(config).total == params
    module = outline(family, config)
    assert sum(parameter.numel() for parameter in module.parameters()) == params


CONFIGS = [
    (cnn, cnn.Config()),
    (cnn, cnn.config_for(2e4, **GLYPHS)),
    (resnet, resnet.SIZES["resnet18"]),
    (resnet, resnet.SIZES["resnet50"]),
    (resnet, resnet.config_for(3e4, **GLYPHS)),
    (resnet, resnet.config_for(3e4, residual=False, depth=8, **GLYPHS)),
    (resnet, resnet.explicit(5, form="imagenet", depth=18, image_size=45, residual=False)),
    (resnet, resnet.explicit(4, form="imagenet", depth=50, image_size=33)),
    (vit, vit.config_for(2e4, **GLYPHS)),
    (vit, vit.SIZES["vit-tiny"]),
]


@pytest.mark.parametrize(("family", "config"), CONFIGS)
def test_groups_and_flops_are_the_built_modules(family, config) -> None:
    module = outline(family, config)
    with torch.device("meta"):
        images = torch.zeros(2, config.channels, config.image_size, config.image_size)
    counts = family.count(config)
    assert built_groups(family, module) == {name: n for name, n in counts.by_group.items() if n}
    with FlopCounterMode(display=False) as counter:
        module(images)
    assert counter.get_total_flops() == 2 * counts.forward_flops


@pytest.mark.parametrize(
    ("family", "low", "fixed"),
    [
        (cnn, 3e3, GLYPHS), (cnn, 3e3, {}), (resnet, 1e4, GLYPHS), (resnet, 3e3, GLYPHS | {"depth": 8}),
        (resnet, 1e6, {"form": "imagenet", "classes": 1000}), (vit, 4e3, GLYPHS), (vit, 4e3, {}),
    ],
)  # fmt: skip
def test_the_dial_lands_within_five_percent_and_a_tenth_more_is_larger(family, low: float, fixed) -> None:
    for request in np.geomspace(low, 2e4 * low, 40):
        size, more = (
            family.count(family.config_for(params, **fixed)).non_embedding for params in (request, 1.1 * request)
        )
        assert abs(size / request - 1) <= 0.05
        assert more > size


@pytest.mark.parametrize(
    ("family", "request_", "word"),
    [
        (cnn, {"params": 50}, "nearest cnn"),
        (cnn, {"image_size": 12}, "image_size = 12"),
        (resnet, {"params": 1e4, "depth": 9}, r"6 n \+ 2"),
        (resnet, {"params": 1e7, "form": "imagenet", "depth": 20}, "18, 34, 50"),
        (resnet, {"params": 1e4, "width": 3}, "width: .* give depth"),
        (resnet, {"width": 8, "last": 3}, "last = 3"),
        (resnet, {"params": 1e4, "form": "cifer"}, "did you mean"),
        (vit, {"params": 50}, "nearest vit"),
        (vit, {"params": 1e5, "patch": 5}, "patch = 5 does not divide image_size = 32"),
    ],
)
def test_requests_that_make_no_model_name_the_field(family, request_, word: str) -> None:
    with pytest.raises(InputError, match=word):
        configure(family, request_, open_source("glyphs"), None)


@pytest.mark.parametrize(("field", "value"), [("channels", 3), ("classes", 10)])
def test_a_model_that_does_not_fit_the_images_is_refused(field: str, value: int) -> None:
    config = configure(cnn, {"params": 2e4, field: value}, open_source("glyphs"), None)
    spec = DataSpec(source="glyphs", validation_fraction=0.2, validation_samples=10, noise_std=None, sha256="")
    with pytest.raises(ValueError, match=f"{field} = {value}"):
        cnn.task(config, open_source("glyphs"), spec, train_spec())


def test_without_residuals_a_block_is_its_convolutions_alone() -> None:
    torch.manual_seed(0)
    shape = next(resnet.blocks_of(resnet.explicit(4, depth=8)))
    x = torch.randn(2, 4, 8, 8)
    with_one, without = (ResidualBlock(shape, residual=residual).eval() for residual in (True, False))
    without.load_state_dict(with_one.state_dict())
    with torch.no_grad():
        inner = with_one.convolutions[1](torch.relu(with_one.convolutions[0](x)))
        torch.testing.assert_close(with_one(x), torch.relu(inner + x))
        torch.testing.assert_close(without(x), torch.relu(inner))


def test_shortcuts_without_parameters_subsample_and_pad() -> None:
    config = resnet.explicit(4, depth=8)
    block = ResidualBlock(list(resnet.blocks_of(config))[1], residual=True)
    x = torch.randn(1, 4, 8, 8)
    shortcut = block.shortcut(x)
    assert torch.equal(shortcut[:, :4], x[:, :, ::2, ::2])
    assert shortcut.shape == (1, 8, 4, 4)
    assert not shortcut[:, 4:].any()


def test_eager_and_sdpa_compute_the_same_function_and_gradients() -> None:
    config = vit.config_for(2e4, **GLYPHS)
    images = torch.randn(3, 1, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    outputs = []
    for implementation in ("eager", "sdpa"):
        torch.manual_seed(0)
        module = vit.build(config, implementation).double()
        logits = module(images)
        logits.square().mean().backward()
        outputs.append((logits, [parameter.grad for parameter in module.parameters()]))
    (a, grads_a), (b, grads_b) = outputs
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    for left, right in zip(grads_a, grads_b, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-9)


def learned(family, source: str, request: dict[str, object], steps: int, samples: int = 512) -> dict[str, float]:
    spec = train_spec(steps=steps, batch_size=32, learning_rate=1.0, schedule="linear", gradient_clip=1.0)
    data = open_source(source)
    config = configure(family, request, data, None)
    spec = spec.model_copy(update={"learning_rate": family.learning_rate(config)})
    data_spec = DataSpec(
        source=source, validation_fraction=0.2, validation_samples=samples, noise_std=0.5, sha256=data.sha256
    )
    task = family.task(config, data, data_spec, spec)
    torch.manual_seed(0)
    model = family.build(config, "eager")
    losses, clock = torch.full((steps,), torch.nan), StepClock(torch.device("cpu"))
    train(model, build_optimizer(model, spec), task, spec, clock, losses, lambda done: None)
    return dict(validate(model, task, spec, torch.device("cpu")).metrics)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "source", "request_", "steps", "accuracy"),
    [
        (mlp, "digits", {"params": 5e3}, 150, 0.85),
        (cnn, "digits", {"params": 1e4}, 120, 0.7),
        (resnet, "digits", {"params": 5e3, "depth": 8}, 60, 0.5),
        (vit, "digits", {"params": 1e4}, 150, 0.5),
    ],
)
def test_each_learns_the_digits_far_beyond_chance(family, source, request_, steps, accuracy) -> None:
    metrics = learned(family, source, request_, steps)
    assert metrics["accuracy"] > accuracy
    assert metrics["f1"] == pytest.approx(metrics["accuracy"], abs=0.15)
