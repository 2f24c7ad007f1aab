"""Base of the fused optimizers: a torch optimizer whose step is a few launches."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import count, pairwise
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from scalekernels.device import require_device
from scalekernels.optimizer.bound import Bound
from scalekernels.optimizer.kernels import OPTIONS
from scalekernels.optimizer.launch import STATE_DTYPES, Variant, launch_step, optimizer_step
from scalekernels.optimizer.state import (
    dequantised,
    empty_scale,
    empty_state,
    refuse_grad,
    refuse_param,
    refuse_state,
    store,
)
from scalekernels.optimizer.tables import TABLES, Tables, to_device

NEXT_ID = count(1)
REFUSED = {  # option of torch -> the value that these kernels do not support, and why
    "amsgrad": (True, "the largest second moment is not stored"),
    "foreach": (True, "one launch updates all tensors; leave it out"),
    "fused": (True, "this optimizer is always fused; leave it out"),
    "differentiable": (True, "the update happens in place"),
}


@dataclass(frozen=True)
class _Loaded:
    """Wraps state for torch's ``load_state_dict``, which would cast bare tensors to the parameter's dtype."""

    state: Mapping[str, Any]


class FusedOptimizer(Optimizer):
    """Mixin before one of torch's optimizers, with the same arguments, checks and state names.

    A subclass defines ``variant()``, ``options(group)`` and torch's names of the three states.

    Arguments beyond torch's, by name:

    - ``max_grad_norm`` clips the gradients' norm over all parameters as ``torch.nn.utils.clip_grad_norm_`` does, except
      that the gradients keep their values; ``grad_norm`` is the last step's norm, float32, shape [], on the device;
    - ``state_dtype`` is the dtype of the moments: float32, bfloat16, or int8 (8-bit codes in blocks of 256);
    - ``stochastic_rounding`` rounds bfloat16 parameters and low-bit state at random, reproducibly by ``seed``, so that
      updates smaller than half a unit are not lost.

    ``step`` compares objects and addresses with those of the last step (``bound``): while parameters, state and
    gradients are the same, it builds no tables and copies nothing to the device; if only gradients differ, it copies
    their addresses. A step can be captured in a CUDA graph after an uncaptured one, with gradient tensors kept
    (``zero_grad(set_to_none=False)``) and ``lr`` a tensor on the device, which every replay reads. The caller has to
    order steps on different streams, as for anything that writes the same parameters (``tables``).

    ``step`` raises for a gradient that is sparse or has another dtype or layout than its parameter, for a parameter
    whose dtype, layout or size no longer matches its state, and for unsupported options switched on later. The
    constructor raises for parameters that are complex, on an unsupported device, with gaps in memory, sharing memory,
    or of a tensor subclass, and for unsupported options of torch.
    """

    first_name = second_name = third_name = ""

    def __init__(
        self,
        params: Iterable[Any],
        *arguments: Any,
        max_grad_norm: float | None = None,
        state_dtype: torch.dtype = torch.float32,
        stochastic_rounding: bool = True,
        seed: int = 0,
        **options: Any,
    ) -> None:
        if state_dtype not in STATE_DTYPES:
            raise TypeError(f"state_dtype is {state_dtype}; allowed: {', '.join(map(str, STATE_DTYPES))}")
        if max_grad_norm is not None and not max_grad_norm > 0:
            raise ValueError(f"max_grad_norm is {max_grad_norm}; allowed: a positive number, or None")
        self.max_grad_norm = max_grad_norm
        self.state_dtype = state_dtype
        self.stochastic_rounding = stochastic_rounding
        self.seed = seed
        self._prepare()
        for name, value in options.items():
            refuse_option(type(self).__name__, name, value)
        super().__init__(params, *arguments, **options)

    def variant(self) -> Variant:
        """Return the kernel variant for the groups."""
        raise NotImplementedError

    def options(self, group: Mapping[str, Any]) -> list[float]:
        """Return a, b, eps and the extra option of a group (see ``preparation.advance_kernel``)."""
        raise NotImplementedError

    def _prepare(self) -> None:
        self.grad_norm: Tensor | None = None
        self._tables = Tables()
        self._tables_id = next(NEXT_ID)
        TABLES[self._tables_id] = self._tables
        self._options: list[list[float]] = []
        self._options_table: Tensor | None = None
        self._bound: Bound | None = None

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group as torch does, without duplicates; raise for parameters that the kernels cannot update."""
        given = param_group["params"]
        listed = [given] if isinstance(given, Tensor) else list(given)
        if listed and isinstance(listed[0], Tensor):
            param_group["params"] = list(dict.fromkeys(listed))
            if len(param_group["params"]) < len(listed):
                warnings.warn("a parameter group names a parameter more than once; it is updated once", stacklevel=3)
        super().add_param_group(param_group)
        self._check_group(len(self.param_groups) - 1)
        self._check_memory()

    def _check_group(self, index: int) -> None:
        group = self.param_groups[index]
        self._check_options()
        first = self.param_groups[0]["params"]
        for place, param in enumerate(group["params"]):
            name = f"parameter {place} of group {index}"
            refuse_param(param, name)
            require_device(**{"parameter 0 of group 0": first[0] if first else param, name: param})

    def _check_options(self) -> None:
        """Raise for options that the kernels do not support, including those switched on after construction."""
        for group in self.param_groups:
            for name in REFUSED:
                refuse_option(type(self).__name__, name, group.get(name))
            if group.get("centered") and self.state_dtype != torch.float32:
                raise ValueError("centered=True takes the difference of two means: it needs state_dtype=torch.float32")

    def _check_memory(self) -> None:
        """Raise for parameters that share memory, which two programs would write at the same time."""
        spans = sorted(
            (
                param.data_ptr(),
                param.data_ptr() + param.numel() * param.element_size(),
                f"parameter {place} of group {index}",
            )
            for index, group in enumerate(self.param_groups)
            for place, param in enumerate(group["params"])
            if param.numel()
        )
        for (_, end, name), (start, _, other) in pairwise(spans):
            if start < end:
                raise ValueError(f"{name} and {other} share memory: give tied weights as one parameter")

    def __getstate__(self) -> dict[str, Any]:
        own = ("max_grad_norm", "state_dtype", "stochastic_rounding", "seed")
        return super().__getstate__() | {name: getattr(self, name) for name in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        Optimizer.__setstate__(self, state)  # puts the state in place; torch's own optimizers then look into it
        self._prepare()
        for param, kept in list(self.state.items()):
            if isinstance(kept, _Loaded):
                self.state[param] = self._restored(param, kept.state) if isinstance(param, Tensor) else kept.state
        super().__setstate__({})
        for group in self.param_groups:
            for name in REFUSED:
                if name in group and name != "amsgrad":
                    group[name] = False if name == "differentiable" else None
            refuse_option(type(self).__name__, "amsgrad", group.get("amsgrad"))

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load state saved by this class or by torch's optimizer of the same name, in any dtype."""
        wrapped = {key: _Loaded(kept) for key, kept in state_dict["state"].items()}
        super().load_state_dict({**state_dict, "state": wrapped})

    def _restored(self, param: Tensor, saved: Mapping[str, Any]) -> dict[str, Any]:
        """Return state for ``param`` with the values of ``saved``, in this optimizer's dtype and memory layout."""
        names = [name for name in (self.first_name, self.second_name, self.third_name) if saved.get(name) is not None]
        state = self._fresh(param, names)
        # torch's SGD keeps a momentum buffer and no step: having one means that the first step is over.
        state["step"].fill_(float(saved.get("step", 1 if names else 0)))
        for name in names:
            self._restore(state, saved, name)
        return state

    def _restore(self, state: dict[str, Any], saved: Mapping[str, Any], name: str) -> None:
        value, scale = saved[name], saved.get(f"{name}_scale")
        if value.shape != state[name].shape:
            raise ValueError(f"saved {name} has shape {tuple(value.shape)}, the parameter {tuple(state[name].shape)}")
        if scale is not None and value.dtype == state[name].dtype:
            state[name].copy_(value)
            state[f"{name}_scale"].copy_(scale)
            return
        value = value if scale is None else dequantised(value, scale)
        store(value, state[name], state.get(f"{name}_scale"))

    def float_state_dict(self) -> dict[str, Any]:
        """Return a copy of ``state_dict()`` with every moment as float32 and only torch's entries."""
        saved = self.state_dict()
        saved["state"] = {key: _as_float(state) for key, state in saved["state"].items()}
        return saved

    def _fresh(self, param: Tensor, names: Iterable[str]) -> dict[str, Any]:
        state: dict[str, Any] = {"step": torch.zeros((), dtype=torch.float32, device=param.device)}
        for name in names:
            state |= self._fresh_moment(param, name)
        return state

    def _fresh_moment(self, param: Tensor, name: str) -> dict[str, Tensor]:
        if self.state_dtype != torch.int8:
            return {name: empty_state(param, self.state_dtype)}
        dtype = torch.uint8 if name == self.second_name else torch.int8
        return {name: empty_state(param, dtype), f"{name}_scale": empty_scale(param)}

    def _names(self, variant: Variant) -> list[str]:
        kept = ((self.first_name, variant.first), (self.second_name, variant.second), (self.third_name, variant.third))
        return [name for name, used in kept if used]

    def _ready(self, param: Tensor, names: list[str]) -> dict[str, Any]:
        """Return the state of a parameter, created at its first gradient."""
        state = self.state[param]
        if not state:
            state |= self._fresh(param, names)
        for name in names:
            if name not in state:
                state |= self._fresh_moment(param, name)
                if not self.second_name:  # SGD's momentum was switched on later: the buffer's first step is the first
                    state["step"].zero_()
        return state

    def _members(
        self, variant: Variant
    ) -> tuple[list[Tensor], list[Tensor | None], list[dict[str, Any]], list[int], list[int]]:
        """Return parameters that have, or once had, a gradient, with gradient, state, group and place among all.

        Raises for those that are not what they were when they were added, and for gradients unlike them.
        """
        params: list[Tensor] = []
        grads: list[Tensor | None] = []
        states: list[dict[str, Any]] = []
        groups: list[int] = []
        members: list[int] = []
        names, total = self._names(variant), count()
        for index, group in enumerate(self.param_groups):
            for place, param in enumerate(group["params"]):
                grad, number = param.grad, next(total)
                if grad is not None:
                    refuse_param(param, f"parameter {place} of group {index}")
                    refuse_grad(param, grad, f"parameter {place} of group {index}")
                elif not self.state.get(param):
                    continue
                params.append(param)
                grads.append(grad)
                states.append(self._ready(param, names))
                refuse_state(param, states[-1], names, f"parameter {place} of group {index}")
                groups.append(index)
                members.append(number)
        return params, grads, states, groups, members

    def _option_table(self, device: torch.device) -> Tensor:
        """Return the float64 table of the groups' options on the device, copied again only if a number changed."""
        rows = [self._option_row(group) for group in self.param_groups]
        if self._options_table is None or len(self._options_table) != len(rows) or self._options_table.device != device:
            self._options_table = torch.zeros(len(rows), OPTIONS, dtype=torch.float64, device=device)
            self._options = []
        if rows != self._options:
            to_device(torch.tensor(rows, dtype=torch.float64), self._options_table)
            self._options = rows
            self._tables.uploads["options"] += 1
        for index, group in enumerate(self.param_groups):
            if isinstance(group["lr"], Tensor) and group["lr"].device.type != "cpu":
                self._options_table[index, 0].copy_(group["lr"].detach().view(()), non_blocking=True)
        return self._options_table

    def _option_row(self, group: Mapping[str, Any]) -> list[float]:
        rate = group["lr"]
        if isinstance(rate, Tensor):  # one on the device is copied there, without looking at it
            rate = float(rate) if rate.device.type == "cpu" else 0.0
        sign = -1.0 if group.get("maximize") else 1.0
        decoupled = float(group.get("decoupled_weight_decay", self.variant().algorithm == "lion"))
        row = [float(rate), float(group["weight_decay"]), decoupled, sign, *map(float, self.options(group))]
        return row + [0.0] * (OPTIONS - len(row))

    def _kept(self, states: list[dict[str, Any]], variant: Variant) -> list[list[Tensor]]:
        """Return the lists of first, second and third states, and of the scales of the first two."""
        names = (
            self.first_name if variant.first else "",
            self.second_name if variant.second else "",
            self.third_name if variant.third else "",
        )
        kept = [[state[name] for state in states] if name else [] for name in names]
        coded = [name if self.state_dtype == torch.int8 else "" for name in names[:2]]
        return kept + [[state[f"{name}_scale"] for state in states] if name else [] for name in coded]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update parameters with gradients without waiting for the device; return the result of ``closure``."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        variant = self.variant()
        if torch.compiler.is_compiling():
            self._step_as_operation(variant)
            return loss
        self._check_options()
        if self._bind(variant) and self._bound is not None:
            device = self._tables.pointers.device
            launch_step(
                self._tables, variant, self._option_table(device), self._norm_on(device), self.max_grad_norm,
                self.stochastic_rounding, self.seed,
            )  # fmt: skip
            torch.autograd.graph.increment_version([self._bound.params[place] for place in self._bound.members])
        return loss

    def _bind(self, variant: Variant) -> bool:
        """Update the tables for the current tensors; return whether there is anything to update."""
        bound = self._bound
        if bound is not None and bound.holds(variant, self.param_groups, self.state):
            grads = [param.grad for param in bound.params]
            if bound.gradients_hold(grads):
                return True
            if bound.take_gradients(grads):
                self._tables.bind_grads([grads[place] for place in bound.members])
                return True
        self._bound = None
        params, grads, states, groups, members = self._members(variant)
        if not params:
            return False
        self._check_memory()
        self._tables.bind(params, grads, groups, [[state["step"] for state in states], *self._kept(states, variant)])
        self._bound = Bound.of(variant, self.param_groups, self.state, members)
        return True

    def _step_as_operation(self, variant: Variant) -> None:
        """Take the step as one custom operation, so that a traced graph contains every tensor."""
        params, grads, states, groups, _ = self._members(variant)
        if not params:
            return
        device = params[0].device
        optimizer_step(
            self._tables_id, variant.algorithm, params, grads, [state["step"] for state in states],
            *self._kept(states, variant), groups, self._option_table(device), self._norm_on(device),
            self.max_grad_norm, self.stochastic_rounding, self.seed,
        )  # fmt: skip
        torch.autograd.graph.increment_version(params)

    def _norm_on(self, device: torch.device) -> Tensor:
        if self.grad_norm is None or self.grad_norm.device != device:
            self.grad_norm = torch.zeros((), dtype=torch.float32, device=device)
        return self.grad_norm


def _as_float(state: Mapping[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for name, value in state.items():
        if f"{name}_scale" in state:
            plain[name] = dequantised(value, state[f"{name}_scale"])
        elif not name.endswith("_scale"):
            plain[name] = value.to(torch.float32, copy=True) if isinstance(value, Tensor) else value
    return plain


def refuse_option(optimizer: str, name: str, value: Any) -> None:
    """Raise ``ValueError`` for an option of torch that these kernels do not support."""
    refused, reason = REFUSED.get(name, (None, ""))
    if refused is not None and value is refused:
        raise ValueError(f"{optimizer}({name}={value}) is not supported: {reason}; torch.optim has it")
    if name == "betas" and any(isinstance(beta, Tensor) for beta in value):
        raise TypeError(f"{optimizer}(betas=…) must be numbers: tensors are not supported; torch.optim takes them")
