// Tile registers in plain C++, for tests.
#define FT_ISA plain_tiles
#define FT_LANES 16
#define FT_COMPUTE_FLOAT32
#define FT_INT8_VNNI
#define FT_AMX
#define FT_PLAIN_TILES
#include "tf_ops/cpu/primitives/isa.h"
