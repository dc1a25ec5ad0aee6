"""The quantizers of a model that is trained: ranges as variables, rounding with a gradient.

Training rounds what the op rounds (`rounded_in` of `points.POINTS`, docs/int8.md), not the larger
set of the FasterTransformer 4.0 tools: a model learns to live with the very errors that it will be
run with. All ranges of the checkpoint are kept beside the weights, those of points that are not
rounded too, so that what is trained here is a calibrated checkpoint like any other.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from fastertransformer_tf.graphs.variables import get_variable
from fastertransformer_tf.quantization import calibrated, points, scale_list, simulation

_tf1 = tf.compat.v1


class Quantizers:
    """The point function of a training: rounds as int8_mode does, with straight-through gradient.

    Attributes:
      int8_mode: 1, 2 or 3.
      variables: Name to variable, in the graph that they were last created in.
    """

    def __init__(self, amax: Mapping[str, np.ndarray], int8_mode: int) -> None:
        """Takes the ranges, which training does not change.

        Args:
          amax: Point name to range, as `ranges.point_ranges` returns it.
          int8_mode: 1, 2 or 3 (which is 2).

        Raises:
          UserError: Another mode.
        """
        simulation.SimulatedInt8([], [], int8_mode)  # Checks the mode.
        self.int8_mode = int8_mode
        self.variables: dict[str, tf.Variable] = {}
        self._amax = dict(amax)

    def create(self) -> simulation.SimulatedInt8:
        """Creates `<point>/quant_max` and `quant_min` in the default graph, not trainable.

        Returns:
          The function of a point's name and tensor that rounds with them.
        """
        with _tf1.variable_scope(_tf1.VariableScope(reuse=False)):
            self.variables = {
                name: get_variable(
                    name,
                    value.shape,
                    tf.float32,
                    _tf1.constant_initializer(value),
                    trainable=False,
                )
                for name, value in calibrated.variables(self._amax).items()
            }
        numbers = [split[0] for name in self._amax if (split := points.split_name(name))]
        layers = range(1 + max(numbers))
        activations = [
            [
                self._range(layer, points.BY_SLOT[slot].scope)
                for slot in range(scale_list.LAST_OUTPUT)
            ]
            for layer in layers
        ]
        kernels = [
            {
                weight.op_input: self._range(layer, scope)
                for scope, weight in points.KERNEL_SCOPES.items()
            }
            for layer in layers
        ]
        return simulation.SimulatedInt8(activations, kernels, self.int8_mode)

    def _range(self, layer: int, scope: str) -> tf.Tensor:
        name = f"{points.full_name(layer, scope)}/quant_max"
        return tf.convert_to_tensor(self.variables[name])
