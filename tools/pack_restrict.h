/* Gives up what a parser of untrusted files must not have; before the first byte is looked at. */
#ifndef GEMMD_TOOLS_PACK_RESTRICT_H
#define GEMMD_TOOLS_PACK_RESTRICT_H

#include <stdbool.h>
#include <stdint.h>

/* Root becomes nobody; no new privileges; limits on CPU time, and on memory and output in
 * proportion to the input.  Open files stay.  False: something was refused. */
bool pack_restrict(uint64_t input_bytes);

#endif
