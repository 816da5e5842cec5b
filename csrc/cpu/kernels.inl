// The whole kernel source, compiled once an instruction set: the includer has opened the set's
// namespace and included its lanes.
#include "exponential.h"
#include "common.h"
#include "grid.h"
#include "energy.h"
#include "rows.h"
#include "centred.h"
#include "rows_driver.h"
#include "columns.h"
#include "centred_columns.h"
#include "columns_driver.h"
