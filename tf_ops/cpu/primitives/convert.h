// Conversion between floating-point types.
// Textual, compiled once for each instruction set (isa.h): no include guard.
void ConvertElements(const void* x, DataType x_dtype, void* y, DataType y_dtype, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const float value = ElementAt(x, x_dtype, i);
    switch (y_dtype) {
      case DataType::kFloat16:
        static_cast<Half*>(y)[i] = ToHalf(value);
        break;
      case DataType::kBFloat16:
        static_cast<Bfloat16*>(y)[i] = ToBfloat16(value);
        break;
      default:
        static_cast<float*>(y)[i] = value;
    }
  }
}
