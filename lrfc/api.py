"""The functions behind ``lrfc.build`` and the command line.

They check their arguments first, and import slow modules only then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from lrfc.config.build import HOST
from lrfc.config.keywords import BuildOptions
from lrfc.engine import preflight
from lrfc.state import Progress
from lrfc.system import spans
from lrfc.system.reader import shown

if TYPE_CHECKING:
    from lrfc.engine.package import Result
    from lrfc.passes.profile import Profile
    from lrfc.results.exploration import Survey
    from lrfc.targets.devices.measure import Measurement


def build(
    model: Any = None,
    *,
    target: str | Sequence[str] | None = None,
    device: str | Sequence[str] | None = None,
    data: Any = None,
    test_data: Any = None,
    locked: Path | str | None = None,
    progress: Progress | None = None,
    callbacks: Sequence[Any] = (),
    on_result: Callable[[Result], None] = lambda result: None,
    **options: Unpack[BuildOptions],
) -> Any:
    """Compress a model and write an output folder for each target and device.

    ``model``: path of a .keras or .h5 file, or a Keras model; optional with ``locked``.
    ``target``: 'tflite' or 'onnx', or several. ``device``: the name of a device profile, or
    several. By default the device is this machine, and the target the first that the device runs.
    ``data``: a source as on the command line, or arrays, a dict or a function (see
    lrfc.data.load.load_data). ``options``: the fields of lrfc.config.build.BuildConfig, budgets as
    on the command line (``max_macs="50%"``). ``callbacks``: of Keras (keras.callbacks.Callback),
    called by the fine-tune. ``on_result``: called with each Result as soon as its folder is
    written.

    ``locked``: the manifest.json of an earlier build to repeat. Its options are the defaults, and
    its methods and ranks are used without a search. Without ``model``, the manifest's file in its
    folder or the current one is compressed, if it has the recorded SHA-256. The output folder is
    MODEL-locked by default.

    Returns the Result, or a tuple of them when ``target`` or ``device`` is a sequence. Raises a
    subclass of lrfc.errors.LrfcError. BudgetError and NoGainError carry the results; their folders
    are written. All that can be checked without TensorFlow is checked before it is imported.
    """
    named = {"target": target, "device": device, "data": data, "test_data": test_data}
    given = {name: value for name, value in named.items() if value is not None} | options
    request = preflight.build(model, given, locked)
    progress = progress or Progress()
    progress.log(first := _reading(request.model))
    with spans.recording("build", on=request.config.profile):
        with spans.span("start"):
            from lrfc.engine import build as compiler
            from lrfc.training.callbacks import check

        check(callbacks)
        watched = replace(progress, callbacks=tuple(callbacks))
        return compiler.build(request, watched, on_result, [first])


def explore(
    model: Any,
    *,
    data: Any = None,
    device: str | None = None,
    over: Sequence[str] = ("macs",),
    points: int = 24,
    out: Path | str | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Survey:
    """Evaluate every method and rank of every layer, and write the folder of the exploration.

    Nothing is built or measured.

    ``over``: quantities of the Pareto front in pareto.json, besides the predicted divergence
    ('macs', 'params', 'ram', 'latency'). ``device``: predict latencies for it by its cost profile;
    by default this machine, if ``over`` names the latency. ``options``: methods, keep, only,
    precision, threads, rank_multiple, seed, memory, resume, profile, unsafe_load as for ``build``.
    The folder is MODEL-explore by default.
    """
    config, goal, folder = preflight.explore(model, data, device, over, points, out, options)
    progress = progress or Progress()
    progress.log(_reading(model))
    with spans.recording("exploration", on=config.profile):
        with spans.span("start"):
            from lrfc.engine import build as compiler

        priced = device is not None or "latency" in over
        return compiler.explore(
            model, data, config, goal, folder, tuple(over), points, progress, priced=priced
        )


def inspect(model: Any, *, unsafe: bool = False, precision: str = "fp32") -> Profile:
    """Costs of each op, and of the whole, of a model file or a Keras model."""
    preflight.inspect(model)
    from lrfc.engine import build as compiler

    return compiler.inspect(model, unsafe=unsafe, precision=precision)


def measure(
    files: Sequence[Path],
    *,
    device: str | Path = HOST,
    memory_mode: str | None = None,
    system_config: str | None = None,
    threads: int | None = None,
    runs: int = 200,
) -> tuple[Measurement, ...]:
    """Latency and memory of emitted files on a device, interleaved; the first is the baseline.

    ``device``: a name, or a .toml. ``threads``: by default the device's. ``memory_mode``,
    ``system_config``: for an Ethos-U, instead of those of its profile.

    For a device that cannot be reached the latencies are computed from its cost profile; their
    source is 'estimated'.
    """
    chosen, named = preflight.measure(files, device, memory_mode, system_config, threads, runs)
    from lrfc.engine import build as compiler

    return compiler.measure(named, chosen, threads, runs)


def _reading(model: Any) -> str:
    """The first line of progress, before the seconds that TensorFlow's import takes."""
    return f"reading model {shown(model) if isinstance(model, str | Path) else model.name}"
