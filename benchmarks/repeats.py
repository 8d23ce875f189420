"""Spread of repeated speed-up measurements, compared with their intervals.

    python benchmarks/repeats.py ORIGINAL COMPRESSED [--repeats 10] [--out repeats.csv]

Both files are measured side by side again and again, by two methods in turns: with one process for
each file, where the interval is bootstrapped over the turns; and with several fresh processes, as
in a build, where it is the interval over the processes. For each method, the program prints the
spread of the speed-up between repeats, the width of an interval, the number of intervals that
contain the median of all repeats, and the share of the other repeats that an interval contains.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import statistics
import sys
import time
from pathlib import Path

from lrfc.protocols import Artifact
from lrfc.targets.devices.measure import PROCESSES, compare
from lrfc.targets.devices.speed import Ratio, speedup

WAYS = {"one process a file": 1, f"{PROCESSES} processes a file": PROCESSES}


def measured(files: list[Artifact], processes: int, runs: int, threads: int) -> tuple[Ratio, float]:
    """Return the speed-up of the second file over the first, and the seconds of measuring."""
    began = time.monotonic()
    before, after = compare(files, runs=runs, threads=threads, processes=processes)
    return speedup(before, after), time.monotonic() - began


def main() -> None:
    """Measure, write the rows and print their summary."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs=2, type=Path, help="two .tflite or two .onnx files")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("repeats.csv"))
    given = parser.parse_args()
    files = [Artifact(path, path.suffix.removeprefix("."), "fp32") for path in given.files]
    found: dict[str, list[tuple[Ratio, float]]] = {way: [] for way in WAYS}
    with given.out.open("w", newline="", encoding="utf-8") as out:
        rows = csv.writer(out)
        rows.writerow(["way", "repeat", "speedup", "low", "high", "seconds"])
        for repeat in range(1, given.repeats + 1):
            for way, processes in WAYS.items():
                ratio, seconds = measured(files, processes, given.runs, given.threads)
                found[way].append((ratio, seconds))
                figures = (f"{value:.4f}" for value in (ratio.median, ratio.low, ratio.high))
                rows.writerow([way, repeat, *figures, f"{seconds:.1f}"])
                out.flush()
    truth = statistics.median(ratio.median for own in found.values() for ratio, _ in own)
    for way, own in found.items():
        ratios = [ratio for ratio, _ in own]
        medians = [ratio.median for ratio in ratios]
        holds = sum(ratio.low <= truth <= ratio.high for ratio in ratios)
        pairs = list(itertools.permutations(ratios, 2))
        others = sum(one.low <= other.median <= one.high for one, other in pairs) / len(pairs)
        sys.stdout.write(
            f"{way}: x{min(medians):.2f} to x{max(medians):.2f}, intervals"
            f" {statistics.median((r.high - r.low) / r.median for r in ratios):.1%} wide,"
            f" {holds} of {len(ratios)} hold the median of all repeats (x{truth:.2f}),"
            f" an interval holds {others:.0%} of the other repeats,"
            f" {statistics.median(seconds for _, seconds in own):.1f} s each\n"
        )


if __name__ == "__main__":
    main()
