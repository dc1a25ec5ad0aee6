"""Damaged models: import_hf and ckpt_type_convert refuse them in one line or give a right result.

Every case follows from the seed and its number, which a failure shows; --fuzz-seed and --fuzz-cases
as for test_fuzz_files.py.
"""

from __future__ import annotations

import importlib.util
import json
import pathlib
import shutil

import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf
from fuzz_files import mutate_bytes, mutate_json
from test_hf_folder import TOKENIZER, WORDS
from tiny_hf import CONFIG, random_tensors, write_hf_folder

from fastertransformer_tf.checkpoints import hugging_face, type_conversion, writing
from fastertransformer_tf.errors import UserError
from fastertransformer_tf.files import atomic, hf_conversion, hf_tokenizer
from fastertransformer_tf.models import bert_compat

HAS_TORCH = importlib.util.find_spec("torch") is not None
SMALL = CONFIG | {"num_hidden_layers": 1}


def _copy(source: pathlib.Path, target: pathlib.Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)


def _damage(rng: np.random.Generator, path: pathlib.Path) -> None:
    """Mutates a file, takes it away or puts a folder there."""
    kind = rng.random()
    if kind < 0.03:
        path.unlink()
        if kind < 0.015:
            path.mkdir()
    elif path.suffix == ".json" and kind < 0.7:
        text = mutate_json(rng, path.read_text(encoding="utf-8"))
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
    else:
        path.write_bytes(mutate_bytes(rng, path.read_bytes()))


def _read(prefix: pathlib.Path | str) -> dict[str, np.ndarray]:
    reader = tf.train.load_checkpoint(str(prefix))
    return {n: np.asarray(reader.get_tensor(n)) for n in reader.get_variable_to_shape_map()}


def _write_model(folder: pathlib.Path, weights: str) -> None:
    tensors = random_tensors(np.random.default_rng(1), SMALL)
    write_hf_folder(folder, tensors, SMALL, WORDS)
    (folder / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    config = {"do_lower_case": True, "strip_accents": None, "tokenize_chinese_chars": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "special_tokens_map.json").write_text(json.dumps({"unk_token": "[UNK]"}))
    (folder / "added_tokens.json").write_text(json.dumps({"[PAD]": 0}))
    if weights == "shards":
        (folder / "model.safetensors").unlink()
        names = sorted(tensors)
        parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
        for file, some in parts.items():
            safetensors.numpy.save_file({n: tensors[n] for n in some}, folder / file)
        weight_map = {n: file for file, some in parts.items() for n in some}
        index = folder / "model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": weight_map}))
    if weights == "torch":
        import torch

        (folder / "model.safetensors").unlink()
        state = {n: torch.from_numpy(v) for n, v in tensors.items()}
        torch.save(state, folder / "pytorch_model.bin")


def _check_imported(imported: hugging_face.ImportedModel) -> None:
    """What was written is a whole, finite BERT that google's code reads."""
    config = bert_compat.modeling().BertConfig.from_json_file(imported.config_file)
    variables = _read(imported.checkpoint)
    assert len(variables) == imported.num_variables >= 7 + 16 * config.num_hidden_layers
    assert all(v.dtype == np.float32 and np.isfinite(v).all() for v in variables.values())
    hidden, inner = config.hidden_size, config.intermediate_size
    embeddings = "bert/embeddings/{}_embeddings"
    for name, shape in {
        embeddings.format("word"): (config.vocab_size, hidden),
        embeddings.format("position"): (config.max_position_embeddings, hidden),
        embeddings.format("token_type"): (config.type_vocab_size, hidden),
        "bert/encoder/layer_0/intermediate/dense/kernel": (hidden, inner),
        "bert/pooler/dense/kernel": (hidden, hidden),
    }.items():
        assert variables[name].shape == shape
    assert config.hidden_act in ("gelu", "gelu_erf", "relu")
    assert hidden % config.num_attention_heads == 0
    content = pathlib.Path(imported.vocab_file).read_bytes().decode()
    assert 0 < content.count("\n") <= config.vocab_size


@pytest.mark.parametrize("weights", ["one", "shards", "torch"])
def test_damaged_hf_folders(tmp_path, request, weights):
    if weights == "torch" and not HAS_TORCH:
        pytest.skip("pytorch_model.bin is read by torch")
    seed, cases = (request.config.getoption(f"--fuzz-{name}") for name in ("seed", "cases"))
    whole, damaged, output = (tmp_path / name for name in ("whole", "damaged", "out"))
    _write_model(whole, weights)
    imported = hugging_face.import_hf(whole, output)
    _check_imported(imported)
    expected = _read(imported.checkpoint)
    files = sorted(path.name for path in whole.iterdir())
    results = {"refused": 0, "imported": 0}
    for number in range(cases):
        case = np.random.default_rng([seed, number])
        _copy(whole, damaged)
        shutil.rmtree(output, ignore_errors=True)
        names = case.choice(files, case.integers(1, 3), replace=False)
        for name in names:
            _damage(case, damaged / name)
        where = f"--fuzz-seed={seed}, case {number}: {', '.join(names)}"
        try:
            imported = hugging_face.import_hf(
                damaged, output, missing_pooler=str(case.choice(hf_conversion.MISSING_POOLER)),
                added_tokens=str(case.choice(hf_tokenizer.ADDED_TOKENS)),
            )  # fmt: skip
        except (UserError, OSError) as error:
            message = str(error)
            assert message.strip() and "\n" not in message and len(message) < 2000, where
            assert not output.exists(), where
            results["refused"] += 1
            continue
        except BaseException as error:
            raise AssertionError(where) from error
        _check_imported(imported)
        if not any(name.endswith((".safetensors", ".bin", "config.json")) for name in names):
            variables = _read(imported.checkpoint)
            for name, value in expected.items():
                np.testing.assert_array_equal(variables[name], value, err_msg=where)
        results["imported"] += 1
    print(weights, results)
    assert results["refused"] > cases / 3
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_damaged_checkpoints(tmp_path, request):
    seed, cases = (request.config.getoption(f"--fuzz-{name}") for name in ("seed", "cases"))
    whole, damaged, output = (tmp_path / name for name in ("whole", "damaged", "out"))
    values = np.random.default_rng(2)
    tensors = {
        f"bert/encoder/layer_{i}/{name}": values.standard_normal(shape).astype(np.float32)
        for i in range(2)
        for name, shape in (("output/dense/kernel", (8, 4)), ("output/dense/bias", (4,)))
    }
    tensors |= {f"{n}/adam_v": np.full_like(v, 1e-9) for n, v in list(tensors.items())}
    tensors |= {"global_step": np.int64(3), "text": np.array([b"x" * 50], object)}
    writing.save_checkpoint(whole / "m.ckpt", tensors)
    expected = type_conversion.convert_tensors(tensors)
    refused = 0
    for number in range(cases):
        case = np.random.default_rng([seed, number])
        _copy(whole, damaged)
        shutil.rmtree(output, ignore_errors=True)
        suffix = str(case.choice([atomic.INDEX_SUFFIX, atomic.DATA_SUFFIX]))
        _damage(case, damaged / f"m.ckpt{suffix}")
        where = f"--fuzz-seed={seed}, case {number}: {suffix}"
        try:
            type_conversion.convert_checkpoint(damaged / "m.ckpt", output / "m.ckpt")
        except (UserError, OSError) as error:
            message = str(error)
            assert message.strip() and "\n" not in message and len(message) < 2000, where
            assert not output.exists(), where
            refused += 1
            continue
        except BaseException as error:
            raise AssertionError(where) from error
        converted = _read(output / "m.ckpt")
        assert set(converted) == set(expected), where
        for name, value in expected.items():
            np.testing.assert_array_equal(converted[name], value, err_msg=where)
    print("refused", refused)
    assert refused > cases / 3
