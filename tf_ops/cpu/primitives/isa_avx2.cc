// The primitives for one instruction set; BUILD gives this file its compiler flags.
#define FT_ISA avx2
#define FT_LANES 8
#define FT_COMPUTE_FLOAT32
#include "tf_ops/cpu/primitives/isa.h"
