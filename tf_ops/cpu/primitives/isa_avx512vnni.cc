// The primitives for one instruction set; BUILD gives this file its compiler flags.
#define FT_ISA avx512vnni
#define FT_LANES 16
#define FT_COMPUTE_FLOAT32
#define FT_INT8_VNNI
#include "tf_ops/cpu/primitives/isa.h"
