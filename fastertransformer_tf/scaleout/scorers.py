"""What scores texts in a worker: a model that is loaded there from a picklable description.

Batch scoring and serving know `Scorer` and `ScorerFactory` alone, so that another model needs no
change of theirs.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from fastertransformer_tf.data.text_features import TokenRow
from fastertransformer_tf.errors import UserError

# One or two texts.
Texts = tuple[str, ...]


class Scorer(Protocol):
    """A loaded model. `tokenize` may be called while another thread is in `score`."""

    def tokenize(self, texts: Sequence[Texts]) -> list[TokenRow]:
        """Cuts texts and pairs into tokens.

        Raises:
          UserError: The model cannot take one.
        """

    def score(self, batch: Sequence[TokenRow]) -> np.ndarray:
        """Computes the scores of a batch, float32 [len(batch), C], in its order."""


class ScorerFactory(Protocol):
    """Says how to make a scorer; goes to the workers by pickle."""

    def check(self) -> None:
        """Checks what can be checked without loading the model.

        Raises:
          UserError: Something is wrong.
          OSError: A file is not there.
        """

    def identity(self) -> dict[str, Any]:
        """What the scores depend on, as JSON: models that differ in it are different models."""

    def load(self, threads: int) -> Scorer:
        """Loads the model, to compute with so many threads of this process."""


@dataclasses.dataclass(frozen=True)
class ClassifierFactory:
    """A classifier of run_classifier_wrap: probabilities of its classes.

    Attributes:
      checkpoint: Prefix of the checkpoint.
      config_file: Its bert_config.json.
      vocab_file: Its vocabulary.
      do_lower_case: Whether the vocabulary is of lower case.
      max_seq_length: Longer texts and pairs are cut to so many tokens, as google's program does.
      floatx: Type of weights and activations.
      remove_padding: Compute only real tokens.
      int8_mode: 0 off; 1 or 2 for a checkpoint of ckpt_quantization.
      use_tensorflow: TensorFlow's own transformer instead of the op, for comparison.
    """

    checkpoint: str
    config_file: str
    vocab_file: str
    do_lower_case: bool = True
    max_seq_length: int = 128
    floatx: str = "float32"
    remove_padding: bool = False
    int8_mode: int = 0
    use_tensorflow: bool = False

    def check(self) -> None:
        """Checks sizes, files and how they go together; see `ScorerFactory`."""
        files = self._open()
        if not files.num_labels:
            raise UserError(
                f"checkpoint {files.source.path} has no output_weights, expected a model that was "
                "fine-tuned for classification"
            )

    def identity(self) -> dict[str, Any]:
        """The fields, and sizes and times of the files; see `ScorerFactory`."""
        names = (f"{self.checkpoint}.index", self.config_file, self.vocab_file)
        files = {name: [os.stat(name).st_size, os.stat(name).st_mtime_ns] for name in names}
        return {**dataclasses.asdict(self), "files": files}

    def load(self, threads: int) -> Scorer:
        """Loads the classifier; see `ScorerFactory`."""
        from fastertransformer_tf import text_model

        return _Classifier(text_model.TextModel(self._open(), self._options(), threads))

    def _open(self) -> Any:
        """Opens the files: a `text_inputs.OpenedFiles`."""
        from fastertransformer_tf.programs import text_inputs

        return text_inputs.open_files(
            self.checkpoint,
            self.config_file,
            self.vocab_file,
            do_lower_case=self.do_lower_case,
            max_seq_length=self.max_seq_length,
            options=self._options(),
        )

    def _options(self) -> Any:
        """How the encoder is built: a `modeling.EncoderOptions`."""
        from fastertransformer_tf.models import modeling

        try:
            return modeling.EncoderOptions(
                floatx=self.floatx,
                remove_padding=self.remove_padding,
                int8_mode=self.int8_mode,
                use_tensorflow=self.use_tensorflow,
            )
        except ValueError as error:
            raise UserError(str(error)) from error


class _Classifier:
    """The scorer of `ClassifierFactory`."""

    def __init__(self, model: Any) -> None:
        """Takes a `text_model.TextModel`."""
        self._model = model

    def tokenize(self, texts: Sequence[Texts]) -> list[TokenRow]:
        """As google's convert_single_example: [CLS] first [SEP], and second [SEP] if not empty."""
        rows: list[TokenRow] = self._model.tokenize(texts)
        return rows

    def score(self, batch: Sequence[TokenRow]) -> np.ndarray:
        """Probabilities; the batch is padded to its longest."""
        scores: np.ndarray = self._model.predict_batch(batch)
        return scores
