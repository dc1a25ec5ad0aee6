"""Turns the configuration and the weights of a Hugging Face BERT into google-research BERT's.

Names and layouts: google-research/bert modeling.py, run_classifier.py, run_squad.py and
run_pretraining.py on one side, transformers' BertModel, BertForSequenceClassification,
BertForQuestionAnswering and BertForPreTraining on the other. A torch linear weight is [out, in]
and becomes a kernel [in, out]; head weights stay [out, in] as in google's scripts.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from fastertransformer_tf import spec
from fastertransformer_tf.errors import UserError, listed
from fastertransformer_tf.files import bert_config

MISSING_POOLER = ("refuse", "zeros")
# hidden_act of transformers -> of bert_config.json. google-research's "gelu" is the tanh form;
# transformers' "gelu" is the erf form, for which bert_config.json here says "gelu_erf".
ACTIVATIONS = {
    "gelu": "gelu_erf",
    "gelu_python": "gelu_erf",
    "gelu_new": "gelu",
    "gelu_fast": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "relu": "relu",
}
# What config.json says of a plain encoder; None: it says nothing.
ENCODER_CONFIG: Mapping[str, tuple[Any, ...]] = {
    "model_type": ("bert", None),
    "position_embedding_type": ("absolute", None),
    "is_decoder": (False, None),
    "add_cross_attention": (False, None),
}
# Keys that mean the same in both configurations.
_CONFIG_KEYS = (
    "attention_probs_dropout_prob",
    "hidden_dropout_prob",
    "hidden_size",
    "initializer_range",
    "intermediate_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "type_vocab_size",
    "vocab_size",
)
# Buffers that hold 0, 1, 2, ... or zeros: nothing learnt, not in google's checkpoints.
_HARMLESS = frozenset({"embeddings.position_ids", "embeddings.token_type_ids"})


@dataclasses.dataclass(frozen=True)
class _Target:
    """One variable of the new checkpoint: its name, its HF shape, and the way there."""

    name: str
    hf_shape: tuple[int, ...]
    transpose: bool = False


def config_fault(
    hf_config: Mapping[str, Any], expected: Mapping[str, tuple[Any, ...]] = ENCODER_CONFIG
) -> str | None:
    """Says what in a Hugging Face configuration is not as expected, the first thing; or None."""
    for key, allowed in expected.items():
        value = hf_config.get(key)
        if value not in allowed or type(value) not in map(type, allowed):
            return f"{key} is {value!r}, expected {allowed[0]!r}"
    return None


def convert_config(hf_config: Mapping[str, Any]) -> dict[str, Any]:
    """Converts config.json to bert_config.json.

    Args:
      hf_config: Parsed config.json.

    Returns:
      The google-research keys; `hidden_act` is "gelu" (tanh form), "gelu_erf" or "relu";
      `layer_norm_eps` only where it is not google's 1e-12.

    Raises:
      UserError: A key is missing or of a wrong type, or says that the model is no BERT encoder.
    """
    missing = [key for key in (*_CONFIG_KEYS, "hidden_act") if key not in hf_config]
    if missing:
        raise UserError(f"config.json lacks {', '.join(missing)}")
    # google's classifier is a softmax over labels of which one is right.
    problem_type = {"problem_type": ("single_label_classification", None)}
    fault = config_fault(hf_config, {**ENCODER_CONFIG, **problem_type})
    if fault:
        raise UserError(f"config.json: {fault}: only BERT encoders can be imported")
    hidden_act = hf_config["hidden_act"]
    if not isinstance(hidden_act, str) or hidden_act not in ACTIVATIONS:
        raise UserError(
            f"config.json: hidden_act is {hidden_act!r}, expected one of {', '.join(ACTIVATIONS)}"
        )
    architectures = hf_config.get("architectures")
    if architectures is not None and not (
        isinstance(architectures, list) and all(isinstance(name, str) for name in architectures)
    ):
        raise UserError(
            f"config.json: architectures is {architectures!r}, expected a list of names"
        )
    keys = [*_CONFIG_KEYS, *(["layer_norm_eps"] if "layer_norm_eps" in hf_config else [])]
    changed = {key: hf_config[key] for key in keys} | {"hidden_act": ACTIVATIONS[hidden_act]}
    config = bert_config.check(changed, "config.json")
    if config.get("layer_norm_eps") == spec.GOOGLE_LAYER_NORM_EPS:
        del config["layer_norm_eps"]
    return config


def convert_tensors(
    tensors: Mapping[str, np.ndarray],
    config: Mapping[str, Any],
    *,
    missing_pooler: str = "refuse",
    architectures: tuple[str, ...] | list[str] = (),
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Renames, transposes and checks the tensors of a HuggingFace BERT.

    Args:
      tensors: HF name to array, float16, bfloat16, float32 or float64.
      config: As `convert_config` returns it.
      missing_pooler: As for `import_hf`.
      architectures: `architectures` of config.json; a `classifier` is taken for one of sequences
        unless they name another kind.

    Returns:
      Variables by google's names, float32; and the names of the harmless tensors left out.

    Raises:
      UserError: Tensors are unknown, missing, of a wrong shape or type, or not finite; the first
        ten of them are listed.
    """
    num_layers = config["num_hidden_layers"]
    if num_layers > len(tensors):  # Before every tensor of so many layers is listed as missing.
        raise UserError(
            f"the weights are {len(tensors)} tensors, expected 16 for each of the "
            f"{num_layers} num_hidden_layers of config.json"
        )
    prefix = "bert." if any(name.startswith("bert.") for name in tensors) else ""
    targets = _targets(tensors, config, prefix, architectures)
    faults: list[str] = []
    variables: dict[str, np.ndarray] = {}
    used: set[str] = set()
    pooler_is_missing = not any(name.startswith(f"{prefix}pooler.dense.") for name in tensors)
    for hf_name, target in targets.items():
        found = next((n for n in _spellings(hf_name) if n in tensors), None)
        if found is None:
            if not (pooler_is_missing and target.name.startswith("bert/pooler/")):
                faults.append(f"missing: {hf_name} {list(target.hf_shape)}")
            continue
        used.add(found)
        try:
            variables[target.name] = _convert(found, tensors[found], target)
        except UserError as error:
            faults.append(str(error))
    if pooler_is_missing and missing_pooler != "zeros":
        faults.append(
            f"missing: {prefix}pooler.dense.weight and .bias; if nothing uses the pooled output"
            " (question answering), give missing_pooler=zeros"
        )
    ignored = _harmless_names(tensors, prefix)
    faults += [f"unknown: {name}" for name in sorted(set(tensors) - used - ignored)]
    if faults:
        raise UserError(
            f"{len(faults)} tensors do not make a google-research BERT: {listed(faults)}"
        )
    if pooler_is_missing:
        hidden = config["hidden_size"]
        variables["bert/pooler/dense/kernel"] = np.zeros((hidden, hidden), np.float32)
        variables["bert/pooler/dense/bias"] = np.zeros(hidden, np.float32)
    return variables, tuple(sorted(ignored))


def _convert(name: str, value: np.ndarray, target: _Target) -> np.ndarray:
    """Turns one tensor into its variable.

    Raises:
      UserError: It has another shape or type, or its values are no finite float32 numbers.
    """
    if value.shape != target.hf_shape:
        raise UserError(
            f"wrong shape: {name} is {list(value.shape)}, expected {list(target.hf_shape)}"
        )
    if value.dtype.name not in ("float16", "bfloat16", "float32", "float64"):
        raise UserError(f"wrong type: {name} is {value.dtype.name}, expected a float type")
    with np.errstate(over="ignore"):
        value = np.ascontiguousarray(value.T if target.transpose else value, dtype=np.float32)
    unusable = value.size - int(np.isfinite(value).sum())
    if unusable:
        raise UserError(f"not finite: {name} has {unusable} values that are no finite float32")
    return value


def _targets(
    tensors: Mapping[str, np.ndarray],
    config: Mapping[str, Any],
    prefix: str,
    architectures: tuple[str, ...] | list[str],
) -> dict[str, _Target]:
    """Every HF tensor that the model must have, with the variable that it becomes."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    targets: dict[str, _Target] = {}

    def dense(hf: str, name: str, num_in: int, num_out: int) -> None:
        targets[f"{hf}.weight"] = _Target(f"{name}/kernel", (num_out, num_in), transpose=True)
        targets[f"{hf}.bias"] = _Target(f"{name}/bias", (num_out,))

    def layer_norm(hf: str, name: str) -> None:
        targets[f"{hf}.LayerNorm.weight"] = _Target(f"{name}/LayerNorm/gamma", (hidden,))
        targets[f"{hf}.LayerNorm.bias"] = _Target(f"{name}/LayerNorm/beta", (hidden,))

    def head(hf: str, name: str, num_out: int) -> None:
        targets[f"{hf}.weight"] = _Target(f"{name}output_weights", (num_out, hidden))
        targets[f"{hf}.bias"] = _Target(f"{name}output_bias", (num_out,))

    for kind, rows in (
        ("word", config["vocab_size"]),
        ("position", config["max_position_embeddings"]),
        ("token_type", config["type_vocab_size"]),
    ):
        targets[f"{prefix}embeddings.{kind}_embeddings.weight"] = _Target(
            f"bert/embeddings/{kind}_embeddings", (rows, hidden)
        )
    layer_norm(f"{prefix}embeddings", "bert/embeddings")
    for i in range(config["num_hidden_layers"]):
        hf, name = f"{prefix}encoder.layer.{i}", f"bert/encoder/layer_{i}"
        for weight in spec.LAYER_WEIGHTS:
            shape = weight.sizes(hidden, inner)
            targets[f"{hf}.{weight.hugging_face}"] = _Target(
                f"{name}/{weight.google}", shape[::-1], transpose=weight.is_kernel
            )
    dense(f"{prefix}pooler.dense", "bert/pooler/dense", hidden, hidden)

    # Heads are optional: present ones are converted whole.
    is_other_classifier = architectures and not any(
        a.endswith("ForSequenceClassification") for a in architectures
    )
    if "classifier.weight" in tensors and not is_other_classifier:
        (num_labels, *_) = tensors["classifier.weight"].shape or (1,)
        head("classifier", "", num_labels)
    if "qa_outputs.weight" in tensors:
        head("qa_outputs", "cls/squad/", 2)
    if "cls.seq_relationship.weight" in tensors:
        head("cls.seq_relationship", "cls/seq_relationship/", 2)
    if any(n.startswith("cls.predictions.") for n in tensors):
        transform = "cls.predictions.transform"
        dense(f"{transform}.dense", "cls/predictions/transform/dense", hidden, hidden)
        layer_norm(transform, "cls/predictions/transform")
        targets["cls.predictions.bias"] = _Target(
            "cls/predictions/output_bias", (config["vocab_size"],)
        )
    return targets


def _spellings(hf_name: str) -> tuple[str, ...]:
    """The name and its old form: models of TensorFlow origin have LayerNorm.gamma and .beta."""
    old = re.sub(r"LayerNorm\.weight$", "LayerNorm.gamma", hf_name)
    return (hf_name, re.sub(r"LayerNorm\.bias$", "LayerNorm.beta", old))


def _harmless_names(tensors: Mapping[str, np.ndarray], prefix: str) -> set[str]:
    """Tensors that may be dropped: known buffers, and copies of tied weights that are equal."""
    ties = {
        "cls.predictions.decoder.weight": f"{prefix}embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    }
    harmless = {f"{prefix}{name}" for name in _HARMLESS} & set(tensors)
    for copy, origin in ties.items():
        if {copy, origin} <= set(tensors) and np.array_equal(tensors[copy], tensors[origin]):
            harmless.add(copy)
    return harmless
