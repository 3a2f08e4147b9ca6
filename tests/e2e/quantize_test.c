/*
 * Float weights that the library quantises: the same layer, to the bit of its content, as one made
 * by hand with kernels/quantize.h (creating the second attaches to the first); and what is refused.
 */
#include "tests/harness.h"

#include <errno.h>
#include <math.h>
#include <string.h>

#include "kernels/quantize.h"
#include "tests/e2e/layer_case.h"
#include "tests/e2e/model_file.h"

static struct harness_worker worker;
static struct gemmd *session;

enum { N = 33, K = 150 };

/* The source cut to bf16, in place and as such: both types then stand for the same values. */
static uint16_t *to_bf16(struct layer_case *layer)
{
    size_t count = (size_t)layer->desc.n * layer->desc.k;
    uint16_t *halves = malloc(count * sizeof(*halves));

    REQUIRE(halves != NULL);
    for (size_t i = 0; i < count; i++) {
        uint32_t bits;

        memcpy(&bits, &layer->source[i], sizeof(bits));
        halves[i] = (uint16_t)(bits >> 16);
        bits &= 0xffff0000;
        memcpy(&layer->source[i], &bits, sizeof(bits));
    }
    return halves;
}

/* By hand again, after the source has changed or for one scale. */
static void quantise(struct layer_case *layer, bool per_tensor)
{
    const struct gemmd_layer_desc *desc = &layer->desc;
    const enum quantize_method method = (enum quantize_method)layer->method;

    if (desc->b_type == GEMMD_TYPE_S8) {
        quantize_weight_scales(method, 8, per_tensor, N, K, layer->source, K, layer->scales);
        quantize_weights(8, N, K, layer->source, K, layer->scales, NULL, layer->weights);
        layer->desc.scale_count = per_tensor ? 1 : N;
        return;
    }
    for (uint32_t j = 0; j < N; j++)
        layer->scales[j] = quantize_s4(method, K, desc->group, layer->source + j * K,
                                       (uint8_t *)layer->weights + j * ((K + 1) / 2),
                                       layer->multipliers + j * ((K + desc->group - 1) /
                                                                 desc->group));
}

static struct gemmd_layer_desc float_desc(const struct layer_case *layer, const uint16_t *halves)
{
    struct gemmd_layer_desc desc = layer->desc;

    desc.weights_type = halves ? GEMMD_TYPE_BF16 : GEMMD_TYPE_F32;
    desc.weights = halves ? (const void *)halves : layer->source;
    desc.quantize_method = layer->method;
    desc.b_scales = NULL;
    desc.multipliers = NULL;
    return desc;
}

static void check(const struct layer_kind *kind, enum gemmd_quantize_method method,
                  bool per_tensor, bool bf16, uint64_t seed)
{
    struct layer_case layer;
    struct gemmd_layer_desc desc;
    struct gemmd_layer *made, *given;
    uint16_t *halves = NULL;

    model_quantised_case(&layer, N, K, kind, method, seed);
    if (bf16)
        halves = to_bf16(&layer);
    quantise(&layer, per_tensor);
    desc = float_desc(&layer, halves);
    assert_int_equal(gemmd_layer_create(session, &desc, &made), 0);
    assert_int_equal(gemmd_layer_create(session, &layer.desc, &given), 1);
    assert_int_equal(layer_case_check(session, made, &layer, 5, seed), 0);
    assert_int_equal(gemmd_layer_close(session, &made), 0);
    assert_int_equal(gemmd_layer_close(session, &given), 0);
    free(halves);
    layer_case_fini(&layer);
}

static void test_same_as_by_hand(void **state)
{
    struct layer_kind kind = {.bias_type = GEMMD_TYPE_F32};
    uint64_t seed = 1;

    (void)state;
    for (int bf16 = 0; bf16 < 2; bf16++)
        for (enum gemmd_quantize_method method = 0; method <= GEMMD_QUANTIZE_L2; method++) {
            kind.b_type = GEMMD_TYPE_S8;
            kind.group = 0;
            check(&kind, method, false, bf16, seed++);
            check(&kind, method, true, bf16, seed++);
            kind.b_type = GEMMD_TYPE_S4;
            for (kind.group = 32; kind.group <= 128; kind.group *= 2)
                check(&kind, method, false, bf16, seed++);
        }
}

/* Another method is another layer. */
static void test_methods_differ(void **state)
{
    const struct layer_kind kind = {.b_type = GEMMD_TYPE_S4, .group = 64};
    struct gemmd_layer *min_max, *l2;
    struct gemmd_layer_desc desc;
    struct layer_case layer;

    (void)state;
    model_quantised_case(&layer, N, K, &kind, GEMMD_QUANTIZE_MIN_MAX, 77);
    desc = float_desc(&layer, NULL);
    assert_int_equal(gemmd_layer_create(session, &desc, &min_max), 0);
    desc.quantize_method = GEMMD_QUANTIZE_L2;
    assert_int_equal(gemmd_layer_create(session, &desc, &l2), 0);
    layer_case_fini(&layer);
}

#define REFUSED(field, value, text)                                                                \
    do {                                                                                           \
        struct gemmd_layer_desc bad = float_desc(&layer, NULL);                                    \
        bad.field = (value);                                                                       \
        assert_int_equal(gemmd_layer_create(session, &bad, &handle), -EINVAL);                     \
        assert_non_null(strstr(gemmd_error_text(session), (text)));                                \
        assert_null(handle);                                                                       \
    } while (0)

static void test_refused(void **state)
{
    static const float rare[] = {NAN, INFINITY, -INFINITY};
    const struct layer_kind kind = {.b_type = GEMMD_TYPE_S4, .group = 32};
    static const int8_t zero_points[N];
    struct gemmd_layer *handle;
    struct layer_case layer;

    (void)state;
    model_quantised_case(&layer, N, K, &kind, GEMMD_QUANTIZE_MIN_MAX, 78);
    REFUSED(weights_type, GEMMD_TYPE_S8, "weights_type");
    REFUSED(weights_type, (enum gemmd_type)300, "weights_type");
    REFUSED(weights_type, GEMMD_TYPE_NONE, "multipliers"); /* they are s4 then */
    REFUSED(quantize_method, (enum gemmd_quantize_method)2, "quantize_method");
    REFUSED(weights, NULL, "weights");
    REFUSED(b_scales, layer.scales, "b_scales");
    REFUSED(multipliers, layer.multipliers, "multipliers");
    REFUSED(b_zero_points, zero_points, "b_zero_points");
    REFUSED(scale_count, 1, "scale_count");
    REFUSED(k, 0, "k:");
    REFUSED(group, 31, "group");
    for (int i = 0; i < 3; i++) {
        layer.source[N * K - 1] = rare[i];
        REFUSED(name, NULL, "not finite");
    }
    layer.desc.quantize_method = GEMMD_QUANTIZE_L2; /* of weights that are quantised */
    assert_int_equal(gemmd_layer_create(session, &layer.desc, &handle), -EINVAL);
    assert_non_null(strstr(gemmd_error_text(session), "quantize_method"));
    layer_case_fini(&layer);
}

static int start(void **state)
{
    (void)state;
    harness_start(&worker, NULL, NULL);
    session = session_to(worker.socket);
    REQUIRE(session != NULL);
    return 0;
}

static int stop(void **state)
{
    (void)state;
    gemmd_close(&session);
    harness_stop(&worker);
    return 0;
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_as_by_hand),
        cmocka_unit_test(test_methods_differ),
        cmocka_unit_test(test_refused),
    };

    return HARNESS_RUN(tests, start, stop, 60);
}
