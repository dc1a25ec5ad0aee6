"""Times BERT over the dev set of a GLUE task: profile_bert_inference."""

from __future__ import annotations

import dataclasses

import numpy as np
from absl import flags

from fastertransformer_tf import google_bert
from fastertransformer_tf.errors import UserError
from fastertransformer_tf.models import encoder_graphs
from fastertransformer_tf.programs import classification, model_flags, profiling

_OWNER = "fastertransformer_tf.profile_bert_inference"
# Flags of run_classifier_wrap that ask for what this program does not do.
_NOT_DONE = (
    "do_train",
    "do_calib",
    "if_quant",
    "do_predict",
    "export_dir",
    "output_logits",
)


def define_flags(flag_values: flags.FlagValues) -> None:
    """Defines the program's flags."""
    classification.define_flags(flag_values)
    model_flags.define_profile_flags(flag_values, _OWNER)


def run(values: flags.FlagValues) -> list[np.ndarray]:
    """Runs the program with parsed flags.

    Returns:
      Seconds of TensorFlow's batches and of the op's.

    Raises:
      FileNotFoundError: A file is not there.
      UserError: A flag or a file is missing or wrong, or the logits disagree.
    """
    profiling.check_flags(values)
    for name in _NOT_DONE:
        if values[name].value:
            raise UserError(
                f"--{name}: this program only times the dev set; give that flag to "
                "run_classifier_wrap"
            )
    for name in ("int8_mode", "fp8_mode"):
        if values[name].value:
            raise UserError(
                f"--{name}={values[name].value}: TensorFlow's own transformer has none, expected "
                "0; profile_transformer_inference times it"
            )
    values["do_eval"].value = True  # what prepare expects of a job over the dev set
    with google_bert.bound_flags(values):
        job = classification.prepare(values)
        assert job.source is not None  # Without training there is always one.
        features = job.features("dev")
        batch_size = values.eval_batch_size
        whole = len(features["label_ids"]) // batch_size
        if not whole:
            raise UserError(
                f"--eval_batch_size={batch_size}, expected at most the "
                f"{len(features['label_ids'])} examples of the dev set"
            )
        starts = [i * batch_size for i in range(min(whole, values.num_iter))]
        original = dataclasses.replace(job.options, use_tensorflow=True, remove_padding=False)
        sides = []
        for options, name in ((original, "bert_origin"), (job.options, "bert_fastinfer")):
            model = job.classifier(job.source, options, encoder_graphs.session_config(values.xla))
            feeds = [
                {model.inputs[key]: features[key][i : i + batch_size] for key in model.inputs}
                for i in starts
            ]
            logits = model.outputs["logits"]
            sides.append(profiling.Side(model.session, logits, logits, feeds, name))
    columns = {
        "batch_size": batch_size,
        "seq_length": values.max_seq_length,
        "hidden_layers": job.config.num_hidden_layers,
        "attention_heads": job.config.num_attention_heads,
        "attention_head_size": job.config.hidden_size // job.config.num_attention_heads,
    }
    return profiling.compare(values, sides, columns)
