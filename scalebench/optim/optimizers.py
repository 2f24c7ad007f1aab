"""Optimizers by name. ``eager`` loops over tensors; other implementations use fused kernels where torch has them, and
multi-tensor (foreach) operations where it does not.

``learning_rate = "auto"`` is the family's rule for AdamW times ``rate_factor``, a power of two near what was best on a
factor-two grid for both an mlp of 3,000 parameters (batch 256, no weight decay, two seeds) and a gpt of 12,000 (batch
16 of 64 bytes, the optimizer's own weight decay, one seed), after 400 steps at a gradient norm clipped to 1, as
multiples of the rule:

            mlp: best (validation loss)   gpt: best (validation loss)   factor
sgd              32 (0.972)                    64 (2.736)                 32
momentum         16 (0.902)                    16 (2.682)                 16
nesterov         16 (0.889)                    16 (2.586)                 16
adagrad          32 (0.900)                     4 (2.515)                  8
rmsprop           2 (0.893)                   1/2 (2.446)                  1
adam              2 (0.879)                     1 (2.431)                  1
adamw             2 (0.879)                     1 (2.397)                  1
lion            1/2 (0.892)                   1/8 (2.512)                1/4
muon              4 (0.870)                     2 (2.330)                  2

Larger models and other data were not tried: make ``learning_rate`` an axis where the optimizer matters to a study.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scalebench.errors import InputError
from scalebench.optim.fused import OptimizerSpec, build_fused_optimizer

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

Groups = Sequence[dict[str, Any]]  # parameter groups, each with its weight decay


@dataclass(frozen=True)
class OptimizerChoice:
    """How an optimizer is built from parameter groups, and the most values that it keeps per parameter.

    ``weight_decay`` is the default: 0.1 for decoupled weight decay, 0 where the decay is added to the gradient, which
    at 0.1 would outweigh the loss.
    """

    summary: str
    make: Callable[[Groups, OptimizerSpec], Optimizer]
    state_per_param: int
    rate_factor: float
    weight_decay: float = 0.0


def _fused(spec: OptimizerSpec) -> dict[str, bool]:
    """Return torch's arguments for an optimizer that has a fused kernel."""
    return {"foreach": False, "fused": spec.implementation != "eager"}


def _foreach(spec: OptimizerSpec) -> dict[str, bool]:
    """Return torch's arguments for an optimizer without a fused kernel."""
    return {"foreach": spec.implementation != "eager"}


def _sgd(groups: Groups, spec: OptimizerSpec, *, momentum: bool, nesterov: bool = False) -> Optimizer:
    from torch.optim import SGD

    return SGD(groups, spec.learning_rate, spec.momentum if momentum else 0.0, nesterov=nesterov, **_fused(spec))


def _adagrad(groups: Groups, spec: OptimizerSpec) -> Optimizer:
    from torch.optim import Adagrad

    return Adagrad(groups, spec.learning_rate, **_fused(spec))


def _rmsprop(groups: Groups, spec: OptimizerSpec) -> Optimizer:
    from torch.optim import RMSprop

    return RMSprop(groups, spec.learning_rate, alpha=spec.beta2, **_foreach(spec))


def _adam(groups: Groups, spec: OptimizerSpec) -> Optimizer:
    from torch.optim import Adam

    return Adam(groups, spec.learning_rate, (spec.beta1, spec.beta2), **_fused(spec))


def _adamw(groups: Groups, spec: OptimizerSpec) -> Optimizer:
    from torch.optim import AdamW

    return AdamW(groups, spec.learning_rate, (spec.beta1, spec.beta2), **_fused(spec))


def _lion(groups: Groups, spec: OptimizerSpec) -> Optimizer:
    if spec.implementation == "eager":
        from lion_pytorch import Lion
    else:
        from lion_pytorch.foreach import Lion
    return Lion(groups, spec.learning_rate, (spec.beta1, spec.beta2))


def _muon(groups: Groups, spec: OptimizerSpec) -> Optimizer:
    from scalebench.optim.muon import MuonWithAdamW

    return MuonWithAdamW(groups, spec, _adamw)


OPTIMIZERS: Mapping[str, OptimizerChoice] = {
    "sgd": OptimizerChoice("stochastic gradient descent", lambda g, s: _sgd(g, s, momentum=False), 0, 32.0),
    "momentum": OptimizerChoice("SGD with momentum", lambda g, s: _sgd(g, s, momentum=True), 1, 16.0),
    "nesterov": OptimizerChoice(
        "SGD with Nesterov's momentum", lambda g, s: _sgd(g, s, momentum=True, nesterov=True), 1, 16.0
    ),
    "adagrad": OptimizerChoice("Adagrad (Duchi et al. 2011); rates shrink by the gradients seen", _adagrad, 1, 8.0),
    "rmsprop": OptimizerChoice("RMSprop (Hinton 2012); beta2 averages the squares", _rmsprop, 1, 1.0),
    "adam": OptimizerChoice("Adam (Kingma & Ba 2015); weight decay in the gradient", _adam, 2, 1.0),
    "adamw": OptimizerChoice("Adam with decoupled weight decay (Loshchilov & Hutter 2019)", _adamw, 2, 1.0, 0.1),
    "lion": OptimizerChoice("Lion (Chen et al. 2023): the sign of an averaged gradient", _lion, 1, 0.25, 0.1),
    "muon": OptimizerChoice(
        "Muon on hidden matrices, AdamW on embeddings, first and last layers and vectors", _muon, 2, 2.0, 0.1
    ),
}


def hidden_matrices(model: nn.Module) -> set[int]:
    """Return the ids of the parameters that Muon updates: the matrices of hidden layers, by their role.

    These are the weights of linear, convolutional and recurrent layers, and stacks of matrices that a module names in
    ``STACKS`` (experts). Embeddings, layers that the model names in ``OUTER`` (the first, which reads the input, and
    the last), and a weight that any of them shares go to AdamW, as the author of Muon recommends, and so does every
    other parameter. In a plain ``nn.Sequential`` the last linear layer is outer.
    """
    from torch import nn

    inner: set[int] = set()
    for module in model.modules():
        weights = ("weight",) if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d) else ()
        recurrent = isinstance(module, nn.RNNBase)
        names = [name for name, _ in module.named_parameters(recurse=False) if recurrent and name.startswith("weight")]
        inner |= {id(getattr(module, name)) for name in (*weights, *names, *getattr(module, "STACKS", ()))}
    return inner - {id(parameter) for layer in _outer_layers(model) for parameter in layer.parameters()}


def _outer_layers(model: nn.Module) -> list[nn.Module]:
    """Return embeddings, and the layers that read a model's input and write its output.

    Raises ``InputError`` for a model that does not name them.
    """
    from torch import nn

    embeddings: list[nn.Module] = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    if isinstance(model, nn.Sequential | nn.Linear):
        return embeddings + [module for module in model.modules() if isinstance(module, nn.Linear)][-1:]
    outer: tuple[str, ...] | None = getattr(model, "OUTER", None)
    kind = type(model).__name__
    if outer is None:
        raise InputError(
            f"model.family: muon and pruning need to know the first and last layers of {kind}: name them in OUTER "
            'of its class, as in OUTER = ("output",)'
        )
    try:
        return embeddings + [model.get_submodule(name) for name in outer]
    except AttributeError as error:
        raise InputError(f"model.family: OUTER of {kind}: {error}") from error


def build_optimizer(model: nn.Module, spec: OptimizerSpec) -> Optimizer:
    """Make the optimizer of a trial. Matrices decay; vectors (norms, biases) do not.

    Raises ``ValueError`` for Muon on a model without hidden matrices, or with unknown first and last layers.
    """
    hidden = hidden_matrices(model) if spec.optimizer == "muon" else set()
    if spec.optimizer == "muon" and not hidden:
        raise ValueError("muon needs hidden matrices, and this model has none: choose another optimizer")
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        groups.setdefault((parameter.ndim >= 2, id(parameter) in hidden), []).append(parameter)
    built = [
        {"params": members, "weight_decay": spec.weight_decay * decays} | ({"hidden": inner} if hidden else {})
        for (decays, inner), members in groups.items()
    ]
    if spec.implementation in ("triton", "fused"):
        return build_fused_optimizer(built, spec)
    return OPTIMIZERS[spec.optimizer].make(built, spec)
