"""Graphs of bert-tensorflow's own BertModel, built without any code of this package.

bert-tensorflow was written for TensorFlow 1.15. Its modeling.py runs here with the two functions
that later TensorFlows do not have, dense layers and contrib's layer norm, as TensorFlow 1 computed
them.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import pathlib
import types
from typing import Any

import numpy as np
import tensorflow as tf
from tiny_bert import CONFIG

tf1 = tf.compat.v1


def _dense(inputs, units, activation=None, kernel_initializer=None, name=None):
    with tf1.variable_scope(name, default_name="dense"):
        kernel = tf1.get_variable(
            "kernel", [inputs.shape[-1], units], initializer=kernel_initializer
        )
        bias = tf1.get_variable("bias", [units], initializer=tf1.zeros_initializer())
        output = tf.nn.bias_add(tf.matmul(inputs, kernel), bias)
        return output if activation is None else activation(output)


def _layer_norm(inputs, begin_norm_axis, begin_params_axis, scope=None):
    assert begin_norm_axis == begin_params_axis == -1
    with tf1.variable_scope(scope, default_name="LayerNorm"):
        shape = [inputs.shape[-1]]
        beta = tf1.get_variable("beta", shape, initializer=tf1.zeros_initializer())
        gamma = tf1.get_variable("gamma", shape, initializer=tf1.ones_initializer())
        mean, variance = tf.nn.moments(inputs, [-1], keepdims=True)
        return tf.nn.batch_normalization(inputs, mean, variance, beta, gamma, 1e-12)


@functools.cache
def modeling() -> Any:
    """bert-tensorflow's modeling.py as a module of its own."""
    folder = pathlib.Path(importlib.util.find_spec("bert").submodule_search_locations[0])
    text = (folder / "modeling.py").read_text()
    for line in (
        "import tensorflow.compat.v1 as tf\n",
        "from tensorflow.contrib import layers as contrib_layers\n",
    ):
        assert line in text
        text = text.replace(line, "")

    class Tf(types.ModuleType):
        layers = types.SimpleNamespace(dense=_dense)

        def __getattr__(self, name):
            return getattr(tf1, name)

    module = types.ModuleType("modeling_alone")
    module.tf = Tf("tf")
    module.contrib_layers = types.SimpleNamespace(layer_norm=_layer_norm)
    exec(compile(text, "modeling_alone.py", "exec"), module.__dict__)
    return module


def inputs(length=None, batch=None, prefix=""):
    """The three placeholders of google's models."""
    return {
        name: tf1.placeholder(tf.int32, [batch, length], prefix + name)
        for name in ("input_ids", "input_mask", "segment_ids")
    }


def classifier(model, num_labels=2, scope=""):
    """run_classifier.py's head."""
    pooled = model.get_pooled_output()
    with tf1.variable_scope(scope or tf1.get_variable_scope()):
        weights = tf1.get_variable("output_weights", [num_labels, pooled.shape[-1]])
        bias = tf1.get_variable("output_bias", [num_labels], initializer=tf1.zeros_initializer())
    return tf.nn.bias_add(tf.matmul(pooled, weights, transpose_b=True), bias, name="logits")


def squad(model):
    """run_squad.py's head: start and end logits, [B,S] each."""
    hidden = model.get_sequence_output()
    batch, length, width = modeling().get_shape_list(hidden, expected_rank=3)
    weights = tf1.get_variable("cls/squad/output_weights", [2, width])
    bias = tf1.get_variable("cls/squad/output_bias", [2], initializer=tf1.zeros_initializer())
    flat = tf.reshape(hidden, [batch * length, width])
    logits = tf.nn.bias_add(tf.matmul(flat, weights, transpose_b=True), bias)
    logits = tf.transpose(tf.reshape(logits, [batch, length, 2]), [2, 0, 1])
    return tf.unstack(logits, axis=0)


def bert(tensors, scope=None, is_training=False, **config):
    """google's BertModel on placeholders."""
    module = modeling()
    return module.BertModel(
        config=module.BertConfig(**(CONFIG | config)),
        is_training=is_training,
        input_ids=tensors["input_ids"],
        input_mask=tensors["input_mask"],
        token_type_ids=tensors["segment_ids"],
        scope=scope,
    )


def randomize(session, seed=0):
    """Gives all variables of the graph values that keep activations at the scale of a real BERT."""
    rng = np.random.default_rng(seed)
    for variable in tf1.global_variables():
        shape = variable.shape.as_list()
        value = rng.standard_normal(shape).astype(np.float32)
        if variable.op.name.endswith("kernel"):
            value *= 1.2 / np.sqrt(shape[0])
        elif variable.op.name.endswith("gamma"):
            value = 1 + 0.1 * value
        else:
            value *= 0.3
        variable.load(value, session)


def samples(rng, batch=5, length=24, vocab=64, prefix=False):
    """Ids with masks that are no prefixes, or are."""
    mask = rng.integers(0, 2, [batch, length])
    if prefix:
        mask = np.arange(length) < rng.integers(1, length + 1, [batch, 1])
    mask[:, 0] = 1
    return {
        "input_ids": rng.integers(0, vocab, [batch, length]).astype(np.int32),
        "input_mask": mask.astype(np.int32),
        "segment_ids": rng.integers(0, 2, [batch, length]).astype(np.int32),
    }


def save(session, folder, tensors, outputs):
    """Writes a SavedModel with one signature and an asset."""
    asset = pathlib.Path(folder).parent / "vocab.txt"
    asset.write_text("[PAD]\n")
    name = tf.constant(str(asset))
    tf1.add_to_collection(tf1.GraphKeys.ASSET_FILEPATHS, name)
    builder = tf1.saved_model.Builder(str(folder))
    signature = tf1.saved_model.build_signature_def(
        {k: tf1.saved_model.build_tensor_info(v) for k, v in tensors.items()},
        {k: tf1.saved_model.build_tensor_info(v) for k, v in outputs.items()},
        "tensorflow/serving/predict",
    )
    builder.add_meta_graph_and_variables(
        session,
        ["serve"],
        {"serving_default": signature},
        assets_collection=tf1.get_collection(tf1.GraphKeys.ASSET_FILEPATHS),
    )
    builder.save()


def freeze(session, path, outputs):
    """Writes a graph with its variables as constants."""
    frozen = tf1.graph_util.convert_variables_to_constants(
        session, session.graph_def, [t.op.name for t in outputs]
    )
    pathlib.Path(path).write_bytes(frozen.SerializeToString())


def run_saved(folder, given):
    """Runs the signature of a SavedModel in a session of TensorFlow 1."""
    with tf.Graph().as_default(), tf1.Session() as session:
        meta = tf1.saved_model.load(session, ["serve"], str(folder))
        signature = meta.signature_def["serving_default"]
        feeds = {signature.inputs[k].name: v for k, v in given.items()}
        return session.run({k: v.name for k, v in signature.outputs.items()}, feeds)


def run_frozen(path, given, outputs):
    """Runs a frozen graph."""
    graph_def = tf1.GraphDef.FromString(pathlib.Path(path).read_bytes())
    with tf.Graph().as_default(), tf1.Session() as session:
        tf1.import_graph_def(graph_def, name="")
        return session.run(list(outputs), {f"{k}:0": v for k, v in given.items()})


def export_classifier(prefix, config_file, folder):
    """Writes a SavedModel of run_classifier.py's model with the weights of its checkpoint."""
    config = json.loads(pathlib.Path(config_file).read_text())
    known = modeling().BertConfig(1).to_dict()
    with tf.Graph().as_default(), tf1.Session() as session:
        tensors = inputs()
        logits = classifier(bert(tensors, **{k: v for k, v in config.items() if k in known}))
        tf1.train.Saver().restore(session, str(prefix))
        save(session, folder, tensors, {"logits": logits})
