// Files of tuned products: a header, then a row a line. Several processes may share one.
#pragma once

#include <algorithm>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "tf_ops/core/types.h"

namespace ft {
namespace cuda {

// Reads the rows of `path`, a missing file having none. Errors: InvalidArgument if it is no
// ordinary file, or its first line is not `header`; `program` is what the user is told to run
// again.
Status ReadConfigRows(const std::string& path, const std::string& header, const char* program,
                      std::vector<std::string>* rows);

// Lets `edit` change the rows of `path`, under a lock that several processes respect, and puts a
// new file in its place; neither follows a symbolic link. A damaged file is replaced. Errors:
// FailedPrecondition if the file cannot be locked or written.
Status EditConfigRows(const std::string& path, const std::string& header,
                      const std::function<void(std::vector<std::string>*)>& edit);

// The environment of rows that were measured on the current device with `library`: GPU, driver and
// library, without spaces.
Status ConfigEnvironment(const std::string& library, std::string* key);

// One kind of file. An environment says which machine a row was measured on; it has no spaces.
template <typename Row>
struct ConfigFormat {
  const char* header;
  std::string (*format)(const Row& row, const std::string& environment);
  bool (*parse)(const std::string& line, Row* row, std::string* environment);  // false: damaged
  bool (*same_shape)(const Row& a, const Row& b);  // of which one is kept
};

// Parses lines of a file. Errors: InvalidArgument with the number of the first damaged one.
template <typename Row>
Status ParseConfigRows(const ConfigFormat<Row>& format, const std::vector<std::string>& lines,
                       std::vector<std::pair<Row, std::string>>* rows) {
  for (size_t i = 0; i < lines.size(); ++i) {
    if (lines[i].empty()) continue;
    Row row;
    std::string environment;
    if (!format.parse(lines[i], &row, &environment)) {
      return InvalidArgument("line ", i + 2, " is damaged");
    }
    rows->emplace_back(row, environment);
  }
  return OkStatus();
}

// Reads the rows of `environment`; those of others are counted in `num_foreign`. Errors: as of
// ReadConfigRows and ParseConfigRows.
template <typename Row>
Status ReadConfig(const ConfigFormat<Row>& format, const std::string& path,
                  const std::string& environment, std::vector<Row>* rows, int* num_foreign) {
  std::vector<std::string> lines;
  std::vector<std::pair<Row, std::string>> all;
  FT_RETURN_IF_ERROR(ReadConfigRows(path, format.header, "encoder_gemm", &lines));
  FT_RETURN_IF_ERROR(ParseConfigRows(format, lines, &all));
  for (const auto& [row, other] : all) {
    if (other == environment) {
      rows->push_back(row);
    } else {
      ++*num_foreign;
    }
  }
  return OkStatus();
}

// Puts `rows` in the place of rows for the same shapes; other environments' rows stay. Errors: as
// of EditConfigRows.
template <typename Row>
Status UpdateConfig(const ConfigFormat<Row>& format, const std::string& path,
                    const std::string& environment, const std::vector<Row>& rows) {
  return EditConfigRows(path, format.header, [&](std::vector<std::string>* lines) {
    std::vector<std::pair<Row, std::string>> all;
    if (!ParseConfigRows(format, *lines, &all).ok()) all.clear();
    lines->clear();
    for (const auto& entry : all) {
      const bool is_replaced =
          entry.second == environment && std::any_of(rows.begin(), rows.end(), [&](const Row& row) {
            return format.same_shape(entry.first, row);
          });
      if (!is_replaced) lines->push_back(format.format(entry.first, entry.second));
    }
    for (const Row& row : rows) lines->push_back(format.format(row, environment));
  });
}

}  // namespace cuda
}  // namespace ft
