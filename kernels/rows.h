/* The row kernels, written once for every instruction set. Included several times: the including file sets
 * ISA(name), LANES and the few operations that vector extensions cannot express, so that all of them compute
 * the same bytes by construction. No fused multiply-add, no reassociation, half to even everywhere. */

#include "lanes.h"
#include "codes.h"
#include "grid_values.h"
#include "search.h"
#include "encode.h"
#include "levels.h"
#include "batch.h"
#include "k_search.h"
#include "k_grid.h"
#include "score.h"
#include "store.h"
#include "quantize.h"
#include "decode.h"
#include "lanes_end.h"
