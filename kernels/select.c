/*
 * Choice of a kernel by what the weights are, and by measurement.
 *
 * cpuid promises AMX, not its speed: a hypervisor may trap tile state, a part may lower its clock
 * for the tile unit.  So the AMX kernel has to beat the vector kernel that would otherwise be
 * chosen, on operands that lie in L2 like those of a busy worker, before it is selected.
 *
 * Cost: 36 runs of a 4 MOP problem, below 1 ms; once, at start-up.  100 KiB of stack.
 */
#include "kernels/pack.h"

#include <assert.h>
#include <stdalign.h>
#include <string.h>

enum {
    ROWS = GEMM_MR_MAX,
    COLUMNS = 2 * GEMM_NR_MAX,
    DEPTH = 512,
    ROUNDS = 9, /* the least of each side counts: an interrupt only ever adds */
};

const struct gemm_kernel *gemm_select_for_weights(const struct gemm_kernel *kernel, uint32_t n,
                                                  uint32_t k, const int8_t *panels)
{
    const struct gemm_kernel *narrow = gemm_narrow(kernel);

    return narrow && gemm_pairs_are_narrow(panels, gemm_packed_bytes(kernel, n, k)) ? narrow
                                                                                   : kernel;
}

void gemm_probe_run(const struct gemm_kernel *kernel)
{
    alignas(GEMM_ALIGN) uint8_t a[ROWS][DEPTH];
    alignas(GEMM_ALIGN) int8_t panels[COLUMNS * DEPTH];
    alignas(GEMM_ALIGN) int32_t acc[GEMM_MR_MAX * GEMM_NR_MAX];
    const uint8_t *rows[ROWS];

    assert(gemm_packed_bytes(kernel, COLUMNS, DEPTH) <= sizeof(panels));
    memset(panels, 1, sizeof(panels)); /* the same in every layout */
    memset(a, 1, sizeof(a));
    for (size_t i = 0; i < ROWS; i++)
        rows[i] = a[i];
    for (size_t i = 0; i < ROWS; i += kernel->mr) {
        size_t m = ROWS - i < kernel->mr ? ROWS - i : kernel->mr;

        if (kernel->begin)
            kernel->begin(m);
        for (size_t column = 0; column < COLUMNS; column += kernel->nr)
            kernel->ukernel(m, kernel->nr, DEPTH, rows + i, 0, panels + column * DEPTH, acc);
        if (kernel->end)
            kernel->end(m);
    }
}

const struct gemm_kernel *gemm_select_measured(uint32_t levels, gemm_measure_fn *measure)
{
    const struct gemm_kernel *best = gemm_select(levels);
    const struct gemm_kernel *other = gemm_select(levels & ~(UINT32_C(1) << CPU_LEVEL_AMX));
    uint64_t best_ns = UINT64_MAX, other_ns = UINT64_MAX;

    if (best->level != CPU_LEVEL_AMX)
        return best;
    for (int round = 0; round < ROUNDS; round++) {
        uint64_t ns = measure(best);

        best_ns = ns < best_ns ? ns : best_ns;
        ns = measure(other);
        other_ns = ns < other_ns ? ns : other_ns;
    }
    return best_ns < other_ns ? best : other;
}
