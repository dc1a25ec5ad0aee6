"""What a model that takes texts is loaded from, checked before it is built."""

from __future__ import annotations

import dataclasses
from typing import Any

from fastertransformer_tf.checkpoints import reading
from fastertransformer_tf.data.text_features import TextTokenizer
from fastertransformer_tf.errors import UserError
from fastertransformer_tf.files import bert_config
from fastertransformer_tf.models import modeling
from fastertransformer_tf.programs import checked_inputs


@dataclasses.dataclass(frozen=True)
class OpenedFiles:
    """The files of a model that go together.

    Attributes:
      source: The checkpoint.
      config: The BertConfig.
      tokenizer: Its vocabulary's.
      max_seq_length: Tokens that a text or pair is cut to.
      num_labels: Classes of the classification head; 0 where the checkpoint has none.
    """

    source: reading.Checkpoint
    config: Any
    tokenizer: TextTokenizer
    max_seq_length: int
    num_labels: int


def open_files(
    checkpoint: str,
    config_file: str,
    vocab_file: str,
    *,
    do_lower_case: bool,
    max_seq_length: int | None,
    options: modeling.EncoderOptions,
) -> OpenedFiles:
    """Opens and checks the files of a model, all that can be without building it.

    Args:
      checkpoint: Its prefix, or a folder.
      config_file: bert_config.json.
      vocab_file: The vocabulary.
      do_lower_case: Whether it is of lower case.
      max_seq_length: Tokens that a text or pair is cut to; all position embeddings when None.
      options: How the encoder is built.

    Raises:
      OSError: A file is not there.
      UserError: The files do not go together, or the op cannot compute the model.
    """
    source = reading.Checkpoint(checkpoint)
    config = checked_inputs.load_config(config_file, 1, options)
    most = config.max_position_embeddings
    if max_seq_length is None:
        max_seq_length = most
    if not 3 <= max_seq_length <= most:
        raise UserError(
            f"max_seq_length is {max_seq_length}, expected 3 to {most}: the position embeddings of "
            "the model"
        )
    checked_inputs.check_quantization(source, options.int8_mode, options.fp8_mode)
    bert_config.check_embeddings(vars(config), source.shapes, config_file, source.path)
    tokenizer = TextTokenizer(vocab_file, do_lower_case, config.vocab_size)
    head = source.shapes.get("output_weights")
    return OpenedFiles(
        source, config, tokenizer, max_seq_length, int(head[0]) if head is not None else 0
    )
