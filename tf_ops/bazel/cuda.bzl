"""cuda_library: .cu files through nvcc, usable as a dependency of cc rules."""

load("@bazel_tools//tools/cpp:toolchain_utils.bzl", "find_cpp_toolchain")
load("@local_cuda//:defs.bzl", "CUDA_ARCHS", "CUDA_HOME")

def _cuda_library_impl(ctx):
    toolchain = find_cpp_toolchain(ctx)
    features = cc_common.configure_features(
        ctx = ctx,
        cc_toolchain = toolchain,
        requested_features = ctx.features,
        unsupported_features = ctx.disabled_features,
    )
    deps = cc_common.merge_cc_infos(cc_infos = [dep[CcInfo] for dep in ctx.attr.deps])
    context = deps.compilation_context

    if ctx.attr.archs:
        codes = ["-gencode=arch=compute_%s,code=sm_%s" % (arch, arch) for arch in ctx.attr.archs]
    else:
        # Machine code of each architecture, and PTX of the last for later ones.
        codes = ["-gencode=arch=compute_%s,code=sm_%s" % (arch, arch) for arch in CUDA_ARCHS]
        codes.append("-gencode=arch=compute_{0},code=compute_{0}".format(CUDA_ARCHS[-1]))
    objects = []
    for source in ctx.files.srcs:
        output = ctx.actions.declare_file("%s_objs/%s.o" % (ctx.label.name, source.short_path))
        args = ctx.actions.args()
        args.add_all(["-std=c++17", "-O3", "-I.", "-Xcompiler", "-fPIC,-fvisibility=hidden"])
        args.add_all(["-ccbin", toolchain.compiler_executable])
        args.add_all(codes)
        args.add_all(ctx.attr.copts)
        args.add_all(context.defines, before_each = "-D")
        args.add_all(context.quote_includes, before_each = "-I")
        args.add_all(context.includes, before_each = "-I")
        args.add_all(context.system_includes, before_each = "-isystem")
        args.add("-c", source)
        args.add("-o", output)
        ctx.actions.run(
            executable = CUDA_HOME + "/bin/nvcc",
            arguments = [args],
            inputs = depset(
                [source] + ctx.files.hdrs,
                transitive = [context.headers, toolchain.all_files],
            ),
            outputs = [output],
            mnemonic = "Nvcc",
            progress_message = "Compiling %s with nvcc" % source.short_path,
            use_default_shell_env = True,
        )
        objects.append(output)

    linking, _ = cc_common.create_linking_context_from_compilation_outputs(
        actions = ctx.actions,
        name = ctx.label.name,
        feature_configuration = features,
        cc_toolchain = toolchain,
        compilation_outputs = cc_common.create_compilation_outputs(
            objects = depset(objects),
            pic_objects = depset(objects),
        ),
        linking_contexts = [deps.linking_context],
        disallow_dynamic_library = True,
    )
    own = CcInfo(
        compilation_context = cc_common.create_compilation_context(headers = depset(ctx.files.hdrs)),
        linking_context = linking,
    )
    return [
        DefaultInfo(files = depset(objects)),
        cc_common.merge_cc_infos(cc_infos = [own, CcInfo(compilation_context = context)]),
    ]

cuda_library = rule(
    implementation = _cuda_library_impl,
    attrs = {
        "srcs": attr.label_list(allow_files = [".cu"]),
        "hdrs": attr.label_list(allow_files = [".h", ".cuh"]),
        "deps": attr.label_list(providers = [CcInfo]),
        "archs": attr.string_list(doc = "Only these, without PTX; default: $FT_CUDA_ARCHS."),
        "copts": attr.string_list(doc = "More options of nvcc."),
        "_cc_toolchain": attr.label(default = "@bazel_tools//tools/cpp:current_cc_toolchain"),
    },
    fragments = ["cpp"],
    toolchains = ["@bazel_tools//tools/cpp:toolchain_type"],
)
