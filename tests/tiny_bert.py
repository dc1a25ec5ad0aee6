"""A small BERT with random weights, written as a google checkpoint, for tests without data."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import numpy as np
from reference import random_layers

from fastertransformer_tf import spec
from fastertransformer_tf.checkpoints import writing

CONFIG = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": 40,
    "type_vocab_size": 2,
    "initializer_range": 0.02,
}
WORDS = "the a cat dog sat ran fast slow big small is was on in under red blue no yes it".split()


@dataclasses.dataclass
class TinyBert:
    """Paths of the model's files, its weights by variable name and its encoder's layers."""

    folder: pathlib.Path
    config: dict
    weights: dict[str, np.ndarray]
    layers: list[dict[str, np.ndarray]]

    @property
    def config_file(self) -> str:
        return str(self.folder / "bert_config.json")

    @property
    def vocab_file(self) -> str:
        return str(self.folder / "vocab.txt")

    @property
    def checkpoint(self) -> str:
        return str(self.folder / "model.ckpt")


def make_tiny_bert(
    folder: pathlib.Path, num_labels: int = 2, seed: int = 0, **changes: object
) -> TinyBert:
    """Writes config, vocabulary and checkpoint into `folder`."""
    config = CONFIG | changes
    rng = np.random.default_rng(seed)
    hidden = config["hidden_size"]
    layers = random_layers(rng, config["num_hidden_layers"], hidden, config["intermediate_size"])
    weights = {
        f"bert/encoder/layer_{i}/{name}": value
        for i, layer in enumerate(spec.by_google_name(layers))
        for name, value in layer.items()
    }

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(0, 0.5, shape).astype(np.float32)

    weights |= {
        "bert/embeddings/word_embeddings": normal(config["vocab_size"], hidden),
        "bert/embeddings/token_type_embeddings": normal(config["type_vocab_size"], hidden),
        "bert/embeddings/position_embeddings": normal(config["max_position_embeddings"], hidden),
        "bert/embeddings/LayerNorm/beta": normal(hidden),
        "bert/embeddings/LayerNorm/gamma": 1 + normal(hidden) / 10,
        "bert/pooler/dense/kernel": normal(hidden, hidden) / 4,
        "bert/pooler/dense/bias": normal(hidden),
        "output_weights": normal(num_labels, hidden),
        "output_bias": normal(num_labels),
    }
    tiny = TinyBert(folder, config, weights, layers)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bert_config.json").write_text(json.dumps(config))
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    vocab += [f"[unused{i}]" for i in range(config["vocab_size"] - len(vocab))]
    (folder / "vocab.txt").write_text("\n".join(vocab) + "\n")
    writing.save_checkpoint(tiny.checkpoint, weights)
    return tiny


def make_tiny_squad(folder: pathlib.Path) -> tuple[TinyBert, pathlib.Path]:
    """Writes a model with SQuAD's head into `folder`/tiny; and a file of one question."""
    tiny = make_tiny_bert(folder / "tiny")
    for name in ("output_weights", "output_bias"):
        tiny.weights[f"cls/squad/{name}"] = tiny.weights.pop(name)
    writing.save_checkpoint(tiny.checkpoint, tiny.weights)
    question = {
        "id": "q1",
        "question": "is the cat fast",
        "answers": [{"text": "big", "answer_start": 8}],
    }
    paragraph = {"context": "the cat big dog sat on a small red cat", "qas": [question]}
    data = folder / "squad.json"
    data.write_text(json.dumps({"version": "1.1", "data": [{"paragraphs": [paragraph]}]}))
    return tiny, data
