// Which of our kernels was the fastest for each product of one sort.
#pragma once

#include <array>
#include <cstdio>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "tf_ops/cuda/gemm/config_file.h"
#include "tf_ops/cuda/gemm/gemm.h"

namespace ft {
namespace cuda {

// One row of a file.
template <typename ProductType, typename KindType>
struct TunedKind {
  using Product = ProductType;
  using Kind = KindType;

  int64_t batch_size = 0, seq_len = 0, num_heads = 0, head_size = 0;  // for the reader only
  Product product;  // what kernels are told of it, without pointers
  Kind kind = static_cast<Kind>(0);
  float milliseconds = 0.f;
};

// What tells products apart, `rows` among it.
using ProductKey = std::array<int64_t, 6>;

// Any number of threads. Row is a TunedKind; KeyOf(const Product&) a function beside Product.
template <typename Row>
class TunedKinds {
 public:
  using Product = typename Row::Product;
  using Kind = typename Row::Kind;

  // Takes the rows of `path` that fit this device; reports once to stderr what does not.
  void Load(const ConfigFormat<Row>& format, const std::string& path,
            Status (*get_environment)(std::string*)) {
    std::string environment;
    std::vector<Row> rows;
    int num_foreign = 0;
    Status status = get_environment(&environment);
    if (status.ok()) status = ReadConfig(format, path, environment, &rows, &num_foreign);
    static std::once_flag reported;
    if (!status.ok() && status.code() == StatusCode::kInvalidArgument) {
      std::call_once(reported, [&] {
        fprintf(stderr, "[WARNING] %s is ignored: %s\n", path.c_str(), status.message().c_str());
      });
      return;
    }
    if (num_foreign > 0) {
      std::call_once(reported, [&] {
        fprintf(stderr, "[WARNING] %d rows of %s are for another GPU, driver or library than %s\n",
                num_foreign, path.c_str(), environment.c_str());
      });
    }
    for (const Row& row : rows) Keep(row);
  }

  // What was tuned for the product or for its rows rounded up, if `is_supported`: what a file names
  // this library, or this device, may not have.
  template <typename IsSupported>
  std::optional<Kind> Find(const Product& product, const IsSupported& is_supported) {
    Product rounded = product;
    rounded.rows = RoundRows(product.rows);
    std::lock_guard<std::mutex> lock(mutex_);
    for (const Product& p : {product, rounded}) {
      const auto found = tuned_.find(KeyOf(p));
      if (found != tuned_.end() && is_supported(found->second)) return found->second;
    }
    return std::nullopt;
  }

  bool IsTuned(const Product& product) {
    std::lock_guard<std::mutex> lock(mutex_);
    return tuned_.count(KeyOf(product)) > 0;
  }

  void Keep(const Row& row) {
    constexpr size_t kMaxRemembered = 4096;
    std::lock_guard<std::mutex> lock(mutex_);
    if (tuned_.size() >= kMaxRemembered) tuned_.clear();
    tuned_[KeyOf(row.product)] = row.kind;
  }

 private:
  std::mutex mutex_;
  std::map<ProductKey, Kind> tuned_;  // bounded
};

}  // namespace cuda
}  // namespace ft
