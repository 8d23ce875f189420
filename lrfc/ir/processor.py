"""What depends on the processor: whether TensorFlow computes with oneDNN."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass

#: The environment variable that TensorFlow reads once, when it is imported.
VARIABLE = "TF_ENABLE_ONEDNN_OPTS"


@dataclass(frozen=True)
class OneDNN:
    """Whether TensorFlow computes with oneDNN, and who decided it: 'lrfc', 'environment' or 'host program'."""

    on: bool
    decided_by: str

    def __str__(self) -> str:
        how = {
            "lrfc": "the default of lrfc",
            "environment": f"by {VARIABLE} in the environment",
            "host program": "by the program that imported TensorFlow before lrfc",
        }
        return f"{'on' if self.on else 'off'}, {how[self.decided_by]}"


_decided: str | None = None


def decide(wanted: bool | None = None) -> None:
    """Set before TensorFlow is imported whether it computes with oneDNN; once, and what the user has set holds.

    ``wanted``: as in a build that is repeated. Without it oneDNN is on, whatever the processor.
    TensorFlow's own default is on with AVX-512 VNNI and off without, so that the same command gives
    other bits, and with channels first an error, on the next machine. On suits best: convolutions
    with channels first run at all, ResNet-20 answers 1.4 times and trains 1.8 times as fast (1,024
    images in 0.82 s against 1.20 s, ten steps of 64 in 3.0 s against 5.5 s, two cores with
    AVX-512), and its predictions were the same bit by bit with AVX-512 and with AVX2 alone, where
    without oneDNN they were not (gradients differ either way).
    """
    global _decided  # noqa: PLW0603  one decision for the process, as TensorFlow's is
    if _decided is not None:
        return
    if "tensorflow" in sys.modules:
        _decided = "host program"
    elif VARIABLE in os.environ:
        _decided = "environment"
    else:
        os.environ[VARIABLE] = "0" if wanted is False else "1"
        _decided = "lrfc"


def onednn() -> OneDNN:
    """What is in force in this process, or will be once TensorFlow is imported."""
    decide()
    assert _decided is not None
    if "tensorflow" not in sys.modules:
        return OneDNN(os.environ[VARIABLE].lower() in ("1", "true"), _decided)
    from tensorflow.python.util import _pywrap_util_port

    return OneDNN(bool(_pywrap_util_port.IsMklEnabled()), _decided)
