"""4-bit weights: how torchao packs them for a GPU, checked without one, and which machines are refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from quantize_support import model, spec
from scalekernels import Unsupported

from scalebench.errors import InputError
from scalebench.families import FAMILIES
from scalebench.measure.memory import weight_bytes
from scalebench.workloads import int4, quantize
from scalebench.workloads.base import Request
from scalebench.workloads.quantize_convert import by_torchao, convert, layers, matrix_bytes, obstacle

INT4 = spec("int4-weight-only")


@pytest.fixture
def capable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU of capability 8.0, as far as torchao asks."""
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda *_: (8, 0))
    monkeypatch.setattr("torch.cuda.get_device_name", lambda *_: "A GPU")


@pytest.mark.usefixtures("capable")
@pytest.mark.parametrize(("shape", "group_size"), [((24, 64), 32), ((100, 1056), 32), ((48, 2048), 128)])
def test_bytes_on_a_gpu_are_those_of_torchaos_tiles(shape: tuple[int, int], group_size: int) -> None:
    workflows = pytest.importorskip("torchao.quantization.quantize_.workflows")
    weight = torch.empty(shape, dtype=torch.bfloat16, device="meta")
    packed = workflows.Int4TilePackedTo4dTensor.from_hp(weight, [1, group_size])
    expected = packed.qdata.nbytes + packed.scale_and_zero.nbytes
    assert matrix_bytes(shape, spec("int4-weight-only", group_size=group_size), "cuda") == expected
    assert (expected < weight.nbytes / 2) is (shape[1] % 1024 == 0)  # padding costs what the bits save


@pytest.mark.usefixtures("capable")
def test_a_model_is_converted_to_tiles_by_the_configuration_for_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchao")
    monkeypatch.setattr(int4, "check_device", lambda _: None)
    configured = int4.config
    monkeypatch.setattr(int4, "config", lambda group_size, _: configured(group_size, "cuda"))
    whole = model().to(torch.bfloat16).to("meta")
    names = layers(whole, outer=False)
    shapes = [tuple(layer.weight.shape) for layer in names.values()]
    before = weight_bytes(whole)
    by_torchao(whole, tuple(names), INT4)
    assert {type(layer.weight).__name__ for layer in layers(whole, outer=False).values()} == {
        "Int4TilePackedTo4dTensor"
    }
    converted = sum(matrix_bytes(shape, INT4, "cuda") for shape in shapes)
    assert weight_bytes(whole) == before - 2 * sum(rows * width for rows, width in shapes) + converted


def test_each_kind_of_device_has_its_configuration_and_layout() -> None:
    quantization = pytest.importorskip("torchao.quantization")
    gpu, cpu = int4.config(64, "cuda"), int4.config(64, "cpu")
    assert isinstance(gpu, quantization.Int4WeightOnlyConfig)
    assert gpu.int4_packing_format == "tile_packed_to_4d"
    assert type(cpu).__name__ == "PrototypeInt4WeightOnlyConfig"
    assert (gpu.group_size, cpu.group_size, gpu.set_inductor_config) == (64, 64, False)
    assert int4.layout("cuda") != int4.layout("cpu") == torch.backends.cpu.get_cpu_capability()


def test_rows_that_are_no_multiple_of_16_are_for_gpus_alone() -> None:
    assert obstacle((24, 64), INT4, "cpu") == "24 rows are not a multiple of 16"
    assert obstacle((24, 64), INT4, "cuda") is None
    assert obstacle((24, 48), INT4, "cuda") == "width 48 is not divisible by the group size 32"


def test_a_gpu_without_the_product_is_unsupported_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda")
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda *_: (7, 5))
    monkeypatch.setattr("torch.cuda.get_device_name", lambda *_: "An old GPU")
    with pytest.raises(Unsupported, match=r"capability 8\.0 or more, and An old GPU has 7\.5; set quantize\.device"):
        int4.check_device(gpu)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda *_: (9, 0))
    int4.check_device(gpu)
    with torch.device("meta"), pytest.raises(Unsupported, match="no product of 4-bit weights for meta"):
        convert(model(), INT4)


def decided(device: str, **shape: int) -> Any:
    family, unused = FAMILIES["gpt"], SimpleNamespace()
    fields = {"width": 32, "heads": 2, "head_dim": 16, "hidden": 64, "vocab_size": 61, "context": 16}
    config = family.Config(**({"depth": 1} | fields | shape))
    parent: Any = SimpleNamespace(spec=SimpleNamespace(seed=0, sequence_length=16))
    values = {"scheme": "int4-weight-only", "group_size": 32}
    data: Any = unused
    return quantize.decide(Request("gpt", values, lambda _: (config, data), data, data, parent, device=device))


def test_planning_for_a_gpu_is_refused_only_where_no_matrix_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantize, "find_spec", lambda _: object())
    odd = {"width": 32, "hidden": 72, "heads": 1, "head_dim": 8}  # 24 rows of qkv, 72 of up: no multiples of 16
    for device in ("cpu", "cuda", "auto"):
        assert decided(device).spec.precision == "bfloat16"
    assert {decided(device, **odd).spec.group_size for device in ("cuda", "auto")} == {32}
    with pytest.raises(InputError, match=r"quantize\.group_size: 32: int4-weight-only fits none of the matrices"):
        decided("cpu", **odd)
