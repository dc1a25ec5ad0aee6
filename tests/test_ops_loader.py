"""The loader's checks, and the wrappers' documentation against the ops' own."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys

import pytest
import tensorflow as tf

from fastertransformer_tf import ops, spec
from fastertransformer_tf.loading import library

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
SOURCE = REPOSITORY / "tf_ops" / "op" / "bert_ops.cc"
WRAPPERS = {
    "BertTransformer": ops.bert_transformer,
    "BertEncoder": ops.bert_encoder,
    "BuildMaskRemovePadding": ops.build_mask_remove_padding,
    "RebuildPadding": ops.rebuild_padding,
}


@pytest.mark.parametrize("version", ["2.20.0", "2.22.0rc1", "2.2.1", "3.21.0", "unknown"])
def test_refuses_another_tensorflow(version: str) -> None:
    with pytest.raises(ImportError, match=rf"tensorflow is {re.escape(version)}, expected 2\.21"):
        library.check_tensorflow(version, 1)


def test_refuses_another_abi() -> None:
    with pytest.raises(ImportError, match="CXX11_ABI is 0, expected 1"):
        library.check_tensorflow("2.21.0", 0)


def test_accepts_this_tensorflow() -> None:
    library.check_tensorflow("2.21.5", 1)
    library.check_tensorflow(tf.__version__, tf.sysconfig.CXX11_ABI_FLAG)


def _import_with_library(path: pathlib.Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"FT_TF_OPS_LIBRARY": str(path), "PYTHONPATH": str(REPOSITORY)}
    code = "import tensorflow, fastertransformer_tf"
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )


def test_missing_library_is_one_clear_message(tmp_path: pathlib.Path) -> None:
    result = _import_with_library(tmp_path / "none.so")
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: fastertransformer_tf: no op library at")
    assert "scripts/build.sh" in last


def test_damaged_library_is_one_clear_message(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "damaged.so"
    path.write_bytes(b"not an ELF file")
    result = _import_with_library(path)
    assert result.returncode == 1
    assert f"fastertransformer_tf: cannot load {path}" in result.stderr


def _documented(op: str) -> dict[str, str]:
    """Returns name -> text of an op's inputs, outputs and attributes, spaces normalised."""
    block = re.search(rf'REGISTER_OP\("{op}"\).*?R"doc\((.*?)\)doc"', SOURCE.read_text(), re.DOTALL)
    assert block, f"{op} has no doc string in {SOURCE}"
    entries: dict[str, str] = {}
    name = None
    for line in block.group(1).splitlines():
        match = re.match(r"(\w+): (.*)", line)
        if match:
            name = match.group(1)
            entries[name] = match.group(2)
        elif name and line.startswith("  "):
            entries[name] += " " + line.strip()
        else:
            name = None
    return entries


@pytest.mark.parametrize("op", sorted(WRAPPERS))
def test_wrapper_documents_what_the_op_documents(op: str) -> None:
    if not SOURCE.exists():
        pytest.skip(f"the ops' source is not beside the tests: {SOURCE}")
    entries = _documented(op)
    text = " ".join(WRAPPERS[op].__doc__.split())
    missing = [f"{name}: {doc}" for name, doc in entries.items() if f"{name}: {doc}" not in text]
    assert not missing
    assert len(entries) >= 4


def test_layer_weights_are_the_inputs_of_the_op() -> None:
    with tf.Graph().as_default() as graph:
        layer = {weight.op_input: tf.zeros(weight.sizes(8, 8)) for weight in spec.LAYER_WEIGHTS}
        outputs = ops.bert_encoder(
            tf.zeros([2, 3, 8]),
            None,
            None,
            [layer],
            head_num=1,
            size_per_head=8,
            remove_padding=False,
            name="encoder",
        )
        assert [output.shape.as_list() for output in outputs] == [[2, 3, 8]]
        node = graph.get_operation_by_name("encoder").op_def
    names = [arg.name for arg in node.input_arg[3:]]
    assert names == [*ops.LAYER_WEIGHTS, "amax_list"]


def test_wrong_layer_keys_are_named() -> None:
    with pytest.raises(ValueError, match="unknown \\['q'\\]"):
        ops.bert_encoder(tf.zeros([1, 1, 8]), None, None, [{"q": 0}], head_num=1, size_per_head=8)
    with pytest.raises(ValueError, match="layers is empty"):
        ops.bert_encoder(tf.zeros([1, 1, 8]), None, None, [], head_num=1, size_per_head=8)
