// Status: what every function of core, cpu and cuda that can fail returns. Nothing throws across
// these layers, nothing exits. tf_ops/op maps the codes one to one to absl's.
#pragma once

#include <sstream>
#include <string>
#include <utility>

namespace ft {

enum class StatusCode {
  kOk = 0,
  kInvalidArgument,     // the caller's fault; the message names the tensor, what it is, what is
                        // expected
  kUnimplemented,       // valid, but there is no code for it; the message lists what exists
  kFailedPrecondition,  // something outside is missing, a library for example
  kResourceExhausted,   // memory
  kInternal,            // ours
};

class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(StatusCode code, std::string message) : code_(code), message_(std::move(message)) {}

  bool ok() const { return code_ == StatusCode::kOk; }
  StatusCode code() const { return code_; }
  const std::string& message() const { return message_; }

 private:
  StatusCode code_ = StatusCode::kOk;
  std::string message_;
};

inline Status OkStatus() { return Status(); }

template <typename... Args>
std::string StrCat(const Args&... args) {
  std::ostringstream stream;
  (stream << ... << args);
  return stream.str();
}

template <typename... Args>
Status InvalidArgument(const Args&... args) {
  return Status(StatusCode::kInvalidArgument, StrCat(args...));
}
template <typename... Args>
Status Unimplemented(const Args&... args) {
  return Status(StatusCode::kUnimplemented, StrCat(args...));
}
template <typename... Args>
Status FailedPrecondition(const Args&... args) {
  return Status(StatusCode::kFailedPrecondition, StrCat(args...));
}
template <typename... Args>
Status ResourceExhausted(const Args&... args) {
  return Status(StatusCode::kResourceExhausted, StrCat(args...));
}
template <typename... Args>
Status Internal(const Args&... args) {
  return Status(StatusCode::kInternal, StrCat(args...));
}

}  // namespace ft

#define FT_RETURN_IF_ERROR(expression)       \
  do {                                       \
    ::ft::Status ft_status_ = (expression);  \
    if (!ft_status_.ok()) return ft_status_; \
  } while (0)
