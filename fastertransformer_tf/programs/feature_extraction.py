"""Writes what the layers of a BERT make of the tokens of texts: extract_features."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tqdm
from absl import flags

from fastertransformer_tf import google_bert, spec
from fastertransformer_tf.checkpoints import reading, restoring
from fastertransformer_tf.data import text_features
from fastertransformer_tf.errors import UserError
from fastertransformer_tf.files import atomic, text_files
from fastertransformer_tf.models import bert, modeling
from fastertransformer_tf.programs import (
    checked_inputs,
    cli,
    inference,
    model_flags,
    path_flags,
    reports,
    text_inputs,
)

_tf1 = tf.compat.v1
_OWNER = "fastertransformer_tf.extract_features"
_REQUIRED = ("input_file", "output_file", "init_checkpoint", "vocab_file", "bert_config_file")
_HELP = (
    model_flags.TPU_HELP
    | model_flags.MODEL_HELP
    | {
        "init_checkpoint": "The checkpoint: its prefix, or a folder, which means the latest by its "
        "file `checkpoint` or the only one in it.",
        "input_file": "UTF-8; each line is a text, or two with ' ||| ' between.",
        "output_file": "Its lines are JSON objects, of the input's lines in their order.",
        "layers": "Layers to write, commas between: 0 is the first, -1 the last.",
        "batch_size": "Lines of a batch, at most.",
        "max_seq_length": "Longer lines are cut to so many tokens.",
        "use_one_hot_embeddings": "No effect: kept so that google's command lines, made for TPUs, "
        "are understood.",
    }
)
# Texts of so many batches are sorted by length together: their values are in memory at once.
_BATCHES_SORTED = 4


def define_flags(flag_values: flags.FlagValues) -> None:
    """Defines the program's flags."""
    model_flags.define_encoder_flags(flag_values, _OWNER)
    google_bert.define_google_flags("extract_features", flag_values, _OWNER, _HELP)


class FeatureExtractor(inference.Model):
    """A BERT restored from a checkpoint, whose layers can be seen.

    Its inputs are input_ids, input_mask and segment_ids, int32 [B,S]; its output is `layers`,
    float32 [B,S,K,H] for K layers: what padding has means nothing.
    """

    def __init__(
        self,
        config: Any,
        source: reading.Checkpoint,
        options: modeling.EncoderOptions,
        layers: Sequence[int],
    ) -> None:
        """Builds the graph with unknown batch size and length.

        Args:
          config: A BertConfig.
          source: A checkpoint.
          options: How the encoder is built.
          layers: From 0 on, or from -1 back; K of them.

        Raises:
          UserError: The checkpoint does not fit the model.
        """
        options = dataclasses.replace(options, all_layers=True)
        with tf.Graph().as_default() as graph, modeling.encoder_options(options):
            inputs = {
                name: _tf1.placeholder(tf.int32, [None, None], name) for name in spec.MODEL_INPUTS
            }
            with restoring.restored_variables(source, options.floatx) as restored:
                built = bert.build(config, *inputs.values(), is_training=False)
            chosen = tf.stack([built.layers[layer] for layer in layers], axis=2)
            outputs = {"layers": tf.cast(chosen, tf.float32)}
        super().__init__(graph, inputs, outputs, restored)
        self._call = self.session.make_callable(outputs["layers"], list(inputs.values()))

    def values(
        self, rows: Sequence[text_features.TokenRow], batch_size: int
    ) -> Iterator[np.ndarray]:
        """Computes the layers' outputs of each row, float32 [tokens,K,H], in their order."""
        found: list[np.ndarray | None] = [None] * len(rows)
        lengths = [len(row) for row in rows]
        most_tokens = batch_size * max(lengths, default=1)
        for places in text_features.batches(lengths, most_tokens, batch_size):
            features = text_features.arrays([rows[place] for place in places])
            for place, values in zip(
                places, self._call(*(features[name] for name in spec.MODEL_INPUTS)), strict=True
            ):
                found[place] = values[: lengths[place]]
        for one in found:
            assert one is not None
            yield one


def read_texts(path: str) -> list[text_features.Text]:
    """Reads the lines of a file, each a text or a pair.

    Source: google-research/bert extract_features.py, read_examples.

    Raises:
      OSError: It cannot be read.
      UserError: It has no line, or is not UTF-8.
    """
    texts: list[text_features.Text] = []
    for line in text_files.read_lines(path):
        pair = re.match(r"^(.*) \|\|\| (.*)$", line.strip())
        texts.append((pair[1], pair[2]) if pair else line.strip())
    if not texts:
        raise UserError(f"--input_file={path} has no line, expected one text a line")
    return texts


def _layers(values: flags.FlagValues, num_layers: int) -> list[int]:
    """Reads --layers.

    Raises:
      UserError: It is no list of numbers of layers.
    """
    parts = values.layers.split(",")
    layers = [int(part) for part in parts if re.fullmatch(r"-?[0-9]+", part)]
    if len(layers) < len(parts) or not all(-num_layers <= one < num_layers for one in layers):
        raise UserError(
            f"--layers={values.layers}, expected numbers from {-num_layers} to {num_layers - 1} "
            "with commas between"
        )
    return layers


def _line(number: int, tokens: Sequence[str], layers: Sequence[int], values: np.ndarray) -> str:
    """A line of the output as google's program writes it, its name of the number included.

    Args:
      number: Of the line.
      tokens: T of them.
      layers: K numbers.
      values: [T,K,H].
    """
    features = [
        {
            "token": token,
            "layers": [
                {"index": layer, "values": [round(value, 6) for value in vector]}
                for layer, vector in zip(layers, vectors, strict=True)
            ],
        }
        for token, vectors in zip(tokens, values.tolist(), strict=True)
    ]
    return json.dumps({"linex_index": number, "features": features}) + "\n"


def run(values: flags.FlagValues) -> int:
    """Runs the program with parsed flags.

    Returns:
      How many lines it wrote.

    Raises:
      UserError: A flag is missing or wrong; a file is not as expected.
      OSError: A file is not there or cannot be read.
    """
    path_flags.check_paths(values, _REQUIRED)
    checked_inputs.complete_model_flags(values)
    cli.require_flags(values, _REQUIRED)
    checked_inputs.refuse_tpu(values)
    model_flags.require_positive(values, ["batch_size"])
    options = checked_inputs.encoder_options(values)
    files = text_inputs.open_files(
        values.init_checkpoint,
        values.bert_config_file,
        values.vocab_file,
        do_lower_case=values.do_lower_case,
        max_seq_length=values.max_seq_length,
        options=options,
    )
    layers = _layers(values, files.config.num_hidden_layers)
    path_flags.require_file(values.input_file, "input_file")
    texts = read_texts(values.input_file)
    if any(isinstance(text, tuple) for text in texts):
        checked_inputs.check_segments(files.config, values.bert_config_file)
    path_flags.check_output_file(values.output_file, "output_file")
    num_tokens = 0
    with (
        FeatureExtractor(files.config, files.source, options, layers) as model,
        atomic.atomic_path(values.output_file) as temporary,
        temporary.open("w", encoding="utf-8") as file,
        tqdm.tqdm(total=len(texts), desc="extracting", unit="line", file=sys.stderr) as bar,
    ):
        at_once = _BATCHES_SORTED * values.batch_size
        for begin in range(0, len(texts), at_once):
            rows = files.tokenizer.rows(texts[begin : begin + at_once], files.max_seq_length)
            found = model.values(rows, values.batch_size)
            for number, (row, vectors) in enumerate(zip(rows, found, strict=True), begin):
                file.write(_line(number, files.tokenizer.tokens(row.ids), layers, vectors))
                num_tokens += len(row)
                bar.update()
    print(
        f"{values.output_file}: {len(texts)} lines, {num_tokens} tokens, "
        f"{reports.encoder_name(options)}"
    )
    return len(texts)
