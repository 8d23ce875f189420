"""Read Keras model files: .keras, .h5, and the .h5 files of Keras 1 and 2 that Keras 3 refuses."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lrfc.errors import ModelError
from lrfc.ir.backend import keras, quiet, reason
from lrfc.ir.keras import allowed as keras_allowed
from lrfc.ir.keras import compiled as keras_compiled
from lrfc.ir.keras import file as keras_file
from lrfc.ir.keras import legacy as keras_legacy
from lrfc.ir.keras import wiring as keras_wiring
from lrfc.ir.keras.creation import TooManyWeights, weights_bounded, without_random_values
from lrfc.ir.keras.file import ModelFile
from lrfc.system import scratch
from lrfc.system.reader import shown

#: Elements that layers may have without saving them: states of random generators, tables.
_UNSAVED = 1 << 24


def load(
    path: Path | str, *, unsafe: bool = False, log: Callable[[str], None] = lambda line: None
) -> Any:
    """Load the model in a .keras or .h5 file, compiled with the loss in it, where there is one.

    The content decides on the format, not the suffix. Keras never opens the file itself: it gets a
    copy whose configuration names only what lrfc.ir.keras.allowed lists. With ``unsafe`` the copy
    has the configuration unchecked, so that the file can run Python code. ``log`` takes a line
    before what may take long. UsageError for a missing
    file, ModelError for one without a usable model.
    """
    file = keras_file.read(path)
    with scratch.folder() as folder:
        model = _Loading(file, unsafe, folder, log).model()
    _refuse_non_finite(model, file.path)
    keras_compiled.carry(file, model, unsafe=unsafe)
    return model


class _Loading:
    """The loading of one file."""

    def __init__(
        self, file: ModelFile, unsafe: bool, folder: Path, log: Callable[[str], None]
    ) -> None:
        self._file, self._unsafe, self._log = file, unsafe, log
        try:
            self._config = (
                file.config
                if unsafe
                else keras_allowed.model(file.config, file.path, legacy=file.legacy)
            )
        except keras_allowed.NoCounterpartError as error:
            raise self._not_carried_over(error) from error
        self._copy = keras_file.Copy(file, folder)

    def model(self) -> Any:
        """Load the model by Keras 3, or carry it over where Keras 3 fails or computes otherwise."""
        k, path = keras(), self._file.path
        copy = self._copy.with_config(self._config, "model")
        try:
            with (
                quiet(),
                without_random_values(k),
                weights_bounded(k.Layer, self._weight_limit()),
            ):
                model = k.saving.load_model(copy, compile=False, safe_mode=not self._unsafe)
        except TooManyWeights as error:
            raise self._too_large() from error
        except Exception as error:
            if self._file.legacy and (carried := self._carried_over()) is not None:
                return carried
            raise self._unreadable(error) from error
        if not isinstance(model, k.Model):
            raise ModelError(f"{path} holds a {type(model).__name__}, not a model")
        old = self._tf_keras_model() if self._file.legacy and model.built else None
        if old is None or old.inputs is None or keras_legacy.agrees(old, model):
            return model
        return self._carried_over(old)

    def _tf_keras_model(self) -> Any:
        """The model as read by tf_keras; None when it cannot, or for a file with custom classes."""
        if self._unsafe:
            config = self._file.config
        else:
            try:
                config = keras_allowed.legacy_model(self._file.config, self._file.path)
                keras_wiring.check(config)
            except keras_allowed.CustomClassError:
                return None
        try:
            copy = self._copy.with_config(config, "legacy")
            self._log(
                f"written by Keras {self._file.version}: its outputs are compared with those that"
                " tf_keras computes"
            )
            return keras_legacy.read(copy, elements=self._weight_limit(), unsafe=self._unsafe)
        except TooManyWeights as error:
            raise self._too_large() from error

    def _carried_over(self, old: Any = None) -> Any:
        """The model carried over from tf_keras to Keras 3; None when tf_keras cannot read it."""
        try:
            old = self._tf_keras_model() if old is None else old
            return None if old is None else keras_legacy.carried_over(old)
        except ModelError as error:
            raise self._not_carried_over(error) from error

    def _weight_limit(self) -> int:
        """The most weight elements that its layers may have: twice those in the file, and more."""
        return 2 * self._copy.elements + _UNSAVED

    def _too_large(self) -> ModelError:
        return ModelError(
            f"{self._file.path}: its layers have more weights than the file holds"
            f" ({self._copy.elements:,} numbers); Keras does not save such files"
        )

    def _not_carried_over(self, error: ModelError) -> ModelError:
        return ModelError(
            f"{self._file.path}, written by Keras {self._file.version}, cannot be carried over to"
            f" Keras {keras().__version__}: {error}. Build the model with Keras 3, give it the old"
            " weights and save it with model.save('model.keras')"
        )

    def _unreadable(self, error: Exception) -> ModelError:
        """The error for a file that Keras cannot read, from the text of Keras' error."""
        path, text = self._file.path, str(error)
        if re.search(r"safe_mode=False|enable_unsafe_deserialization|unsafe", text):
            return ModelError(
                f"{path} contains Python code (a Lambda layer); if you trust the file, give"
                " --unsafe-load"
            )
        unknown = re.search(
            r"(?:Could not locate (?:class|function)|Unknown (?:layer|object|activation"
            r" function):?) '([^']+)'",
            text,
        )
        if unknown:
            return ModelError(
                f"{path} uses '{shown(unknown.group(1), 120)}', which is not part of Keras:"
                " decorate it with @keras.saving.register_keras_serializable() and import its"
                " module before the model is loaded"
            )
        present = keras().__version__
        if self._file.version == present:
            return ModelError(
                f"{path} cannot be read by the Keras that wrote it, {present} ({reason(error)}):"
                " the file may be damaged; save the model once more"
            )
        return ModelError(
            f"{path}, written by Keras {self._file.version}, cannot be read by Keras {present}"
            f" ({reason(error)}): load it with the Keras that wrote it and save it with"
            " model.save('model.keras')"
        )


def _refuse_non_finite(model: Any, path: Path) -> None:
    """Raise ModelError when a weight is NaN or infinite."""
    for variable in model.weights:
        array = np.asarray(variable, dtype=np.float32) if "float" in str(variable.dtype) else None
        if array is not None and not np.isfinite(array).all():
            raise ModelError(
                f"{path}: weight '{variable.path}' holds NaN or infinite values; train the model"
                " again or take an earlier checkpoint"
            )
