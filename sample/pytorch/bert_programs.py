"""What run_squad.py and run_glue.py share: flags, the model in one of three forms, calibration.

The names of the three forms and of the types are those of FasterTransformer's PyTorch guide.
"""

import dataclasses
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import transformers
from absl import flags

from fastertransformer_tf.errors import UserError
from fastertransformer_tf.files import atomic
from fastertransformer_tf.programs import calibration_flags, cli, model_flags, path_flags
from fastertransformer_tf.quantization import calibrated, calibrating

DATA_TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
MODEL_TYPES = {
    "ori": "transformers",
    "ths": "transformers traced by TorchScript",
    "thsext": "transformers with the op",
}
# Names of google's features, which `fastertransformer_tf.data` makes, to those of BertModel.
INPUTS = {
    "input_ids": "input_ids",
    "input_mask": "attention_mask",
    "segment_ids": "token_type_ids",
}
CALIBRATED_FOLDER = "calibrated"


def define_flags(flag_values: flags.FlagValues, owner: str) -> None:
    """Defines the flags of both programs."""
    define = cli.FlagDefiner(flag_values, owner)
    define.string(
        "model_name_or_path",
        None,
        "A Hugging Face folder, or a checkpoint of TensorFlow by google's names with "
        "bert_config.json and vocab.txt beside it: its prefix or its folder.",
    )
    define.enum(
        "model_type",
        "ori",
        list(MODEL_TYPES),
        "ori: transformers; ths: TorchScript of it; thsext: its encoder computed by the op.",
    )
    define.enum("data_type", "fp32", list(DATA_TYPES), "Type of the whole model.")
    define.integer(
        "int8_mode",
        0,
        "thsext: 0 off; 1, 2 or 3 (which is 2): int8 products, of a model with calibrated ranges.",
    )
    define.boolean("remove_padding", "thsext: compute only real tokens.")
    define.boolean("allow_gemm_test", "GPU: search the fastest GEMM algorithm for each new shape.")
    define.string("ths_path", None, "thsext: the library; default: that of build_torch.sh.")
    define.string("data_dir", None, "The task's folder.")
    define.string("output_dir", None, "The folder where results are written; created.")
    define.integer("per_gpu_eval_batch_size", 8, "Examples a batch.", minimum=1)
    define.boolean("no_cuda", "Run on the CPU even where there is a GPU.")
    define.boolean(
        "do_calib",
        "Calibrate the ranges of int8 on training data, and write the model with them to "
        f"--output_dir/{CALIBRATED_FOLDER}.",
    )
    define.enum(
        "calib_format",
        "hugging_face",
        ["hugging_face", "tensorflow"],
        "What --do_calib writes: a Hugging Face folder with the ranges as `_amax`; or a checkpoint "
        "of TensorFlow, which ckpt_quantization reads.",
    )
    define.integer("train_batch_size", 8, "Examples a batch of --do_calib.", minimum=1)
    calibration_flags.define_flags(flag_values, owner)


def check_flags(values: flags.FlagValues) -> None:
    """Refuses what does not go together.

    Raises:
      UserError: Naming the flags.
    """
    cli.require_flags(values, ("model_name_or_path", "output_dir"))
    path_flags.check_paths(values, ("model_name_or_path", "data_dir", "output_dir"))
    model_flags.require_positive(values, ("max_seq_length",))
    if values.model_type != "thsext":
        for name in ("int8_mode", "remove_padding", "allow_gemm_test", "ths_path"):
            if values[name].value:
                raise UserError(
                    f"--{name} is of --model_type=thsext, but --model_type={values.model_type}"
                )
    if not 0 <= values.int8_mode <= 3:
        raise UserError(f"--int8_mode={values.int8_mode}, expected 0, 1, 2 or 3")
    calibration_flags.options(values)
    if values.ths_path:
        path_flags.require_file(values.ths_path, "ths_path")
        os.environ["FT_TORCH_OPS_LIBRARY"] = values.ths_path


@dataclasses.dataclass
class Task:
    """What both programs start from.

    Attributes:
      values: The parsed flags.
      model: Of transformers, on the CPU, float32.
      amax: Its calibrated ranges; None where it has none.
      tokenizer: google's FullTokenizer.
      do_lower_case: Whether it is of lower case.
    """

    values: flags.FlagValues
    model: Any
    amax: Mapping[str, torch.Tensor] | None
    tokenizer: Any
    do_lower_case: bool


def load(values: flags.FlagValues, model_class: Any) -> Task:
    """Loads the model and its tokenizer.

    Raises:
      OSError: A file is not there.
      UserError: It is no such model, or max_seq_length does not fit.
    """
    check_flags(values)
    from fastertransformer_torch import loading  # Loads the library, of --ths_path perhaps.

    transformers.logging.set_verbosity_error()  # What is missing or unknown is an error here.
    loaded = loading.load_model(values.model_name_or_path, model_class)
    longest = loaded.model.config.max_position_embeddings
    if values.max_seq_length > longest:
        raise UserError(
            f"--max_seq_length={values.max_seq_length}, expected 1 to {longest}: the position "
            "embeddings of the model"
        )
    tokenizer, do_lower_case = loading.load_tokenizer(
        values.model_name_or_path, loaded.model.config.vocab_size
    )
    path_flags.make_output_dir(values.output_dir)
    return Task(values, loaded.model, loaded.amax, tokenizer, do_lower_case)


def device(values: flags.FlagValues) -> torch.device:
    """Where the model runs."""
    is_cuda = torch.cuda.is_available() and not values.no_cuda
    return torch.device("cuda" if is_cuda else "cpu")


def describe(values: flags.FlagValues) -> str:
    """Says in a few words what ran, for the table."""
    what = f"{MODEL_TYPES[values.model_type]}, "
    if values.int8_mode:
        what += f"int8_mode {values.int8_mode}, "
    padding = "padding removed" if values.remove_padding else "with padding"
    return f"{what}{values.data_type}, {padding}, on {device(values)}"


class Engine:
    """A task's model as --model_type, --data_type and --int8_mode ask for it."""

    def __init__(self, task: Task, outputs: Sequence[str]) -> None:
        """Makes it of the task's model, which is changed.

        Args:
          task: See there.
          outputs: The model's outputs to return.

        Raises:
          UserError: int8 is asked for, and there are no ranges; or the op does not compute the
            model.
        """
        values = task.values
        self._outputs = tuple(outputs)
        self._device = device(values)
        self._batch_size = values.per_gpu_eval_batch_size
        model = task.model.to(self._device, DATA_TYPES[values.data_type])
        self._is_traced = values.model_type == "ths"
        if values.model_type == "thsext":
            import fastertransformer_torch

            if values.int8_mode and task.amax is None:
                raise UserError(
                    f"--int8_mode={values.int8_mode}, but {values.model_name_or_path} has no "
                    "ranges: calibrate it with --do_calib, and run what that writes"
                )
            fastertransformer_torch.optimize(
                model,
                remove_padding=values.remove_padding,
                int8_mode=values.int8_mode,
                amax=task.amax if values.int8_mode else None,
            )
        self._call: Any = _Outputs(model, self._outputs)

    def __call__(
        self, input_ids: np.ndarray, input_mask: np.ndarray, segment_ids: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Runs a batch of int32 [B,S] arrays; returns the outputs, float32."""
        features = (input_ids, input_mask, segment_ids)
        rows = len(input_ids)
        if self._is_traced and rows < self._batch_size:
            # A trace holds the sizes that it was made with.
            missing = self._batch_size - rows
            features = tuple(np.pad(f, ((0, missing), (0, 0)), mode="edge") for f in features)
        inputs = tuple(torch.from_numpy(f).to(self._device, torch.int64) for f in features)
        with torch.inference_mode():
            if self._is_traced and not isinstance(self._call, torch.jit.ScriptModule):
                self._call = _traced(self._call, inputs)
            found = self._call(*inputs)
        return {
            name: tensor[:rows].float().cpu().numpy()
            for name, tensor in zip(self._outputs, found, strict=True)
        }


class _Outputs(torch.nn.Module):
    """A model that returns some of its outputs as a tuple, as tracing wants them."""

    def __init__(self, model: torch.nn.Module, outputs: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.outputs = outputs

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Returns the outputs."""
        found = self.model(
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
        )
        return tuple(found[name] for name in self.outputs)


def _traced(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> torch.jit.ScriptModule:
    with warnings.catch_warnings():
        # TorchScript, which the guide compares with, is deprecated.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        return torch.jit.trace(module, inputs, check_trace=False)


def calibrate(task: Task, features: Mapping[str, np.ndarray]) -> None:
    """Calibrates the task's model, writes it and goes on with its ranges.

    Args:
      task: Gets the ranges.
      features: int32 [examples,S] each, as `fastertransformer_tf.data` makes them.

    Raises:
      UserError: The model has ranges already that belong to int8 weights, or cannot be calibrated.
    """
    from fastertransformer_torch import calibration, loading

    values = task.values
    chosen = calibration_flags.options(values)
    used = {name: features[name] for name in INPUTS}
    batches = [
        {INPUTS[name]: torch.from_numpy(value) for name, value in batch.items()}
        for batch in calibrating.batches(used, values.train_batch_size)
    ]
    found = calibration.find_ranges(task.model, batches, chosen)
    task.amax = calibration.amax_buffers(task.model, found)
    folder = os.path.join(values.output_dir, CALIBRATED_FOLDER)
    with atomic.staged_folder(folder) as stage:
        vocab = task.tokenizer.vocab
        if values.calib_format == "tensorflow":
            loading.write_google(stage, task.model, found, vocab)
        else:
            loading.write_hugging_face(stage, task.model, task.amax, vocab, task.do_lower_case)
        text = calibrated.csv_text(found.amax, found.counted)
        (stage / calibration_flags.RANGES_CSV).write_text(text, encoding="utf-8")
    calibration_flags.print_ranges(found, chosen)
    print(f"calibrated: {folder}, all ranges: {calibration_flags.RANGES_CSV} in it")
