"""CPU seconds, peak memory and page faults of builds and explorations.

    LRFC_DATA=... python benchmarks/speed.py [CASE ...] [--checkouts OLD NEW] [--repeats 3]

Every command runs in a process of its own, with an empty cache. The checkouts take turns, so that a
change of the machine's speed meets all of them. Writes speed.csv to the folder of this file, one
row for each run as soon as it has ended; a run that has a row is skipped. ``cpu_s`` and
``system_s`` are the seconds in user mode and in the kernel, children included; ``peak_mib`` is the
largest resident memory of any process. ``stages`` holds the wall-clock seconds, the CPU seconds
(children included), the page faults and the growth of the peak memory of each stage, without the
stages within it, as --profile records them; of a checkout without that option, the wall-clock
seconds that the log names.

The networks at 224×224 have random weights and 64 random images. The deep small one has four
convolutions at full resolution, and is trained for an epoch on CIFAR-10. Cases that need the folder
LRFC_DATA are skipped without it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
from table import Table

from lrfc.results.time_profile import Entry, largest
from lrfc.text import count, size

ROOT = Path(__file__).parent.parent
BUDGET = ("--max-macs", "60%", "--epochs", "0", "--target", "tflite")
LARGE = {
    "mobilenetv2_224": "MobileNetV2",
    "resnet50_224": "ResNet50",
    "vgg16_224": "VGG16",
}
_STAGE = re.compile(r"^(\w+): ([0-9.]+) s", re.MULTILINE)


def cases(folder: Path) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the name of each case and its command; ``folder`` holds generated models and data."""
    digits = str(ROOT / "examples" / "digits.keras")
    yield "digits", ("build", digits, "--data", "digits", "--max-macs", "50%", "--target", "tflite")
    if "LRFC_DATA" in os.environ:
        data = Path(os.environ["LRFC_DATA"])
        train = ("--data", str(data / "cifar10_train.npz"))
        test = ("--test-data", str(data / "cifar10_test.npz"))
        for name in ("resnet20", "resnet56"):
            model = str(data / "models" / f"{name}_cifar10.keras")
            yield f"{name} explore", ("explore", model, *train)
            yield name, ("build", model, *train, *test, *BUDGET)
        yield "deep small", ("build", str(folder / "deep_small.keras"), *train, *BUDGET)
    for name in LARGE:
        model, images = str(folder / f"{name}.keras"), str(folder / "images.npz")
        yield f"{name} explore", ("explore", model, "--data", images)
        yield name, ("build", model, "--data", images, *BUDGET)


def prepare(folder: Path, name: str) -> None:
    """Write the model and the data of a case, unless they are there."""
    import keras

    keras.utils.set_random_seed(0)
    if name in LARGE:
        path = folder / f"{name}.keras"
        if not path.exists():
            getattr(keras.applications, LARGE[name])(weights=None).save(path)
            rng = np.random.default_rng(0)
            np.savez(folder / "images.npz", x=rng.random((64, 224, 224, 3), np.float32))
    elif name == "deep small" and not (folder / "deep_small.keras").exists():
        layers = [
            keras.layers.Conv2D(filters, 3, padding="same", activation="relu")
            for filters in (32, 32, 64, 64)
        ]
        model = keras.Sequential(
            [
                keras.Input((32, 32, 3)),
                *layers,
                keras.layers.GlobalAveragePooling2D(),
                keras.layers.Dense(10, activation="softmax"),
            ]
        )
        model.compile("adam", "sparse_categorical_crossentropy")
        with np.load(Path(os.environ["LRFC_DATA"], "cifar10_train.npz")) as data:
            model.fit(data["x"], data["y"], epochs=1, verbose=0)
        model.save(folder / "deep_small.keras")


@cache
def profiles(checkout: Path, command: str) -> bool:
    """Whether a command of a checkout has the option --profile."""
    text = subprocess.run(  # noqa: S603  our own command
        [sys.executable, "-m", "lrfc", command, "--help"],
        env=os.environ | {"PYTHONPATH": str(checkout)},
        cwd=tempfile.gettempdir(),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return re.search(r"--profile\b", text) is not None


def stages(out: Path, log: str) -> str:
    """The usage of each stage, from the output folder, or else from the log."""
    for path in (out / "manifest.json", out / "pareto.json"):
        profile = json.loads(path.read_text()).get("profile") if path.exists() else None
        if profile is not None:
            return "; ".join(
                f"{stage.name} {stage.seconds:.1f} s,"
                f" {stage.cpu_seconds + stage.children_seconds:.1f} CPU-s,"
                f" {count(stage.page_faults)} faults, +{size(stage.peak_growth_bytes)}"
                for stage in largest(Entry.model_validate(profile), 12)
            )
    return "; ".join(f"{name} {length}" for name, length in _STAGE.findall(log))


def measured(command: tuple[str, ...], checkout: Path) -> dict[str, str]:
    """Run lrfc of a checkout, and return the resources that it took.

    Exit codes of results that are not shipped are results, too.
    """
    with tempfile.TemporaryDirectory() as folder, Path(folder, "log").open("w+") as log:
        environment = os.environ | {"PYTHONPATH": str(checkout), "LRFC_CACHE": f"{folder}/cache"}
        option = ["--profile"] if profiles(checkout, command[0]) else []
        start = time.perf_counter()
        process = subprocess.Popen(  # noqa: S603  our own command
            [sys.executable, "-m", "lrfc", *command, *option, "--out", f"{folder}/out"],
            cwd=folder,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=log,
        )
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        log.seek(0)
        text = log.read()
        if process.returncode not in (0, 4, 8):
            sys.exit(f"{' '.join(command)}: exit {process.returncode}\n{text[-2000:]}")
        named = stages(Path(folder, "out"), text)
    return {
        "wall_s": f"{seconds:.1f}",
        "cpu_s": f"{used.ru_utime:.1f}",
        "system_s": f"{used.ru_stime:.1f}",
        "peak_mib": f"{used.ru_maxrss / 1024:.0f}",
        "page_faults": str(used.ru_minflt),
        "stages": named,
    }


def main() -> None:
    """Measure the cases in turns of the checkouts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", nargs="*")
    parser.add_argument("--checkouts", nargs="+", type=Path, default=[ROOT])
    parser.add_argument("--repeats", type=int, default=1)
    given = parser.parse_args()
    table = Table(Path(__file__).with_suffix(".csv"))
    with tempfile.TemporaryDirectory() as folder:
        known = dict(cases(Path(folder)))
        for name in given.cases or known:
            if name not in known:
                sys.exit(f"no case '{name}'; they are {', '.join(known)}")
            prepare(Path(folder), name.removesuffix(" explore"))
            for repeat in range(1, given.repeats + 1):
                for checkout in given.checkouts:
                    run = {"case": name, "checkout": checkout.resolve().name, "repeat": repeat}
                    if not table.knows(**run):
                        table.add(run | measured(known[name], checkout.resolve()))


if __name__ == "__main__":
    main()
