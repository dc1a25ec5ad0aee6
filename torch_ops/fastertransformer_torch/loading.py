"""BERTs for PyTorch from Hugging Face's folders and from google-research's checkpoints.

A checkpoint of TensorFlow, float or of `ckpt_quantization`, becomes a model of transformers;
reading and writing one needs TensorFlow in this process, everything else does not.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import save_file

from fastertransformer_tf import google_bert
from fastertransformer_tf.errors import UserError, listed
from fastertransformer_tf.files import (
    bert_config,
    hf_conversion,
    hf_tokenizer,
    hf_weights,
    vocabulary,
)
from fastertransformer_tf.quantization import (
    calibrated,
    calibrating,
    integers,
    points,
    ranges,
    scale_list,
    torch_names,
)

_AMAX = "._amax"


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model of transformers, on the CPU, in evaluation mode, and what int8 needs beside it.

    Attributes:
      model: float32, or the type that the folder has.
      amax: The ranges that it was calibrated with, as `optimize` takes them; None of a model
        that has none.
    """

    model: Any
    amax: Mapping[str, torch.Tensor] | None


def load_model(path: str | os.PathLike[str], model_class: Any) -> LoadedModel:
    """Loads a BERT.

    Args:
      path: A Hugging Face folder, with or without the `_amax` of a calibration among its weights;
        or a checkpoint of TensorFlow by google's names with bert_config.json beside it, its prefix
        or a folder that holds one. Of one that `ckpt_quantization` has made, the kernels are what
        their integers stand for, and rounding them again with `amax` gives these integers.
      model_class: transformers' BertForSequenceClassification, BertForQuestionAnswering, ...

    Raises:
      FileNotFoundError: There is neither.
      UserError: Weights are missing, unknown or of a wrong shape; the checkpoint is not one of a
        BERT; or it takes TensorFlow to read it, which is not installed.
    """
    path = os.fspath(path)
    if os.path.isfile(os.path.join(path, "config.json")):
        return _load_hugging_face(Path(path), model_class)
    return _load_google(path, model_class)


def _load_hugging_face(folder: Path, model_class: Any) -> LoadedModel:
    model, info = model_class.from_pretrained(folder, output_loading_info=True)
    unknown = [name for name in info["unexpected_keys"] if not name.endswith(_AMAX)]
    # A head for tokens leaves the pooler out.
    unknown = [name for name in unknown if ".pooler." not in name]
    _check_complete(str(folder), model_class, info["missing_keys"], unknown)
    if not any(name.endswith(_AMAX) for name in info["unexpected_keys"]):
        return LoadedModel(model.eval(), None)
    tensors = hf_weights.read_tensors(folder)
    amax = {name: torch.tensor(v) for name, v in tensors.items() if name.endswith(_AMAX)}
    return LoadedModel(model.eval(), amax)


def _load_google(path: str, model_class: Any) -> LoadedModel:
    with _tensorflow_for(path):
        from fastertransformer_tf.checkpoints import reading
    prefix = reading.prefix_of(path)
    config_file = os.path.join(os.path.dirname(prefix), bert_config.CONFIG_NAME)
    if not os.path.isfile(config_file):
        raise UserError(
            f"checkpoint {prefix} has no {bert_config.CONFIG_NAME} beside it: {config_file} is not "
            "there"
        )
    config = bert_config.load(config_file)
    source = reading.Checkpoint(prefix)
    # A scalar or a text comes as Python's own type.
    variables = {name: np.asarray(source.load(name)) for name in source.shapes}
    try:
        floats, amax = _dequantized(variables)
        tensors = hf_conversion.hugging_face_tensors(floats, config)
    except UserError as error:
        raise UserError(f"checkpoint {prefix}: {error}") from error
    hf_config = transformers.BertConfig(**hf_conversion.hugging_face_config(config))
    state = {name: torch.tensor(value.astype(np.float32)) for name, value in tensors.items()}
    if "classifier.bias" in state:
        hf_config.num_labels = len(state["classifier.bias"])
    model = model_class(hf_config)
    found = model.load_state_dict(state, strict=False)
    unknown = [name for name in found.unexpected_keys if ".pooler." not in name]
    _check_complete(f"checkpoint {prefix}", model_class, found.missing_keys, unknown)
    buffers = torch_names.amax_buffers(amax)
    model_amax = {f"bert.encoder.{name}": torch.tensor(value) for name, value in buffers.items()}
    return LoadedModel(model.eval(), model_amax or None)


def _check_complete(
    source: str, model_class: Any, missing: Iterable[str], unknown: Iterable[str]
) -> None:
    """Refuses weights that are not the model's, such as those of another task.

    Raises:
      UserError: Naming them.
    """
    faults = [f"{name} is missing" for name in missing]
    faults += [f"{name} is unknown" for name in unknown]
    if faults:
        raise UserError(f"{source} does not fit {model_class.__name__}: {listed(faults)}")


@contextlib.contextmanager
def _tensorflow_for(path: str) -> Iterator[None]:
    """Says so in one sentence where what is imported inside needs TensorFlow, which is missing.

    Raises:
      UserError: TensorFlow is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "tensorflow":
            raise
        raise UserError(
            f"{path} is a checkpoint of TensorFlow, which is not installed: pip install "
            "'tensorflow==2.21.*', or give a Hugging Face folder"
        ) from error


def _dequantized(
    variables: Mapping[str, np.ndarray],
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Turns int8 kernels into the floats that they stand for.

    Returns:
      All variables; and point name to range, of the scale lists or of quantizer variables, nothing
      where there are neither.

    Raises:
      UserError: Scale lists or ranges cannot be used.
    """
    if points.FORMAT_VARIABLE not in variables:
        has_ranges = any(points.is_range_variable(name) for name in variables)
        return dict(variables), dict(ranges.point_ranges(variables)) if has_ranges else {}
    sizes = ranges.model_sizes(variables)
    result, amax = dict(variables), {}
    for layer in range(sizes.layers):
        name = points.full_name(layer, points.SCALE_LIST)
        if name not in variables:
            raise UserError(f"{name} is missing")
        scales = scale_list.parse(variables[name], sizes.hidden, sizes.inner, name)
        for slot, point in points.BY_SLOT.items():
            amax[points.full_name(layer, point.scope)] = scales.activations[slot]
        for scope, weight in points.KERNEL_SCOPES.items():
            columns = scales.kernels[weight.op_input]
            kernel = points.full_name(layer, weight.google)
            amax[points.full_name(layer, scope)] = columns
            result[kernel] = integers.dequantize(variables[kernel], columns)
    return result, amax


def load_tokenizer(path: str | os.PathLike[str], vocab_size: int) -> tuple[Any, bool]:
    """Makes the tokenizer of a model that `load_model` takes.

    Args:
      path: See there; a checkpoint of TensorFlow has vocab.txt beside it.
      vocab_size: Of the model.

    Returns:
      google's FullTokenizer, and whether it makes lower case of texts: of a checkpoint always.

    Raises:
      FileNotFoundError: There is no vocabulary.
      UserError: The vocabulary is not the model's, or the folder's tokenizer does something that
        google's does not.
    """
    path = os.fspath(path)
    make = google_bert.tokenization().FullTokenizer
    if os.path.isfile(os.path.join(path, "config.json")):
        found = hf_tokenizer.read_tokenizer(Path(path), "keep")
        with tempfile.TemporaryDirectory() as folder:
            file = os.path.join(folder, bert_config.VOCAB_NAME)
            _write_vocab(Path(file), found.vocab)
            tokenizer, lower = make(file, found.do_lower_case), found.do_lower_case
        source = path
    else:
        with _tensorflow_for(path):
            from fastertransformer_tf.checkpoints import reading
        prefix = reading.prefix_of(path)
        source = os.path.join(os.path.dirname(prefix), bert_config.VOCAB_NAME)
        tokenizer, lower = make(source, True), True
    vocabulary.check(tokenizer.vocab, vocab_size, source)
    return tokenizer, lower


def _write_vocab(file: Path, tokens: Iterable[str]) -> None:
    file.write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8")


def write_hugging_face(
    folder: Path,
    model: Any,
    amax: Mapping[str, torch.Tensor],
    vocab: Iterable[str],
    do_lower_case: bool,
) -> None:
    """Writes a calibrated model into a folder: what `load_model` and `load_tokenizer` read.

    Args:
      folder: Exists.
      model: Of transformers.
      amax: Its ranges, which become part of model.safetensors.
      vocab: Tokens by their id.
      do_lower_case: Of the tokenizer.
    """
    model.config.save_pretrained(folder)
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file({**state, **amax}, folder / "model.safetensors", metadata={"format": "pt"})
    _write_vocab(folder / bert_config.VOCAB_NAME, vocab)
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": do_lower_case}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def write_google(
    folder: Path, model: Any, calibration: calibrating.Calibration, vocab: Iterable[str]
) -> None:
    """Writes a calibrated model into a folder as a checkpoint of TensorFlow.

    `ckpt_quantization` makes the int8 one of it, which every runner takes.

    Args:
      folder: Exists; gets bert_model.ckpt, bert_config.json and vocab.txt.
      model: Of transformers, as the calibration left it.
      calibration: Its ranges.
      vocab: Tokens by their id.

    Raises:
      UserError: TensorFlow is not installed, or the model is none that google's code knows.
    """
    with _tensorflow_for(os.fspath(folder)):
        from fastertransformer_tf.checkpoints import writing
    values = model.config.to_dict()
    config = hf_conversion.convert_config({**values, "architectures": None, "problem_type": None})
    state = {name: value.float().cpu().numpy() for name, value in model.state_dict().items()}
    variables, _ = hf_conversion.convert_tensors(
        state, config, missing_pooler="zeros", architectures=[type(model).__name__]
    )
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (folder / bert_config.CONFIG_NAME).write_text(text, encoding="utf-8")
    _write_vocab(folder / bert_config.VOCAB_NAME, vocab)
    writing.write_checkpoint(
        folder / bert_config.CHECKPOINT_NAME, variables | calibrated.variables(calibration.amax)
    )
