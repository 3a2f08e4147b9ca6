/*
 * Choosing weight scales, quantising weights, and reporting what was lost.  Offline: double
 * precision, plain loops, a pass over a channel per scale tried.  The client library has this file,
 * too: nothing in it needs the others.
 */
#include "kernels/quantize.h"

#include <assert.h>
#include <math.h>
#include <string.h>

enum {
    /* Scales of the first pass, in geometric steps of 0.5 % and less: the error of few values jumps
     * about with the scale, that of many is nearly smooth. */
    STEPS_MIN = 800,
    STEPS_FEW = 65536, /* further steps: this over the number of values */
    /* Of these, the best peaks are searched again, between their neighbours. */
    PEAKS = 6,
    FINE_STEPS = 48,
    FIT_STEPS_MAX = 50, /* rounding and fitting; ends by itself after about 5 */
};

/* The first pass, relative to the min-max scale.  With few bits and far outliers the best scale
 * clips nearly all of them. */
#define PART_MIN 0.02
#define PART_MAX 1.1

/* Adding and subtracting it rounds to an integer, to even: nearbyint is a call without SSE4.1. */
#define ROUND_MAGIC 0x1.8p52

/* n x k values, row j at w + j * stride. */
struct matrix {
    size_t n, k;
    const float *w;
    size_t stride;
};

static double largest(const struct matrix *x)
{
    double most = 0;

    for (size_t j = 0; j < x->n; j++) {
        for (size_t t = 0; t < x->k; t++)
            most = fmax(most, fabs((double)x->w[j * x->stride + t]));
    }
    return most;
}

static double clamp(double value, double lo, double hi)
{
    return value < lo ? lo : value > hi ? hi : value;
}

struct fit {
    double scale; /* the best for the rounding at the scale tried */
    double gain;  /* how much it takes off the sum of squares; larger is better */
};

/* Rounds at `scale`; for that rounding q the error at scale s is sum w^2 - 2 s sum wq + s^2 sum
 * q^2, least at s = sum wq / sum q^2, where it is (sum wq)^2 / sum q^2 below sum w^2. */
static struct fit fit_at(const struct matrix *x, double scale, double q_max)
{
    double inverse = 1 / scale, wq = 0, qq = 0;

    for (size_t j = 0; j < x->n; j++) {
        for (size_t t = 0; t < x->k; t++) {
            double w = (double)x->w[j * x->stride + t];
            double q = clamp(w * inverse + ROUND_MAGIC - ROUND_MAGIC, -q_max - 1, q_max);

            wq += w * q;
            qq += q * q;
        }
    }
    if (qq == 0)
        return (struct fit){.scale = scale};
    return (struct fit){.scale = wq / qq, .gain = wq * wq / qq};
}

/* Rounds and fits in turn from `best` on, until nothing is gained. */
static struct fit settle(const struct matrix *x, struct fit best, double q_max)
{
    for (int step = 0; step < FIT_STEPS_MAX; step++) {
        struct fit fit = fit_at(x, best.scale, q_max);

        if (!(fit.gain > best.gain))
            break;
        best = fit;
    }
    return best;
}

/* Keeps the PEAKS largest gains, best first; scale is the one tried, not the one fitted. */
static void peaks_add(struct fit *peaks, double scale, double gain)
{
    size_t at = PEAKS;

    while (at > 0 && gain > peaks[at - 1].gain) {
        if (at < PEAKS)
            peaks[at] = peaks[at - 1];
        at--;
    }
    if (at < PEAKS)
        peaks[at] = (struct fit){scale, gain};
}

static double search(const struct matrix *x, double min_max, double q_max)
{
    size_t steps = STEPS_MIN + STEPS_FEW / (x->n * x->k);
    double ratio = pow(PART_MAX / PART_MIN, 1 / (double)steps), scale = min_max * PART_MIN;
    struct fit peaks[PEAKS] = {{0}}, best = {.scale = min_max};
    double before = 0, here = fit_at(x, scale, q_max).gain;

    for (size_t step = 0; step < steps; step++) {
        double next = fit_at(x, scale * ratio, q_max).gain;

        if (here >= before && here >= next)
            peaks_add(peaks, scale, here);
        before = here;
        here = next;
        scale *= ratio;
    }
    peaks_add(peaks, scale, here);
    for (size_t i = 0; i < PEAKS && peaks[i].gain > 0; i++) {
        double from = peaks[i].scale / ratio, to = peaks[i].scale * ratio;

        for (int step = 0; step <= FINE_STEPS; step++) {
            struct fit fit = fit_at(x, from + (to - from) * step / FINE_STEPS, q_max);

            if (fit.gain > best.gain)
                best = fit;
        }
    }
    return settle(x, best, q_max).scale;
}

static float scale_of(enum quantize_method method, unsigned int bits, const struct matrix *x)
{
    double q_max = (double)((1 << (bits - 1)) - 1), most = largest(x), scale;

    assert(bits >= 2 && bits <= 8);
    if (most == 0)
        return 1.0f;
    scale = most / q_max;
    if (method == QUANTIZE_L2)
        scale = search(x, scale, q_max);
    return (float)fmax(scale, 0x1p-126); /* a normal number: its inverse is finite */
}

float quantize_scale(enum quantize_method method, unsigned int bits, size_t count, const float *w)
{
    return scale_of(method, bits, &(struct matrix){1, count, w, count});
}

void quantize_weight_scales(enum quantize_method method, unsigned int bits, bool per_tensor,
                            size_t n, size_t k, const float *w, size_t stride, float *scales)
{
    float whole = per_tensor ? scale_of(method, bits, &(struct matrix){n, k, w, stride}) : 0.0f;

    for (size_t j = 0; j < n; j++)
        scales[j] = per_tensor ? whole : quantize_scale(method, bits, k, w + j * stride);
}

void quantize_weights(unsigned int bits, size_t n, size_t k, const float *w, size_t stride,
                      const float *scales, const int32_t *zero_points, int8_t *b)
{
    double lo = -(double)(1 << (bits - 1)), hi = -lo - 1;

    assert(bits >= 2 && bits <= 8);
    for (size_t j = 0; j < n; j++) {
        double zero_point = zero_points ? zero_points[j] : 0;

        for (size_t t = 0; t < k; t++) {
            double q = nearbyint((double)w[j * stride + t] / (double)scales[j]) + zero_point;

            b[j * k + t] = (int8_t)clamp(q, lo, hi);
        }
    }
}

/* ---- s4 -------------------------------------------------------------------------------------- */

enum { GROUPS_MAX = GEMM_K_MAX / 32, UP_BELOW = 8 };

/* The integers of one group at its rounded scale. */
static void quantise_group(size_t begin, size_t length, const float *w, double scale, uint8_t *b)
{
    for (size_t t = begin; t < begin + length; t++) {
        int integer = (int)clamp(nearbyint((double)w[t] / scale), -8, 7);

        b[t / 2] = (uint8_t)(b[t / 2] | (integer & 15) << t % 2 * 4);
    }
}

float quantize_s4(enum quantize_method method, uint32_t k, uint32_t group, const float *w,
                  uint8_t *b, uint16_t *multipliers)
{
    float scales[GROUPS_MAX], most = 0, channel;

    assert((group == 32 || group == 64 || group == 128) && k >= 1 && k <= GEMM_K_MAX);
    for (size_t g = 0, begin = 0; begin < k; g++, begin += group) {
        size_t length = k - begin < group ? k - begin : group;
        bool zero = largest(&(struct matrix){1, length, w + begin, length}) == 0;

        scales[g] = zero ? 0 : quantize_scale(method, 4, length, w + begin);
        most = fmaxf(most, scales[g]);
    }
    channel = most > 0 ? fmaxf(most / 65535.0f, 0x1p-126f) : 1.0f;
    memset(b, 0, (k + (size_t)1) / 2);
    for (size_t g = 0, begin = 0; begin < k; g++, begin += group) {
        size_t length = k - begin < group ? k - begin : group;
        double multiplier = (double)scales[g] / (double)channel;

        /* Rounded down, 6.4 would clamp a weight of 7 steps by 7 * 0.4 / 6 of one. */
        multiplier = multiplier < UP_BELOW ? ceil(multiplier) : nearbyint(multiplier);
        multipliers[g] = (uint16_t)fmin(fmax(multiplier, 1), 65535);
        quantise_group(begin, length, w, multipliers[g] * (double)channel, b);
    }
    return channel;
}

/* ---- reports --------------------------------------------------------------------------------- */

/* Sums over what a report covers. */
struct sums {
    double max_abs, abs, error2, w2;
    size_t count;
};

static void add_error(struct sums *sums, double value, double error)
{
    sums->max_abs = fmax(sums->max_abs, error);
    sums->abs += error;
    sums->error2 += error * error;
    sums->w2 += value * value;
}

static struct quantize_error report_of(const struct sums *sums)
{
    return (struct quantize_error){
        .max_abs = sums->max_abs,
        .mean_abs = sums->abs / (double)sums->count,
        .sqnr_db = sums->error2 == 0 ? (double)INFINITY : 10 * log10(sums->w2 / sums->error2),
    };
}

void quantize_error_report(size_t n, size_t k, const float *w, size_t stride, const float *scales,
                           const int32_t *zero_points, const int8_t *b,
                           struct quantize_error *channels, struct quantize_error *total)
{
    struct sums all = {.count = n * k};

    for (size_t j = 0; j < n; j++) {
        double zero_point = zero_points ? zero_points[j] : 0;
        struct sums one = {.count = k};

        for (size_t t = 0; t < k; t++) {
            double value = (double)w[j * stride + t];

            add_error(&one, value, fabs(value - (double)scales[j] * (b[j * k + t] - zero_point)));
        }
        channels[j] = report_of(&one);
        all.max_abs = fmax(all.max_abs, one.max_abs);
        all.abs += one.abs;
        all.error2 += one.error2;
        all.w2 += one.w2;
    }
    if (total)
        *total = report_of(&all);
}

struct quantize_error quantize_s4_error(uint32_t k, uint32_t group, const float *w, float scale,
                                        const uint8_t *b, const uint16_t *multipliers)
{
    struct sums sums = {.count = k};

    for (size_t t = 0; t < k; t++) {
        int half = b[t / 2] >> t % 2 * 4 & 15, integer = half < 8 ? half : half - 16;
        double value = (double)w[t];

        add_error(&sums, value, fabs(value - (double)scale * multipliers[t / group] * integer));
    }
    return report_of(&sums);
}
