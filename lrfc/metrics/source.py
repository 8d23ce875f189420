"""Where a figure comes from: it was measured, it was estimated, or a compiler computed it."""

from __future__ import annotations

from typing import Final, Literal

#: ``measured``: read on the device, as it ran the file. ``estimated``: computed from a cost profile
#: or from published figures. ``compiled``: computed by the device's compiler for this very file.
Source = Literal["measured", "estimated", "compiled"]
MEASURED: Final = "measured"
ESTIMATED: Final = "estimated"
COMPILED: Final = "compiled"

#: How a reader is told, behind a figure that nobody has measured.
EXPLAINED: dict[Source, str] = {
    MEASURED: "measured",
    ESTIMATED: "estimated from a cost profile, no device was timed",
    COMPILED: "compiled: computed by the device's compiler, no device was timed",
}
