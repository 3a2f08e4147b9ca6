/*
 * Narrow pairs: which weights have them, which kernel these get, and that such a kernel is exact
 * for all of them and would not be one step further.
 */
#include "tests/kernel/check.h"

#include <stdlib.h>
#include <string.h>

enum { K = 4, A_ROWS = 5 };

/* As the proof in kernels/x86/gemm_u8s7s32_6x16c4_avx2.c words it. */
static bool is_narrow(int b0, int b1)
{
    int positive = (b0 > 0 ? b0 : 0) + (b1 > 0 ? b1 : 0);
    int negative = (b0 < 0 ? b0 : 0) + (b1 < 0 ? b1 : 0);

    return positive <= 128 && negative >= -128;
}

/* Each pair of bytes, at the ends and in the middle of what is searched; and across two pairs. */
static void check_property(void)
{
    static const size_t places[] = {0, 510, 1022, 1024, 2048};
    int8_t *panels = check_alloc(2050);
    size_t bad = 0, bad_between = 0;

    check_step("narrow pairs");
    for (int b0 = -128; b0 < 128; b0++) {
        for (int b1 = -128; b1 < 128; b1++) {
            for (size_t i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
                memset(panels, i % 2 ? 64 : -64, 2050);
                panels[places[i]] = (int8_t)b0;
                panels[places[i] + 1] = (int8_t)b1;
                bad += gemm_pairs_are_narrow(panels, 2050) != is_narrow(b0, b1);
            }
            bad_between += !gemm_pairs_are_narrow((int8_t[]){0, (int8_t)b0, (int8_t)b1, 0}, 4);
        }
    }
    check(bad == 0, "%zu differ from the definition", bad);
    check(bad_between == 0, "%zu pairs that are none", bad_between);
    check(gemm_pairs_are_narrow(panels, 0), "no pairs");
    free(panels);
}

/* One pair of all the weights decides; k is odd: the last weight of a column stands alone. */
static void check_weights(const struct gemm_kernel *kernel)
{
    enum { N = 70, DEPTH = 13 };
    const struct gemm_kernel *narrow = gemm_narrow(kernel);
    int8_t b[N * DEPTH], *panels = check_alloc(gemm_packed_bytes(kernel, N, DEPTH));
    int32_t sums[N];
    size_t bad = 0;

    memset(b, 64, sizeof(b));
    for (size_t j = 0; j < N; j++)
        b[j * DEPTH + DEPTH - 1] = j % 2 ? -128 : 127;
    gemm_pack(kernel, N, DEPTH, b, DEPTH, panels, sums);
    check_step("%s for narrow pairs", kernel->name);
    check(gemm_select_for_weights(kernel, N, DEPTH, panels) == (narrow ? narrow : kernel),
          "not chosen");
    for (size_t i = 0; i < sizeof(b); i++) {
        int8_t kept = b[i];

        b[i] = kept == 64 ? 65 : 1; /* 65 + 64 */
        gemm_pack(kernel, N, DEPTH, b, DEPTH, panels, sums);
        bad += gemm_select_for_weights(kernel, N, DEPTH, panels) !=
               (kept == 64 || !narrow ? kernel : narrow);
        b[i] = kept;
    }
    check(bad == 0, "%zu of %zu weights have the wrong kernel", bad, sizeof(b));
    free(panels);
}

void check_narrow_choice(void)
{
    size_t count, narrow_rows = 0, found = 0;
    const struct gemm_kernel *rows = gemm_kernels(&count);

    check_context.kernel_name = "narrow";
    check_property();
    for (size_t i = 0; i < count; i++) {
        const struct gemm_kernel *narrow = rows[i].narrow_pairs ? NULL : gemm_narrow(&rows[i]);

        narrow_rows += rows[i].narrow_pairs;
        if (narrow) {
            found++;
            check_step("%s", narrow->name);
            check(narrow->narrow_pairs && narrow->level == rows[i].level &&
                      narrow->nr == rows[i].nr && narrow->kr == rows[i].kr &&
                      narrow->n_step == rows[i].n_step && narrow->kr % 2 == 0,
                  "another layout than that of %s", rows[i].name);
        }
        if (!rows[i].narrow_pairs)
            check_weights(&rows[i]);
    }
    check(found == narrow_rows, "%zu of %zu rows are found", found, narrow_rows);
}

/* One column for each b1, beside b0: sums that differ from the exact ones, among pairs that are
 * narrow; and those that do not, among pairs one step beyond, at the largest a. */
static void check_row_of_pairs(const struct gemm_kernel *kernel, int b0, size_t *bad, size_t *exact)
{
    static const uint8_t a[A_ROWS][K] = {{255, 255, 255, 255},
                                         {255, 0, 255, 0},
                                         {0, 255, 0, 255},
                                         {0, 0, 255, 255},
                                         {1, 254, 2, 253}};
    const uint8_t *rows[A_ROWS] = {a[0], a[1], a[2], a[3], a[4]};
    int8_t b[GEMM_NR_MAX * K], *panel = check_alloc(gemm_packed_bytes(kernel, kernel->nr, K));
    int32_t *acc = check_alloc((size_t)kernel->mr * kernel->nr * sizeof(*acc));
    int32_t sums[GEMM_NR_MAX];

    assert(kernel->mr >= A_ROWS);
    for (int first = -128; first < 128; first += kernel->nr) {
        for (size_t j = 0; j < kernel->nr; j++) {
            int b1 = first + (int)j;

            memcpy(b + j * K, (int8_t[]){(int8_t)b0, (int8_t)b1, (int8_t)b1, (int8_t)b0}, K);
        }
        gemm_pack(kernel, kernel->nr, K, b, K, panel, sums);
        kernel->ukernel(A_ROWS, kernel->nr, K, rows, 0, panel, acc);
        for (size_t j = 0; j < kernel->nr; j++) {
            int b1 = first + (int)j;

            if (abs(b0 + b1) == 129)
                *exact += acc[j] == oracle_dot(K, a[0], GEMM_TYPE_U8, b + j * K);
            for (size_t i = 0; i < A_ROWS && is_narrow(b0, b1); i++)
                *bad += acc[i * kernel->nr + j] !=
                        oracle_dot(K, a[i], GEMM_TYPE_U8, b + j * K);
        }
    }
    free(panel);
    free(acc);
}

void check_narrow_pairs(const struct gemm_kernel *kernel)
{
    size_t bad = 0, exact = 0;

    check_step("all narrow pairs at extreme a");
    for (int b0 = -128; b0 < 128; b0++)
        check_row_of_pairs(kernel, b0, &bad, &exact);
    check(bad == 0, "%zu sums differ", bad);
    check(exact == 0, "%zu pairs one step beyond did not saturate", exact);
}
