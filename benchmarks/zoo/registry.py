"""The networks of the evaluation: their data, where they come from, and how they are scored."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from benchmarks.training import trained

#: Changes the samples ``x`` and labels ``y`` of one part of a data set, training or test.
Change = Callable[[Any, Any], tuple[Any, Any]]

#: The licence of networks that are trained here.
OWN = "trained here"


@dataclass(frozen=True)
class Training:
    """How a network is trained. ``network``: makes it; the rest: see ``benchmarks.training``."""

    network: Callable[[], Any]
    epochs: int
    batch_size: int = 64
    rate: float = 2e-3
    #: Makes more training samples of the given ones; it is not used for tests and compression.
    more: Change | None = None


@dataclass(frozen=True)
class Network:
    """A network of the evaluation.

    ``dataset``: its name in the shared data; None for a network without labelled data, whose
    metric is the fidelity to the original. ``file``: of the shared models; or ``training``.
    ``metric``: as for ``lrfc build --metric``; None for the accuracy. ``change``: from the data as
    they are shared to what the network reads.
    """

    name: str
    dataset: str | None
    file: str | None = None
    training: Training | None = None
    metric: str | None = None
    licence: str = OWN
    change: Change = field(default=lambda x, y: (x, y))

    def path(self) -> Path:
        """The file of the network, which is trained first where there is none."""
        if self.training is None:
            return Path(os.environ["LRFC_DATA"], "models", str(self.file))
        how = self.training
        x, y = self._part("train")
        if how.more is not None:
            x, y = how.more(x, y)
        data = {"x": x, "y": y}
        return trained(self.name, how.network, data, how.epochs, how.batch_size, how.rate)

    def data(self) -> dict[str, Any] | None:
        """Training and test samples and labels, as for ``lrfc.build``; None without any."""
        if self.dataset is None:
            return None
        (x, y), (x_test, y_test) = self._part("train"), self._part("test")
        return {"x": x, "y": y, "x_test": x_test, "y_test": y_test}

    def _part(self, part: str) -> tuple[Any, Any]:
        x, y = _arrays(f"{self.dataset}_{part}")
        return self.change(x, y)


@cache
def _arrays(name: str) -> tuple[Any, Any]:
    with np.load(Path(os.environ["LRFC_DATA"], f"{name}.npz")) as file:
        return file["x"], file["y"]


def centred(x: Any, y: Any) -> tuple[Any, Any]:
    """Images scaled as for the training of the MobileNetV2-shaped network."""
    mean = np.array([125.307, 122.950, 113.865], np.float32)
    return (x - mean) / mean, y


def thirty(x: Any, y: Any) -> tuple[Any, Any]:
    """Images of 30×30 pixels."""
    import keras

    return np.asarray(keras.ops.image.resize(x.astype(np.float32), (30, 30))), y


def tiles(x: Any, y: Any, size: int = 128) -> tuple[Any, Any]:
    """Square tiles of images and of their masks, whose classes are 0 and 1."""

    def cut(maps: Any) -> Any:
        count, height, width, channels = maps.shape
        grid = maps.reshape(count, height // size, size, width // size, size, channels)
        return grid.swapaxes(2, 3).reshape(-1, size, size, channels)

    return cut(x), (cut(y)[..., 0] > 0).astype(np.uint8)


def turned(x: Any, y: Any) -> tuple[Any, Any]:
    """Images with their mirror images, and both also turned by half of a circle."""

    def four(maps: Any) -> Any:
        both = np.concatenate([maps, maps[:, :, ::-1]])
        return np.concatenate([both, both[:, ::-1, ::-1]])

    return four(x), four(y) if y.ndim > 1 else np.tile(y, 4)


def macro_recall(outputs: Any, targets: Any) -> float:
    """The mean over the classes of the share of their samples that is recognised."""
    hits = np.argmax(outputs, -1) == targets
    return float(np.mean([hits[targets == label].mean() for label in np.unique(targets)]))


def _shared(name: str, file: str, licence: str, **more: Any) -> Network:
    return Network(name, "cifar10", file=file, licence=licence, **more)


def _networks() -> dict[str, Network]:
    from benchmarks.zoo import images, signals

    found = [
        _shared("resnet8", "mlperf_tiny_resnet8_cifar10.h5", "Apache-2.0"),
        _shared("resnet20", "resnet20_cifar10.keras", "BSD-2-Clause"),
        _shared("resnet56", "resnet56_cifar10.keras", "BSD-2-Clause"),
        _shared("vgg16", "vgg16_cifar10.keras", OWN),
        _shared("mobilenetv2", "mobilenetv2_cifar10.keras", OWN),
        _shared("shufflenetv2", "shufflenetv2_cifar10.keras", OWN),
        _shared("mini_mobilenetv2", "mini_mobilenetv2_cifar10.h5", "MIT", change=centred),
        Network("lenet", "fashion_mnist", training=Training(images.lenet, 6, 128)),
        Network(
            "gtsrb_cnn", "gtsrb", file="gtsrb_cnn30_sivaprakash.h5", licence="MIT", change=thirty
        ),
        Network("squeezenet", "gtsrb", training=Training(images.squeezenet, 15)),
        Network("resnet18", "eurosat", training=Training(images.resnet18, 12, more=turned)),
        Network("alexnet", "eurosat", training=Training(images.alexnet, 15, more=turned)),
        Network("har_conv", "har", training=Training(signals.convolutions, 15)),
        Network(
            "heartbeats",
            "ecg",
            training=Training(signals.heartbeats, 12, 128),
            metric="benchmarks.zoo.registry:macro_recall",
        ),
        Network("voxnet", "voxels", training=Training(signals.voxnet, 12, 32, 1e-3)),
        Network("ds_cnn", "spoken_digits", training=Training(signals.ds_cnn, 40, 32)),
        Network(
            "unet",
            "membrane",
            training=Training(images.unet, 6, 16, more=turned),
            metric="miou",
            change=tiles,
        ),
        Network(
            "autoencoder",
            None,
            file="mlperf_tiny_autoencoder_ad.h5",
            metric="fidelity",
            licence="Apache-2.0",
        ),
    ]
    return {network.name: network for network in found}


#: The networks by name.
NETWORKS: Mapping[str, Network] = MappingProxyType(_networks())
