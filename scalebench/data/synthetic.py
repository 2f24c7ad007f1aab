"""Synthetic tasks whose noise floor is known in closed form, so that a fitted irreducible loss can be checked."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]

# Teachers are fixed: every trial of every study is trained on the same one.
_TEACHER_SEED = 20_011
_TEACHER_WIDTH = 64
SPECTRUM = 1.0  # feature k of the linear teacher has weight k^-1, so excess loss falls as 1/n in the number of features

TeacherKind = Literal["linear", "mlp"]


def generator(*key: int) -> np.random.Generator:
    """Return the random generator for ``key``, so that a batch depends only on seed and step.

    The key includes its length, since NumPy's seeds do not distinguish (1,) from (1, 0).
    """
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((len(key), *key))))


@lru_cache(maxsize=8)
def teacher_weights(kind: TeacherKind, inputs: int, outputs: int) -> tuple[FloatArray, ...]:
    """Return the teacher's weight matrices, first to last: (inputs, outputs), or three of a tanh network."""
    if kind == "linear":
        signs = generator(_TEACHER_SEED, 1).choice(np.array([-1, 1], dtype=np.float32), size=(inputs, outputs))
        return (signs * (np.arange(1, inputs + 1, dtype=np.float32) ** -np.float32(SPECTRUM))[:, None],)
    rng = generator(_TEACHER_SEED, 2)
    widths = [inputs, _TEACHER_WIDTH, _TEACHER_WIDTH, outputs]
    # Gain 2 keeps tanh in its nonlinear range, so that a linear model cannot fit the teacher.
    weights = [rng.standard_normal(shape, dtype=np.float32) * 2 / np.sqrt(shape[0]) for shape in pairwise(widths)]
    probe = generator(_TEACHER_SEED, 3).standard_normal((4096, inputs), dtype=np.float32)
    return (*weights[:-1], weights[-1] / apply_teacher(weights, probe).std())


def apply_teacher(weights: Sequence[FloatArray], x: FloatArray) -> FloatArray:
    """Apply a teacher to x (n, inputs), giving (n, outputs): tanh between the matrices, none after the last."""
    for weight in weights[:-1]:
        x = np.tanh(x @ weight)
    return x @ weights[-1]


@dataclass(frozen=True)
class Teacher:
    """A fixed function of Gaussian inputs plus Gaussian noise (unlimited).

    ``linear``: y = sum_k w_k x_k with |w_k| = 1/k over infinitely many features. A model gets the first n; the others
    are noise of variance sum_{k>n} k^-2 to it. ``mlp``: a random two-hidden-layer tanh network of width 64 with
    unit output variance.
    """

    @property
    def sha256(self) -> str:
        """SHA-256 of the definition."""
        return hashlib.sha256(f"teacher-v1 {_TEACHER_SEED} {_TEACHER_WIDTH} {SPECTRUM}".encode()).hexdigest()

    def unseen_variance(self, inputs: int) -> float:
        """Variance of the linear teacher's features beyond the first ``inputs``: the Hurwitz zeta function."""
        from scipy.special import zeta

        return float(zeta(2 * SPECTRUM, inputs + 1))

    def draw(
        self, kind: TeacherKind, inputs: int, outputs: int, noise_std: float, n: int, rng: np.random.Generator
    ) -> tuple[FloatArray, FloatArray]:
        """Draw n samples: x (n, inputs) standard normal, y (n, outputs) with noise of standard deviation noise_std."""
        x = rng.standard_normal((n, inputs), dtype=np.float32)
        noise = rng.standard_normal((n, outputs), dtype=np.float32)
        unseen = self.unseen_variance(inputs) if kind == "linear" else 0.0
        signal = apply_teacher(teacher_weights(kind, inputs, outputs), x)
        return x, signal + noise * np.float32(np.hypot(noise_std, np.sqrt(unseen)))


def open_teacher(_argument: str = "") -> Teacher:
    """Open the teacher."""
    return Teacher()
