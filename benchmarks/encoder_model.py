"""The encoders that the benchmarks time: sizes, random weights and inputs."""

import dataclasses

import numpy as np

# Weight name inside a layer (google-research BERT's checkpoint names) -> BertEncoder's input name.
OP_INPUTS = {
    "attention/self/query/kernel": "attr_q_kernel",
    "attention/self/query/bias": "attr_q_bias",
    "attention/self/key/kernel": "attr_k_kernel",
    "attention/self/key/bias": "attr_k_bias",
    "attention/self/value/kernel": "attr_v_kernel",
    "attention/self/value/bias": "attr_v_bias",
    "attention/output/dense/kernel": "attr_output_kernel",
    "attention/output/dense/bias": "attr_output_bias",
    "attention/output/LayerNorm/beta": "attr_output_layernorm_beta",
    "attention/output/LayerNorm/gamma": "attr_output_layernorm_gamma",
    "intermediate/dense/kernel": "inter_kernel",
    "intermediate/dense/bias": "inter_bias",
    "output/dense/kernel": "output_kernel",
    "output/dense/bias": "output_bias",
    "output/LayerNorm/beta": "output_layernorm_beta",
    "output/LayerNorm/gamma": "output_layernorm_gamma",
}


@dataclasses.dataclass(frozen=True)
class EncoderModel:
    """Sizes of a stack of BERT layers."""

    name: str
    layers: int
    heads: int
    size: int
    inner: int

    @property
    def hidden(self) -> int:
        """H = heads * size."""
        return self.heads * self.size

    def weight_shape(self, name: str) -> tuple[int, ...]:
        """Shape of a weight, `name` being a key of OP_INPUTS; kernels are [in, out]."""
        h, i = self.hidden, self.inner
        if name == "intermediate/dense/kernel":
            return (h, i)
        if name == "output/dense/kernel":
            return (i, h)
        if name.endswith("kernel"):
            return (h, h)
        return (i,) if name == "intermediate/dense/bias" else (h,)

    def gflop(self, lengths: np.ndarray) -> float:
        """Multiply-adds times 2 of GEMMs and attention for sequences of these lengths, in 10^9."""
        tokens, squares = int(lengths.sum()), int((lengths.astype(np.int64) ** 2).sum())
        gemms = tokens * (4 * self.hidden**2 + 2 * self.hidden * self.inner)
        return 2e-9 * self.layers * (gemms + 2 * squares * self.hidden)


MODELS = {
    "bert-base": EncoderModel("bert-base", layers=12, heads=12, size=64, inner=3072),
    "minilm": EncoderModel("minilm", layers=6, heads=12, size=32, inner=1536),
}


def random_weights(model: EncoderModel, seed: int = 1) -> list[dict[str, np.ndarray]]:
    """Makes float32 weights for every layer, keyed as OP_INPUTS.

    Query and key kernels are wide enough that the scores have a spread of about 2: with BERT's
    initializer (0.02) attention would be uniform and an error in it would hardly be seen.
    """
    rng = np.random.default_rng(seed)
    layers = []
    for _ in range(model.layers):
        layer = {}
        for name in OP_INPUTS:
            value = rng.standard_normal(model.weight_shape(name), dtype=np.float32)
            if name.endswith("kernel"):
                sharp = "query" in name or "key" in name
                value *= (1.4 if sharp else 0.8) / np.sqrt(value.shape[0])
            elif name.endswith("gamma"):
                value = 1 + 0.1 * value
            else:
                value *= 0.1
            layer[name] = value
        layers.append(layer)
    return layers


def random_batch(
    model: EncoderModel, batch: int, seq: int, fill: str, seed: int = 2
) -> tuple[np.ndarray, np.ndarray]:
    """Makes one batch.

    Args:
      model: the encoder.
      batch: B.
      seq: S, the padded length.
      fill: "full", or "half": every sequence's real length is S/2.
      seed: of the random generator; the hidden states do not depend on `fill`.

    Returns:
      Hidden states float32 [B,S,H] and lengths int32 [B].
    """
    if fill not in ("full", "half"):
        raise ValueError(f"fill is {fill!r}, expected 'full' or 'half'")
    rng = np.random.default_rng(seed)
    hidden = rng.standard_normal((batch, seq, model.hidden), dtype=np.float32)
    length = seq if fill == "full" else seq // 2
    return hidden, np.full(batch, length, np.int32)
