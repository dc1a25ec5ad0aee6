"""A small Hugging Face BERT with random weights, for tests of import_hf."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import safetensors.numpy

CONFIG = {
    "architectures": ["BertModel"],
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 8,
    "initializer_range": 0.02,
    "intermediate_size": 12,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 16,
    "model_type": "bert",
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "type_vocab_size": 2,
    "vocab_size": 10,
}
VOCAB = [f"t{i}" for i in range(10)]


def hf_shapes(config: dict = CONFIG) -> dict[str, tuple[int, ...]]:
    """The tensors of transformers' BertModel, written down apart from the code under test."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    shapes = {
        "embeddings.word_embeddings.weight": (config["vocab_size"], hidden),
        "embeddings.position_embeddings.weight": (config["max_position_embeddings"], hidden),
        "embeddings.token_type_embeddings.weight": (config["type_vocab_size"], hidden),
        "embeddings.LayerNorm.weight": (hidden,),
        "embeddings.LayerNorm.bias": (hidden,),
        "pooler.dense.weight": (hidden, hidden),
        "pooler.dense.bias": (hidden,),
    }
    for i in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{i}."
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            shapes[f"{layer}attention.{part}.weight"] = (hidden, hidden)
            shapes[f"{layer}attention.{part}.bias"] = (hidden,)
        shapes[f"{layer}intermediate.dense.weight"] = (inner, hidden)
        shapes[f"{layer}intermediate.dense.bias"] = (inner,)
        shapes[f"{layer}output.dense.weight"] = (hidden, inner)
        shapes[f"{layer}output.dense.bias"] = (hidden,)
        for norm in ("attention.output", "output"):
            shapes[f"{layer}{norm}.LayerNorm.weight"] = (hidden,)
            shapes[f"{layer}{norm}.LayerNorm.bias"] = (hidden,)
    return shapes


def random_tensors(rng: np.random.Generator, config: dict = CONFIG) -> dict[str, np.ndarray]:
    return {n: rng.standard_normal(s).astype(np.float32) for n, s in hf_shapes(config).items()}


def write_hf_folder(
    folder: pathlib.Path,
    tensors: dict[str, np.ndarray],
    config: dict = CONFIG,
    vocab: list[str] = VOCAB,
) -> pathlib.Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "vocab.txt").write_text("".join(f"{t}\n" for t in vocab), encoding="utf-8")
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    return folder
