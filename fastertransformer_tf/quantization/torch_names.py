"""Ranges as NVIDIA's quantization toolkit for PyTorch keeps them. Free of TensorFlow.

A quantizer there has a buffer `_amax`, and a Hugging Face BERT whose layers were made with
quantizers has `layer.<i>.attention.self.query._input_quantizer._amax` and so on in its state_dict.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fastertransformer_tf.errors import UserError, listed
from fastertransformer_tf.quantization import calibrated, points, scale_list


def _amax_name(scope: str) -> str:
    """The buffer, below a layer, of the point whose scope is this."""
    *modules, last = scope.replace("kernel_quantizer", "weight_quantizer").split("/")
    # The toolkit's own quantizers of a layer begin with "_", those added to the model do not.
    own = last in ("input_quantizer", "weight_quantizer", "aftergemm_quantizer")
    return ".".join([*modules, f"_{last}" if own else last, "_amax"])


# What the scale list of a layer is made of, by buffer.
_SCOPES: dict[str, str] = {
    _amax_name(scope): scope
    for scope in (*(point.scope for point in points.BY_SLOT.values()), *points.KERNEL_SCOPES)
}


def quantizer_variables(amax: Mapping[str, np.ndarray], num_layers: int) -> dict[str, np.ndarray]:
    """Gives the ranges of an encoder the names of quantizer variables, for `ranges.scale_lists`.

    Args:
      amax: `layer.<i>.<module>.<quantizer>._amax` to one number, or of a weight [out,1] or [out].
        What else there is is not read.
      num_layers: L.

    Returns:
      `bert/encoder/layer_<i>/<scope>/quant_max` and `quant_min`, float32.

    Raises:
      UserError: Ranges are missing, or of an activation no single one that is above 0 and finite,
        all by name.
    """
    faults = []
    found = {}
    for layer in range(num_layers):
        for name, scope in _SCOPES.items():
            full = f"layer.{layer}.{name}"
            if full not in amax:
                faults.append(f"{full} is missing")
                continue
            values = np.asarray(amax[full], np.float32).reshape(-1)
            if scope not in points.KERNEL_SCOPES and not (
                values.size == 1 and scale_list.usable(values[0])
            ):
                faults.append(f"{full} is {values.tolist()}, expected a number above 0")
            found[points.full_name(layer, scope)] = values
    if faults:
        raise UserError(f"{len(faults)} ranges cannot be used: {listed(faults)}")
    return calibrated.variables(found)


def amax_buffers(amax: Mapping[str, np.ndarray | float]) -> dict[str, np.ndarray]:
    """Gives calibrated ranges the names of the toolkit's buffers: the reverse of the above.

    Args:
      amax: Point name to range: of an activation a number, of a kernel [] or [out]. Points that the
        scale list has no place for are left out.

    Returns:
      `layer.<i>.<module>.<quantizer>._amax`, float32: [], or of a kernel with a range for each
      column [out,1], as the toolkit has it.
    """
    buffers = {scope: name for name, scope in _SCOPES.items()}
    result = {}
    for name, value in amax.items():
        layer, scope = points.split_name(name) or (0, "")
        if scope in buffers:
            array = np.array(value, np.float32)
            result[f"layer.{layer}.{buffers[scope]}"] = array[:, None] if array.ndim else array
    return result
