"""What `optimize` did: as data, as lines to print, as JSON and as a bar chart."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import statistics
from pathlib import Path
from typing import Any

from fastertransformer_tf.files import atomic
from fastertransformer_tf.rewriting.verification import Output


@dataclasses.dataclass(frozen=True)
class LayerDone:
    """A layer that was replaced.

    Attributes:
      label: `layer_3`.
      softmax: The op of its probabilities in the source.
    """

    label: str
    softmax: str


@dataclasses.dataclass(frozen=True)
class EncoderDone:
    """An encoder that was replaced.

    Attributes:
      function: That it is in; empty for the outer graph.
      node: The new op.
      layers: Those that it computes.
      heads: N.
      size_per_head: D.
      inner: I.
      activation: Of the feed-forward network.
      layernorm_epsilon: Of the layer norms.
      mask: What it is made of.
      padding_removed: Real tokens alone are computed.
      inner_outputs: The layers before the last whose outputs are used too.
    """

    function: str
    node: str
    layers: list[LayerDone]
    heads: int
    size_per_head: int
    inner: int
    activation: str
    layernorm_epsilon: float
    mask: str
    padding_removed: bool
    inner_outputs: list[str]


@dataclasses.dataclass(frozen=True)
class Left:
    """An attention that was left as it is.

    Attributes:
      function: That it is in; empty for the outer graph.
      label: `layer_3`.
      softmax: The op of its probabilities.
      reason: Why.
    """

    function: str
    label: str
    softmax: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Times:
    """How long a signature takes.

    Attributes:
      signature: Its name.
      shapes: Of the inputs.
      before_ms: Milliseconds of each run of the source.
      after_ms: Of the result, the runs in turn with the source's.
    """

    signature: str
    shapes: dict[str, list[int]]
    before_ms: list[float]
    after_ms: list[float]

    @property
    def before(self) -> float:
        """The median of the source, in milliseconds."""
        return statistics.median(self.before_ms)

    @property
    def after(self) -> float:
        """The median of the result, in milliseconds."""
        return statistics.median(self.after_ms)


@dataclasses.dataclass
class Report:
    """What was done to a model.

    Attributes:
      source: Its path.
      destination: The result's.
      kind: Of both: SavedModel, GraphDef or checkpoint.
      precision: floatx, remove_padding and int8_mode.
      encoders: What was replaced.
      left: What was left, with reasons.
      outputs: How far the result's outputs are off the source's.
      times: Of both.
    """

    source: str
    destination: str
    kind: str
    precision: dict[str, Any]
    encoders: list[EncoderDone] = dataclasses.field(default_factory=list)
    left: list[Left] = dataclasses.field(default_factory=list)
    outputs: list[Output] = dataclasses.field(default_factory=list)
    times: list[Times] = dataclasses.field(default_factory=list)

    def lines(self) -> list[str]:
        """Says what was done, layer by layer, a line each."""
        result = []
        for encoder in self.encoders:
            where = f" in {encoder.function}" if encoder.function else ""
            for layer in encoder.layers:
                result.append(f"{layer.label} ({layer.softmax}){where}: now in {encoder.node}")
            padding = "padding removed" if encoder.padding_removed else "with padding"
            if self.precision["remove_padding"] and not encoder.padding_removed:
                padding += " (its mask is not one of tokens)"
            result.append(
                f"{encoder.node}: {len(encoder.layers)} layers of {encoder.heads} heads of "
                f"{encoder.size_per_head}, inner size {encoder.inner}, {encoder.activation}, "
                f"epsilon {encoder.layernorm_epsilon:g}, mask {encoder.mask}, {padding}"
            )
        for left in self.left:
            where = f" in {left.function}" if left.function else ""
            result.append(f"{left.label} ({left.softmax}){where}: left alone: {left.reason}")
        for output in self.outputs:
            result.append(
                f"output {output.name} of {output.signature} {output.shape}: off by "
                f"{output.difference:.3g} ({output.rows}), at most {output.tolerance:g} allowed"
            )
        for time in self.times:
            result.append(
                f"{time.signature}: {time.before:.2f} ms before, {time.after:.2f} ms after, "
                f"{time.before / time.after:.2f} times as fast"
            )
        return result

    def to_json(self) -> str:
        """Returns the report as JSON."""
        data = dataclasses.asdict(self)
        for time, values in zip(self.times, data["times"], strict=True):
            values |= {"before_median_ms": time.before, "after_median_ms": time.after}
        return json.dumps(data, indent=1) + "\n"


def write(report: Report, destination: Path) -> None:
    """Writes the report beside the result, and where matplotlib is installed a chart of times."""
    atomic.write_text(f"{destination}.optimize.json", report.to_json())
    if report.times and importlib.util.find_spec("matplotlib"):
        _plot(report, Path(f"{destination}.optimize.png"))


def _plot(report: Report, path: Path) -> None:
    """Draws the times before and after as bars."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 1.2 + 0.9 * len(report.times)), layout="constrained")
    axes = figure.add_subplot()
    labels, values, colours = [], [], []
    for time in report.times:
        labels += [f"{time.signature}: source", f"{time.signature}: optimized"]
        values += [time.before, time.after]
        colours += ["#9aa5b1", "#2f6f9f"]
    bars = axes.barh(range(len(values)), values, color=colours)
    axes.bar_label(bars, fmt="%.1f", padding=3)
    axes.set_yticks(range(len(values)), labels)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_xlabel("milliseconds per call, median")
    precision = report.precision
    axes.set_title(
        f"{precision['floatx']}, int8_mode {precision['int8_mode']}, "
        + ("padding removed" if precision["remove_padding"] else "with padding")
    )
    with atomic.atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
