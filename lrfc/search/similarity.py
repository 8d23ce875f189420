"""Distances between feature maps (0 is equal): relative L2, cosine, Pearson, linear CKA."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Measure = Callable[[Array, Array], float]


def relative_l2(reference: Array, compressed: Array) -> float:
    """‖A − B‖ / ‖A‖. 0 when both are all zero."""
    norm = float(np.linalg.norm(reference))
    distance = float(np.linalg.norm(reference - compressed))
    return distance / norm if norm > 0 else float(distance > 0)


def cosine(reference: Array, compressed: Array) -> float:
    """1 − ⟨A, B⟩ / (‖A‖‖B‖). Invariant to scale. 0 when both are all zero."""
    norms = float(np.linalg.norm(reference)) * float(np.linalg.norm(compressed))
    return (
        1 - float(np.vdot(reference, compressed)) / norms
        if norms > 0
        else float(np.any(reference != compressed))
    )


def pearson(reference: Array, compressed: Array) -> float:
    """The cosine distance of the centred channels.

    Invariant to shifts, which the re-estimation of BatchNorm repairs.
    """
    return cosine(reference - reference.mean(0), compressed - compressed.mean(0))


def linear_cka(reference: Array, compressed: Array) -> float:
    """One minus the linear CKA of the centred features, with positions as rows.

    CKA = ‖AᵀB‖² / (‖AᵀA‖·‖BᵀB‖); Kornblith et al. 2019, arXiv 1905.00414.

    It is invariant to rotations, so the distance can be 0 for a useless replacement: it serves
    comparisons only.
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
