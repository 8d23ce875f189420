"""Sources of figures: a measurement, an estimate, or a compiler."""

from __future__ import annotations

from typing import Final, Literal

#: ``measured``: read on the device while it ran the file. ``estimated``: computed from a cost
#: profile or from published figures. ``compiled``: computed by the device's compiler for this file.
Source = Literal["measured", "estimated", "compiled"]
MEASURED: Final = "measured"
ESTIMATED: Final = "estimated"
COMPILED: Final = "compiled"

#: The text behind a figure, by its source.
EXPLAINED: dict[Source, str] = {
    MEASURED: "measured",
    ESTIMATED: "estimated from a cost profile, no device was timed",
    COMPILED: "compiled: computed by the device's compiler, no device was timed",
}
