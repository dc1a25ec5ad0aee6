"""bert-tensorflow 1.0.4 working under TensorFlow 2.21, without changing TensorFlow itself.

The only module that imports or patches bert-tensorflow. That package was written for TensorFlow
1.15: it imports `tensorflow.contrib`, calls `tf.layers.dense`, names `tf.estimator`, reads flags
before they are parsed, and two of its programs define the same flags. Here each of its modules is
loaded with its own stand-ins for `tensorflow` and `absl.flags`; what TensorFlow still has is passed
through. Nothing outside the `bert` package is touched, and all its modules live in one process.

    modeling = bert_compat.modeling()          # also what `from bert import modeling` gives then
"""

from __future__ import annotations

import builtins
import contextlib
import copy
import functools
import importlib.util
import itertools
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType, SimpleNamespace
from typing import Any

import tensorflow as tf
from absl import flags as absl_flags

from fastertransformer_tf.errors import UserError
from fastertransformer_tf.files import vocabulary
from fastertransformer_tf.graphs import float_types
from fastertransformer_tf.graphs.variables import get_variable

_tf1 = tf.compat.v1
_lock = threading.RLock()
_state = threading.local()


# --- The floating-point type of the model ---------------------------------------------------------


@contextlib.contextmanager
def floatx(dtype: str | tf.DType) -> Iterator[None]:
    """Makes `bert.modeling` build variables, masks and embeddings in a type, in this thread.

    Args:
      dtype: float32, float16 or bfloat16, a name or a type.

    Raises:
      UserError: Another type.
    """
    previous = current_floatx()
    _state.floatx = float_types.float_type(dtype)
    try:
        yield
    finally:
        _state.floatx = previous


def current_floatx() -> tf.DType:
    """Returns the type that `floatx` set in this thread; float32 outside of it."""
    return getattr(_state, "floatx", tf.float32)


# --- What bert.modeling leaves to its global state ------------------------------------------------


@contextlib.contextmanager
def layer_norm_epsilon(epsilon: float) -> Iterator[None]:
    """Sets the epsilon of every layer norm built in the block, in this thread.

    `BertModel` sets it to its configuration's `layer_norm_eps` where there is one.

    Raises:
      UserError: It is not above 0.
    """
    if not epsilon > 0:
        raise UserError(f"layer_norm_eps is {epsilon!r}, expected a number above 0")
    previous = current_layer_norm_epsilon()
    _state.layer_norm_epsilon = epsilon
    try:
        yield
    finally:
        _state.layer_norm_epsilon = previous


def current_layer_norm_epsilon() -> float:
    """Returns the epsilon set in this thread; google-research BERT's 1e-12 outside of any block."""
    return getattr(_state, "layer_norm_epsilon", 1e-12)


@contextlib.contextmanager
def dropout_seed(seed: int, step: tf.Tensor) -> Iterator[None]:
    """Makes every dropout built in the block, in this thread, a function of seed and step.

    Random operations with a state of their own begin anew when a session does: a training that was
    killed and resumed would then drop other values than one that was not.

    Args:
      seed: Of the whole training.
      step: int64 []; each of its values gives other random values.
    """
    previous = getattr(_state, "dropout", None)
    # Threefry takes two 64-bit numbers. The low half of the first counts the dropouts of the graph.
    _state.dropout = (itertools.count(seed << 32), step)
    try:
        yield
    finally:
        _state.dropout = previous


def dropout(input_tensor: tf.Tensor, dropout_prob: float | None) -> tf.Tensor:
    """Sets elements to 0 with a probability and scales the others up; `bert.modeling.dropout`.

    Args:
      input_tensor: Any shape, floating point.
      dropout_prob: The probability; None or 0 returns the input.
    """
    if not dropout_prob:
        return input_tensor
    seeded = getattr(_state, "dropout", None)
    if seeded is None:
        return tf.nn.dropout(input_tensor, rate=dropout_prob)
    numbers, step = seeded
    seed = tf.stack([tf.constant(next(numbers), tf.int64), step])
    return tf.nn.experimental.stateless_dropout(input_tensor, rate=dropout_prob, seed=seed)


# --- Stand-ins for what TensorFlow 2.21 no longer has --------------------------------------------


def layer_norm(
    inputs: tf.Tensor,
    begin_norm_axis: int = -1,
    begin_params_axis: int = -1,
    scope: str | None = None,
) -> tf.Tensor:
    """Layer norm over the last axis with variables `beta` and `gamma`, computed in float32.

    Source: tf.contrib.layers.layer_norm of TensorFlow 1.15, with `current_layer_norm_epsilon`.

    Args:
      inputs: [..., H].
      begin_norm_axis: -1; the only value that BERT uses.
      begin_params_axis: -1.
      scope: Variable scope; "LayerNorm", made unique, when None.

    Returns:
      A tensor of the shape and type of `inputs`.

    Raises:
      UserError: Another axis.
    """
    if (begin_norm_axis, begin_params_axis) != (-1, -1):
        raise ValueError(
            f"layer_norm axes are {begin_norm_axis} and {begin_params_axis}, expected -1 and -1"
        )
    with _tf1.variable_scope(scope, default_name="LayerNorm"):
        shape = [inputs.shape[-1]]
        beta = get_variable("beta", shape, inputs.dtype, _tf1.zeros_initializer())
        gamma = get_variable("gamma", shape, inputs.dtype, _tf1.ones_initializer())
        x, beta, gamma = (tf.cast(t, tf.float32) for t in (inputs, beta, gamma))
        mean, variance = tf.nn.moments(x, axes=[-1], keepdims=True)
        epsilon = current_layer_norm_epsilon()
        output = tf.nn.batch_normalization(x, mean, variance, beta, gamma, epsilon)
        return tf.cast(output, inputs.dtype)


def dense(
    inputs: tf.Tensor,
    units: int,
    activation: Callable[[tf.Tensor], tf.Tensor] | None = None,
    kernel_initializer: Any = None,
    name: str | None = None,
) -> tf.Tensor:
    """A [.., in] -> [.., units] layer with variables `kernel` and `bias`.

    Source: tf.layers.dense of TensorFlow 1.15, of which Keras 3 left only an error.
    """
    with _tf1.variable_scope(name, default_name="dense"):
        shape = [inputs.shape[-1], units]
        kernel = get_variable("kernel", shape, inputs.dtype, kernel_initializer)
        bias = get_variable("bias", [units], inputs.dtype, _tf1.zeros_initializer())
        output = tf.matmul(inputs, kernel) + bias
        return output if activation is None else activation(output)


# The names of tf.estimator that bert's model functions use.
_ESTIMATOR = SimpleNamespace(
    ModeKeys=SimpleNamespace(TRAIN="train", EVAL="eval", PREDICT="infer"),
    tpu=SimpleNamespace(
        TPUEstimatorSpec=SimpleNamespace,
        InputPipelineConfig=SimpleNamespace(PER_HOST_V2=3),
    ),
)


class _Tf(ModuleType):
    """`tensorflow.compat.v1` as a bert module sees it."""

    def __init__(self, flags: ModuleType) -> None:
        super().__init__("tensorflow.compat.v1")
        self.flags = flags
        self.estimator = _ESTIMATOR
        self.layers = SimpleNamespace(dense=dense)
        self.get_variable = get_variable

    def __getattr__(self, name: str) -> Any:
        return getattr(_tf1, name)


def _get_variable_in_floatx(name: str, shape: Any = None, dtype: Any = None, **kwargs: Any) -> Any:
    return get_variable(name, shape, dtype or current_floatx(), **kwargs)


class _ModelTf(_Tf):
    """The same for `bert.modeling`, whose float32 is the current `floatx`."""

    @property
    def float32(self) -> tf.DType:
        return current_floatx()

    def __init__(self, flags: ModuleType) -> None:
        super().__init__(flags)
        self.get_variable = _get_variable_in_floatx

    @staticmethod
    def one_hot(indices: Any, depth: Any, dtype: Any = None, **kwargs: Any) -> tf.Tensor:
        return tf.one_hot(indices, depth, dtype=dtype or current_floatx(), **kwargs)


# --- Flags ----------------------------------------------------------------------------------------


class _Flags:
    """FLAGS of a bert module: the program's value where it has one, else google's default."""

    def __init__(self, defaults: absl_flags.FlagValues) -> None:
        self._defaults = defaults

    def __getattr__(self, name: str) -> Any:
        bound = getattr(_state, "flags", None)
        if bound is not None and name in bound:
            return bound[name].value
        return self._defaults[name].value


class _FlagsModule(ModuleType):
    """`absl.flags` that defines into a private `FlagValues`, so that modules never collide."""

    def __init__(self) -> None:
        super().__init__("absl.flags")
        self.values = absl_flags.FlagValues()
        self.values.mark_as_parsed()
        self.FLAGS = _Flags(self.values)

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(absl_flags, name)
        if name.startswith("DEFINE_"):
            return functools.partial(attribute, flag_values=self.values)
        if name == "mark_flag_as_required":
            return functools.partial(attribute, flag_values=self.values)
        return attribute


@contextlib.contextmanager
def bound_flags(values: absl_flags.FlagValues) -> Iterator[None]:
    """Makes bert's modules read their FLAGS from a program's parsed flags, in this thread.

    Args:
      values: The flags; a name it lacks keeps google's default.
    """
    previous = getattr(_state, "flags", None)
    _state.flags = values
    try:
        yield
    finally:
        _state.flags = previous


def define_google_flags(
    module: str,
    flag_values: absl_flags.FlagValues,
    owner: str,
    changed_help: Mapping[str, str] | None = None,
) -> None:
    """Defines the flags of google's program, with its help and defaults, in a program of ours.

    Args:
      module: "run_classifier" or "run_squad".
      flag_values: Where to define them. Flags that are there already are kept.
      owner: Name of our module, under which --help finds them.
      changed_help: Flag name to a help text that replaces google's.
    """
    for source in (_load(module), _load("tokenization")):
        defined = source.__dict__["_ft_flags"].values
        for name in defined:
            if name in flag_values:
                continue
            flag = copy.deepcopy(defined[name])  # Parsing sets a flag's value: never share it.
            if changed_help and name in changed_help:
                flag.help = changed_help[name]
            absl_flags.DEFINE_flag(flag, flag_values, module_name=owner)


# --- Loading --------------------------------------------------------------------------------------


def _make_import(fake_tf: ModuleType, fake_flags: ModuleType) -> Callable[..., Any]:
    """Makes the `__import__` of one bert module."""
    tensorflow = SimpleNamespace(compat=SimpleNamespace(v1=fake_tf))

    def import_(
        name: str,
        globals_: Any = None,
        locals_: Any = None,
        fromlist: tuple[str, ...] = (),
        level: int = 0,
    ) -> Any:
        if name == "tensorflow.compat.v1":
            return fake_tf if fromlist else tensorflow
        if name.startswith("tensorflow.contrib"):
            return SimpleNamespace(layers=SimpleNamespace(layer_norm=layer_norm))
        if name == "absl" and fromlist == ("flags",):
            return SimpleNamespace(flags=fake_flags)
        if name == "bert" and fromlist:
            return SimpleNamespace(**{child: _load(child) for child in fromlist})
        return builtins.__import__(name, globals_, locals_, fromlist, level)

    return import_


def _load(name: str) -> ModuleType:
    """Loads `bert.<name>` with its stand-ins, once.

    Raises:
      UserError: bert-tensorflow is not installed.
    """
    full_name = f"bert.{name}"
    with _lock:
        module = sys.modules.get(full_name)
        if module is not None and "_ft_flags" in module.__dict__:
            return module
        try:
            spec = importlib.util.find_spec(full_name)
        except ModuleNotFoundError:
            spec = None
        if spec is None or spec.loader is None:
            raise UserError(
                f"{full_name} is not installed, expected bert-tensorflow 1.0.4: "
                "pip install bert-tensorflow==1.0.4"
            )
        flags = _FlagsModule()
        fake_tf = (_ModelTf if name == "modeling" else _Tf)(flags)
        module = importlib.util.module_from_spec(spec)
        # Python asks the `__import__` of a module's own builtins: only this module sees ours.
        module.__dict__["__builtins__"] = {
            **vars(builtins),
            "__import__": _make_import(fake_tf, flags),
        }
        module.__dict__["_ft_flags"] = flags
        sys.modules[full_name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[full_name]
            raise
        if name == "modeling":
            _patch_modeling(module)
        if name == "tokenization":  # Its own numbers distinct tokens, not lines.
            module.__dict__["load_vocab"] = vocabulary.load
        setattr(sys.modules["bert"], name, module)
        return module


def _patch_modeling(module: Any) -> None:
    """Gives `bert.modeling` our dropout, and its BertModel the epsilon of the configuration."""
    module.dropout = dropout
    build = module.BertModel.__init__

    @functools.wraps(build)
    def init(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        epsilon = getattr(config, "layer_norm_eps", current_layer_norm_epsilon())
        with layer_norm_epsilon(epsilon):
            build(self, config, *args, **kwargs)

    module.BertModel.__init__ = init


def modeling() -> ModuleType:
    """Returns `bert.modeling`: BertConfig, BertModel, transformer_model, ..."""
    return _load("modeling")


def tokenization() -> ModuleType:
    """Returns `bert.tokenization`: FullTokenizer, ..."""
    return _load("tokenization")


def optimization() -> ModuleType:
    """Returns `bert.optimization`: create_optimizer, AdamWeightDecayOptimizer."""
    return _load("optimization")


def create_classifier_model(
    bert_config: Any,
    is_training: bool,
    input_ids: tf.Tensor,
    input_mask: tf.Tensor,
    segment_ids: tf.Tensor,
    labels: tf.Tensor,
    num_labels: int,
    use_one_hot_embeddings: bool,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    """Builds BertModel and the classification head in `floatx`; softmax and loss in float32.

    Source: google-research/bert run_classifier.py, create_model; same signature, same variables
    `output_weights` and `output_bias`.

    Args:
      bert_config: A BertConfig.
      is_training: Whether dropout is applied.
      input_ids: int32 [B,S].
      input_mask: int32 [B,S], 1 for real tokens.
      segment_ids: int32 [B,S].
      labels: int32 [B].
      num_labels: Number of classes, C.
      use_one_hot_embeddings: Look words up by a matrix product.

    Returns:
      Float32 tensors: mean loss [], loss of each example [B], logits [B,C], probabilities [B,C].
    """
    model = modeling().BertModel(
        config=bert_config,
        is_training=is_training,
        input_ids=input_ids,
        input_mask=input_mask,
        token_type_ids=segment_ids,
        use_one_hot_embeddings=use_one_hot_embeddings,
    )
    pooled = model.get_pooled_output()
    weights = get_variable(
        "output_weights",
        [num_labels, pooled.shape[-1]],
        pooled.dtype,
        _tf1.truncated_normal_initializer(stddev=0.02),
    )
    bias = get_variable("output_bias", [num_labels], pooled.dtype, _tf1.zeros_initializer())
    with _tf1.variable_scope("loss"):
        if is_training:
            pooled = dropout(pooled, 0.1)
        logits = tf.cast(tf.matmul(pooled, weights, transpose_b=True) + bias, tf.float32)
        probabilities = tf.nn.softmax(logits)
        per_example_loss = -tf.reduce_sum(
            tf.one_hot(labels, num_labels) * tf.nn.log_softmax(logits), axis=-1
        )
        return tf.reduce_mean(per_example_loss), per_example_loss, logits, probabilities


def run_classifier() -> ModuleType:
    """Returns `bert.run_classifier`: task processors, convert_examples_to_features, ..."""
    module: Any = _load("run_classifier")
    module.create_model = create_classifier_model
    return module


def run_squad() -> ModuleType:
    """Returns `bert.run_squad`: read_squad_examples, write_predictions, create_model, ..."""
    return _load("run_squad")
