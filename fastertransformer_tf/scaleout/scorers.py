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

from fastertransformer_tf.errors import UserError

# One or two texts.
Texts = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Tokens:
    """One text, or pair, as the model reads it, without padding.

    Attributes:
      ids: Token ids.
      segments: 0 for tokens of the first text, 1 for those of the second.
    """

    ids: tuple[int, ...]
    segments: tuple[int, ...]

    def __len__(self) -> int:
        """Returns the number of tokens."""
        return len(self.ids)


class Scorer(Protocol):
    """A loaded model. `tokenize` may be called while another thread is in `score`."""

    def tokenize(self, texts: Texts) -> Tokens:
        """Cuts one text or pair into tokens.

        Raises:
          UserError: The model cannot take it.
        """

    def score(self, batch: Sequence[Tokens]) -> np.ndarray:
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
      num_labels: C.
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
    num_labels: int
    do_lower_case: bool = True
    max_seq_length: int = 128
    floatx: str = "float32"
    remove_padding: bool = True
    int8_mode: int = 0
    use_tensorflow: bool = False

    def check(self) -> None:
        """Checks sizes, files and how they go together; see `ScorerFactory`."""
        from fastertransformer_tf.checkpoints import reading
        from fastertransformer_tf.files import bert_config
        from fastertransformer_tf.programs import checked_inputs

        for name, least in (("num_labels", 1), ("max_seq_length", 3)):
            if getattr(self, name) < least:
                raise UserError(f"--{name}={getattr(self, name)}, expected at least {least}")
        config = self._config()
        checked_inputs.make_tokenizer(self.vocab_file, self.do_lower_case, None, config)
        source = reading.Checkpoint(self.checkpoint)
        checked_inputs.check_quantization(source, self.int8_mode)
        bert_config.check_embeddings(vars(config), source.shapes, self.config_file, source.path)
        shape = source.shapes.get("output_weights")
        if shape is not None and shape[0] != self.num_labels:
            raise UserError(
                f"--num_labels={self.num_labels}, expected {shape[0]}: the classes of checkpoint "
                f"{source.path}"
            )

    def identity(self) -> dict[str, Any]:
        """The fields, and sizes and times of the files; see `ScorerFactory`."""
        names = (f"{self.checkpoint}.index", self.config_file, self.vocab_file)
        files = {name: [os.stat(name).st_size, os.stat(name).st_mtime_ns] for name in names}
        return {**dataclasses.asdict(self), "files": files}

    def load(self, threads: int) -> Scorer:
        """Loads the classifier; see `ScorerFactory`."""
        return _Classifier(self, threads)

    def options(self) -> Any:
        """How the encoder is built: a `modeling.EncoderOptions`."""
        from fastertransformer_tf.models import modeling

        try:
            return modeling.EncoderOptions(
                floatx=self.floatx,
                remove_padding=self.remove_padding and not self.use_tensorflow,
                int8_mode=self.int8_mode,
                use_tensorflow=self.use_tensorflow,
            )
        except ValueError as error:
            raise UserError(str(error)) from error

    def _config(self) -> Any:
        from fastertransformer_tf.programs import checked_inputs

        return checked_inputs.load_config(self.config_file, self.max_seq_length, self.options())


class _Classifier:
    """The scorer of `ClassifierFactory`."""

    def __init__(self, factory: ClassifierFactory, threads: int) -> None:
        """Loads model and tokenizer."""
        from fastertransformer_tf.graphs import sessions
        from fastertransformer_tf.models import bert_compat
        from fastertransformer_tf.programs import checked_inputs, classification

        config = factory._config()
        self._tokenizer = checked_inputs.make_tokenizer(
            factory.vocab_file, factory.do_lower_case, None, config
        )
        self._library = bert_compat.run_classifier()
        self._most = factory.max_seq_length
        self._segments = config.type_vocab_size
        self._pad = self._tokenizer.vocab["[PAD]"]
        session_config = sessions.session_config()
        session_config.intra_op_parallelism_threads = threads
        session_config.inter_op_parallelism_threads = 1
        self._model = classification.Classifier(
            config, factory.num_labels, factory.checkpoint, factory.options(), session_config
        )
        names = ("input_ids", "input_mask", "segment_ids")
        self._call = self._model.session.make_callable(
            self._model.outputs["probabilities"], [self._model.inputs[name] for name in names]
        )

    def tokenize(self, texts: Texts) -> Tokens:
        """As google's convert_single_example: [CLS] first [SEP], and second [SEP] if not empty."""
        if not 1 <= len(texts) <= 2:
            raise UserError(f"{len(texts)} texts, expected one or two")
        if len(texts) == 2 and self._segments < 2:
            raise UserError("the model cannot tell two texts apart, expected one")
        pieces = [self._tokenizer.tokenize(text) for text in texts]
        if not pieces[-1]:
            del pieces[1:]
        if len(pieces) == 2:
            self._library._truncate_seq_pair(pieces[0], pieces[1], self._most - 3)
        else:
            del pieces[0][self._most - 2 :]
        words = ["[CLS]"]
        segments = [0]
        for segment, piece in enumerate(pieces):
            words += [*piece, "[SEP]"]
            segments += [segment] * (len(piece) + 1)
        return Tokens(tuple(self._tokenizer.convert_tokens_to_ids(words)), tuple(segments))

    def score(self, batch: Sequence[Tokens]) -> np.ndarray:
        """Probabilities; the batch is padded to its longest."""
        longest = max(map(len, batch))
        ids = np.full((len(batch), longest), self._pad, np.int32)
        mask, segments = np.zeros_like(ids), np.zeros_like(ids)
        for row, tokens in enumerate(batch):
            ids[row, : len(tokens)] = tokens.ids
            segments[row, : len(tokens)] = tokens.segments
            mask[row, : len(tokens)] = 1
        return np.asarray(self._call(ids, mask, segments), np.float32)
