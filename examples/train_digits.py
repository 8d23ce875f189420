"""Train the example model, a small CNN on scikit-learn's handwritten digits.

Run it with ``python examples/train_digits.py [PATH]``; it takes about a minute. The model is
trained on the training part of ``--data digits`` alone, and the best epoch is chosen on the
validation part. So the test part, on which ``lrfc build examples/digits.keras --data digits``
reports, is unseen.
"""

from __future__ import annotations

import sys
from pathlib import Path

import keras
from keras import layers

from lrfc.data import readers

EPOCHS = 40


def network() -> keras.Model:
    """Return a CNN for 8×8 grey digits: 93,000 weights, 9.9 million MACs.

    The images are enlarged to 16×16. Four 3×3 or 5×5 convolutions with BatchNorm and ReLU come
    before two Dense layers.
    """

    def block(x: keras.KerasTensor, filters: int, size: int, name: str) -> keras.KerasTensor:
        x = layers.Conv2D(filters, size, padding="same", use_bias=False, name=name)(x)
        x = layers.BatchNormalization(momentum=0.9, name=f"{name}_bn")(x)
        return layers.ReLU(name=f"{name}_relu")(x)

    image = keras.Input((8, 8, 1), name="image")
    x = layers.UpSampling2D(2, interpolation="bilinear", name="enlarge")(image)
    x = block(x, 24, 5, "conv1")
    x = block(x, 48, 3, "conv2")
    x = block(x, 48, 3, "conv3")
    x = layers.MaxPooling2D(name="pool3")(x)
    x = block(x, 64, 3, "conv4")
    x = layers.MaxPooling2D(name="pool4")(x)
    x = layers.Dropout(0.4, name="drop")(layers.Flatten(name="flatten")(x))
    x = layers.Dense(32, activation="relu", name="hidden")(x)
    return keras.Model(
        image, layers.Dense(10, activation="softmax", name="digit")(x), name="digits"
    )


def main(path: Path) -> None:
    """Train, print the test accuracy and save the model."""
    keras.utils.set_random_seed(0)
    digits = readers.digits().parts
    (x, y), validation, test = (
        (images, keras.utils.to_categorical(numbers, 10))
        for images, numbers in map(digits.get, ("train", "val", "test"))
    )
    model = network()
    # Scans differ by small shifts and rotations, so the samples are varied in the same way.
    moved = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.RandomTranslation(0.05, 0.05, fill_mode="constant"),
            layers.RandomRotation(0.02, fill_mode="constant"),
            layers.RandomZoom(0.05, fill_mode="constant"),
            model,
        ]
    )
    steps = EPOCHS * -(-len(x) // 32)
    optimizer = keras.optimizers.AdamW(
        keras.optimizers.schedules.CosineDecay(3e-3, steps), weight_decay=0.02
    )
    loss = keras.losses.CategoricalCrossentropy(label_smoothing=0.1)
    moved.compile(optimizer, loss, metrics=["accuracy"])
    best = keras.callbacks.ModelCheckpoint(
        path.with_suffix(".weights.h5"), "val_loss", save_best_only=True, save_weights_only=True
    )
    moved.fit(
        x, y, batch_size=32, epochs=EPOCHS, validation_data=validation, callbacks=[best], verbose=2
    )
    moved.load_weights(best.filepath)
    Path(best.filepath).unlink()
    print(f"test accuracy {moved.evaluate(*test, verbose=0)[1]:.4f}")
    model.save(path)
    print(f"{path}: {model.count_params():,} parameters, {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("digits.keras"))
