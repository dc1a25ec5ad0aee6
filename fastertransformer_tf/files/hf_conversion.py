"""Turns a Hugging Face BERT, configuration and weights, into google-research BERT's, and back.

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
# The way back: of transformers' tanh forms the one that PyTorch computes in one kernel.
_HUGGING_FACE_ACTIVATIONS = {"gelu": "gelu_pytorch_tanh", "gelu_erf": "gelu", "relu": "relu"}
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
    targets = _targets(config, prefix, _heads(tensors, architectures))
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


def hugging_face_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Converts bert_config.json to config.json: the reverse of `convert_config`.

    Args:
      config: As `bert_config.load` returns it.

    Returns:
      Arguments of transformers' BertConfig.

    Raises:
      UserError: The activation is one that the op does not compute.
    """
    known = _HUGGING_FACE_ACTIVATIONS
    if config["hidden_act"] not in known:
        raise UserError(
            f"hidden_act is {config['hidden_act']!r}, expected one of {', '.join(known)}"
        )
    return {key: config[key] for key in _CONFIG_KEYS} | {
        "hidden_act": known[config["hidden_act"]],
        "layer_norm_eps": config.get("layer_norm_eps", spec.GOOGLE_LAYER_NORM_EPS),
    }


def hugging_face_tensors(
    variables: Mapping[str, np.ndarray], config: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """Renames and transposes google's variables: the reverse of `convert_tensors`.

    Args:
      variables: Variable name to value, in a float type. Others than those of the model, such as
        an optimizer's, are left out.
      config: As `bert_config.load` returns it.

    Returns:
      The state_dict of transformers' BertForSequenceClassification or BertForQuestionAnswering,
      as the checkpoint has a head; "bert." before the names of the encoder's. Without a pooler
      where there is none.

    Raises:
      UserError: Variables are missing or of another shape, all by name.
    """
    heads = {}
    for name, head in (
        ("output_weights", "classifier"),
        ("cls/squad/output_weights", "qa_outputs"),
    ):
        if name in variables:
            heads[head] = len(variables[name])
    targets = _targets(config, "bert.", heads)
    if not any(name.startswith("bert/pooler/") for name in variables):
        targets = {name: t for name, t in targets.items() if not t.name.startswith("bert/pooler/")}
    faults = []
    tensors = {}
    for name, target in targets.items():
        shape = target.hf_shape[::-1] if target.transpose else target.hf_shape
        value = variables.get(target.name)
        if value is None:
            faults.append(f"missing: {target.name} {list(shape)}")
        elif value.shape != shape:
            faults.append(f"{target.name} has shape {list(value.shape)}, expected {list(shape)}")
        else:
            tensors[name] = np.ascontiguousarray(value.T if target.transpose else value)
    if faults:
        raise UserError(f"the checkpoint is not of its configuration: {listed(faults)}")
    return tensors


def _heads(
    tensors: Mapping[str, np.ndarray], architectures: tuple[str, ...] | list[str]
) -> dict[str, int]:
    """The heads that a Hugging Face model has, and their outputs; see `_targets`."""
    heads = {}
    is_other_classifier = architectures and not any(
        a.endswith("ForSequenceClassification") for a in architectures
    )
    if "classifier.weight" in tensors and not is_other_classifier:
        heads["classifier"] = (tensors["classifier.weight"].shape or (1,))[0]
    for head in ("qa_outputs", "cls.seq_relationship"):
        if f"{head}.weight" in tensors:
            heads[head] = 2
    if any(n.startswith("cls.predictions.") for n in tensors):
        heads["cls.predictions"] = 0
    return heads


def _targets(
    config: Mapping[str, Any], prefix: str, heads: Mapping[str, int]
) -> dict[str, _Target]:
    """Every HF tensor that the model must have, with the variable that it becomes.

    Args:
      config: As `convert_config` returns it.
      prefix: Before the names of the encoder's.
      heads: "classifier", "qa_outputs", "cls.seq_relationship" and "cls.predictions", those that
        there are, to their outputs, which the last needs not.
    """
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

    for hf, name in (
        ("classifier", ""),
        ("qa_outputs", "cls/squad/"),
        ("cls.seq_relationship", "cls/seq_relationship/"),
    ):
        if hf in heads:
            head(hf, name, heads[hf])
    if "cls.predictions" in heads:
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
