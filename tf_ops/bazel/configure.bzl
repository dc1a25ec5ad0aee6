"""Repository rules: what the build takes from the machine: the wheels of TensorFlow and PyTorch, CUDA."""

def _python(ctx):
    """Returns the path of the interpreter whose TensorFlow or PyTorch is built against."""
    python = ctx.os.environ.get("FT_PYTHON")
    if python:
        return python
    found = ctx.which("python3")
    if not found:
        fail("no python3 on PATH; set FT_PYTHON to a Python that has the framework")
    return str(found)

# Prints a package's folder and version without importing it, which takes seconds.
_FIND_PACKAGE = """
import importlib.metadata, importlib.util, sys
spec = importlib.util.find_spec(sys.argv[1])
print(spec.submodule_search_locations[0])
for name in sys.argv[1:]:
    try:
        print(importlib.metadata.version(name))
        break
    except importlib.metadata.PackageNotFoundError:
        pass
"""

def _find_package(ctx, name, other_names = []):
    """Returns (folder, version) of a package of the interpreter, maybe installed by another name."""
    python = _python(ctx)
    result = ctx.execute([python, "-c", _FIND_PACKAGE, name] + other_names)
    lines = result.stdout.strip().split("\n")
    if result.return_code != 0 or len(lines) != 2:
        fail("%s has no %s (set FT_PYTHON to a Python that has): %s" % (python, name, result.stderr))
    return lines

# The folders of the wheel's headers that an OpKernel needs, of 18,000 files: the sandbox links
# every one of them. `includes` makes them system headers, whose warnings are not ours.
_TENSORFLOW_BUILD = """
package(default_visibility = ["//visibility:public"])

cc_library(
    name = "headers",
    hdrs = glob([
        "include/Eigen/**",
        "include/absl/**",
        "include/google/**",
        "include/ml_dtypes/**",
        "include/tensorflow/core/**",
        "include/tsl/**",
        "include/unsupported/**",
        "include/xla/*.h",
        "include/xla/stream_executor/**",
        "include/xla/tsl/**",
    ]),
    defines = ["_GLIBCXX_USE_CXX11_ABI=1", "EIGEN_MAX_ALIGN_BYTES=64"],
    includes = ["include"],
)

cc_library(
    name = "framework",
    srcs = ["libtensorflow_framework.so.2"],
)
"""

def _tensorflow_impl(ctx):
    root, version = _find_package(ctx, "tensorflow", ["tensorflow-cpu", "tensorflow_cpu"])
    if not version.startswith("2.21."):
        fail("tensorflow of %s is %s, expected 2.21.*" % (_python(ctx), version))
    ctx.symlink(root + "/include", "include")
    ctx.symlink(root + "/libtensorflow_framework.so.2", "libtensorflow_framework.so.2")
    ctx.file("BUILD", _TENSORFLOW_BUILD)

tensorflow_configure = repository_rule(
    implementation = _tensorflow_impl,
    configure = True,
    doc = "Headers and libtensorflow_framework of the TensorFlow of $FT_PYTHON (else python3).",
    environ = ["FT_PYTHON"],
    local = True,
)

# The stable ABI alone: no ATen, so that one library serves every later PyTorch. `includes` makes
# them system headers, whose warnings are not ours.
_TORCH_BUILD = """
package(default_visibility = ["//visibility:public"])

cc_library(
    name = "stable_abi",
    srcs = ["libtorch_cpu.so"],
    hdrs = glob([
        "include/torch/csrc/inductor/aoti_torch/**",
        "include/torch/csrc/stable/**",
        "include/torch/headeronly/**",
    ]),
    defines = ["TORCH_TARGET_VERSION={target}"],
    includes = ["include"],
)
"""

# The oldest PyTorch that the library runs with: what it uses of the stable ABI came with 2.10.
_TORCH_TARGET = (2, 10)

def _torch_impl(ctx):
    root, version = _find_package(ctx, "torch")
    numbers = version.split("+")[0].split(".")
    if (int(numbers[0]), int(numbers[1])) < _TORCH_TARGET:
        fail("torch of %s is %s, expected at least %d.%d" % ((_python(ctx), version) + _TORCH_TARGET))
    ctx.symlink(root + "/include", "include")
    ctx.symlink(root + "/lib/libtorch_cpu.so", "libtorch_cpu.so")

    # A byte of the major version, one of the minor, six that are 0 (torch/csrc/stable/version.h).
    target = "((%dULL<<56)|(%dULL<<48))" % _TORCH_TARGET
    ctx.file("BUILD", _TORCH_BUILD.format(target = target))

torch_configure = repository_rule(
    implementation = _torch_impl,
    configure = True,
    doc = "Headers of the stable ABI and libtorch_cpu of the PyTorch of $FT_PYTHON (else python3).",
    environ = ["FT_PYTHON"],
    local = True,
)

_CUDA_BUILD = """
package(default_visibility = ["//visibility:public"])

cc_library(
    name = "headers",
    hdrs = glob(["cuda/include/**"], allow_empty = True),
    includes = ["cuda/include"],
)

cc_library(
    name = "cudart_static",
    srcs = {libraries},
    linkopts = {linkopts},
)

# cuBLAS's headers alone: what else lies beside them may be of another version than the toolkit.
cc_library(
    name = "cublas_headers",
    hdrs = glob(["cublas/*.h"], allow_empty = True),
    includes = ["cublas"],
)

# Headers alone. `includes` makes them system headers, whose warnings are not ours.
cc_library(
    name = "cutlass",
    hdrs = glob(
        [
            "cutlass/include/**",
            "cutlass/tools/util/include/**",
        ],
        allow_empty = True,
    ),
    includes = [
        "cutlass/include",
        "cutlass/tools/util/include",
    ],
)
"""

_CUDA_DEFS = """
CUDA_AVAILABLE = {available}
CUDA_HOME = {home}
CUDA_ARCHS = {archs}

def if_cuda(value, otherwise = []):
    return value if CUDA_AVAILABLE else otherwise

# Kernels by CUTLASS run on compute capability 9.0 alone.
def if_cutlass(value, otherwise = []):
    return value if "90" in CUDA_ARCHS else otherwise
"""

def _find_cuda(ctx):
    """Returns (folder, static runtime inside it) of the first usable toolkit, or None."""
    candidates = []
    if ctx.os.environ.get("CUDA_HOME"):
        candidates.append(ctx.os.environ["CUDA_HOME"])
    result = ctx.execute([_python(ctx), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"])
    if result.return_code == 0:
        candidates.append(result.stdout.strip() + "/nvidia/cu13")
    candidates.append("/usr/local/cuda")
    for home in candidates:
        if not (ctx.path(home + "/bin/nvcc").exists and
                ctx.path(home + "/include/cuda_runtime.h").exists):
            continue
        for folder in ["lib64", "lib", "targets/x86_64-linux/lib"]:
            if ctx.path("%s/%s/libcudart_static.a" % (home, folder)).exists:
                # nvcc looks for cicc and ptxas beside its real path.
                return str(ctx.path(home).realpath), folder
    if ctx.os.environ.get("CUDA_HOME"):
        fail("CUDA_HOME is %s: no bin/nvcc, include/cuda_runtime.h and libcudart_static.a there" %
             ctx.os.environ["CUDA_HOME"])
    return None

def _link_cublas_headers(ctx, home):
    """Links cuBLAS's headers, which pip's toolkit has not, but the wheel of TensorFlow."""
    folders = []
    result = ctx.execute([_python(ctx), "-c", _FIND_PACKAGE, "tensorflow"])
    if result.return_code == 0:
        root = result.stdout.strip().split("\n")[0]
        folders.append(root + "/include/third_party/gpus/cuda/include")
    folders.append(home + "/include")
    for folder in folders:
        if ctx.path(folder + "/cublasLt.h").exists:
            for header in ["cublas.h", "cublas_v2.h", "cublas_api.h", "cublasLt.h"]:
                if ctx.path(folder + "/" + header).exists:
                    ctx.symlink(folder + "/" + header, "cublas/" + header)
            return
    fail("no cublasLt.h in %s: pip install nvidia-cublas for pip's toolkit, or set FT_CUDA=0" %
         " or ".join(folders))

def _link_cutlass(ctx):
    """Links CUTLASS's headers; they are needed, so that a build without them fails."""
    python = _python(ctx)
    home = ctx.os.environ.get("CUTLASS_HOME")
    if not home:
        result = ctx.execute([python, str(ctx.path(Label("//tf_ops/bazel:find_cutlass.py")))])
        if result.return_code != 0:
            fail(result.stderr.strip())
        home = result.stdout.strip()
    for folder in ["include", "tools/util/include"]:
        if not ctx.path(home + "/" + folder + "/cutlass").exists:
            fail("CUTLASS_HOME is %s: no %s/cutlass there" % (home, folder))
        ctx.symlink(home + "/" + folder, "cutlass/" + folder)

def _cuda_impl(ctx):
    switch = ctx.os.environ.get("FT_CUDA", "")
    if switch not in ["", "0", "1"]:
        fail("FT_CUDA is %s, expected 0 (CPU only), 1 (CUDA or fail) or nothing" % switch)
    found = None if switch == "0" else _find_cuda(ctx)
    if switch == "1" and not found:
        fail("FT_CUDA is 1, but there is no CUDA toolkit: set CUDA_HOME")
    if not found:
        # buildifier: disable=print
        print("fastertransformer_tf: building CPU kernels only (%s)" %
              ("FT_CUDA=0" if switch == "0" else "no CUDA toolkit found"))
        ctx.file("BUILD", _CUDA_BUILD.format(libraries = "[]", linkopts = "[]"))
        ctx.file("defs.bzl", _CUDA_DEFS.format(available = "False", home = "None", archs = "[]"))
        return
    home, folder = found

    # buildifier: disable=print
    print("fastertransformer_tf: building CPU and CUDA kernels with %s" % home)
    ctx.symlink(home + "/include", "cuda/include")
    _link_cublas_headers(ctx, home)
    libraries = []
    for name in ["libcudart_static.a", "libculibos.a"]:
        if ctx.path("%s/%s/%s" % (home, folder, name)).exists:
            ctx.symlink("%s/%s/%s" % (home, folder, name), "cuda/lib/" + name)
            libraries.append("cuda/lib/" + name)
    ctx.file("BUILD", _CUDA_BUILD.format(
        libraries = repr(libraries),
        linkopts = repr(["-ldl", "-lrt", "-lpthread"]),
    ))
    archs = ctx.os.environ.get("FT_CUDA_ARCHS", "75 80 86 89 90").split(" ")
    for arch in archs:
        if not arch.isdigit():
            fail("FT_CUDA_ARCHS has %s, expected compute capabilities such as: 80 90" % repr(arch))
    if "90" in archs:
        _link_cutlass(ctx)
    ctx.file("defs.bzl", _CUDA_DEFS.format(available = "True", home = repr(home), archs = repr(archs)))

cuda_configure = repository_rule(
    implementation = _cuda_impl,
    configure = True,
    doc = "A CUDA toolkit: $CUDA_HOME, the pip wheels' nvidia/cu13, /usr/local/cuda; or none.",
    environ = ["FT_PYTHON", "FT_CUDA", "FT_CUDA_ARCHS", "CUDA_HOME", "CUTLASS_HOME"],
    local = True,
)
