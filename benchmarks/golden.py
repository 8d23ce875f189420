"""Plans, figures and files of some builds, for comparing two checkouts on one machine.

A change that must not alter the result of a build is tested against the previous checkout::

    python benchmarks/golden.py make FOLDER     # in the old checkout
    python benchmarks/golden.py check FOLDER    # in the new one

``make`` builds each case and stores its manifest. ``check`` builds the cases of devices with
computed latencies again, repeats all others from their manifests (``--locked``), and compares the
method and rank of each layer, the remaining filters, parameters, MACs, memory, accuracy and the
SHA-256 of each file. Times and texts are not compared. ResNet-8 comes from the folder LRFC_DATA.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
DIGITS = (str(ROOT / "examples" / "digits.keras"), "--data", "digits", "--max-macs", "50%")
#: Fields of ``before`` and ``after`` that do not depend on the machine's speed.
FIGURES = (
    "params",
    "macs",
    "file_bytes",
    "arena_bytes",
    "accuracy",
    "cycles",
    "sram_bytes",
    "flash_bytes",
)
LAYER = ("name", "method", "rank", "params_after", "macs_after", "filters_before", "filters_after")


@dataclass(frozen=True)
class Case:
    """A build.

    ``computed``: whether its device's latencies are computed, so that the plan is reproducible.
    """

    name: str
    arguments: tuple[str, ...]
    computed: bool = False


def cases(folder: Path) -> Iterator[Case]:
    """Yield the builds; those on LRFC_DATA only where it is set."""
    for target in ("tflite", "onnx"):
        for precision in ("fp32", "int8"):
            yield Case(
                f"digits-{target}-{precision}",
                (*DIGITS, "--target", target, "--precision", precision, "--epochs", "1"),
            )
    yield Case("digits-prune", (*DIGITS, "--prune", "on", "--epochs", "0"))
    for device in ("cortex-m7", "ethos-u55-128"):
        yield Case(
            f"digits-{device}", (*DIGITS, "--device", device, "--epochs", "0"), computed=True
        )
    yield Case(
        "two-inputs",
        (str(two_inputs(folder)), "--max-macs", "60%", "--device", "cortex-m7"),
        computed=True,
    )
    data = os.environ.get("LRFC_DATA")
    if data:
        model, samples = (
            Path(data, "models", "mlperf_tiny_resnet8_cifar10.h5"),
            Path(data, "cifar10_test.npz"),
        )
        yield Case(
            "resnet8",
            (
                str(model),
                "--data",
                str(samples),
                "--max-macs",
                "60%",
                "--device",
                "cortex-m7",
                "--epochs",
                "0",
            ),
            computed=True,
        )


def two_inputs(folder: Path) -> Path:
    """Return a model with two inputs, a residual addition and a grouped convolution."""
    path = folder / "two_inputs.keras"
    if not path.exists():
        import keras
        from keras import layers

        keras.utils.set_random_seed(0)
        left, right = keras.Input((16, 16, 8), name="left"), keras.Input((16, 16, 8), name="right")
        x = layers.Conv2D(32, 3, padding="same", use_bias=False)(layers.Add()([left, right]))
        x = layers.ReLU()(layers.BatchNormalization()(x))
        y = layers.Conv2D(32, 3, padding="same", groups=4)(x)
        y = layers.ReLU()(layers.BatchNormalization()(y))
        x = layers.ReLU()(layers.Add()([x, layers.Conv2D(32, 3, padding="same")(y)]))
        x = layers.Dense(10, activation="softmax")(
            layers.Dense(64, activation="relu")(layers.GlobalAveragePooling2D()(x))
        )
        keras.Model([left, right], x).save(path)
    return path


def build(arguments: tuple[str, ...], out: Path) -> dict[str, Any]:
    """Return the manifest of a build in its own process.

    Exit codes of results that do not meet a constraint are accepted, too.
    """
    command = [sys.executable, "-m", "lrfc", "build", *arguments, "--out", str(out)]
    done = subprocess.run(  # noqa: S603
        command, cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode not in (0, 4, 8):
        sys.exit(f"{' '.join(command)}: exit {done.returncode}\n{done.stderr[-2000:]}")
    manifest: dict[str, Any] = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    return manifest


def essence(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return everything that has to be equal."""
    return {
        "layers": [{name: layer.get(name) for name in LAYER} for layer in manifest["layers"]],
        **{
            side: {name: manifest[side].get(name) for name in FIGURES}
            for side in ("before", "after")
        },
        "files": {
            each["path"]: each["sha256"]
            for each in manifest["artifacts"]
            if each["format"] != "keras"
        },
    }


def differences(old: Any, new: Any, place: str = "") -> Iterator[str]:
    """Yield a line for each place where two essences differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in {**old, **new}:
            yield from differences(
                old.get(key), new.get(key), f"{place}.{key}" if place else str(key)
            )
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for number, pair in enumerate(zip(old, new, strict=True)):
            yield from differences(*pair, f"{place}[{number}]")
    elif old != new:
        yield f"{place}: {old} → {new}"


def make(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for case in cases(folder):
        out = folder / case.name
        if not (out / "manifest.json").exists():
            build(case.arguments, out)
        print(case.name, "built", flush=True)


def check(folder: Path) -> None:
    failed = 0
    for case in cases(folder):
        old = json.loads((folder / case.name / "manifest.json").read_text(encoding="utf-8"))
        if not case.computed and not any(layer["method"] for layer in old["layers"]):
            print(case.name, "not compared: the original was kept, so there is no plan to repeat")
            continue
        locked = ("--locked", str(folder / case.name / "manifest.json"))
        arguments = case.arguments if case.computed else (case.arguments[0], *locked)
        found = list(
            differences(essence(old), essence(build(arguments, folder / f"{case.name}-again")))
        )
        failed += bool(found)
        print(case.name, "differs" if found else "equal", *found, sep="\n  ", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("make", "check"))
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    {"make": make, "check": check}[given.what](given.folder.absolute())
