// The primitives for one instruction set; BUILD gives this file its compiler flags.
#define FT_ISA avx512
#define FT_LANES 16
#define FT_COMPUTE_FLOAT32
#include "tf_ops/cpu/primitives/isa.h"
