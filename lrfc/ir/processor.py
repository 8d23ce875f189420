"""Settings of TensorFlow that it reads once: oneDNN, and the allocator of its memory."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass

#: The environment variable that TensorFlow reads once, when it is imported.
VARIABLE = "TF_ENABLE_ONEDNN_OPTS"
#: The variable that makes TensorFlow keep the memory of its tensors. Its default is malloc, which
#: maps, faults and unmaps the activations of a batch for every op: on a network of four
#: convolutions at 32×32 a prediction had 393,748 page faults, and 436 with this. The results are
#: the same.
ALLOCATOR = "TF_CPU_ALLOCATOR_USE_BFC"


@dataclass(frozen=True)
class OneDNN:
    """Whether TensorFlow computes with oneDNN, and who decided it.

    ``decided_by``: 'lrfc', 'environment' or 'host program'.
    """

    on: bool
    decided_by: str

    def __str__(self) -> str:
        reasons = {
            "lrfc": "the default of lrfc",
            "environment": f"by {VARIABLE} in the environment",
            "host program": "by the program that imported TensorFlow before lrfc",
        }
        return f"{'on' if self.on else 'off'}, {reasons[self.decided_by]}"


#: Who decided; None before the decision.
_decided_by: str | None = None


def decide(wanted: bool | None = None) -> None:
    """Switch oneDNN on or off and choose the allocator, once in a process before the import.

    A setting of the user's or of the host program stays. ``wanted``: the state in a build that is
    replayed; None is on, whatever the processor.

    TensorFlow's own default is on with AVX-512 VNNI and off without, so that the same command gives
    other bits on another machine, and with channels first an error. On is the better default.
    Convolutions with channels first need it. ResNet-20 predicts 1.4 times and trains 1.8 times as
    fast (1,024 images in 0.82 s against 1.20 s, ten steps of 64 in 3.0 s against 5.5 s, two cores
    with AVX-512). Its predictions were the same bit by bit with AVX-512 and with AVX2 alone, which
    they were not without oneDNN (gradients differ either way).
    """
    global _decided_by  # noqa: PLW0603  one decision for the process, as TensorFlow's is
    if _decided_by is not None:
        return
    if "tensorflow" in sys.modules:
        _decided_by = "host program"
        return
    os.environ.setdefault(ALLOCATOR, "true")
    if VARIABLE in os.environ:
        _decided_by = "environment"
    else:
        os.environ[VARIABLE] = "0" if wanted is False else "1"
        _decided_by = "lrfc"


def onednn() -> OneDNN:
    """The state of oneDNN in this process, now or once TensorFlow is imported."""
    decide()
    assert _decided_by is not None
    if "tensorflow" not in sys.modules:
        return OneDNN(os.environ[VARIABLE].lower() in ("1", "true"), _decided_by)
    from tensorflow.python.util import _pywrap_util_port

    return OneDNN(bool(_pywrap_util_port.IsMklEnabled()), _decided_by)
