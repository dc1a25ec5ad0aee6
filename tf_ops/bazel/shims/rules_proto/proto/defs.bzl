"""The rules of @rules_proto that Bazel 4's own @bazel_tools loads: here Bazel's built-in ones."""

proto_lang_toolchain = native.proto_lang_toolchain
proto_library = native.proto_library
