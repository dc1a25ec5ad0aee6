"""The rules of @rules_java that Bazel 4's own @bazel_tools loads: here Bazel's built-in ones."""

java_binary = native.java_binary
java_import = native.java_import
java_library = native.java_library
java_proto_library = native.java_proto_library
java_runtime = native.java_runtime
java_toolchain = native.java_toolchain
