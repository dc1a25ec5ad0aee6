// The primitives for one instruction set; BUILD gives this file its compiler flags.
#define FT_ISA amx
#define FT_ISA_NAME amx
#define FT_LANES 16
#define FT_COMPUTE_FLOAT32
#define FT_INT8_VNNI
#define FT_AMX
#include "tf_ops/cpu/primitives/isa.h"
