"""What the command line shows: tables and JSON on stdout, progress and errors on stderr, and silence from the libraries."""

from __future__ import annotations

import codecs
import json
import os
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

from lrfc.metrics.source import MEASURED
from lrfc.system import scratch, silence
from lrfc.text import NONE, count, decimal, factor, milliseconds, percent, shape, size

if TYPE_CHECKING:
    from lrfc.cli.doctor import Check
    from lrfc.engine.package import Result
    from lrfc.passes.profile import Profile
    from lrfc.results.candidates import Explanation
    from lrfc.results.exploration import Survey
    from lrfc.results.manifest import Manifest
    from lrfc.state import Progress


@contextmanager
def quiet() -> Iterator[tuple[TextIO, TextIO, Callable[[BaseException], Path]]]:
    """Send what libraries write on file descriptors 1 and 2 to a temporary file without a name; give the real stdout and stderr.

    The third value writes what they wrote, and a traceback, into a file that stays, and names it.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    codecs.register_error(_SPELT, _spelt)
    encodings = [
        getattr(stream, "encoding", None) or "utf-8" for stream in (sys.stdout, sys.stderr)
    ]
    with (
        scratch.unnamed() as noise,
        silence.descriptors(noise.fileno(), whole=True) as real,
        os.fdopen(_opened(real[0]), "w", encoding=encodings[0], errors=_SPELT) as out,
        os.fdopen(_opened(real[1]), "w", encoding=encodings[1], errors=_SPELT) as err,
    ):

        def details(error: BaseException) -> Path:
            silence.flush()
            with scratch.kept("failure-", ".log") as log:
                log.write(silence.written(noise.fileno()))
                traceback.print_exception(error, file=log)
            return Path(log.name)

        yield out, err, details


def _opened(descriptor: int | None) -> int:
    """A descriptor of our own for a stream; for one that is closed, to where nothing is kept."""
    return os.open(os.devnull, os.O_WRONLY) if descriptor is None else os.dup(descriptor)


#: What stands for a character that the user's encoding does not have.
_PLAIN = {
    "×": "x",
    "→": "->",
    "—": "-",
    "–": "-",
    "−": "-",
    "─": "-",
    "█": "#",
    "…": "...",
    "µ": "u",
}
_SPELT = "lrfc.spelt"


def _spelt(error: UnicodeError) -> tuple[str, int]:
    """The error handler of the streams: plain characters in the place of those that cannot be written."""
    assert isinstance(error, UnicodeEncodeError)
    return (
        "".join(_PLAIN.get(character, "?") for character in error.object[error.start : error.end]),
        error.end,
    )


#: Layers that have lost filters that are named at most.
NAMED = 12


class Terminal:
    """The two streams of one command."""

    def __init__(self, stdout: TextIO, stderr: TextIO) -> None:
        from rich.console import Console

        # Without a terminal there is no width to ask for; COLUMNS tells it there too.
        self._out = Console(
            file=stdout,
            width=None if stdout.isatty() or "COLUMNS" in os.environ else 80,
            highlight=False,
            soft_wrap=False,
        )
        self._err = Console(file=stderr, highlight=False, soft_wrap=True)
        self._bars: Any = None
        self._results: list[Result] = []

    def fail(self, message: str, code: int) -> NoReturn:
        """One line on stderr, then exit."""
        self._stop()
        self._err.print(f"lrfc: {' '.join(message.split())}", markup=False)
        raise SystemExit(code)

    def abandon(self) -> None:
        """Nobody reads stdout any more: what is left for it goes nowhere."""
        self._stop()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._out.file.fileno())
        os.close(nowhere)

    def json(self, value: Any) -> None:
        """One object on stdout."""
        self._stop()
        self._out.file.write(json.dumps(value, indent=2, allow_nan=False) + "\n")
        self._out.file.flush()

    def progress(self) -> Progress:
        """Bars with the time left on a terminal, plain lines elsewhere."""
        from lrfc.state import Progress

        if not self._err.is_terminal:
            return Progress(stage=self._plain, log=lambda line: self._err.print(line, markup=False))
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self._err,
            transient=True,
        )
        self._bars.start()
        return Progress(
            stage=self._bar, log=lambda line: self._bars.console.print(line, markup=False)
        )

    def _plain(self, title: str, total: int) -> Callable[[int], None]:
        return lambda steps: None

    def _bar(self, title: str, total: int) -> Callable[[int], None]:
        for task in self._bars.tasks:
            if task.finished or task.description == title:
                self._bars.remove_task(task.id)
        task = self._bars.add_task(title, total=total)
        return lambda steps: self._bars.advance(task, steps)

    def _stop(self) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def texts(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table of text alone."""
        self.table(title, columns, rows, figures=False)

    def table(
        self,
        title: str,
        columns: Sequence[str],
        rows: Sequence[Sequence[str]],
        *,
        figures: bool = True,
    ) -> None:
        """A table; the first column is text, the others are figures."""
        from rich.box import SIMPLE_HEAD
        from rich.table import Table

        self._stop()
        table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
        for number, column in enumerate(columns):
            table.add_column(
                column, justify="left" if number == 0 or not figures else "right", overflow="fold"
            )
        for row in rows:
            table.add_row(*row)
        self._out.print(table)

    def keep(self, result: Result) -> None:
        """Remember a finished build, to be shown at the end also when it fails."""
        self._results.append(result)

    def show_results(self, *, as_json: bool) -> None:
        """Each build's manifest (an object, or a list of them under 'builds' when there are several), or its tables."""
        if as_json:
            builds = [
                {
                    **result.manifest.model_dump(mode="json"),
                    "out": str(result.out),
                    "problem": _problem(result),
                }
                for result in self._results
            ]
            if builds:
                self.json(builds[0] if len(builds) == 1 else {"builds": builds})
            return
        for result in self._results:
            self._result(result)

    def _result(self, result: Result) -> None:
        from lrfc.results import verdict

        manifest = result.manifest
        rows = []
        for name, show, before, after, kept in _figures(manifest):
            rows.append((name, show(before), show(after), *kept))
        threads = (
            ""
            if manifest.before.latency_ms is None
            else f", {manifest.before.latency_ms.threads} thread(s)"
        )
        self.table(
            f"{manifest.target} {manifest.config['precision']}{threads}",
            ("", "original", "lrfc", "kept", "saved", ""),
            rows,
        )
        scores = manifest.accuracy
        if ladder := scores.ladder():
            steps = " → ".join(f"{name} {scores.shown(value)}" for name, value in ladder.items())
            self.line(f"{scores.metric or 'accuracy'}: {steps}")
            if (file := manifest.original_file) is not None:
                made = (
                    f"the original's own {manifest.config['precision']} file has"
                    f" {scores.shown(file)}"
                )
                self.line(f"before: the original in float, which the drop is counted from; {made}")
            if (attempts := len(manifest.search.attempts)) > 1:
                self.line(f"attempts at the accuracy contract: {attempts}")
            if (seen := scores.kernels) is not None:
                followed = (
                    f"which {manifest.device} follows; the difference is in the drop"
                    if seen.counted
                    else "which microcontrollers follow"
                )
                self.line(
                    f"on {seen.samples:,} samples {scores.shown(seen.optimised)} by LiteRT's"
                    f" optimised kernels, {scores.shown(seen.reference)} by its reference kernels,"
                    f" {followed}"
                )
        else:
            self.line("accuracy: not measured (no data)")
        methods = Counter(layer.method or "not factorized" for layer in manifest.layers)
        self.line(
            "layers: "
            + ", ".join(f"{count} {name}" for name, count in methods.most_common())
            + f"; why: {result.out / 'layers.csv'}"
        )
        if cut := [layer for layer in manifest.layers if layer.cut]:
            named = ", ".join(
                f"{layer.name} {layer.filters_before} → {layer.filters_after}"
                for layer in cut[:NAMED]
            )
            self.line(
                f"filters: {named}"
                + (f" and {len(cut) - NAMED} more layers" if len(cut) > NAMED else "")
            )
        found = manifest.verdict or verdict.judged(manifest)
        self.line(f"verdict: {verdict.headline(found)}")
        for sentence in verdict.details(found):
            self.line(f"  {sentence}")
        self.line(
            f"written: {result.out}{os.sep} ({', '.join(file.path for file in manifest.artifacts)},"
            " manifest.json, report.html)"
        )

    def survey(self, survey: Survey, out: Path) -> None:
        """The methods side by side, and the Pareto front."""
        from lrfc.results.exploration import SHARES

        rows = [(name, *(decimal(value, 3) for value in values)) for name, values in survey.table()]
        self.table(
            "least predicted divergence of the outputs at a share of the MACs",
            ("method", *(percent(share, 0) for share in SHARES)),
            rows,
        )
        show = {"ram": size, "latency": decimal}
        points = [
            (
                *(show.get(q, count)(p[q]) for q in survey.over),
                *(percent(p[q] / survey.whole[q]) for q in survey.over if q != "ram"),
                f"{p['predicted_divergence']:.3g}",
                ", ".join(f"{count} {name}" for name, count in p["methods"].items()) or "as it is",
            )
            for p in survey.points
        ]
        kept = [f"{q} kept" for q in survey.over if q != "ram"]
        self.table("Pareto front", (*survey.over, *kept, "divergence", "layers"), points)
        design = survey.design
        self.line(
            f"{design.size:,} candidates on {len(design.spaces)} layers in {survey.seconds:.1f} s,"
            f" {design.undominated:,} of them not beaten by another of the same layer;"
            f" {len(design.skipped)} layers have no choice"
        )
        self.line(
            f"written: {out}{os.sep} (explore.html, pareto.json, candidates.csv); one layer: lrfc"
            f" explain {out} LAYER"
        )

    def explanation(self, explanation: Explanation) -> None:
        """One layer's candidates by method and rank, what a build made of it, and why the one taken was taken."""
        built, chosen = explanation.built, explanation.chosen
        narrower = (
            built is not None
            and chosen is not None
            and (built.params_after, built.macs_after) != (chosen.params, chosen.macs)
        )
        if explanation.rows:
            whole = explanation.rows[0]
            kept: Callable[[int], str] = lambda macs: (  # noqa: E731
                percent(macs / whole.macs) if whole.macs else ""
            )
            rows = [
                (
                    ("→ " if row.chosen and not narrower else "  ") + row.label,
                    f"{row.params:,}",
                    f"{row.macs:,}",
                    kept(row.macs),
                    f"{row.similarity:.4f}",
                    "█" * round(20 * max(row.similarity, 0)),
                    f"{row.impact:.3g}",
                )
                for row in explanation.rows
                if not row.dominated or row.chosen
            ]
            if narrower and built is not None:
                rows.append(
                    (
                        "→ as built",
                        f"{built.params_after:,}",
                        f"{built.macs_after:,}",
                        kept(built.macs_after),
                        "",
                        "",
                        "",
                    )
                )
            self.table(
                explanation.layer,
                ("candidate", "params", "MACs", "kept", "similarity", "", "divergence"),
                rows,
            )
            if hidden := sum(row.dominated and not row.chosen for row in explanation.rows):
                self.line(f"{hidden} candidates that another one beats in everything are not shown")
        elif built is not None:
            self.line(
                f"params {built.params_before:,} → {built.params_after:,}, MACs"
                f" {built.macs_before:,} → {built.macs_after:,}"
            )
        if built is None and chosen is None:
            self.line("nothing was chosen: this is an exploration")
        else:
            self.line(f"taken: {chosen.label if chosen is not None else 'as it is'}")
        if built is not None and built.filters_before is not None:
            why = "" if built.filters_reason is None else f": {built.filters_reason}"
            self.line(
                f"filters: {built.filters_after} of {built.filters_before} are left"
                if built.cut
                else f"filters: all {built.filters_before} stay{why}"
            )
        if narrower:
            self.line(
                "as built: without the filters and channels that were cut; the other rows are for"
                " all of them"
            )
        for sentence in (
            *([built.reason] if built is not None and built.reason is not None else []),
            *explanation.sentences,
        ):
            self.line(f"  {sentence}")

    def profile(self, profile: Profile) -> None:
        """The costs of each op and of the whole."""
        rows = [
            (
                row.name,
                row.kind,
                ", ".join(shape(s[1:]) for s in row.shapes),
                f"{row.params:,}",
                f"{row.macs:,}",
                size(row.weight_bytes),
                size(row.live_bytes),
            )
            for row in profile.rows
        ]
        self.table("", ("op", "kind", "output", "params", "MACs", "weights", "live"), rows)
        self.line(
            f"total: {profile.params:,} params, {profile.macs:,} MACs, {size(profile.weight_bytes)}"
            f" of weights; activation arena {size(profile.arena_bytes)} planned (at least"
            f" {size(profile.arena.peak_bytes)}, at {profile.arena.at_op}); {profile.precision},"
            " batch 1"
        )

    def checks(self, checks: Sequence[Check]) -> None:
        """One line a check."""
        self.texts(
            "",
            ("check", "", "detail"),
            [(check.name, "ok" if check.ok else "FAILED", check.detail) for check in checks],
        )

    def line(self, text: str) -> None:
        """One line of text on stdout."""
        self._stop()
        self._out.print(text, markup=False, soft_wrap=True)


def _problem(result: Result) -> str | None:
    return None if result.failure is None else str(result.failure)


_Show = Callable[[float | None], str]
_Figure = tuple[str, _Show, float | None, float | None, tuple[str, str, str]]
_UNKNOWN = (NONE, NONE, NONE)


def _figures(manifest: Manifest) -> Iterator[_Figure]:
    """Name, how a value is shown, both values, and what is kept, what is saved and the factor.

    The factor of the latency is the speed-up: it is measured in turns, and there is one in a
    printout.
    """

    def row(name: str, show: _Show, before: float | None, after: float | None) -> _Figure:
        return name, show, before, after, _kept(before, after)

    before, after = manifest.before, manifest.after
    yield row("MACs", count, before.macs, after.macs)
    yield row("params", count, before.params, after.params)
    yield row("file", size, before.file_bytes, after.file_bytes)
    yield row("arena (planned)", size, before.arena_bytes, after.arena_bytes)
    if before.cycles is not None:
        yield row("NPU cycles, compiled", count, before.cycles, after.cycles)
        yield row("SRAM, compiled", size, before.sram_bytes, after.sram_bytes)
        yield row("flash, compiled", size, before.flash_bytes, after.flash_bytes)
    elif (before.peak_rss_bytes, after.peak_rss_bytes) != (None, None):
        yield row("peak RSS, measured", size, before.peak_rss_bytes, after.peak_rss_bytes)
    old, new = before.latency_ms, after.latency_ms
    if old is None or new is None:
        return
    ratio = manifest.speedup
    speed = _UNKNOWN if ratio is None or after == before else _kept(ratio.median, 1.0)
    if new.source == MEASURED:
        yield f"latency p50, n={old.n}", milliseconds, old.p50, new.p50, speed
        yield "latency p90", milliseconds, old.p90, new.p90, _UNKNOWN
    else:
        yield f"latency, {new.source}", milliseconds, old.p50, new.p50, speed
    whole = manifest.float_original
    if whole is not None and whole.latency_ms is not None and whole.speedup is not None:
        beside = _kept(whole.speedup.median, 1.0)
        yield "latency, original in fp32", milliseconds, whole.latency_ms.p50, new.p50, beside


def _kept(before: float | None, after: float | None) -> tuple[str, str, str]:
    if not before or not after:
        return _UNKNOWN
    return (
        percent(after / before),
        percent(1 - after / before),
        factor(before / after),
    )
