"""Small BERTs as frozen graphs, in every form that they are written in, and their look-alikes.

Written from the paper and the layouts that graphs of google-research BERT (2018 and its einsum
form), Keras' Dense and Hugging Face's TF2 BERT have; nothing of the package is used.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

tf1 = tf.compat.v1
HEADS, SIZE, INNER, VOCAB, LAYERS = 4, 8, 48, 50, 2
HIDDEN = HEADS * SIZE
STYLES = ("matmul", "tensordot", "einsum")


class Mini:
    """Builds one model; `changes` say in what it differs from BERT."""

    def __init__(self, style: str = "matmul", seed: int = 0, **changes: object) -> None:
        self.style = style
        self.rng = np.random.default_rng(seed)
        self.changes = changes

    def get(self, name: str, default: object = None) -> object:
        return self.changes.get(name, default)

    def weight(self, *shape: int, scale: float | None = None, base: float = 0.0) -> tf.Tensor:
        value = self.rng.standard_normal(shape) * (scale or 1.2 / np.sqrt(shape[0])) + base
        return tf.constant(value, tf.float32)

    def graph_def(self) -> tf1.GraphDef:
        """Placeholders ids, mask [B,S] (or pairs [B,S,S]); output hidden [B,S,H]."""
        with tf.Graph().as_default() as graph:
            ids = tf1.placeholder(tf.int32, [None, None], "ids")
            hidden = tf.nn.embedding_lookup(self.weight(VOCAB, HIDDEN, scale=1.0), ids)
            other = tf.reverse(hidden, [1]) if self.get("cross") else None
            adder = self.adder(ids)
            first = hidden
            weights = None
            for index in range(LAYERS):
                if weights is None or not self.get("shared"):
                    weights = self.layer_weights()
                residual = first if self.get("residual") == "first" else hidden
                heads = HEADS // (index + 1) if self.get("heads") == "fewer" else HEADS
                hidden = self.layer(hidden, adder, weights, residual, other, heads, index)
            tf.identity(hidden, "hidden")
            tf.reduce_mean(hidden[:, 0], -1, name="pooled")
            return graph.as_graph_def()

    # ---- The mask --------------------------------------------------------------------------------

    def adder(self, ids: tf.Tensor) -> tf.Tensor | None:
        kind = self.get("mask", "google")
        if kind == "none":
            return None
        if kind == "pairs":
            pairs = tf1.placeholder(tf.int32, [None, None, None], "pairs")
            return (1.0 - tf.cast(pairs, tf.float32)[:, tf.newaxis]) * -10000.0
        if kind == "ids":
            mask = tf.cast(tf.not_equal(ids, 0), tf.float32)
            return (1.0 - mask)[:, tf.newaxis, tf.newaxis] * -10000.0
        if kind == "lengths":
            lengths = tf1.placeholder(tf.int32, [None], "lengths")
            mask = tf.sequence_mask(lengths, tf.shape(ids)[1], tf.float32)
            return (1.0 - mask)[:, tf.newaxis, tf.newaxis] * -1e9
        dtype = tf.float32 if kind == "soft" else tf.int32
        mask = tf1.placeholder(dtype, [None, None], "mask")
        if kind == "where":
            return tf.cast(mask, tf.bool)[:, tf.newaxis, tf.newaxis]
        keys = tf.cast(tf.reshape(mask, [tf.shape(ids)[0], 1, tf.shape(ids)[1]]), tf.float32)
        ones = tf.ones([tf.shape(ids)[0], tf.shape(ids)[1], 1])
        amount = {"huge": -1e9, "small": -2.0, "lowest": tf.float32.min}.get(kind, -10000.0)
        adder = (1.0 - tf.expand_dims(ones * keys, 1)) * amount
        length = tf.shape(ids)[1]
        if kind == "causal":
            allowed = tf.linalg.band_part(tf.ones(tf.stack([length, length])), -1, 0)
            adder += (1.0 - allowed) * -10000.0
        if kind == "distance":
            positions = tf.cast(tf.range(length), tf.float32)
            adder -= 0.1 * tf.abs(positions[:, tf.newaxis] - positions)
        if kind == "heads":
            positions = tf.cast(tf.range(length), tf.float32)
            slopes = tf.reshape(tf.constant([0.5, 0.25, 0.125, 0.1]), [1, HEADS, 1, 1])
            adder -= slopes * tf.abs(positions[:, tf.newaxis] - positions)
        return adder

    # ---- A layer ---------------------------------------------------------------------------------

    def layer_weights(self) -> dict[str, tf.Tensor]:
        shapes = {name: (HIDDEN, HIDDEN) for name in ("query", "key", "value", "projection")}
        shapes |= {"inner": (HIDDEN, INNER), "gate": (HIDDEN, INNER), "output": (INNER, HIDDEN)}
        result = {}
        for name, shape in shapes.items():
            if self.get("one_key_head") and name in ("key", "value"):
                shape = (HIDDEN, SIZE)
            result[name] = self.weight(*shape)
            result[f"{name}_bias"] = self.weight(shape[1], scale=0.3)
        for name in ("norm_1", "norm_2"):
            result[f"{name}_gamma"] = self.weight(HIDDEN, scale=0.1, base=1.0)
            result[f"{name}_beta"] = self.weight(HIDDEN, scale=0.1)
        return result

    def dense(self, x: tf.Tensor, weights: dict[str, tf.Tensor], name: str) -> tf.Tensor:
        kernel, bias = weights[name], weights[f"{name}_bias"]
        if self.get("transposed") == name:
            rows = tf.reshape(x, [-1, kernel.shape[0]])
            product = tf.matmul(rows, tf.constant(tf.get_static_value(kernel).T), transpose_b=True)
            product = tf.reshape(product, tf.concat([tf.shape(x)[:-1], [kernel.shape[1]]], 0))
        elif self.style == "matmul":
            product = tf.matmul(x, kernel)
        elif self.style == "tensordot":
            product = tf.tensordot(x, kernel, 1)
        else:
            product = tf.einsum("bsh,hi->bsi", x, kernel)
        return product if self.get("no_bias") == name else tf.nn.bias_add(product, bias)

    def split(
        self, x: tf.Tensor, weights: dict[str, tf.Tensor], name: str, heads: int, dims: list
    ) -> tf.Tensor:
        """Query, key or value: [B,S,N,D], or [B,N,S,D] in the styles without einsum."""
        if self.style == "einsum" and not self.get("one_key_head"):
            shape = [HIDDEN, heads, HIDDEN // heads]
            kernel = tf.constant(tf.get_static_value(weights[name]).reshape(shape))
            bias = tf.constant(tf.get_static_value(weights[f"{name}_bias"]).reshape(shape[1:]))
            product = tf.einsum("bsh,hnd->bsnd", x, kernel)
            return product if self.get("no_bias") == name else product + bias
        if self.get("one_key_head") and name in ("key", "value"):
            one = self.dense(x, weights, name)
            wide = tf.tile(one, [1] * (len(one.shape) - 1) + [heads])
            return tf.transpose(tf.reshape(wide, [*dims, heads, SIZE]), [0, 2, 1, 3])
        wide = self.dense(x, weights, name)
        if self.get("head_order") == "swapped":
            return tf.transpose(tf.reshape(wide, [*dims, HIDDEN // heads, heads]), [0, 3, 1, 2])
        return tf.transpose(tf.reshape(wide, [*dims, heads, HIDDEN // heads]), [0, 2, 1, 3])

    def scores(self, q: tf.Tensor, k: tf.Tensor, size: int) -> tf.Tensor:
        scale = {"none": 1.0, "size": 1 / size}.get(self.get("scale"), size**-0.5)
        if self.style == "einsum":
            result = tf.einsum("btnd,bfnd->bnft", k, q * scale)
        elif self.style == "tensordot":
            result = tf.matmul(q, k, transpose_b=True) / tf.constant(1 / scale, tf.float32)
        else:
            result = tf.matmul(q, k, transpose_b=True) * scale
        if self.get("relative") == "product":
            table = tf.einsum("bnfd,ntd->bnft", q, self.weight(HEADS, 1, size))
            result += table
        if self.get("relative") == "bias":
            result += self.weight(1, HEADS, 1, 1, scale=1.0) * tf.ones_like(result)
        if self.get("cap"):
            result = 5.0 * tf.tanh(result / 5.0)
        return result

    def attention(
        self, x: tf.Tensor, adder: tf.Tensor | None, weights: dict, source: tf.Tensor, heads: int,
        dims: list,
    ) -> tf.Tensor:  # fmt: skip
        size = HIDDEN // heads
        q = self.split(x, weights, "query", heads, dims)
        k = self.split(source, weights, "key", heads, dims)
        v = self.split(source, weights, "value", heads, dims)
        if self.get("rotary"):
            q, k = (tf.concat([-t[..., size // 2 :], t[..., : size // 2]], -1) + t for t in (q, k))
        scores = self.scores(q, k, size)
        if adder is not None and adder.dtype == tf.bool:
            scores = tf.where(adder, scores, -1e9)
        elif adder is not None:
            scores += adder
        if self.style == "tensordot":
            scores += 1e-9  # As Hugging Face's stable softmax.
        probabilities = tf.nn.softmax(scores, axis=2 if self.get("axis") == 2 else -1)
        if self.get("dropout"):
            probabilities = tf.nn.dropout(probabilities, 0.1)
        if self.get("talking"):
            mix = self.weight(HEADS, HEADS)
            probabilities = tf.einsum("bnft,nm->bmft", probabilities, mix)
        if self.get("temperature"):
            probabilities *= 1.5
        if self.style == "einsum":
            context = tf.einsum("bnft,btnd->bfnd", probabilities, v)
            shape = [heads, size, HIDDEN]
            kernel = tf.constant(tf.get_static_value(weights["projection"]).reshape(shape))
            product = tf.einsum("bfnd,ndh->bfh", context, kernel)
            return tf.nn.bias_add(product, weights["projection_bias"])
        context = tf.transpose(tf.matmul(probabilities, v), [0, 2, 1, 3])
        rows = [dims[0] * dims[1]] if self.style == "matmul" else dims
        return self.dense(tf.reshape(context, [*rows, HIDDEN]), weights, "projection")

    def norm(self, x: tf.Tensor, weights: dict[str, tf.Tensor], name: str) -> tf.Tensor:
        gamma, beta = weights[f"{name}_gamma"], weights[f"{name}_beta"]
        epsilon = 1e-3 if self.get("epsilon") == name else self.get("both_epsilons", 1e-12)
        kind = self.get("norm", "layer")
        if kind == "rms":
            return x * tf.math.rsqrt(tf.reduce_mean(x * x, -1, keepdims=True) + epsilon) * gamma
        if kind == "fused":
            flat = tf.reshape(x, [1, -1, HIDDEN, 1])
            rows = tf.shape(flat)[1]
            y, *_ = tf1.nn.fused_batch_norm(
                flat, tf.ones([rows]), tf.zeros([rows]), epsilon=1e-3, data_format="NCHW"
            )
            return tf.reshape(y, tf.shape(x)) * gamma + beta
        axis = 0 if kind == "rows" else -1
        mean, variance = tf.nn.moments(x, [axis], keepdims=True)
        if kind == "plain":
            return (x - mean) * tf.math.rsqrt(variance + epsilon)
        if kind == "sqrt":
            return gamma * (x - mean) / tf.sqrt(variance + epsilon) + beta
        return tf.nn.batch_normalization(x, mean, variance, beta, gamma, epsilon)

    def activation(self, x: tf.Tensor) -> tf.Tensor:
        functions = {
            "gelu": lambda t: 0.5 * t * (1 + tf.tanh(0.7978845608 * (t + 0.044715 * t**3))),
            "gelu_erf": lambda t: 0.5 * t * (1 + tf.math.erf(t / tf.sqrt(2.0))),
            "relu": tf.nn.relu,
            "silu": lambda t: t * tf.sigmoid(t),
            "quick_gelu": lambda t: t * tf.sigmoid(1.702 * t),
            "identity": lambda t: t,
            "odd": lambda t: tf.sin(t) * t,
        }
        return functions[self.get("activation", "gelu")](x)

    def layer(
        self, hidden: tf.Tensor, adder: tf.Tensor | None, weights: dict, residual: tf.Tensor,
        other: tf.Tensor | None, heads: int, index: int,
    ) -> tf.Tensor:  # fmt: skip
        dims = [tf.shape(hidden)[0], tf.shape(hidden)[1]]
        with tf1.variable_scope(f"layer_{index}"), tf1.name_scope(f"layer_{index}/"):
            rows = [dims[0] * dims[1], HIDDEN] if self.style == "matmul" else [*dims, HIDDEN]
            x = tf.reshape(hidden, rows)
            source = x if other is None else tf.reshape(other, rows)
            kept = tf.reshape(residual, rows)
            read = self.norm(x, weights, "norm_1") if self.get("pre_norm") else x
            if self.get("pre_norm"):
                source = read
            attended = self.attention(read, adder, weights, source, heads, dims)
            if self.get("hidden_dropout"):
                attended = tf.nn.dropout(attended, 0.1)
            y = attended if self.get("residual") == "none" else attended + kept
            if not self.get("pre_norm"):
                y = self.norm(y, weights, "norm_1")
            z = self.norm(y, weights, "norm_2") if self.get("pre_norm") else y
            inside = self.activation(self.dense(z, weights, "inner"))
            if self.get("gated"):
                inside *= self.dense(z, weights, "gate")
            z = y + self.dense(inside, weights, "output")
            if not self.get("pre_norm"):
                z = self.norm(z, weights, "norm_2")
            return tf.reshape(z, [*dims, HIDDEN])
