"""How far a compressed feature map is from the original: relative L2, cosine, Pearson, linear CKA, all as distances (0 is equal)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Measure = Callable[[Array, Array], float]


def relative_l2(reference: Array, compressed: Array) -> float:
    """‖A − B‖ / ‖A‖: what the next layer feels. 0 when both are all zero."""
    norm = float(np.linalg.norm(reference))
    distance = float(np.linalg.norm(reference - compressed))
    return distance / norm if norm > 0 else float(distance > 0)


def cosine(reference: Array, compressed: Array) -> float:
    """1 − ⟨A, B⟩ / (‖A‖‖B‖). Blind to a common scale. 0 when both are all zero."""
    norms = float(np.linalg.norm(reference)) * float(np.linalg.norm(compressed))
    return (
        1 - float(np.vdot(reference, compressed)) / norms
        if norms > 0
        else float(np.any(reference != compressed))
    )


def pearson(reference: Array, compressed: Array) -> float:
    """The cosine distance after each channel's mean is removed.

    Blind to shifts, which BatchNorm re-estimation repairs.
    """
    return cosine(reference - reference.mean(0), compressed - compressed.mean(0))


def linear_cka(reference: Array, compressed: Array) -> float:
    """1 − linear CKA, ‖AᵀB‖² / (‖AᵀA‖·‖BᵀB‖) on centred features with positions as rows (Kornblith et al.

    2019, arXiv 1905.00414).

    Blind to rotations: it can read 0 for a useless replacement, so it is offered for comparison,
    not as a criterion.
    """
    a, b = reference - reference.mean(0), compressed - compressed.mean(0)
    norms = float(np.linalg.norm(a.T @ a)) * float(np.linalg.norm(b.T @ b))
    return 1 - float(np.linalg.norm(a.T @ b)) ** 2 / norms if norms > 0 else float(np.any(a != b))


MEASURES: Mapping[str, Measure] = {
    "relative_l2": relative_l2,
    "cosine": cosine,
    "pearson": pearson,
    "linear_cka": linear_cka,
}
