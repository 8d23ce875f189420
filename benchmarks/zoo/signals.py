"""Networks that classify signals and volumes, without weights."""

from __future__ import annotations

from keras import Input, Model, layers

from benchmarks.zoo.blocks import normalised


def convolutions() -> Model:
    """Four convolutions on 128 steps of nine sensors."""
    x = sensors = Input((128, 9), name="sensors")
    for number, (width, kernel) in enumerate([(64, 7), (64, 5), (96, 5), (96, 3)], start=1):
        x = layers.Conv1D(width, kernel, padding="same", use_bias=False, name=f"conv{number}")(x)
        x = normalised(x, f"conv{number}")
        x = layers.MaxPooling1D(2, name=f"pool{number}")(x)
    x = layers.Dropout(0.3, name="drop")(layers.GlobalAveragePooling1D(name="pool")(x))
    return Model(sensors, layers.Dense(6, activation="softmax", name="classes")(x), name="har")


def heartbeats() -> Model:
    """Five residual blocks on 187 samples of a heart beat (Kachuee et al. 2018, 1805.00794)."""
    beat = Input((187, 1), name="beat")
    x = layers.Rescaling(1 / 255, name="scale")(beat)
    x = layers.Conv1D(32, 5, padding="same", name="stem")(x)
    for block in range(5):
        y = layers.Conv1D(32, 5, padding="same", activation="relu", name=f"first{block}")(x)
        y = layers.Conv1D(32, 5, padding="same", name=f"second{block}")(y)
        x = layers.ReLU(name=f"relu{block}")(layers.Add(name=f"add{block}")([x, y]))
        x = layers.MaxPooling1D(5, 2, name=f"pool{block}")(x)
    x = layers.Flatten(name="flat")(x)
    x = layers.Dense(32, activation="relu", name="hidden")(x)
    return Model(beat, layers.Dense(5, activation="softmax", name="classes")(x), name="heartbeats")


def ds_cnn() -> Model:
    """DS-CNN, depthwise separable (Zhang et al. 2017, arXiv 1711.07128), 48 spectra of 40 bands."""
    spectra = Input((48, 40, 1), name="spectra")
    x = layers.BatchNormalization(momentum=0.9, name="scale")(spectra)
    x = layers.Conv2D(64, (10, 4), 2, padding="same", use_bias=False, name="stem")(x)
    x = normalised(x, "stem")
    for block in range(4):
        x = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name=f"depth{block}")(x)
        x = normalised(x, f"depth{block}")
        x = layers.Conv2D(64, 1, use_bias=False, name=f"point{block}")(x)
        x = normalised(x, f"point{block}")
    x = layers.Dropout(0.2, name="drop")(layers.GlobalAveragePooling2D(name="pool")(x))
    return Model(spectra, layers.Dense(10, activation="softmax", name="classes")(x), name="ds_cnn")


def voxnet() -> Model:
    """VoxNet (Maturana and Scherer 2015) on a grid of 32³."""
    grid = Input((32, 32, 32, 1), name="grid")
    x = layers.Conv3D(32, 5, 2, name="conv1")(grid)
    x = layers.Conv3D(32, 3, name="conv2")(layers.LeakyReLU(0.1, name="leaky1")(x))
    x = layers.MaxPooling3D(2, name="pool")(layers.LeakyReLU(0.1, name="leaky2")(x))
    x = layers.Dense(128, activation="relu", name="wide")(layers.Flatten(name="flat")(x))
    x = layers.Dropout(0.4, name="drop")(x)
    return Model(grid, layers.Dense(2, activation="softmax", name="classes")(x), name="voxnet")
