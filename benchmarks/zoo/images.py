"""Networks that classify or segment images, without weights."""

from __future__ import annotations

from typing import Any

from keras import Input, Model, layers

from benchmarks.zoo.blocks import normalised


def lenet() -> Model:
    """LeNet-5 with ReLU and its large fully connected layers (LeCun et al. 1998), 28×28 pixels."""
    image = Input((28, 28, 1), name="image")
    x = layers.Rescaling(1 / 255, name="scale")(image)
    x = layers.Conv2D(20, 5, activation="relu", name="conv1")(x)
    x = layers.MaxPooling2D(2, name="pool1")(x)
    x = layers.Conv2D(50, 5, activation="relu", name="conv2")(x)
    x = layers.Flatten(name="flat")(layers.MaxPooling2D(2, name="pool2")(x))
    x = layers.Dense(500, activation="relu", name="wide")(x)
    return Model(image, layers.Dense(10, activation="softmax", name="classes")(x), name="lenet")


def squeezenet() -> Model:
    """Six fire modules of SqueezeNet (Iandola et al. 2016, arXiv 1602.07360), 32×32 pixels."""
    image = Input((32, 32, 3), name="image")
    x = layers.Rescaling(1 / 127.5, -1, name="scale")(image)
    x = normalised(layers.Conv2D(48, 3, padding="same", use_bias=False, name="stem")(x), "stem")
    for number, (squeeze, expand) in enumerate([(16, 48), (16, 48), (32, 96), (32, 96), (48, 128)]):
        if number in (0, 2, 4):
            x = layers.MaxPooling2D(2, name=f"pool{number}")(x)
        x = _fire(x, squeeze, expand, f"fire{number}")
    x = layers.Dropout(0.2, name="drop")(_fire(x, 48, 128, "fire5"))
    x = layers.GlobalAveragePooling2D(name="pool")(layers.Conv2D(43, 1, name="maps")(x))
    return Model(image, layers.Softmax(name="classes")(x), name="squeezenet")


def _fire(x: Any, squeeze: int, expand: int, name: str) -> Any:
    x = layers.Conv2D(squeeze, 1, use_bias=False, name=f"{name}_squeeze")(x)
    x = normalised(x, f"{name}_squeeze")
    parts = [
        layers.Conv2D(expand, k, padding="same", use_bias=False, name=f"{name}_expand{k}")(x)
        for k in (1, 3)
    ]
    return normalised(layers.Concatenate(name=f"{name}_join")(parts), name)


def resnet18() -> Model:
    """ResNet-18 at half of its width (He et al. 2016, arXiv 1512.03385), 64×64 pixels."""
    image = Input((64, 64, 3), name="image")
    x = layers.Rescaling(1 / 127.5, -1, name="scale")(image)
    x = layers.Conv2D(32, 7, strides=2, padding="same", use_bias=False, name="stem")(x)
    x = layers.MaxPooling2D(3, 2, padding="same", name="half")(normalised(x, "stem"))
    for stage, width in enumerate((32, 64, 128, 256)):
        for block in range(2):
            x = _residual(x, width, 2 if stage and not block else 1, f"stage{stage}_block{block}")
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return Model(image, layers.Dense(10, activation="softmax", name="classes")(x), name="resnet18")


def _residual(x: Any, width: int, stride: int, name: str) -> Any:
    y = layers.Conv2D(width, 3, stride, padding="same", use_bias=False, name=f"{name}_first")(x)
    y = normalised(y, f"{name}_first")
    y = layers.Conv2D(width, 3, padding="same", use_bias=False, name=f"{name}_second")(y)
    y = layers.BatchNormalization(momentum=0.9, name=f"{name}_second_norm")(y)
    if stride > 1:
        x = layers.Conv2D(width, 1, stride, use_bias=False, name=f"{name}_shortcut")(x)
        x = layers.BatchNormalization(momentum=0.9, name=f"{name}_shortcut_norm")(x)
    return layers.ReLU(name=f"{name}_relu")(layers.Add(name=f"{name}_add")([x, y]))


def alexnet() -> Model:
    """AlexNet's five convolutions and three fully connected layers, narrower, 64×64 pixels.

    Krizhevsky et al. 2012. Most weights are those of the fully connected layers.
    """
    image = Input((64, 64, 3), name="image")
    x = layers.Rescaling(1 / 127.5, -1, name="scale")(image)
    for number, (width, kernel, pool) in enumerate(
        [(48, 7, True), (96, 5, True), (128, 3, False), (128, 3, False), (96, 3, True)], start=1
    ):
        stride = 2 if number == 1 else 1
        x = layers.Conv2D(width, kernel, stride, padding="same", name=f"conv{number}")(x)
        x = normalised(x, f"conv{number}")
        x = layers.MaxPooling2D(2, name=f"pool{number}")(x) if pool else x
    x = layers.Flatten(name="flat")(x)
    for number in (6, 7):
        x = layers.Dropout(0.4, name=f"drop{number}")(x)
        x = layers.Dense(1024, activation="relu", name=f"wide{number}")(x)
    return Model(image, layers.Dense(10, activation="softmax", name="classes")(x), name="alexnet")


def unet() -> Model:
    """A U-Net of three levels (Ronneberger et al. 2015, arXiv 1505.04597) on 128×128 pixels."""
    image = Input((128, 128, 1), name="image")
    x = layers.Rescaling(1 / 127.5, -1, name="scale")(image)
    widths, passed = (12, 24, 48), []
    for level, width in enumerate(widths):
        x = _twice(x, width, f"down{level}")
        passed.append(x)
        x = layers.MaxPooling2D(2, name=f"pool{level}")(x)
    x = _twice(x, 96, "bottom")
    for level in reversed(range(len(widths))):
        x = layers.Conv2DTranspose(widths[level], 2, 2, name=f"up{level}")(x)
        x = layers.Concatenate(name=f"join{level}")([passed[level], x])
        x = _twice(x, widths[level], f"up{level}")
    return Model(image, layers.Conv2D(2, 1, activation="softmax", name="classes")(x), name="unet")


def _twice(x: Any, width: int, name: str) -> Any:
    for number in (1, 2):
        conv = layers.Conv2D(width, 3, padding="same", use_bias=False, name=f"{name}_conv{number}")
        x = normalised(conv(x), f"{name}_conv{number}")
    return x
