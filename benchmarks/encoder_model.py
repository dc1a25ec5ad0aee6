"""The encoders that the benchmarks time: sizes and inputs."""

import dataclasses

import numpy as np

from benchmarks.ragged import ragged_lengths
from fastertransformer_tf.spec import EncoderSizes


@dataclasses.dataclass(frozen=True)
class EncoderModel(EncoderSizes):
    """A named encoder."""

    name: str = ""

    def gflop(self, lengths: np.ndarray) -> float:
        """Multiply-adds times 2 of GEMMs and attention for sequences of these lengths, in 10^9."""
        tokens, squares = int(lengths.sum()), int((lengths.astype(np.int64) ** 2).sum())
        gemms = tokens * (4 * self.hidden**2 + 2 * self.hidden * self.inner)
        return 2e-9 * self.layers * (gemms + 2 * squares * self.hidden)


MODELS = {
    "bert-base": EncoderModel(12, 12, 64, 3072, "bert-base"),
    "minilm": EncoderModel(6, 12, 32, 1536, "minilm"),
}


FILLS = ("full", "half", "short", "repeated", "changing")
# Those of them that are the same list of ragged batches, in another order.
RAGGED_FILLS = ("repeated", "changing")
RAGGED_BATCHES = 8


def random_batch(
    model: EncoderModel, batch: int, seq: int, fill: str, seed: int = 2
) -> tuple[np.ndarray, np.ndarray]:
    """Makes one batch.

    Args:
      model: the encoder.
      batch: B.
      seq: S, the padded length.
      fill: "full"; "half": every sequence's real length is S/2; or "short": the tokens of "half"
        in a batch that is padded to S/2, so that there is no padding.
      seed: of the random generator; the hidden states do not depend on `fill`.

    Returns:
      Hidden states float32 [B,S,H], of "short" [B,S/2,H], and lengths int32 [B].
    """
    rng = np.random.default_rng(seed)
    hidden = rng.standard_normal((batch, seq, model.hidden), dtype=np.float32)
    length = seq if fill == "full" else seq // 2
    if fill == "short":
        hidden = np.ascontiguousarray(hidden[:, :length])
    return hidden, np.full(batch, length, np.int32)


def make_batches(
    model: EncoderModel, batch: int, seq: int, fill: str
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Makes the batches of a fill, hidden states and lengths each.

    One for "full", "half" and "short" (see random_batch); RAGGED_BATCHES for "repeated" and
    "changing": random lengths, each batch padded to its own longest, as a server does it.
    """
    if fill not in FILLS:
        raise ValueError(f"fill is {fill!r}, expected one of {', '.join(FILLS)}")
    if fill not in RAGGED_FILLS:
        return [random_batch(model, batch, seq, fill)]
    hidden, _ = random_batch(model, batch, seq, "full")
    return [
        (np.ascontiguousarray(hidden[:, : lengths.max()]), lengths)
        for lengths in ragged_lengths(batch, seq, RAGGED_BATCHES)
    ]
