/*
 * Submissions: the slot of a hostile client, taken from a ring and checked as the dispatcher does.
 * The input is a slot, then what the worker knows of the layer and the arena, brought within its
 * limits.
 */
#include "tests/fuzz/fuzz.h"

#include <string.h>

#include "proto/ring.h"
#include "tests/unit/proto/oracle.h"

static void check_residual(const struct gemmd_sqe *sqe, const struct gemmd_job_shape *shape,
                           uint64_t arena, uint32_t row, oracle_int c)
{
    const oracle_int stride = gemmd_residual_stride(sqe, shape);
    const oracle_int bytes = shape->c_row_bytes / shape->c_align * shape->residual_element;
    const oracle_int r = sqe->residual_offset + row * stride;

    FUZZ_ASSERT(bytes == 0 || (r + bytes <= arena && stride <= UINT32_MAX));
    FUZZ_ASSERT(bytes == 0 || r + bytes <= c || c + shape->c_row_bytes <= r ||
                (r == c && bytes == shape->c_row_bytes));
}

/* Whatever is accepted lies inside the arena, row by row, whatever the spans were said to be. */
static void check_rows(const struct gemmd_sqe *sqe, const struct gemmd_job_shape *shape,
                       uint64_t arena)
{
    const uint32_t rows[] = {0, sqe->m / 2, sqe->m - 1};

    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        oracle_int a = (oracle_int)rows[i] * sqe->a_stride_bytes + sqe->a_offset;
        oracle_int c = (oracle_int)rows[i] * sqe->c_stride_bytes + sqe->c_offset;

        FUZZ_ASSERT(a >= 0 && a + shape->a_row_bytes <= arena);
        FUZZ_ASSERT(c >= 0 && c + shape->c_row_bytes <= arena && c % shape->c_align == 0);
        FUZZ_ASSERT(a + shape->a_row_bytes <= c || c + shape->c_row_bytes <= a);
        check_residual(sqe, shape, arena, rows[i], c);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct {
        struct gemmd_sqe slot;
        uint64_t arena_bytes;
        uint32_t k, n, c_type, index;
    } in;
    uint64_t slots[GEMMD_SQE_WORDS];
    struct gemmd_ring_end sq = {slots, 0, 0};
    struct gemmd_job_shape shape;
    struct gemmd_sqe sqe;
    enum gemmd_status status;

    if (bytes < sizeof(in))
        return 0;
    memcpy(&in, data, sizeof(in));
    memcpy(slots, &in.slot, sizeof(slots));
    sq.index = in.index % 4 ? in.slot.seq - 1 : in.index; /* mostly full */
    FUZZ_ASSERT(gemmd_sq_ready(&sq) == (in.slot.seq == sq.index + 1));
    if (!gemmd_sq_take(&sq, &sqe))
        return 0;
    FUZZ_ASSERT(memcmp(&sqe, &in.slot, sizeof(sqe)) == 0);

    shape.c_align = in.c_type % 2 ? 4 : 1;
    shape.residual_element = in.c_type / 2 % 4 == 3 ? 4 : in.c_type / 2 % 4; /* 0, 1, 2, 4 */
    shape.a_row_bytes = in.k % GEMMD_K_MAX + 1;
    shape.c_row_bytes = (in.n % GEMMD_N_MAX + 1) * shape.c_align;
    in.arena_bytes %= GEMMD_ARENA_BYTES_MAX + 1;
    status = gemmd_validate_job_form(&sqe);
    FUZZ_ASSERT(oracle_agrees(status, oracle_job_form(&sqe)));
    if (status != GEMMD_STATUS_OK)
        return 0;
    status = gemmd_validate_job_operands(&sqe, &shape, in.arena_bytes);
    FUZZ_ASSERT(oracle_agrees(status, oracle_job_operands(&sqe, &shape, in.arena_bytes)));
    if (status == GEMMD_STATUS_OK && sqe.m)
        check_rows(&sqe, &shape, in.arena_bytes);
    return 0;
}
