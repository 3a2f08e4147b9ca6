/*
 * The micro-kernel alone: every m and k, hostile bytes, guard pages round each operand, and the
 * pairwise step over all byte pairs.
 */
#include "tests/kernel/check.h"

#include <stdlib.h>
#include <string.h>

enum { K_SWEEP = 70 };

struct operands {
    struct guard a[GEMM_MR_MAX]; /* each row between its own guard pages */
    struct guard panel, acc, copy;
    int8_t *b; /* nr rows of k */
    int32_t column_sums[GEMM_NR_MAX];
    size_t k_max;
};

static size_t copy_stride(size_t k)
{
    return (k + GEMM_ALIGN - 1) / GEMM_ALIGN * GEMM_ALIGN;
}

static void operands_open(struct operands *o, const struct gemm_kernel *kernel, size_t k_max)
{
    o->k_max = k_max;
    for (size_t i = 0; i < kernel->mr; i++)
        guard_alloc(&o->a[i], k_max);
    guard_alloc(&o->panel, gemm_packed_bytes(kernel, kernel->nr, (uint32_t)k_max));
    guard_alloc(&o->acc, kernel->mr * kernel->nr * sizeof(int32_t));
    guard_alloc(&o->copy, kernel->mr * copy_stride(k_max));
    o->b = check_alloc(kernel->nr * k_max);
}

static void operands_close(struct operands *o, const struct gemm_kernel *kernel)
{
    for (size_t i = 0; i < kernel->mr; i++)
        guard_free(&o->a[i]);
    guard_free(&o->panel);
    guard_free(&o->acc);
    guard_free(&o->copy);
    free(o->b);
}

/* copy: NULL for ukernel, else where gather leaves the rows. */
static void call(const struct gemm_kernel *kernel, size_t m, size_t n, size_t k,
                 const uint8_t *const *a, uint8_t a_flip, const int8_t *panel, uint8_t *copy,
                 int32_t *acc)
{
    if (kernel->begin)
        kernel->begin(m);
    if (copy)
        kernel->gather(m, n, k, a, a_flip, panel, copy, copy_stride(k), acc);
    else
        kernel->ukernel(m, n, k, a, a_flip, panel, acc);
    if (kernel->end)
        kernel->end(m);
}

/* One call on guarded operands, each element against the oracle; to_copy: of gather. */
static void check_one(const struct gemm_kernel *kernel, struct operands *o, size_t m, size_t n,
                      size_t k, enum gemm_type a_type, enum fill fill, enum guard_side side,
                      bool to_copy)
{
    const uint8_t *rows[GEMM_MR_MAX];
    int32_t *acc;
    size_t bad = 0, bad_copies = 0;
    uint32_t shift = a_type == GEMM_TYPE_S8 ? 128 : 0;

    check_step("%s m=%zu n=%zu k=%zu a=%s fill=%s guard=%s", to_copy ? "gather" : "ukernel", m, n,
               k, shift ? "s8" : "u8", fill_name(fill), side == GUARD_AFTER ? "after" : "before");
    for (size_t i = 0; i < m; i++) {
        guard_place(&o->a[i], k, side);
        fill_a(fill, o->a[i].data, k, a_type);
        rows[i] = o->a[i].data;
    }
    fill_b(fill, o->b, n * k);
    narrow_b(kernel, o->b, n, k);
    guard_place(&o->panel, gemm_packed_bytes(kernel, (uint32_t)n, (uint32_t)k), side);
    gemm_pack(kernel, (uint32_t)n, (uint32_t)k, o->b, k, (int8_t *)o->panel.data, o->column_sums);
    guard_place(&o->acc, kernel->mr * kernel->nr * sizeof(int32_t), side);
    acc = (int32_t *)(void *)o->acc.data;
    memset(acc, 0x5a, o->acc.bytes); /* the kernel must overwrite, not add */
    guard_place(&o->copy, m * copy_stride(k), side);
    call(kernel, m, n, k, rows, (uint8_t)shift, (const int8_t *)o->panel.data,
         to_copy ? o->copy.data : NULL, acc);
    for (size_t i = 0; i < m && to_copy; i++) {
        for (size_t t = 0; t < k; t++)
            bad_copies += o->copy.data[i * copy_stride(k) + t] != (uint8_t)(rows[i][t] ^ shift);
    }
    for (size_t i = 0; i < m; i++) {
        for (size_t j = 0; j < n; j++) {
            uint32_t expected = (uint32_t)oracle_dot(k, rows[i], a_type, o->b + j * k) +
                                shift * (uint32_t)o->column_sums[j];

            bad += (uint32_t)acc[i * kernel->nr + j] != expected;
        }
    }
    check(bad == 0, "%zu of %zu sums differ", bad, m * n);
    check(bad_copies == 0, "%zu copied bytes differ", bad_copies);
}

/* A whole panel; and at random what the last panel may be, and how gather is called. */
static void check_call(const struct gemm_kernel *kernel, struct operands *o, size_t m, size_t k,
                       enum gemm_type a_type, enum fill fill, enum guard_side side)
{
    size_t n = (1 + random_below(kernel->nr / kernel->n_step)) * kernel->n_step;

    check_one(kernel, o, m, kernel->nr, k, a_type, fill, side, false);
    if (kernel->gather || n < kernel->nr)
        check_one(kernel, o, m, n, k, a_type, fill, side, kernel->gather && random_below(4));
}

/* Every k of the sweep with every m, and the distributions taken in turn. */
static void check_sweep(const struct gemm_kernel *kernel)
{
    static const size_t k_more[] = {127, 128, 129,  251,  509,  511,  512,  513,
                                    514, 516, 1021, 1023, 1024, 1025, 1028, 2053};
    struct operands o;
    size_t turn = 0;

    operands_open(&o, kernel, 2053);
    for (size_t k = 1; k <= K_SWEEP + sizeof(k_more) / sizeof(k_more[0]); k++) {
        for (size_t m = 1; m <= kernel->mr; m++) {
            for (int way = 0; way < 4; way++, turn++) {
                /* Both types and both sides each time; FILL_COUNT + 1 shifts the combination. */
                check_call(kernel, &o, m, k <= K_SWEEP ? k : k_more[k - K_SWEEP - 1],
                           way & 1 ? GEMM_TYPE_S8 : GEMM_TYPE_U8,
                           (enum fill)((turn + turn / FILL_COUNT) % FILL_COUNT),
                           way & 2 ? GUARD_BEFORE : GUARD_AFTER);
            }
        }
    }
    operands_close(&o, kernel);
}

/* The largest k with the largest sums: the proof that s32 suffices. */
static void check_k_max(const struct gemm_kernel *kernel)
{
    static const enum fill fills[] = {FILL_MAXIMAL, FILL_MINIMAL, FILL_UNIFORM};
    struct operands o;

    operands_open(&o, kernel, GEMM_K_MAX);
    for (size_t i = 0; i < sizeof(fills) / sizeof(fills[0]); i++) {
        check_call(kernel, &o, 1, GEMM_K_MAX, GEMM_TYPE_U8, fills[i], GUARD_AFTER);
        check_call(kernel, &o, 1, GEMM_K_MAX - 1, GEMM_TYPE_S8, fills[i], GUARD_AFTER);
    }
    check_call(kernel, &o, kernel->mr, GEMM_K_MAX, GEMM_TYPE_U8, FILL_MINIMAL, GUARD_AFTER);
    operands_close(&o, kernel);
}

/*
 * The pairwise step: a[0] * b[0] + a[1] * b[1] for all 65536 (a, b) in one position against the
 * extremes in the other, both ways round.  A kernel that sums pairs in s16 and saturates, or wraps,
 * differs here whatever its proof says.  With k = 4 the pair comes twice.
 */
static void check_pairs(const struct gemm_kernel *kernel, uint8_t a_other, int8_t b_other,
                        bool other_first, size_t k)
{
    int8_t b[GEMM_NR_MAX * 4];
    uint8_t a[GEMM_MR_MAX][4];
    int32_t sums[GEMM_NR_MAX];
    const uint8_t *rows[GEMM_MR_MAX];
    int8_t *panel = check_alloc(gemm_packed_bytes(kernel, kernel->nr, 4));
    int32_t *acc = check_alloc((size_t)kernel->mr * kernel->nr * sizeof(*acc));
    size_t bad = 0;
    size_t own = other_first ? 1 : 0, other = 1 - own;

    check_step("byte pairs beside a=%d b=%d (%s) k=%zu", a_other, b_other,
               other_first ? "first" : "second", k);
    for (size_t column = 0; column < 256; column += kernel->nr) {
        for (size_t j = 0; j < kernel->nr; j++) {
            for (size_t t = 0; t < k; t++)
                b[j * k + t] = t % 2 == own ? (int8_t)(column + j - 128) : b_other;
        }
        gemm_pack(kernel, kernel->nr, (uint32_t)k, b, k, panel, sums);
        for (size_t row = 0; row < 256; row += kernel->mr) {
            size_t m = 256 - row < kernel->mr ? 256 - row : kernel->mr;

            for (size_t i = 0; i < m; i++) {
                for (size_t t = 0; t < k; t++)
                    a[i][t] = t % 2 == own ? (uint8_t)(row + i) : a_other;
                rows[i] = a[i];
            }
            call(kernel, m, kernel->nr, k, rows, 0, panel, NULL, acc);
            for (size_t i = 0; i < m; i++) {
                for (size_t j = 0; j < kernel->nr; j++)
                    bad += acc[i * kernel->nr + j] !=
                           (int32_t)(k / 2) *
                               (a[i][own] * b[j * k + own] + a[i][other] * b[j * k + other]);
            }
        }
    }
    check(bad == 0, "%zu of 65536 differ", bad);
    free(panel);
    free(acc);
}

void check_ukernel(const struct gemm_kernel *kernel)
{
    static const uint8_t a_extremes[] = {0, 1, 127, 128, 254, 255};
    static const int8_t b_extremes[] = {-128, -127, -1, 0, 1, 126, 127};

    check_sweep(kernel);
    check_k_max(kernel);
    if (kernel->narrow_pairs) {
        check_narrow_pairs(kernel);
        return;
    }
    for (size_t i = 0; i < sizeof(a_extremes); i++) {
        for (size_t j = 0; j < sizeof(b_extremes); j++) {
            check_pairs(kernel, a_extremes[i], b_extremes[j], false, 2);
            check_pairs(kernel, a_extremes[i], b_extremes[j], true, 4);
        }
    }
}
