"""Peak memory of a BERT classifier in a process of its own: evaluated, exported, loaded and served.

cpu_memory.py starts it once for each task:

  python -m benchmarks.model_memory evaluate --model=bert-base --folder=DIR

Prints one line of JSON, MiB of resident memory: after TensorFlow's import, after that of all
modules, and the high-water mark at the end. "prepare" writes DIR/model.ckpt with random weights,
"export" DIR/saved, which the two "serve" tasks load.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import tensorflow as tf

from benchmarks import report

VOCABULARY, POSITIONS = 30522, 512
# Layers, heads, hidden size.
SIZES = {"small": (6, 8, 512), "bert-base": (12, 12, 768), "bert-large": (24, 16, 1024)}


def config_of(model: str) -> dict[str, int | float | str]:
    """The model's bert_config.json."""
    layers, heads, hidden = SIZES[model]
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * hidden,
        "hidden_act": "gelu",
        "max_position_embeddings": POSITIONS,
        "type_vocab_size": 2,
    }


def shapes_of(model: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the model's variables, those of a classifier of two classes."""
    layers, _, hidden = SIZES[model]
    shapes: dict[str, tuple[int, ...]] = {
        "bert/embeddings/word_embeddings": (VOCABULARY, hidden),
        "bert/embeddings/token_type_embeddings": (2, hidden),
        "bert/embeddings/position_embeddings": (POSITIONS, hidden),
        "output_weights": (2, hidden),
        "output_bias": (2,),
    }
    dense = {"bert/pooler/dense": (hidden, hidden)}
    norms = ["bert/embeddings/LayerNorm"]
    for index in range(layers):
        scope = f"bert/encoder/layer_{index}"
        for name in ("self/query", "self/key", "self/value", "output/dense"):
            dense[f"{scope}/attention/{name}"] = (hidden, hidden)
        dense[f"{scope}/intermediate/dense"] = (hidden, 4 * hidden)
        dense[f"{scope}/output/dense"] = (4 * hidden, hidden)
        norms += [f"{scope}/attention/output/LayerNorm", f"{scope}/output/LayerNorm"]
    for name, shape in dense.items():
        shapes |= {f"{name}/kernel": shape, f"{name}/bias": shape[1:]}
    for name in norms:
        shapes |= {f"{name}/beta": (hidden,), f"{name}/gamma": (hidden,)}
    return shapes


def measure(
    task: str, model: str, folder: pathlib.Path, floatx: str = "float32"
) -> dict[str, float]:
    """Does a task in a process of its own.

    Args:
      task: Of TASKS.
      model: Of SIZES.
      folder: Where its files are.
      floatx: Type of the weights.

    Returns:
      MiB: "import", "modules" and "peak".

    Raises:
      subprocess.CalledProcessError: It failed; stderr says why.
    """
    arguments = [task, f"--model={model}", f"--folder={folder}", f"--floatx={floatx}"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.model_memory", *arguments],
        cwd=pathlib.Path(__file__).resolve().parent.parent,
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def weights_mib(model: str) -> float:
    """Size of all variables in float32."""
    return sum(4 * np.prod(shape) for shape in shapes_of(model).values()) / 2**20


def _prepare(args: argparse.Namespace) -> None:
    from fastertransformer_tf.checkpoints import writing

    rng = np.random.default_rng(1)
    weights = {}
    for name, shape in shapes_of(args.model).items():
        value = 0.02 * rng.standard_normal(shape, dtype=np.float32)
        weights[name] = value + 1 if name.endswith("gamma") else value
    writing.save_checkpoint(args.folder / "model.ckpt", weights)


def _features(args: argparse.Namespace) -> dict[str, np.ndarray]:
    shape = (2 * args.batch, args.seq)
    features = {
        name: np.zeros(shape, np.int32) for name in ("input_ids", "input_mask", "segment_ids")
    }
    features["input_ids"] += np.random.default_rng(2).integers(0, VOCABULARY, shape, dtype=np.int32)
    features["input_mask"] += 1
    return features


def _evaluate(args: argparse.Namespace) -> None:
    from fastertransformer_tf.models import bert_compat, modeling
    from fastertransformer_tf.programs import classification

    config = bert_compat.modeling().BertConfig.from_dict(config_of(args.model))
    options = modeling.EncoderOptions(floatx=args.floatx)
    source = str(args.folder / "model.ckpt")
    with classification.Classifier(config, 2, source, options) as model:
        if args.task == "export":
            names = ("input_ids", "input_mask", "segment_ids")
            model.export(str(args.folder / "saved"), names, ("logits",))
            return
        labels = {"label_ids": np.zeros(2 * args.batch, np.int32)}
        done = model.run(_features(args) | labels, args.batch, args.task)
        assert np.isfinite(done.outputs["logits"]).all()


def _serve(args: argparse.Namespace) -> None:
    import fastertransformer_tf  # noqa: F401 (registers the ops)

    loaded = tf.saved_model.load(str(args.folder / "saved"))
    run = loaded.signatures["serving_default"]
    features = _features(args)
    for begin in (0, args.batch):
        batch = {k: tf.constant(v[begin : begin + args.batch]) for k, v in features.items()}
        assert np.isfinite(run(**batch)["logits"].numpy()).all()


def _serve_v1(args: argparse.Namespace) -> None:
    import fastertransformer_tf  # noqa: F401 (registers the ops)

    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        meta = tf.compat.v1.saved_model.load(session, ["serve"], str(args.folder / "saved"))
        signature = meta.signature_def["serving_default"]
        features = _features(args)
        for begin in (0, args.batch):
            feeds = {
                signature.inputs[k].name: v[begin : begin + args.batch] for k, v in features.items()
            }
            assert np.isfinite(session.run(signature.outputs["logits"].name, feeds)).all()


TASKS = {
    "prepare": _prepare,
    "evaluate": _evaluate,
    "export": _evaluate,
    "serve": _serve,
    "serve_v1": _serve_v1,
}


def main() -> None:
    """Does one task and prints the memory it took."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--model", choices=SIZES, required=True)
    parser.add_argument("--folder", type=pathlib.Path, required=True)
    parser.add_argument("--floatx", default="float32")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seq", type=int, default=128)
    args = parser.parse_args()
    import_mib = report.resident_mib("VmRSS")
    from fastertransformer_tf.programs import classification  # noqa: F401 (memory of all modules)

    modules_mib = report.resident_mib("VmRSS")
    TASKS[args.task](args)
    result = {"import": import_mib, "modules": modules_mib, "peak": report.resident_mib("VmHWM")}
    print(json.dumps({key: round(value, 1) for key, value in result.items()}))


if __name__ == "__main__":
    main()
