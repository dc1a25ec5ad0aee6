r"""Answers SQuAD's questions in PyTorch: transformers, its TorchScript, or the op.

  python sample/pytorch/run_squad.py --model_name_or_path=minilm_squad --do_eval \
    --predict_file=squad/eval-v1.1.json --output_dir=out --model_type=thsext --remove_padding

The model is a Hugging Face folder or a checkpoint of TensorFlow. Windows, answers and scores are
those of run_squad_wrap.
"""

import pathlib
import sys
from typing import Any

import numpy as np
import transformers
from absl import flags

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "torch_ops"), str(REPOSITORY / "sample/pytorch")]
import bert_programs  # noqa: E402

from fastertransformer_tf.data import (  # noqa: E402
    squad_answers,
    squad_files,
    squad_scores,
    squad_windows,
)
from fastertransformer_tf.errors import UserError  # noqa: E402
from fastertransformer_tf.programs import batch_runs, cli, path_flags, reports  # noqa: E402
from fastertransformer_tf.quantization import calibrating  # noqa: E402

_OWNER = "run_squad"


def define_flags(flag_values: flags.FlagValues) -> None:
    """Defines the program's flags; names and defaults of google's run_squad.py."""
    bert_programs.define_flags(flag_values, _OWNER)
    define = cli.FlagDefiner(flag_values, _OWNER)
    default = squad_files.SquadOptions()
    define.boolean("do_eval", "Answer the questions of --predict_file.")
    define.string("train_file", None, "SQuAD JSON to calibrate on.")
    define.string("predict_file", None, "SQuAD JSON to answer.")
    for name, text in (
        ("max_seq_length", "Tokens of a window at most."),
        ("doc_stride", "Tokens from the beginning of a window to that of the next."),
        ("max_query_length", "Tokens of a question at most."),
        ("n_best_size", "Answers in nbest_predictions.json."),
        ("max_answer_length", "Tokens of an answer at most."),
    ):
        define.integer(name, getattr(default, name), text, minimum=1)
    define.boolean("version_2_with_negative", "Some questions have no answer.")
    define.number(
        "null_score_diff_threshold",
        0.0,
        "No answer where its score exceeds that of the best answer by more.",
        -np.inf,
        np.inf,
    )
    define.boolean("verbose_logging", "Log what the choice of answers does.")


def run(values: flags.FlagValues) -> dict[str, Any]:
    """Runs the program with parsed flags.

    Returns:
      The scores; nothing without --do_eval, or where the right answers are not known.

    Raises:
      UserError: A flag is missing, wrong, or does not go with another; a file is not as expected.
    """
    if not (values.do_eval or values.do_calib):
        raise UserError("nothing to do: give --do_calib or --do_eval")
    files = ["train_file"] if values.do_calib else []
    files += ["predict_file"] if values.do_eval else []
    cli.require_flags(values, files)
    for file in files:
        path_flags.require_file(getattr(values, file), file)
    loaded = bert_programs.load(values, transformers.BertForQuestionAnswering)
    names = set(squad_files.SquadOptions.__dataclass_fields__) - {"do_lower_case"}
    options = squad_files.SquadOptions(
        do_lower_case=loaded.do_lower_case, **{name: getattr(values, name) for name in names}
    )
    if values.do_calib:
        _calibrate(loaded, options)
    return _answer(loaded, options) if values.do_eval else {}


def _calibrate(loaded: bert_programs.Task, options: squad_files.SquadOptions) -> None:
    values = loaded.values
    questions, dropped = squad_files.read_examples(values.train_file, options, is_training=True)
    count = values.calib_batch * values.train_batch_size
    data = squad_windows.make_windows(
        calibrating.choose_examples(questions, count),
        dropped,
        loaded.tokenizer,
        options,
        is_training=True,
    )
    bert_programs.calibrate(loaded, {name: v[:count] for name, v in data.arrays.items()})


def _answer(loaded: bert_programs.Task, options: squad_files.SquadOptions) -> dict[str, Any]:
    values = loaded.values
    data = squad_windows.load(values.predict_file, loaded.tokenizer, options, is_training=False)
    if not data.windows:
        raise UserError(f"{values.predict_file} has no paragraph with words, expected some to read")
    engine = bert_programs.Engine(loaded, ["start_logits", "end_logits"])
    batch_size = values.per_gpu_eval_batch_size
    inputs = [data.arrays[name] for name in bert_programs.INPUTS]
    timed = batch_runs.run_batches(engine, inputs, batch_size, "predict")
    answers = squad_answers.write_predictions(
        data,
        timed.outputs["start_logits"],
        timed.outputs["end_logits"],
        options,
        values.output_dir,
    )
    scores = squad_scores.known_scores(values.predict_file, answers, options, values.output_dir)
    rows = {"questions": len(answers), **scores}
    reports.report("SQuAD prediction", bert_programs.describe(values), rows, timed, batch_size)
    return scores


if __name__ == "__main__":
    cli.run_flag_program(define_flags, run, __doc__, [_OWNER])
