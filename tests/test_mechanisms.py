"""The witnesses of single mechanisms, run by the emulator in place of a GPU, and jobs that report them."""

from __future__ import annotations

from typing import Any

import check_case
import gluon_emulator
import mechanisms
import pytest
from scalekernels.attention import hopper_gradients
from session_jobs import check_jobs


class Emulated:
    """Stands in for a kernel: a launch runs it by the emulator."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        """Return what takes the arguments of a launch."""

        def run(*arguments: Any, **_: Any) -> None:
            gluon_emulator.launch(
                self.kernel, grid[0], dict(zip(self.kernel.arg_names, arguments, strict=True)), seed=2
            )

        return run


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mechanisms, "product", Emulated(mechanisms.product))
    monkeypatch.setattr(mechanisms, "addition", Emulated(mechanisms.addition))
    monkeypatch.setattr(mechanisms, "PROGRAMS", 3)


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("name", mechanisms.witnesses())
def test_a_mechanism_that_works_is_exact(name: str) -> None:
    assert mechanisms.witnesses()[name]("cpu") is None


@pytest.mark.usefixtures("emulated")
def test_a_product_of_the_wrong_columns_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    launch = gluon_emulator.launch
    monkeypatch.setattr(
        gluon_emulator, "launch", lambda kernel, programs, values, seed: launch(kernel, programs, values | {"FIRST": 0})
    )
    assert "entries are wrong" in str(mechanisms.witnesses()["half of B"]("cpu"))


@pytest.mark.usefixtures("emulated")
def test_additions_out_of_order_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The emulator's programs run in order, so that the values are turned round."""
    launch = gluon_emulator.launch

    def reversed_launch(kernel: Any, programs: int, values: dict[str, Any], seed: int) -> None:
        launch(kernel, programs, values | {"values": values["values"].flip(0)}, seed)

    monkeypatch.setattr(gluon_emulator, "launch", reversed_launch)
    assert "entries are wrong" in str(mechanisms.witnesses()["TMA addition in order"]("cpu"))
    assert mechanisms.witnesses()["TMA addition"]("cpu") is None


@pytest.mark.parametrize(("is_shipped", "problem"), [(False, None), (True, "3 entries")])
def test_a_fault_is_a_problem_only_where_the_mechanism_is_shipped(
    monkeypatch: pytest.MonkeyPatch, is_shipped: bool, problem: str | None
) -> None:
    monkeypatch.setattr(
        mechanisms, "witnesses", lambda: {"one": lambda device: "3 entries", "two": lambda device: None}
    )
    monkeypatch.setattr(mechanisms, "is_shipped", lambda _: is_shipped)
    check = check_case.check_mechanism("one", "cpu")
    assert check == {"mechanism one": {"problem": problem, "information": "3 entries"}}
    assert check_case.check_mechanism("two", "cpu")["mechanism two"] == {"problem": None, "information": "exact"}


def test_a_mechanism_that_cannot_be_launched_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(device: str) -> str | None:
        raise RuntimeError(f"no such instruction on {device}")

    monkeypatch.setattr(mechanisms, "witnesses", lambda: {"one": fails})
    monkeypatch.setattr(mechanisms, "is_shipped", lambda _: False)
    check = check_case.check_mechanism("one", "cpu")["mechanism one"]
    assert check == {"problem": None, "information": "RuntimeError: no such instruction on cpu"}


def test_every_mechanism_has_a_job_on_a_gpu() -> None:
    jobs = {job.name: job.what for job in check_jobs("cuda", ("attention",))}
    for name in mechanisms.witnesses():
        assert jobs[f"mechanism: {name}"] == {"kind": "mechanism", "name": name, "device": "cuda"}
    assert not any(job.name.startswith("mechanism") for job in check_jobs("cpu", ("attention",)))


def test_mechanisms_are_shipped_with_a_measured_method_that_needs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    method: dict[str, Any] | None = None
    monkeypatch.setattr(mechanisms.tuned, "row", lambda *_: method)
    (wide,) = mechanisms.WIDE
    assert not mechanisms.is_shipped("half of B")
    assert not mechanisms.is_shipped(wide)
    method = hopper_gradients.APART._asdict()
    assert not mechanisms.is_shipped("half of B")
    assert mechanisms.is_shipped(wide)  # D 256 "apart" is by kernels of its own
    method |= {"name": "ordered", "stages": 3}
    assert mechanisms.is_shipped("half of B")
