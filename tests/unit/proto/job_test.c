/*
 * Checks of a submission against the 128-bit oracle: the whole cross product of boundary values (12
 * in each of 7 fields, two alignments: 7 x 10^7 points), and random points whose spans end or
 * meet exactly at a limit.
 *
 * usage: job_test [SEED]
 */
#include "unit.h"

#include "oracle.h"

#define VALUES 12
static const uint32_t rows[VALUES] = {
    0, 1, 2, 3, 255, 4096, 65536, GEMMD_M_MAX - 1, GEMMD_M_MAX,
    /* refused by the form; the operands' check must not rely on that */
    GEMMD_M_MAX + 1, UINT32_C(1) << 31, UINT32_MAX};
static const uint32_t strides[VALUES] = {0,
                                         1,
                                         3,
                                         4,
                                         64,
                                         1024,
                                         65535,
                                         65536,
                                         GEMMD_STRIDE_MAX - 4,
                                         GEMMD_STRIDE_MAX,
                                         GEMMD_STRIDE_MAX + 1,
                                         UINT32_MAX};
static const uint64_t offsets[VALUES] = {0,
                                         1,
                                         4,
                                         64,
                                         65535,
                                         65536,
                                         (UINT64_C(1) << 32) - 64,
                                         UINT64_C(1) << 32,
                                         UINT64_C(1) << 52,
                                         (UINT64_C(1) << 63) - 4,
                                         UINT64_MAX - 3,
                                         UINT64_MAX};
static const uint32_t widths[VALUES] = {
    1, 2, 3, 63, 64, 1023, 1024, 4096, 65535, 65536, GEMMD_N_MAX - 1, GEMMD_N_MAX};
static const uint64_t arenas[VALUES] = {GEMMD_ARENA_BYTES_MIN, GEMMD_ARENA_BYTES_MIN + 4096,
                                        UINT64_C(1) << 20,     (1 << 24) - 4096,
                                        UINT64_C(1) << 24,     GEMMD_ARENA_BYTES_DEFAULT,
                                        UINT64_C(1) << 30,     (UINT64_C(1) << 31) - 4096,
                                        UINT64_C(1) << 31,     (UINT64_C(1) << 32) - 4096,
                                        GEMMD_ARENA_BYTES_MAX, 0};

static void assert_job(const struct gemmd_sqe *sqe, const struct gemmd_job_shape *shape,
                       uint64_t arena)
{
    enum gemmd_status status = gemmd_validate_job_operands(sqe, shape, arena);
    oracle_set faults = oracle_job_operands(sqe, shape, arena);

    if (!oracle_agrees(status, faults))
        fail_msg("m %u, strides %u %u, offsets %#llx %#llx %#x, row bytes %u %u (align %u, "
                 "residual %u), arena %#llx: %s, the oracle says %#llx",
                 sqe->m, sqe->a_stride_bytes, sqe->c_stride_bytes,
                 (unsigned long long)sqe->a_offset, (unsigned long long)sqe->c_offset,
                 sqe->residual_offset, shape->a_row_bytes, shape->c_row_bytes, shape->c_align,
                 shape->residual_element, (unsigned long long)arena, gemmd_status_name_of(status),
                 (unsigned long long)faults);
}

/* Point of the product: an index into each list.  A's width stays within K_MAX. */
struct point {
    uint32_t m, a_stride, c_stride, a_offset, c_offset, width, arena, align;
};

static void assert_point(const struct point *point)
{
    const struct gemmd_sqe sqe = {
        .op = GEMMD_OP_GEMM,
        .m = rows[point->m],
        .a_stride_bytes = strides[point->a_stride],
        .c_stride_bytes = strides[point->c_stride],
        .a_offset = offsets[point->a_offset],
        .c_offset = offsets[point->c_offset],
    };
    const uint32_t align = point->align ? 4 : 1;
    const struct gemmd_job_shape shape = {
        .a_row_bytes = widths[point->width % 10],
        .c_row_bytes = widths[VALUES - 1 - point->width] * align,
        .c_align = align,
    };

    assert_job(&sqe, &shape, arenas[point->arena]);
}

static void test_product(void **state)
{
    uint32_t digits[8] = {0};
    uint64_t count = 0;
    size_t i = 0;

    (void)state;
    while (i < COUNT(digits)) {
        const struct point point = {digits[0], digits[1], digits[2], digits[3],
                                    digits[4], digits[5], digits[6], digits[7]};

        assert_point(&point);
        count++;
        for (i = 0; i < COUNT(digits); i++) {
            if (++digits[i] < (i == 7 ? 2 : VALUES))
                break;
            digits[i] = 0;
        }
    }
    print_message("%llu points\n", (unsigned long long)count);
}

/* Spans that end at the arena's end, or that touch each other, give or take a byte or an element.
 */
static void test_random_edges(void **state)
{
    uint64_t accepted = 0;

    (void)state;
    for (int i = 0; i < 1000000; i++) {
        const uint32_t align = random_below(2) ? 4 : 1;
        const struct gemmd_job_shape shape = {
            .a_row_bytes = 1 + random_below(random_below(2) ? 64 : GEMMD_K_MAX),
            .c_row_bytes = align * (1 + random_below(random_below(2) ? 64 : GEMMD_N_MAX)),
            .c_align = align,
        };
        struct gemmd_sqe sqe = {.m = 1 + random_below(random_below(2) ? 4 : 1024)};
        uint64_t a_span, c_span, arena;
        bool c_first = random_below(2);

        sqe.a_stride_bytes = shape.a_row_bytes + random_below(4) - (random_below(8) == 0);
        sqe.c_stride_bytes = shape.c_row_bytes + align * random_below(4) - (random_below(8) == 0);
        a_span = (uint64_t)(sqe.m - 1) * sqe.a_stride_bytes + shape.a_row_bytes;
        c_span = (uint64_t)(sqe.m - 1) * sqe.c_stride_bytes + shape.c_row_bytes;
        if (c_first) {
            sqe.c_offset = align * random_below(64);
            sqe.a_offset = sqe.c_offset + c_span + random_below(3) - 1;
            arena = sqe.a_offset + a_span + random_below(3) - 1;
        } else {
            sqe.a_offset = random_below(64);
            sqe.c_offset = sqe.a_offset + a_span + random_below(2 * align + 1) - align;
            arena = sqe.c_offset + c_span + random_below(3) - 1;
        }
        assert_job(&sqe, &shape, arena);
        accepted += oracle_job_operands(&sqe, &shape, arena) == 0;
    }
    /* The edges are met from both sides. */
    assert_in_range(accepted, 100000, 900000);
}

/* The residual at the arena's end, at either end of C, or C itself, give or take a byte. */
static void test_residual_edges(void **state)
{
    static const uint32_t elements[] = {0, 1, 2, 4};
    uint64_t accepted = 0, in_place = 0;

    (void)state;
    for (int i = 0; i < 1000000; i++) {
        const struct gemmd_job_shape shape = {
            .a_row_bytes = 1,
            .c_align = elements[1 + random_below(3)],
            .residual_element = elements[random_below(8) ? 1 + random_below(3) : 0],
            .c_row_bytes = 4 * (1 + random_below(random_below(2) ? 16 : GEMMD_N_MAX)),
        };
        const uint32_t n = shape.c_row_bytes / shape.c_align;
        const uint32_t pitch = n + random_below(3);
        struct gemmd_sqe sqe = {.m = 1 + random_below(random_below(2) ? 4 : 40)};
        uint64_t r_span = ((uint64_t)(sqe.m - 1) * pitch + n) * shape.residual_element, c_span;
        uint64_t at, arena = GEMMD_ARENA_BYTES_MAX;

        sqe.a_stride_bytes = 1;
        sqe.c_stride_bytes = pitch * shape.c_align;
        c_span = (uint64_t)(sqe.m - 1) * sqe.c_stride_bytes + shape.c_row_bytes;
        sqe.c_offset = (r_span / 64 + 1 + random_below(8)) * 64;
        switch (random_below(4)) {
        case 0:
            at = sqe.c_offset - r_span + random_below(3) - 1;
            break;
        case 1:
            at = sqe.c_offset + c_span + random_below(3) - 1;
            break;
        case 2:
            at = sqe.c_offset + (random_below(2) ? random_below(3) - 1 : 0);
            break;
        default:
            at = sqe.c_offset + c_span + random_below(100);
            arena = at + r_span + random_below(3) - 1;
        }
        if (at > UINT32_MAX)
            continue;
        sqe.residual_offset = random_below(16) ? (uint32_t)at : 0;
        assert_job(&sqe, &shape, arena);
        if (oracle_job_operands(&sqe, &shape, arena) == 0) {
            accepted++;
            in_place += shape.residual_element && sqe.residual_offset == sqe.c_offset;
        }
    }
    assert_in_range(accepted, 100000, 900000);
    assert_in_range(in_place, 10000, 900000);
}

static void test_form(void **state)
{
    (void)state;
    for (uint32_t op = 0; op < 256; op++)
        for (uint32_t flags = 0; flags < 256; flags++) {
            const struct gemmd_sqe sqe = {.op = (uint8_t)op, .flags = (uint8_t)flags};

            assert_true(oracle_agrees(gemmd_validate_job_form(&sqe), oracle_job_form(&sqe)));
        }
    for (size_t i = 0; i < VALUES; i++) {
        const struct gemmd_sqe sqe = {.op = GEMMD_OP_GEMM, .m = rows[i]};

        assert_true(oracle_agrees(gemmd_validate_job_form(&sqe), oracle_job_form(&sqe)));
    }
}

/* Each bit of the 64 bytes alone: refused where the oracle says so, accepted in fields free of
 * form. */
static void test_form_bits(void **state)
{
    (void)state;
    for (uint32_t bit = 0; bit < 512; bit++) {
        unsigned char bytes[64] = {GEMMD_OP_GEMM};
        struct gemmd_sqe sqe;

        bytes[bit / 8] ^= (unsigned char)(1 << bit % 8);
        memcpy(&sqe, bytes, sizeof(sqe));
        assert_true(oracle_agrees(gemmd_validate_job_form(&sqe), oracle_job_form(&sqe)));
    }
}

static void test_range_inside(void **state)
{
    static const uint64_t values[] = {0,
                                      1,
                                      2,
                                      63,
                                      64,
                                      65,
                                      UINT32_MAX,
                                      UINT64_C(1) << 32,
                                      UINT64_MAX / 2,
                                      UINT64_MAX / 2 + 1,
                                      UINT64_MAX - 1,
                                      UINT64_MAX};

    (void)state;
    for (size_t i = 0; i < COUNT(values); i++)
        for (size_t j = 0; j < COUNT(values); j++)
            for (size_t k = 0; k < COUNT(values); k++)
                assert_int_equal(gemmd_range_inside(values[i], values[j], values[k]),
                                 (oracle_int)values[i] + values[j] <= values[k]);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_form),         cmocka_unit_test(test_form_bits),
        cmocka_unit_test(test_range_inside), cmocka_unit_test(test_product),
        cmocka_unit_test(test_random_edges), cmocka_unit_test(test_residual_edges),
    };

    random_seed(argc, argv);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
