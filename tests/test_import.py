"""What imports load, when, and what they need: in processes of their own."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import subprocess
import sys
from importlib import metadata

import pytest
import tensorflow as tf
from conftest import REPOSITORY

from fastertransformer_tf import ops, spec
from fastertransformer_tf.programs import error_lines

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it where Python has no tomllib.

# Whether the op is registered; TensorFlow itself has no public way to ask.
IS_REGISTERED = """
from tensorflow.python.framework import op_def_registry
print("registered", op_def_registry.get("BertEncoder") is not None)
"""


# Lets nothing be imported from the packages whose modules are named in `blocked`.
BLOCK = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocker())
"""

START = "import runpy\nrunpy.run_module(f'fastertransformer_tf.{sys.argv[0]}', run_name='__main__')"


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def output(code: str, **environment: str) -> str:
    result = run(code, **environment)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_loads_nothing_but_itself() -> None:
    loaded = output(
        "import sys; before = set(sys.modules); import fastertransformer_tf\n"
        "names = {n.partition('.')[0] for n in set(sys.modules) - before}\n"
        "print(*sorted(names - set(sys.stdlib_module_names)))"
    )
    assert loaded == "fastertransformer_tf"


@pytest.mark.parametrize(
    "imports",
    [
        "import fastertransformer_tf, tensorflow",
        "import tensorflow, fastertransformer_tf",
        "import fastertransformer_tf, tensorflow.compat.v1 as tf",
        "import fastertransformer_tf, importlib.util\n"
        "importlib.util.find_spec('tensorflow')  # Asked for, not imported.\n"
        "import tensorflow",
        "import sys, fastertransformer_tf\n"
        "for name in [n for n in sys.modules if n.startswith('fastertransformer_tf')]:\n"
        "    del sys.modules[name]\n"
        "import fastertransformer_tf, tensorflow",
        "import fastertransformer_tf.ops",
        "from fastertransformer_tf import bert_encoder",
    ],
)
def test_the_ops_are_registered_once_tensorflow_is_there(imports: str) -> None:
    assert output(imports + IS_REGISTERED) == "registered True"


def test_tensorflow_is_imported_as_without_this_package() -> None:
    code = "import tensorflow, sys; print(type(tensorflow.__spec__.loader), len(sys.meta_path))"
    assert output(f"import fastertransformer_tf; {code}") == output(code)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A SavedModel that holds the op."""
    module = tf.Module()
    layer = {w.op_input: tf.ones(w.sizes(8, 8)) for w in spec.LAYER_WEIGHTS}

    @tf.function(input_signature=[tf.TensorSpec([1, 2, 8])])
    def encode(x: tf.Tensor) -> tf.Tensor:
        return ops.bert_encoder(x, None, None, [layer], head_num=1, size_per_head=8)[0]

    module.encode = encode
    path = tmp_path_factory.mktemp("saved") / "model"
    tf.saved_model.save(module, str(path))
    return path


@pytest.mark.parametrize(
    "imports",
    [
        "import fastertransformer_tf; import tensorflow as tf",
        "import tensorflow as tf; import fastertransformer_tf",
    ],
)
def test_a_saved_model_needs_only_the_import(saved: pathlib.Path, imports: str) -> None:
    code = f"model = tf.saved_model.load({str(saved)!r}); print(model.encode(tf.ones([1, 2, 8])))"
    assert "shape=(1, 2, 8)" in output(f"{imports}\n{code}")


def test_a_library_that_cannot_be_loaded_leaves_tensorflow_alone() -> None:
    result = run(
        "import fastertransformer_tf, tensorflow\n"
        "print(tensorflow.constant(3).numpy())\n"
        "fastertransformer_tf.bert_encoder",
        FT_TF_OPS_LIBRARY="/none.so",
    )
    assert result.stdout.strip() == "3"
    warning = next(line for line in result.stderr.splitlines() if "OpsNotLoadedWarning" in line)
    assert "no op library at /none.so" in warning
    assert "models with its ops cannot be loaded" in warning
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: fastertransformer_tf: no op library at /none.so")


def test_names_that_are_not_loaded_yet_are_listed() -> None:
    code = "import fastertransformer_tf as f; print(set(f.__all__) <= set(dir(f)), f.spec.__name__)"
    assert output(code) == "True fastertransformer_tf.spec"
    result = run("import fastertransformer_tf; fastertransformer_tf.bert_decoder")
    assert "has no attribute 'bert_decoder'" in result.stderr.strip().splitlines()[-1]


def needed_by(*packages: str) -> set[str]:
    """The packages of pip that are given and all that they need, by their normalized names."""
    found: set[str] = set()
    new = [re.sub(r"[-_.]+", "-", package).lower() for package in packages]
    while new:
        name = new.pop()
        if name in found:
            continue
        found.add(name)
        with contextlib.suppress(metadata.PackageNotFoundError):  # Of another system, say.
            for requirement in metadata.requires(name) or ():
                if "extra ==" not in requirement:
                    match = re.match(r"[\w.-]+", requirement)
                    new.append(re.sub(r"[-_.]+", "-", match[0]).lower())
    return found


def test_the_ops_need_tensorflow_and_numpy_alone(saved: pathlib.Path) -> None:
    allowed = needed_by("tensorflow", "numpy")
    blocked = {
        module
        for module, packages in metadata.packages_distributions().items()
        if not allowed & {re.sub(r"[-_.]+", "-", package).lower() for package in packages}
    } - {"fastertransformer_tf"}
    assert blocked >= {"bert", "tqdm", "matplotlib", "sklearn", "safetensors", "pytest"}
    code = f"""
blocked = {blocked!r}
{BLOCK}
import fastertransformer_tf, tensorflow as tf
layer = {{w.op_input: tf.ones(w.sizes(8, 8)) for w in fastertransformer_tf.spec.LAYER_WEIGHTS}}
x = tf.ones([1, 2, 8])
[y] = fastertransformer_tf.bert_encoder(x, None, None, [layer], head_num=1, size_per_head=8)
print(y.shape, tf.saved_model.load({str(saved)!r}).encode(x).shape)
"""
    assert output(code) == "(1, 2, 8) (1, 2, 8)"


QUANTIZATION_OF_NUMPY = (
    "calibrated",
    "fold_shift",
    "histograms",
    "integers",
    "points",
    "ranges",
    "scale_list",
)


def free_of_tensorflow() -> list[str]:
    """The modules that need no TensorFlow: a program starts, and explains itself, with these."""
    package = REPOSITORY / "fastertransformer_tf"
    files = [*(package / "files").glob("*.py"), *package.glob("*.py")]
    names = {
        ".".join(("fastertransformer_tf", *file.relative_to(package).with_suffix("").parts))
        for file in files
        if file.stem != "__init__"
    }
    programs = {f"fastertransformer_tf.programs.{n}" for n in ("cli", "model_flags", "path_flags")}
    numpy_alone = {f"fastertransformer_tf.quantization.{n}" for n in QUANTIZATION_OF_NUMPY}
    objects = ("ops", "keras_layers", "self_test", "text_model")
    needing = {f"fastertransformer_tf.{name}" for name in objects}
    return sorted((names | programs | numpy_alone) - needing)


def test_what_needs_no_tensorflow_does_not_load_it() -> None:
    names = free_of_tensorflow()
    assert len(names) > 15
    code = f"blocked = {{'tensorflow'}}\n{BLOCK}\nimport importlib\n"
    assert (
        output(f"{code}for name in {names}: importlib.import_module(name)\nprint('all')") == "all"
    )


HELP_WITHOUT_TENSORFLOW = (
    "ckpt_quantization",
    "ckpt_type_convert",
    "ft_optimize",
    "import_hf",
    "profile_transformer_inference",
    "squad_evaluate_v1_1",
    "squad_evaluate_v2_0",
)
PROGRAMS = (
    *HELP_WITHOUT_TENSORFLOW,
    "accuracy_report",
    "extract_features",
    "profile_bert_inference",
    "run_classifier_wrap",
    "run_squad_wrap",
)


def start(
    program: str, *arguments: str, blocked: tuple[str, ...] = (), **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs a program where some modules cannot be imported."""
    code = f"blocked = {blocked}\n{BLOCK}\nsys.argv = {[program, *arguments]}\n{START}"
    return run(code, TF_CPP_MIN_LOG_LEVEL="3", **environment)


def told(program: str, result: subprocess.CompletedProcess[str]) -> str:
    """The one line that a program ended with; TensorFlow may have logged something before."""
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stderr and "Warning" not in result.stderr
    *_, last = result.stderr.strip().splitlines()
    assert last.startswith(f"{program}: ")
    return last.removeprefix(f"{program}: ")


@pytest.mark.parametrize("program", HELP_WITHOUT_TENSORFLOW)
def test_help_needs_no_tensorflow(program: str) -> None:
    result = start(program, "--help", blocked=("tensorflow",))
    assert result.returncode == 0, result.stderr
    assert "Flags:" in result.stdout and not result.stderr


ARGUMENTS = {
    "ckpt_quantization": ("--init_checkpoint=a", "--quantized_checkpoint=b"),
    "ckpt_type_convert": ("--init_checkpoint=a", "--fp16_checkpoint=b"),
    "ft_optimize": ("--source=a", "--destination=b"),
    "import_hf": ("--hf_model=a", "--output_dir=b"),
}


@pytest.mark.parametrize(
    "program", [name for name in PROGRAMS if not name.startswith("squad_evaluate")]
)
def test_a_missing_tensorflow_is_told_in_one_line(program: str) -> None:
    result = start(program, *ARGUMENTS.get(program, ()), blocked=("tensorflow",))
    expected = "tensorflow is not installed: pip install 'tensorflow==2.21.*'"
    assert told(program, result) == expected
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("program", "module", "package"),
    [
        ("squad_evaluate_v1_1", "absl", "absl-py"),
        ("squad_evaluate_v2_0", "absl", "absl-py"),
        ("run_classifier_wrap", "sklearn", "scikit-learn"),
        ("run_squad_wrap", "tqdm", "tqdm"),
        ("accuracy_report", "matplotlib", "matplotlib"),
        ("extract_features", "tokenizers", "tokenizers"),
        ("profile_bert_inference", "tqdm", "tqdm"),
        ("profile_transformer_inference", "tqdm", "tqdm"),
    ],
)
def test_a_missing_extra_is_told_with_its_command(program: str, module: str, package: str) -> None:
    result = start(program, blocked=(module,))
    assert told(program, result) == (
        f"{package} is not installed, which this program needs: "
        "pip install 'fastertransformer_tf[programs]'"
    )


@pytest.mark.parametrize("program", ["run_classifier_wrap", "run_squad_wrap"])
def test_a_library_that_cannot_be_loaded_is_told_in_one_line(program: str) -> None:
    line = told(program, start(program, "--help", FT_TF_OPS_LIBRARY="/none.so"))
    assert line.startswith("fastertransformer_tf: no op library at /none.so")


def test_every_package_of_the_extra_is_known_to_the_message() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extra = {re.match(r"[\w-]+", line)[0] for line in project["optional-dependencies"]["programs"]}
    assert extra == {*error_lines._PROGRAM_PACKAGES.values(), "absl-py"}
    assert {re.match(r"[\w-]+", line)[0] for line in project["dependencies"]} == {
        "tensorflow",
        "numpy",
    }
