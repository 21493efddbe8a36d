// The weight of the question and the number of tokens kept, from what a caller asked for (src/ptp/alpha.py,
// budgets.py).
#pragma once

#include "manifest.hpp"

namespace ptp_core {

// Return what the vision graph's input `alpha` gets; NaN asks for the bundle's own. Throws Error.
double alpha_input(double alpha, const Pruning& pruning);

// Return K for a fraction such as "0.25", "1/3" or "5e-2"; nullptr asks for the bundle's own. Throws Error.
int64_t num_kept_at(const char* keep, const Manifest& manifest);

}  // namespace ptp_core
