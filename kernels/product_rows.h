/* The product kernels, written once for every instruction set; see rows.h for how such a template is included. */

#include "lanes.h"
#include "codes.h"
#include "grid_values.h"
#include "product_turn.h"
#define STEP_BYTES (4 * LANES) /* that few tokens take of a row at a time */
#if LANES >= 8
#include "product_few.h"
#endif
#ifdef WITH_VNNI
#include "product_floats_vnni.h"
#else
#include "product_floats.h"
#endif
#include "product_codes.h"
#undef STEP_BYTES
#include "lanes_end.h"
