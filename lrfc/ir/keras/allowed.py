"""Allowlist of the names in a model file: layers, operations and functions that only compute.

Keras and tf_keras import what a configuration names. So the whole configuration is checked before
either reads it: every object in it must be in the lists below, or be a class that the user
registered with Keras. Otherwise the file is refused. The checked copy names no module that the file
chose.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from lrfc.errors import ModelError
from lrfc.ir.backend import keras
from lrfc.ir.keras.rebuild import RENAMED, SYMBOLS
from lrfc.system.reader import shown

#: Layers of keras.layers that compute from tensors and numbers alone.
LAYERS = frozenset(
    """
    Activation ActivityRegularization AdaptiveAveragePooling1D AdaptiveAveragePooling2D
    AdaptiveAveragePooling3D AdaptiveMaxPooling1D AdaptiveMaxPooling2D AdaptiveMaxPooling3D Add
    AdditiveAttention AlphaDropout Attention AugMix AutoContrast Average AveragePooling1D
    AveragePooling2D AveragePooling3D AvgPool1D AvgPool2D AvgPool3D BatchNormalization Bidirectional
    CategoryEncoding CenterCrop Concatenate ContrastLimitedAdaptiveHistogramEqualization Conv1D
    Conv1DTranspose Conv2D Conv2DTranspose Conv3D Conv3DTranspose ConvLSTM1D ConvLSTM2D ConvLSTM3D
    Convolution1D Convolution1DTranspose Convolution2D Convolution2DTranspose Convolution3D
    Convolution3DTranspose Cropping1D Cropping2D Cropping3D CutMix Dense DepthwiseConv1D
    DepthwiseConv2D Discretization Dot Dropout ELU EinsumDense Embedding Equalization Flatten GRU
    GRUCell GaussianDropout GaussianNoise GlobalAveragePooling1D GlobalAveragePooling2D
    GlobalAveragePooling3D GlobalAvgPool1D GlobalAvgPool2D GlobalAvgPool3D GlobalMaxPool1D
    GlobalMaxPool2D GlobalMaxPool3D GlobalMaxPooling1D GlobalMaxPooling2D GlobalMaxPooling3D
    GroupNormalization GroupQueryAttention HashedCrossing Hashing Identity InputLayer IntegerLookup
    LSTM LSTMCell LayerNormalization LeakyReLU Masking MaxNumBoundingBoxes MaxPool1D MaxPool2D
    MaxPool3D MaxPooling1D MaxPooling2D MaxPooling3D Maximum MelSpectrogram Minimum MixUp
    MultiHeadAttention Multiply Normalization PReLU Permute Pipeline RMSNormalization RNN
    RandAugment RandomBrightness RandomColorDegeneration RandomColorJitter RandomContrast RandomCrop
    RandomElasticTransform RandomErasing RandomFlip RandomGaussianBlur RandomGrayscale RandomHue
    RandomInvert RandomPerspective RandomPosterization RandomRotation RandomSaturation
    RandomSharpness RandomShear RandomTranslation RandomZoom ReLU RepeatVector Rescaling Reshape
    Resizing ReversibleEmbedding STFTSpectrogram SeparableConv1D SeparableConv2D
    SeparableConvolution1D SeparableConvolution2D SimpleRNN SimpleRNNCell Softmax Solarization
    SpatialDropout1D SpatialDropout2D SpatialDropout3D SpectralNormalization StackedRNNCells
    StringLookup Subtract TextVectorization TimeDistributed UnitNormalization UpSampling1D
    UpSampling2D UpSampling3D ZeroPadding1D ZeroPadding2D ZeroPadding3D
    """.split()
)
#: The other names that keras.layers exports, and the reason why no file may use them.
REFUSED_LAYERS = {
    "Lambda": "it is Python code",
    "TFSMLayer": "it loads a SavedModel from a path",
    "TorchModuleWrapper": "it is pickled Python code",
    "FlaxLayer": "it is Python code",
    "JaxLayer": "it is Python code",
    "Layer": "it is an abstract class",
    "Wrapper": "it is an abstract class",
    "InputSpec": "it is no layer",
}
#: Layers with a vocabulary, which may be a list but not the path of a file.
_LOOKUPS = frozenset({"IntegerLookup", "StringLookup", "TextVectorization"})
_ACTIVATIONS = frozenset(
    """
    celu elu exponential gelu glu hard_shrink hard_sigmoid hard_silu hard_swish hard_tanh leaky_relu
    linear log_sigmoid log_softmax mish relu relu6 selu sigmoid silu soft_shrink softmax softplus
    softsign sparse_plus sparse_sigmoid sparsemax squareplus swish tanh tanh_shrink threshold
    """.split()
)
_LOSSES = frozenset(
    """
    BinaryCrossentropy BinaryFocalCrossentropy CTC CategoricalCrossentropy
    CategoricalFocalCrossentropy CategoricalGeneralizedCrossEntropy CategoricalHinge Circle
    CosineSimilarity Dice Hinge Huber KLDivergence LogCosh MeanAbsoluteError
    MeanAbsolutePercentageError MeanSquaredError MeanSquaredLogarithmicError Poisson
    SparseCategoricalCrossentropy SquaredHinge Tversky
    """.split()
)
_METRICS = frozenset(
    """
    AUC Accuracy BinaryAccuracy BinaryCrossentropy BinaryIoU CategoricalAccuracy
    CategoricalCrossentropy CategoricalHinge ConcordanceCorrelation CosineSimilarity F1Score
    FBetaScore FalseNegatives FalsePositives Hinge IoU KLDivergence LogCoshError Mean
    MeanAbsoluteError MeanAbsolutePercentageError MeanIoU MeanMetricWrapper MeanSquaredError
    MeanSquaredLogarithmicError OneHotIoU OneHotMeanIoU PearsonCorrelation Poisson Precision
    PrecisionAtRecall R2Score Recall RecallAtPrecision RootMeanSquaredError
    SensitivityAtSpecificity SparseCategoricalAccuracy SparseCategoricalCrossentropy
    SparseTopKCategoricalAccuracy SpecificityAtSensitivity SquaredHinge Sum
    TopKCategoricalAccuracy TrueNegatives TruePositives
    """.split()
)
_LOSS_FUNCTIONS = frozenset(
    """
    binary_accuracy binary_crossentropy binary_focal_crossentropy categorical_accuracy
    categorical_crossentropy categorical_focal_crossentropy categorical_generalized_cross_entropy
    categorical_hinge circle concordance_correlation cosine_similarity ctc dice hinge huber
    kl_divergence log_cosh mean_absolute_error mean_absolute_percentage_error mean_squared_error
    mean_squared_logarithmic_error pearson_correlation poisson sparse_categorical_accuracy
    sparse_categorical_crossentropy sparse_top_k_categorical_accuracy squared_hinge
    top_k_categorical_accuracy tversky
    """.split()
)
_OPTIMIZERS = frozenset(
    "Adadelta Adafactor Adagrad Adam AdamW Adamax Ftrl Lion Muon Nadam RMSprop SGD".split()
)
_SCHEDULES = frozenset(
    """
    CosineDecay CosineDecayRestarts ExponentialDecay InverseTimeDecay PiecewiseConstantDecay
    PolynomialDecay
    """.split()
)
_INITIALIZERS = frozenset(
    """
    Constant GlorotNormal GlorotUniform HeNormal HeUniform Identity IdentityInitializer LecunNormal
    LecunUniform Ones Orthogonal OrthogonalInitializer RandomNormal RandomUniform STFT
    STFTInitializer TruncatedNormal VarianceScaling Zeros constant glorot_normal glorot_uniform
    he_normal he_uniform identity lecun_normal lecun_uniform normal one ones orthogonal
    random_normal random_uniform stft truncated_normal uniform variance_scaling zero zeros
    """.split()
)
_REGULARIZERS = frozenset(
    "L1 L1L2 L2 OrthogonalRegularizer l1 l1_l2 l2 orthogonal_regularizer".split()
)
_CONSTRAINTS = frozenset(
    "MaxNorm MinMaxNorm NonNeg UnitNorm max_norm min_max_norm non_neg unit_norm".split()
)
_POLICIES = frozenset(
    """
    AWQDTypePolicy DTypePolicy DTypePolicyMap FloatDTypePolicy GPTQDTypePolicy Int4DTypePolicy
    QuantizedDTypePolicy QuantizedFloat8DTypePolicy
    """.split()
)
#: By module of Keras: the classes that a file may name.
_CLASSES = {
    "keras.layers": LAYERS,
    "keras.models": frozenset({"Model", "Sequential"}),
    "keras.src.models.functional": frozenset({"Functional"}),
    "keras.initializers": _INITIALIZERS,
    "keras.regularizers": _REGULARIZERS,
    "keras.constraints": _CONSTRAINTS,
    "keras.dtype_policies": _POLICIES,
    "keras.random": frozenset({"SeedGenerator"}),
}
_LOSS_CLASSES = {
    "keras.losses": _LOSSES,
    "keras.metrics": _METRICS,
    "keras.dtype_policies": _POLICIES,
}
_OPTIMIZER_CLASSES = {
    "keras.optimizers": _OPTIMIZERS,
    "keras.optimizers.schedules": _SCHEDULES,
}
#: Modules whose classes are operations on tensors.
OPERATIONS = frozenset(
    f"keras.src.ops.{name}" for name in "core einops image linalg math nn numpy".split()
)
#: Operations that call a function of the file's choice.
CALLING = frozenset(
    "AssociativeScan Cond ForiLoop JVP Map Scan Switch VectorizedMap WhileLoop".split()
)
#: Keras' markers of values that JSON cannot hold.
_VALUES = frozenset(
    """
    __bytes__ __ellipsis__ __keras_tensor__ __numpy__ __slice__ __tensor__ __tuple__ TensorShape
    """.split()
)
#: The same for the other classes of Keras 1 and 2. Of the layers, lrfc.ir.keras.rebuild builds all.
_LEGACY_CLASSES = {
    "keras.layers": LAYERS | set(RENAMED),
    "keras.src.engine.functional": frozenset({"Functional"}),
    "keras.src.layers.core.tf_op_layer": frozenset({"SlicingOpLambda", "TFOpLambda"}),
    "keras.mixed_precision": frozenset({"Policy"}),
}
#: Layers of Keras 2 that Keras 3 no longer has.
_DROPPED_LAYERS = frozenset(
    """
    AddLoss AddMetric BaseRandomLayer ClassMethod DenseFeatures InstanceMethod InstanceProperty
    LocallyConnected1D LocallyConnected2D RandomHeight RandomWidth SequenceFeatures
    TensorFlowOpLayer ThresholdedReLU
    """.split()
)
#: By the ending of a key: the strings that it may have as its value.
_NAMING = {
    "activation": _ACTIVATIONS,
    "initializer": _INITIALIZERS,
    "regularizer": _REGULARIZERS,
    "constraint": _CONSTRAINTS,
}


class CustomClassError(ModelError):
    """A class or function that is not part of Keras and not registered."""


class NoCounterpartError(ModelError):
    """A part of Keras 2 without a counterpart in Keras 3; its text is a clause of a message."""


def model(config: Mapping[str, Any], path: object, *, legacy: bool) -> dict[str, Any]:
    """The checked configuration of a model for Keras: listed and registered classes, uncompiled.

    ``legacy``: the file is of Keras 1 or 2. ModelError names the first entry that is not allowed.
    """
    return _Check(path, _CLASSES, _ACTIVATIONS, legacy=legacy).mapping(config, _Place())


def legacy_model(config: Mapping[str, Any], path: object) -> dict[str, Any]:
    """The checked configuration of a model for tf_keras: only listed classes, no initializers.

    CustomClassError for a custom class, NoCounterpartError for a part that Keras 3 lacks.
    """
    check = _Check(path, _CLASSES, _ACTIVATIONS, legacy=True, tf_keras=True)
    return check.mapping(config, _Place())


def compilation(config: Mapping[str, Any], path: object) -> dict[str, Any]:
    """The checked losses and metrics that a model was compiled with.

    ModelError names the first entry that is neither listed nor registered.
    """
    return _Check(path, _LOSS_CLASSES, _LOSS_FUNCTIONS).mapping(config, _Place())


def optimizer(config: str | Mapping[str, Any], path: object) -> str | dict[str, Any]:
    """The checked optimizer that a model was compiled with: a name or a configuration.

    ModelError when it is neither listed nor registered.
    """
    if isinstance(config, str):
        if config.lower() not in {name.lower() for name in _OPTIMIZERS}:
            raise ModelError(f"{path}: '{shown(config, 80)}' is not an optimizer of Keras")
        return config
    return _Check(path, _OPTIMIZER_CLASSES, frozenset()).mapping(config, _Place())


@dataclass(frozen=True)
class _Place:
    """A place in a configuration: the name of the layer, and whether its class is a custom one."""

    layer: str = ""
    custom: bool = False


@dataclass(frozen=True)
class _Check:
    """One recursive check of a configuration, which copies it."""

    path: object
    classes: Mapping[str, frozenset[str]]
    functions: frozenset[str]
    legacy: bool = False
    tf_keras: bool = False

    def mapping(self, value: Mapping[str, Any], place: _Place) -> dict[str, Any]:
        """A checked copy of a dict, which may itself describe an object."""
        head: dict[str, Any] = {}
        if "_TYPE" in value:  # a composite tensor, which tf_keras reads from a string in the string
            raise NoCounterpartError(f"its layer '{shown(place.layer, 80)}' holds no plain tensor")
        if "class_name" in value:
            inner = value.get("config")
            if isinstance(inner, dict) and isinstance(inner.get("name"), str):
                place = replace(place, layer=inner["name"])
            head = self._object(value, place)
            place = replace(place, custom="module" in head and head["module"] is None)
        rest = {key: item for key, item in value.items() if not (key in head or self._omitted(key))}
        return {key: self._value(item, place, key) for key, item in rest.items()} | head

    def _value(self, value: Any, place: _Place, key: str) -> Any:
        if isinstance(value, list):
            return [self._value(item, place, key) for item in value]
        if isinstance(value, dict):
            return self.mapping(value, place)
        names = _NAMING.get(key.rpartition("_")[2])
        if names is None or not isinstance(value, str) or value in names:
            return value
        if place.custom or self._registered(value):
            return value
        raise self._unknown(value)

    def _omitted(self, key: str) -> bool:
        return key == "compile_config" or (self.tf_keras and key.endswith("_initializer"))

    def _object(self, value: Mapping[str, Any], place: _Place) -> dict[str, Any]:
        """The entries by which Keras finds a class or function; they replace those of the file."""
        for key in ("class_name", "module", "registered_name"):
            entry = value.get(key)
            if not isinstance(entry, str) and not (entry is None and key != "class_name"):
                raise ModelError(
                    f"{self.path}: a {key} in its configuration is {shown(entry, 40)}, not a name"
                )
        name, module = value["class_name"], value.get("module")
        if name == "function":
            return self._function(value.get("config"), module)
        if name in _VALUES:
            return {"class_name": name}
        alias = value.get("registered_name") or name
        if self._registered(alias):
            return {"class_name": name, "module": None, "registered_name": alias}
        if alias != name or not _of_keras(module):
            raise self._unknown(name, module)
        home = self._home(name, module)
        if home is None:
            raise self._refused(name, module)
        self._check_config(name, value.get("config"), place)
        head = {"class_name": name}
        if module is not None:
            head["module"] = home
        if value.get("registered_name") is not None:
            head["registered_name"] = name
        return head

    def _function(self, name: Any, module: str | None) -> dict[str, Any]:
        if not isinstance(name, str):
            raise ModelError(
                f"{self.path}: a function in its configuration is {shown(name, 40)}, not a name"
            )
        head = {"class_name": "function", "config": name, "registered_name": name}
        if self._registered(name):
            return head | {"module": None}
        if name not in self.functions or not (module == "builtins" or _of_keras(module)):
            raise self._unknown(name, None if module == "builtins" else module)
        return head | {"module": "builtins"}  # looked up by Keras in its own tables of functions

    def _home(self, name: str, module: str | None) -> str | None:
        """The module that has a class; None for a class that no file may name."""
        if module in OPERATIONS and self.classes is _CLASSES and not self.tf_keras:
            return module if _is_operation(module, name) else None
        homes = {**self.classes, **(_LEGACY_CLASSES if self.legacy else {})}
        part = _part(module)
        matches = [
            home
            for home, names in homes.items()
            if name in names and (part is None or part == _part(home))
        ]
        if name == "Functional" and self.legacy:  # Keras 2 and 3 have it in different modules
            old = self.tf_keras or (module is not None and "engine" in module.split("."))
            return "keras.src.engine.functional" if old else "keras.src.models.functional"
        return matches[0] if matches else None

    def _check_config(self, name: str, config: Any, place: _Place) -> None:
        """Raise ModelError when a listed layer would call other functions or read a file."""
        if not isinstance(config, dict):
            return
        if name in ("TFOpLambda", "SlicingOpLambda"):
            symbol = config.get("function")
            symbols = {"__operators__.getitem"} if name == "SlicingOpLambda" else SYMBOLS
            if not isinstance(symbol, str) or symbol.removeprefix("compat.v1.") not in symbols:
                raise NoCounterpartError(
                    f"its layer '{shown(place.layer, 80)}' calls tf.{shown(symbol, 80)}, which lrfc"
                    " does not carry over to Keras 3"
                )
        if name in _LOOKUPS and isinstance(config.get("vocabulary"), str):
            raise ModelError(
                f"{self.path}: its layer '{shown(place.layer, 80)}' would read the file "
                f"'{shown(config['vocabulary'], 80)}'; save the model with its vocabulary inside"
            )

    def _registered(self, name: str) -> bool:
        """Whether the user has registered a class or function of that name with Keras."""
        return not self.tf_keras and keras().saving.get_registered_object(name) is not None

    def _unknown(self, name: str, module: str | None = None) -> ModelError:
        home = "" if module is None else f" ({shown(module, 80)})"
        return CustomClassError(
            f"{self.path} uses '{shown(name, 80)}', which is not part of Keras: decorate it with "
            f"@keras.saving.register_keras_serializable() and import its module{home} before the "
            "model is loaded"
        )

    def _refused(self, name: str, module: str | None) -> ModelError:
        if name in ("Lambda", "__lambda__"):
            return ModelError(
                f"{self.path} contains Python code (a Lambda layer); if you trust the file, give"
                " --unsafe-load"
            )
        if self.legacy and name in _DROPPED_LAYERS:
            return NoCounterpartError(f"its layer kind {name} is not part of Keras 3")
        if module is None and name not in REFUSED_LAYERS:
            return self._unknown(name)
        path = shown(f"{module or 'keras.layers'}.{name}", 120)
        why = REFUSED_LAYERS.get(name, "it is not in the list of what a model file may name")
        return ModelError(
            f"{self.path} uses '{path}', which is not loaded: {why}; if you trust the file, give"
            " --unsafe-load"
        )


def _of_keras(module: str | None) -> bool:
    return module is None or module.partition(".")[0] in ("keras", "tf_keras")


def _part(module: str | None) -> str | None:
    """The part of Keras that a module belongs to; None for Keras itself and for no module."""
    parts = [] if module is None else [part for part in module.split(".")[1:] if part != "src"]
    if parts[:1] == ["engine"]:
        return "layers" if parts[1:] == ["input_layer"] else "models"
    return parts[0] if parts else None


def _is_operation(module: str, name: str) -> bool:
    """Whether a module of Keras has an operation of that name which calls no function argument."""
    from importlib import import_module

    operation = keras().Operation
    cls = getattr(import_module(module), name, None)
    if not isinstance(cls, type) or name in CALLING or cls is operation:
        return False
    return issubclass(cls, operation) and cls.__module__ == module
