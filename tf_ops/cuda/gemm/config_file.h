// Files of tuned products: a header, then a row a line. Several processes may share one.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "tf_ops/core/types.h"

namespace ft {
namespace cuda {

// Reads the rows of `path`, a missing file having none. Errors: InvalidArgument if it is no ordinary
// file, or its first line is not `header`; `program` is what the user is told to run again.
Status ReadConfigRows(const std::string& path, const std::string& header, const char* program,
                      std::vector<std::string>* rows);

// Lets `edit` change the rows of `path`, under a lock that several processes respect, and puts a new
// file in its place; neither follows a symbolic link. A damaged file is replaced. Errors:
// FailedPrecondition if the file cannot be locked or written.
Status EditConfigRows(const std::string& path, const std::string& header,
                      const std::function<void(std::vector<std::string>*)>& edit);

}  // namespace cuda
}  // namespace ft
