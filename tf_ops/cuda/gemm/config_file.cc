#include "tf_ops/cuda/gemm/config_file.h"

#include <cuda_runtime_api.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <sstream>

#include "tf_ops/cuda/cuda_check.h"

namespace ft {
namespace cuda {
namespace {

// An open file.
class File {
 public:
  File(const char* path, int flags, mode_t mode = 0) : descriptor_(open(path, flags, mode)) {}
  explicit File(int descriptor) : descriptor_(descriptor) {}
  ~File() {
    if (descriptor_ >= 0) close(descriptor_);
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  int descriptor() const { return descriptor_; }
  bool is_open() const { return descriptor_ >= 0; }

 private:
  const int descriptor_;
};

// The content of an ordinary file; a missing one is empty. Nothing that is no such file is waited
// for.
Status ReadText(const std::string& path, std::string* text) {
  constexpr int64_t kMaxBytes = 16 << 20;
  const File file(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
  if (!file.is_open()) {
    if (errno == ENOENT) return OkStatus();
    return InvalidArgument("cannot be read: ", strerror(errno));
  }
  struct stat about;
  if (fstat(file.descriptor(), &about) != 0 || !S_ISREG(about.st_mode) ||
      about.st_size > kMaxBytes) {
    return InvalidArgument("is not a file of at most ", kMaxBytes, " bytes");
  }
  text->resize(about.st_size);
  size_t size = 0;
  while (size < text->size()) {
    const ssize_t count = read(file.descriptor(), &(*text)[size], text->size() - size);
    if (count <= 0) break;
    size += count;
  }
  text->resize(size);
  return OkStatus();
}

// Puts `text` into the place of `path` by a rename; the new file is made where no link can be.
Status ReplaceFile(const std::string& path, const std::string& text) {
  std::string temporary = path + ".XXXXXX";
  const File file(mkostemp(&temporary[0], O_CLOEXEC));
  if (!file.is_open()) {
    return FailedPrecondition("cannot create a file beside ", path, ": ", strerror(errno));
  }
  size_t size = 0;
  while (size < text.size()) {
    const ssize_t count = write(file.descriptor(), &text[size], text.size() - size);
    if (count <= 0) break;
    size += count;
  }
  if (size < text.size() || fchmod(file.descriptor(), 0644) != 0 ||
      rename(temporary.c_str(), path.c_str()) != 0) {
    const int error = errno;
    unlink(temporary.c_str());
    return FailedPrecondition("cannot write ", path, ": ", strerror(error));
  }
  return OkStatus();
}

}  // namespace

Status ReadConfigRows(const std::string& path, const std::string& header, const char* program,
                      std::vector<std::string>* rows) {
  std::string text;
  FT_RETURN_IF_ERROR(ReadText(path, &text));
  std::istringstream file(text);
  std::string line;
  if (!std::getline(file, line)) return OkStatus();
  if (line != header) {
    return InvalidArgument("line 1 is not this version's header; delete the file or run ", program,
                           " again");
  }
  while (std::getline(file, line)) rows->push_back(line);
  return OkStatus();
}

Status EditConfigRows(const std::string& path, const std::string& header,
                      const std::function<void(std::vector<std::string>*)>& edit) {
  const std::string lock_path = path + ".lock";
  const File lock(lock_path.c_str(), O_CREAT | O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0644);
  if (!lock.is_open() || flock(lock.descriptor(), LOCK_EX) != 0) {
    return FailedPrecondition("cannot lock ", lock_path, ": ", strerror(errno));
  }
  std::vector<std::string> rows;
  if (!ReadConfigRows(path, header, "", &rows).ok()) rows.clear();
  edit(&rows);
  std::string text = header + "\n";
  for (const std::string& row : rows) text += row + "\n";
  return ReplaceFile(path, text);
}

Status ConfigEnvironment(const std::string& library, std::string* key) {
  int device, driver;
  cudaDeviceProp properties;
  FT_RETURN_IF_CUDA_ERROR(cudaGetDevice(&device));
  FT_RETURN_IF_CUDA_ERROR(cudaGetDeviceProperties(&properties, device));
  FT_RETURN_IF_CUDA_ERROR(cudaDriverGetVersion(&driver));
  std::string name = properties.name;
  std::replace(name.begin(), name.end(), ' ', '_');
  *key = StrCat(name, "/driver-", driver, "/", library);
  return OkStatus();
}

}  // namespace cuda
}  // namespace ft
