/*
 * Activations, bf16 and requantisation number by number: each level against the reference on chosen
 * floats (given as an f32 residual, so that any pattern arrives unchanged), exhaustively where the
 * numbers are few; and the reference against libm in double precision.
 */
#include "tests/kernel/check.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "kernels/activation.h"
#include "kernels/bf16.h"

enum {
    ACCURACY_STRIDE = 1009, /* 4.3 million patterns */
    EQUAL_STRIDE = 16381,   /* 262 thousand patterns per activation and kernel, from a random one */
};

gemm_epilogue_fn gemm_epilogue_ref;

static float from_bits(uint32_t bits)
{
    float value;

    memcpy(&value, &bits, sizeof(value));
    return value;
}

/* ---- the reference against libm -------------------------------------------------------------- */

static double exact(enum gemm_activation activation, double x)
{
    switch (activation) {
    case GEMM_ACTIVATION_GELU_TANH: /* x / 2 (1 + tanh u) without its cancellation */
        return x / (1 + exp(-2 * 0.79788456080286535588 * (x + 0.044715 * x * x * x)));
    case GEMM_ACTIVATION_GELU_ERF:
        return x * 0.5 * erfc(-x * 0.70710678118654752440);
    default:
        return x / (1 + exp(-x));
    }
}

struct bound {
    enum gemm_activation activation;
    const char *name;
    double x_near;                   /* above this x the first relative bound holds */
    double absolute, relative, tail; /* the table of kernels/activation.h */
};

static const struct bound bounds[] = {
    {GEMM_ACTIVATION_GELU_TANH, "gelu_tanh", -5, 2e-7, 3e-6, 2e-5},
    {GEMM_ACTIVATION_GELU_ERF, "gelu_erf", -5, 2e-7, 1e-6, 6e-6},
    {GEMM_ACTIVATION_SILU, "silu", -20, 2e-7, 3e-7, 3e-7},
};

static void check_accuracy(const struct bound *bound)
{
    double absolute = 0, relative = 0, tail = 0, beyond = 0;

    check_step("accuracy of %s", bound->name);
    for (uint64_t bits = 0; bits <= UINT32_MAX; bits += ACCURACY_STRIDE) {
        float x = from_bits((uint32_t)bits);
        double y, wanted, error;

        if (!isfinite(x))
            continue;
        y = (double)activation_ref(bound->activation, 0, 0, x);
        wanted = exact(bound->activation, (double)x);
        error = fabs(y - wanted);
        absolute = fmax(absolute, error / fmax(1, fabs(wanted)));
        if (fabs(wanted) <= 1e-30)
            beyond = fmax(beyond, fabs(y));
        else if ((double)x > bound->x_near)
            relative = fmax(relative, error / fabs(wanted));
        else
            tail = fmax(tail, error / fabs(wanted));
    }
    check(absolute <= bound->absolute, "absolute error %.2e", absolute);
    check(relative <= bound->relative, "relative error %.2e", relative);
    check(tail <= bound->tail, "relative error of the tail %.2e", tail);
    check(beyond <= 1.1e-30, "%.2e where the exact result vanishes", beyond);
    printf("     %s against libm: absolute %.2e, relative %.2e, below x = %g %.2e\n", bound->name,
           absolute, relative, bound->x_near, tail);
}

static void check_special(const struct bound *bound)
{
    enum gemm_activation f = bound->activation;

    check_step("%s of special values", bound->name);
    check(activation_ref(f, 0, 0, INFINITY) == INFINITY, "+infinity");
    check(activation_ref(f, 0, 0, -INFINITY) <= 0 && activation_ref(f, 0, 0, -INFINITY) > -1e-35f,
          "-infinity: %g", (double)activation_ref(f, 0, 0, -INFINITY));
    check(isnan(activation_ref(f, 0, 0, NAN)), "NaN");
    check(activation_ref(f, 0, 0, 0.0f) == 0.0f && activation_ref(f, 0, 0, -0.0f) == 0.0f, "zeros");
}

/* bf16 by definition: of the two neighbours, the nearer in double, the even one when equal. */
static uint16_t nearest_bf16(float x)
{
    uint32_t bits;
    double below, above;
    uint16_t down;

    memcpy(&bits, &x, sizeof(bits));
    down = (uint16_t)(bits >> 16);
    below = (double)bf16_to_f32(down);
    /* The value beyond the largest finite one, for the comparison only: 2^128. */
    above = (down & 0x7fff) == 0x7f7f ? copysign(0x1p128, (double)x)
                                      : (double)bf16_to_f32((uint16_t)(down + 1));
    if (fabs((double)x - below) < fabs(above - (double)x))
        return down;
    if (fabs((double)x - below) > fabs(above - (double)x))
        return (uint16_t)(down + 1);
    return (uint16_t)(down + (down & 1));
}

static void check_bf16_reference(void)
{
    static const uint32_t low[] = {0, 1, 0x7fff, 0x8000, 0x8001, 0xffff};
    size_t bad = 0, bad_nan = 0, bad_back = 0;

    check_step("all bf16 patterns");
    for (uint32_t high = 0; high < 65536; high++) {
        bool special = (high & 0x7f80) == 0x7f80;

        for (size_t i = 0; i < sizeof(low) / sizeof(low[0]); i++) {
            float x = from_bits(high << 16 | low[i]);
            uint16_t y = bf16_from_f32(x);

            if (isnan(x))
                bad_nan += y != (high | 0x40);
            else if (!special)
                bad += y != nearest_bf16(x);
        }
        if (!special || !(high & 0x7f))
            bad_back += bf16_from_f32(bf16_to_f32((uint16_t)high)) != high;
    }
    check(bad == 0, "%zu roundings", bad);
    check(bad_nan == 0, "%zu NaN", bad_nan);
    check(bad_back == 0, "%zu patterns do not return", bad_back);
}

void check_activation_reference(void)
{
    check_context.kernel_name = "activation_ref";
    for (size_t i = 0; i < sizeof(bounds) / sizeof(bounds[0]); i++) {
        check_accuracy(&bounds[i]);
        check_special(&bounds[i]);
    }
    check_bf16_reference();
}

/* ---- each level, number by number ------------------------------------------------------------ */

/* One row of nr numbers x through the epilogue, as 0 * 0 + 0 + x. */
struct one_row {
    _Alignas(GEMM_ALIGN) int32_t acc[GEMM_NR_MAX];
    _Alignas(GEMM_ALIGN) int32_t offset[GEMM_NR_MAX];
    _Alignas(GEMM_ALIGN) float zeros[GEMM_NR_MAX];
    float x[GEMM_NR_MAX];
    const void *residual;
    uint8_t c[GEMM_NR_MAX * 4], c_ref[GEMM_NR_MAX * 4];
};

static struct gemm_epilogue epilogue_of(struct one_row *r, enum gemm_type c_type)
{
    *r = (struct one_row){.residual = r->x};
    return (struct gemm_epilogue){
        .a_type = GEMM_TYPE_U8,
        .c_type = c_type,
        .inverse_c_scale = 1.0f,
        .clip_lo = -2.5f,
        .clip_hi = 3.0f,
        .offset = r->offset,
        .scale = r->zeros,
        .bias = r->zeros,
        .residual = &r->residual,
        .residual_type = GEMM_TYPE_F32,
    };
}

static void run_row(const struct gemm_kernel *kernel, const struct gemm_epilogue *epilogue,
                    struct one_row *r)
{
    kernel->epilogue(1, kernel->nr, kernel->nr, r->acc, epilogue, 0, 0, (void *[]){r->c});
}

static void check_equal(const struct gemm_kernel *kernel, enum gemm_activation activation,
                        enum gemm_type c_type)
{
    uint64_t bits = random_below(EQUAL_STRIDE);
    struct one_row r;
    struct gemm_epilogue epilogue = epilogue_of(&r, c_type);
    size_t bad = 0;

    epilogue.activation = activation;
    check_step("activation %d on all kinds of floats, type %d", activation, c_type);
    while (bits <= UINT32_MAX) {
        for (size_t j = 0; j < kernel->nr; j++, bits += EQUAL_STRIDE)
            r.x[j] = from_bits((uint32_t)bits);
        run_row(kernel, &epilogue, &r);
        gemm_epilogue_ref(1, kernel->nr, kernel->nr, r.acc, &epilogue, 0, 0, (void *[]){r.c_ref});
        bad += memcmp(r.c, r.c_ref, kernel->nr * gemm_type_bytes(c_type)) != 0;
    }
    check(bad == 0, "%zu rows differ", bad);
}

/* All 65536 patterns in, all out: the residual's widening and the output's rounding. */
static void check_bf16(const struct gemm_kernel *kernel)
{
    struct one_row r;
    struct gemm_epilogue epilogue = epilogue_of(&r, GEMM_TYPE_BF16);
    size_t bad = 0;

    epilogue.residual_type = GEMM_TYPE_BF16;
    check_step("all bf16 patterns");
    for (uint32_t high = 0; high < 65536; high += kernel->nr) {
        for (size_t j = 0; j < kernel->nr; j++) {
            uint16_t half = (uint16_t)(high + j);

            memcpy((uint8_t *)r.x + j * 2, &half, sizeof(half));
        }
        run_row(kernel, &epilogue, &r);
        for (size_t j = 0; j < kernel->nr; j++) {
            uint16_t given = (uint16_t)(high + j), got;

            memcpy(&got, r.c + j * 2, sizeof(got));
            if ((given & 0x7fff) > 0x7f80)
                given = 0x7fc0; /* one quiet NaN */
            if (given == 0x8000)
                given = 0; /* +0 + -0 */
            bad += got != given;
        }
    }
    check(bad == 0, "%zu patterns differ", bad);
}

static int32_t requantised(float x, int32_t zero_point, int32_t lo)
{
    double y = nearbyint((double)x) + zero_point;

    return y < lo ? lo : y > lo + 255 ? lo + 255 : (int32_t)y;
}

/* Every zero point against every integer and half, and the floats beside them, across the range. */
static void check_requantise(const struct gemm_kernel *kernel, enum gemm_type c_type)
{
    struct one_row r;
    struct gemm_epilogue epilogue = epilogue_of(&r, c_type);
    int32_t lo = c_type == GEMM_TYPE_U8 ? 0 : -128;
    size_t bad = 0;

    check_step("requantise boundaries, type %d", c_type);
    for (int32_t zero_point = lo; zero_point <= lo + 255; zero_point++) {
        epilogue.c_zero_point = zero_point;
        for (int half = -2 * 260; half <= 2 * 260; half += (int)kernel->nr / 4) {
            for (size_t j = 0; j < kernel->nr; j++) {
                float at = (float)(half + (int)j / 4) * 0.5f;

                r.x[j] = j % 4 == 1   ? nextafterf(at, INFINITY)
                         : j % 4 == 2 ? nextafterf(at, -INFINITY)
                                      : at;
            }
            run_row(kernel, &epilogue, &r);
            for (size_t j = 0; j < kernel->nr; j++)
                bad += r.c[j] != (uint8_t)requantised(r.x[j], zero_point, lo);
        }
    }
    check(bad == 0, "%zu values differ", bad);
}

void check_activation(const struct gemm_kernel *kernel)
{
    for (int activation = 0; activation < GEMM_ACTIVATION_COUNT; activation++) {
        check_equal(kernel, (enum gemm_activation)activation, GEMM_TYPE_F32);
        check_equal(kernel, (enum gemm_activation)activation, GEMM_TYPE_BF16);
        check_equal(kernel, (enum gemm_activation)activation, GEMM_TYPE_U8);
    }
    check_bf16(kernel);
    check_requantise(kernel, GEMM_TYPE_U8);
    check_requantise(kernel, GEMM_TYPE_S8);
}
