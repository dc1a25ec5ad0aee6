"""The one schema of bert_config.json: which keys, of which type, in which range.

`load` reads a file for the programs that run a model; `check` is for whoever makes a configuration
from something else, such as an importer: what passes it can be built and run. Free of TensorFlow.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from fastertransformer_tf.errors import UserError
from fastertransformer_tf.files import text_files

# The files of a model as google gives them.
CHECKPOINT_NAME = "bert_model.ckpt"
CONFIG_NAME = "bert_config.json"
VOCAB_NAME = "vocab.txt"

# google's names, of which "gelu" is the tanh form, and "gelu_erf" for the exact one.
ACTIVATIONS = ("gelu", "gelu_erf", "relu", "tanh", "linear")

_REQUIRED: Any = object()


@dataclasses.dataclass(frozen=True)
class _Number:
    """A number from `low` to `high`; `open_low` and `open_high` exclude the ends."""

    kind: type
    low: float
    high: float
    open_low: bool = False
    open_high: bool = False
    default: Any = _REQUIRED

    def accepts(self, value: Any) -> bool:
        """Whether `value` is such a number; true and false are none, and NaN is in no range."""
        kinds = (int,) if self.kind is int else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds):
            return False
        above = value > self.low if self.open_low else value >= self.low
        return above and (value < self.high if self.open_high else value <= self.high)

    def __str__(self) -> str:
        noun = "a whole number" if self.kind is int else "a number"
        low = f"above {self.low:g}" if self.open_low else f"from {self.low:g}"
        return f"{noun} {low} to {'below ' if self.open_high else ''}{self.high:.15g}"


_SIZE = _Number(int, 1, 2**31 - 1)
_DROPOUT = _Number(float, 0, 1, open_high=True, default=0.1)

# The keys and defaults of google-research BERT's BertConfig. google has defaults for the sizes
# too; here they are required, for a wrong one (12 heads where the model has 6) may fit all weights.
_SCHEMA: dict[str, _Number] = {
    "vocab_size": _SIZE,
    "hidden_size": _SIZE,
    "num_hidden_layers": _Number(int, 1, 1000),
    "num_attention_heads": _SIZE,
    "intermediate_size": _SIZE,
    "hidden_dropout_prob": _DROPOUT,
    "attention_probs_dropout_prob": _DROPOUT,
    "max_position_embeddings": _SIZE,
    "type_vocab_size": _SIZE,
    "initializer_range": _Number(float, 0, 1, open_low=True, default=0.02),
    # Not google's: models of transformers have another epsilon than 1e-12.
    "layer_norm_eps": _Number(float, 0, 1, open_low=True, default=None),
}


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a bert_config.json.

    Returns:
      As `check` does.

    Raises:
      OSError: It cannot be read.
      UserError: It is no JSON object, or as for `check`.
    """
    return check(text_files.read_json(path), os.fspath(path))


def check(values: Any, source: str) -> dict[str, Any]:
    """Checks a configuration: each key's type and range, and that the sizes go together.

    Args:
      values: What the JSON holds.
      source: Where it is from, to begin the message with.

    Returns:
      The keys that say something about the model, with google's defaults for the dropouts and
      initializer_range; `layer_norm_eps` only where it is given; `hidden_act` in lower case. Other
      keys, which google's own files have too, are left out.

    Raises:
      UserError: Naming the key, its value and what is expected.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{source} holds {text_files.describe(values)}, expected a JSON object")
    result: dict[str, Any] = {}
    for key, rule in _SCHEMA.items():
        if key not in values:
            if rule.default is _REQUIRED:
                raise UserError(f"{source} has no {key}, expected {rule}")
            if rule.default is not None:
                result[key] = rule.default
        elif not rule.accepts(values[key]):
            shown = text_files.describe(values[key])
            raise UserError(f"{source}: {key} is {shown}, expected {rule}")
        else:
            result[key] = values[key]
    result["hidden_act"] = _activation(values, source)
    if result["hidden_size"] % result["num_attention_heads"]:
        raise UserError(
            f"{source}: hidden_size is {result['hidden_size']}, expected a multiple of "
            f"num_attention_heads, {result['num_attention_heads']}"
        )
    return result


def _activation(values: Mapping[str, Any], source: str) -> str:
    expected = f"expected one of {', '.join(ACTIVATIONS)}"
    if "hidden_act" not in values:
        raise UserError(f"{source} has no hidden_act, {expected}")
    value = values["hidden_act"]
    if not isinstance(value, str) or value.lower() not in ACTIVATIONS:
        raise UserError(f"{source}: hidden_act is {text_files.describe(value)}, {expected}")
    return value.lower()


def check_embeddings(
    config: Mapping[str, Any], shapes: Mapping[str, list[int]], config_source: str, weights: str
) -> None:
    """Checks a configuration against the embedding tables of a checkpoint, those that it has.

    Args:
      config: As `check` returns it.
      shapes: Variable name to shape.
      config_source: Where the configuration is from.
      weights: Where the shapes are from.

    Raises:
      UserError: A table has another number of rows or columns.
    """
    for table, rows in (
        ("word_embeddings", "vocab_size"),
        ("position_embeddings", "max_position_embeddings"),
        ("token_type_embeddings", "type_vocab_size"),
    ):
        shape = shapes.get(f"bert/embeddings/{table}")
        expected = [config[rows], config["hidden_size"]]
        if shape is not None and list(shape) != expected:
            raise UserError(
                f"{config_source} and {weights} do not go together: by {rows} and hidden_size "
                f"bert/embeddings/{table} is {expected}, in the checkpoint {list(shape)}"
            )
