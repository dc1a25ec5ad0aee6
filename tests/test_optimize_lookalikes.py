"""Graphs that are BERT in another form, and graphs that look like it and are not."""

from __future__ import annotations

import pathlib

import mini_bert
import numpy as np
import pytest
import tensorflow as tf

import fastertransformer_tf
from fastertransformer_tf.errors import UserError

tf1 = tf.compat.v1


def run(graph_def: tf1.GraphDef, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    with tf.Graph().as_default(), tf1.Session() as session:
        tf1.import_graph_def(graph_def, name="")
        return session.run(["hidden:0", "pooled:0"], {f"{k}:0": v for k, v in feeds.items()})


def inputs(graph_def: tf1.GraphDef, rng: np.random.Generator, batch: int, length: int) -> dict:
    """Random values for the placeholders of a mini BERT; masks are no prefixes."""
    ids = rng.integers(0, mini_bert.VOCAB, [batch, length])
    mask = rng.integers(0, 2, [batch, length])
    mask[:, 0] = 1
    pairs = rng.integers(0, 2, [batch, length, length])
    pairs[:, :, 0] = 1
    values = {
        "ids": (ids * mask).astype(np.int32),
        "mask": mask,
        "pairs": pairs.astype(np.int32),
        "lengths": rng.integers(1, length + 1, [batch]).astype(np.int32),
    }
    found = {}
    for node in graph_def.node:
        if node.op == "Placeholder":
            dtype = tf.as_dtype(node.attr["dtype"].type).as_numpy_dtype
            found[node.name] = values[node.name].astype(dtype)
    if found.get("mask", mask).dtype == np.float32:
        found["mask"][:, 1:] = rng.random([batch, length - 1])
    return found


def optimize(graph_def: tf1.GraphDef, folder: pathlib.Path, rng: np.random.Generator, **options):
    """Optimizes a graph and compares it with the source on inputs of another size."""
    (folder / "source.pb").write_bytes(graph_def.SerializeToString())
    report = fastertransformer_tf.optimize(
        folder / "source.pb",
        folder / "fast.pb",
        sample_inputs=inputs(graph_def, rng, 2, 6),
        outputs=["hidden", "pooled"],
        write_report=False,
        **options,
    )
    fast = tf1.GraphDef.FromString((folder / "fast.pb").read_bytes())
    for batch, length in ((3, 9), (1, 1)):
        feeds = inputs(graph_def, rng, batch, length)
        expected, actual = run(graph_def, feeds), run(fast, feeds)
        real = np.ones([batch, length], bool)
        if options.get("remove_padding"):
            real = feeds["mask"] == 1
        np.testing.assert_allclose(actual[0][real], expected[0][real], atol=1e-4, rtol=0)
        np.testing.assert_allclose(actual[1], expected[1], atol=1e-4, rtol=0)
    return report, fast


# What is a BERT, and into how many encoders its two layers go.
EXACT = {
    "bert": ({}, 1),
    "erf": ({"activation": "gelu_erf"}, 1),
    "relu": ({"activation": "relu"}, 1),
    "one set of weights for all layers": ({"shared": True}, 1),
    "another number of heads in each layer": ({"heads": "fewer"}, 2),
    "epsilon 1e-5": ({"both_epsilons": 1e-5}, 1),
    "fused batch norm": ({"norm": "fused"}, 1),
    "layer norm by division": ({"norm": "sqrt"}, 1),
    "no mask": ({"mask": "none"}, 1),
    "mask of pairs": ({"mask": "pairs"}, 1),
    "causal mask in the graph": ({"mask": "causal"}, 1),
    "mask made of ids": ({"mask": "ids"}, 1),
    "mask made of lengths": ({"mask": "lengths"}, 1),
    "soft mask": ({"mask": "soft"}, 1),
    "mask of -1e9": ({"mask": "huge"}, 1),
    "mask of float32's lowest": ({"mask": "lowest"}, 1),
    "masked by selection": ({"mask": "where"}, 1),
}


@pytest.mark.parametrize("style", mini_bert.STYLES)
@pytest.mark.parametrize("name", EXACT)
def test_bert_in_other_forms(name, style, tmp_path, rng) -> None:
    changes, encoders = EXACT[name]
    report, fast = optimize(mini_bert.Mini(style, **changes).graph_def(), tmp_path, rng)
    assert len(report.encoders) == encoders and not report.left
    assert sum(len(e.layers) for e in report.encoders) == 2
    ops = [node.op for node in fast.node]
    assert ops.count("BertEncoder") == encoders and "Softmax" not in ops


# What is none, and the reason that is given.
LOOKALIKES = {
    "silu": ({"activation": "silu"}, "activation is silu, expected one of gelu_tanh"),
    "quick gelu": ({"activation": "quick_gelu"}, "activation is quick_gelu"),
    "no activation": ({"activation": "identity"}, "activation is the identity"),
    "an odd activation": ({"activation": "odd"}, "activation is none of gelu_tanh"),
    "pre-layer-norm": ({"pre_norm": True}, "is added to .*pre-layer-norm"),
    "cross attention": ({"cross": True}, "cross attention"),
    "no query bias": ({"no_bias": "query"}, "query has no bias"),
    "no inner bias": ({"no_bias": "inner"}, "expected the sum with a bias"),
    "biases of relative positions": ({"relative": "bias"}, "added to the scores|passes? through"),
    "products of relative positions": ({"relative": "product"}, "expected one for all heads"),
    "slopes by distance": ({"mask": "distance"}, "adds .* to a score, expected 0 or a mask"),
    "slopes for each head": ({"mask": "heads"}, "expected one for all heads"),
    "a mask too small to hide": ({"mask": "small"}, "adds -2 to a score"),
    "dropout of probabilities": ({"dropout": True}, "dropout is on"),
    "dropout of hidden states": ({"hidden_dropout": True}, "dropout is on"),
    "softmax over queries": ({"axis": 2}, "softmax axis is 2, expected -1"),
    "scores not scaled": ({"scale": "none"}, r"differs by up to .* scaled by 1/sqrt\(8\)"),
    "scores scaled by 1/D": ({"scale": "size"}, r"differs by up to .* scaled by 1/sqrt\(8\)"),
    "layer norm without weights": ({"norm": "plain"}, "no layer norm"),
    "root mean square norm": ({"norm": "rms"}, "no layer norm"),
    "norm over rows": ({"norm": "rows"}, "no layer norm"),
    "two epsilons": ({"epsilon": "norm_2"}, "epsilons are 1e-12 and 0.001"),
    "rotary positions": ({"rotary": True}, "query passes through"),
    "one head of keys": ({"one_key_head": True}, "key|attr_k_kernel|Tile"),
    "gated inner layer": ({"gated": True}, "used by 2|depends on"),
    "residual of the embeddings": ({"residual": "first"}, "is added to"),
    "no residual": ({"residual": "none"}, "expected the residual's sum"),
    "talking heads": ({"talking": True}, "the values are the weight"),
    "probabilities scaled": ({"temperature": True}, "the probabilities: used by .*Mul"),
    "capped scores": ({"cap": True}, "the scores pass through .*Tanh"),
    "heads in another order": ({"head_order": "swapped"}, "differs by up to|values"),
    "a transposed kernel": ({"transposed": "inner"}, "uses its kernel transposed"),
}


@pytest.mark.parametrize("name", LOOKALIKES)
def test_look_alikes_are_left_alone(name, tmp_path, rng) -> None:
    changes, reason = LOOKALIKES[name]
    graph_def = mini_bert.Mini("matmul", **changes).graph_def()
    # The first layer has no other input that it could be confused with.
    expected = r"layer_1 \(" if changes.get("residual") == "first" else r"layer_0 \("
    if changes.get("residual") == "first":
        report, _ = optimize(graph_def, tmp_path, rng)
        assert [left.label for left in report.left] == ["layer_1"]
        assert "is added to" in report.left[0].reason
        return
    with pytest.raises(UserError, match=f"{expected}.*({reason})"):
        optimize(graph_def, tmp_path, rng)
    assert not (tmp_path / "fast.pb").exists()


@pytest.mark.parametrize("style", mini_bert.STYLES)
def test_padding_is_removed_from_every_form(style, tmp_path, rng) -> None:
    graph_def = mini_bert.Mini(style).graph_def()
    with pytest.raises(UserError, match="output output_all"):
        # `pooled` looks at the first token alone, `all` at rows of padding too.
        with tf.Graph().as_default() as graph:
            tf1.import_graph_def(graph_def, name="")
            mean = tf.reduce_mean(graph.get_tensor_by_name("hidden:0"), [1, 2])
            tf.identity(mean, "output_all")
            changed = graph.as_graph_def()
        (tmp_path / "all.pb").write_bytes(changed.SerializeToString())
        feeds = inputs(changed, rng, 4, 9)
        if "mask" in feeds:
            feeds["mask"][:, -2:] = 0  # Of random masks all may end with a token.
        fastertransformer_tf.optimize(
            tmp_path / "all.pb",
            tmp_path / "fast_all.pb",
            remove_padding=True,
            sample_inputs=feeds,
            outputs=["output_all"],
        )
    report, _ = optimize(graph_def, tmp_path, rng, remove_padding=True)
    assert report.encoders[0].padding_removed


def test_a_sequence_without_real_tokens_attends_evenly_where_the_graph_does(tmp_path, rng) -> None:
    for kind in ("huge", "where"):
        folder = tmp_path / kind
        folder.mkdir()
        graph_def = mini_bert.Mini("einsum", mask=kind).graph_def()
        _, fast = optimize(graph_def, folder, rng)
        feeds = inputs(graph_def, rng, 3, 7)
        feeds["mask"][1] = 0
        expected, actual = run(graph_def, feeds), run(fast, feeds)
        np.testing.assert_allclose(actual[0], expected[0], atol=1e-4, rtol=0)


def test_layers_around_a_look_alike_are_still_replaced(tmp_path, rng) -> None:
    class OneOdd(mini_bert.Mini):
        def layer(self, hidden, adder, weights, residual, other, heads, index):
            self.changes = {"activation": "silu"} if index == 1 else {}
            return super().layer(hidden, adder, weights, residual, other, heads, index)

    for style in mini_bert.STYLES:
        folder = tmp_path / style
        folder.mkdir()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(mini_bert, "LAYERS", 4)
            graph_def = OneOdd(style).graph_def()
        report, _ = optimize(graph_def, folder, rng)
        assert sorted([layer.label for layer in e.layers] for e in report.encoders) == [
            ["layer_0"],
            ["layer_2", "layer_3"],
        ]
        assert [(left.label, left.reason.partition(",")[0]) for left in report.left] == [
            ("layer_1", "activation is silu")
        ]
