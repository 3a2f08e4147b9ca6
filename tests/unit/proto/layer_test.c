/* Checks of layers: descriptions against the oracle, the image's layout, values, names. */
#include "unit.h"

#include <float.h>
#include <math.h>

#include "oracle.h"

static float from_bits(uint32_t bits)
{
    float value;

    memcpy(&value, &bits, sizeof(value));
    return value;
}

static const uint32_t extents[] = {0,
                                   1,
                                   2,
                                   63,
                                   64,
                                   65,
                                   4095,
                                   4096,
                                   65535,
                                   65536,
                                   65537,
                                   GEMMD_N_MAX - 1,
                                   GEMMD_N_MAX,
                                   GEMMD_N_MAX + 1,
                                   UINT32_C(1) << 31,
                                   UINT32_MAX};
static const int32_t zero_points[] = {0,    1,   -1,  127,       128,      -128,
                                      -129, 255, 256, INT32_MAX, INT32_MIN};
/* Zeros, denormals, the floats around 2^-128 (whose inverse overflows), 1, the largest, Inf, NaN.
 */
static const uint32_t float_bits[] = {0x00000000, 0x80000000, 0x00000001, 0x80000001, 0x001fffff,
                                      0x00200000, 0x00200001, 0x007fffff, 0x00800000, 0x3f800000,
                                      0xbf800000, 0x7f7fffff, 0xff7fffff, 0x7f800000, 0xff800000,
                                      0x7f800001, 0x7fc00000, 0xffc00000, 0xffffffff};

static struct gemmd_layer_desc_abi good_desc(void)
{
    return (struct gemmd_layer_desc_abi){.n = 10,
                                         .k = 20,
                                         .a_type = GEMMD_ABI_TYPE_U8,
                                         .c_type = GEMMD_ABI_TYPE_F32,
                                         .scale_count = 1,
                                         .a_scale = 1.0f,
                                         .c_scale = 1.0f,
                                         .b_type = GEMMD_ABI_TYPE_S8};
}

static bool assert_desc(const struct gemmd_layer_desc_abi *desc)
{
    struct gemmd_layer_image image = {0};
    enum gemmd_status status = gemmd_validate_layer_desc(desc, &image);
    oracle_set faults = oracle_layer_desc(desc);

    if (!oracle_agrees(status, faults))
        fail_msg("n %u k %u types %u %u %u %u act %u scales %u zp %d %d a_scale %#x c_scale %#x "
                 "mode %u zero points %u group %u clip %#x %#x: %s, the oracle says %#llx %#llx",
                 desc->n, desc->k, desc->a_type, desc->b_type, desc->c_type, desc->bias_type,
                 desc->activation, desc->scale_count, desc->a_zero_point, desc->c_zero_point,
                 oracle_bits(desc->a_scale), oracle_bits(desc->c_scale), desc->quantize_mode,
                 desc->b_zero_points, desc->group, oracle_bits(desc->clip_lo),
                 oracle_bits(desc->clip_hi), gemmd_status_name_of(status),
                 (unsigned long long)(faults >> 64), (unsigned long long)faults);
    if (status != GEMMD_STATUS_OK)
        return false;
    assert_true((oracle_int)image.bytes == oracle_image_bytes(desc));
    assert_true((oracle_int)image.weights_bytes == oracle_weights_bytes(desc));
    assert_int_equal((image.multipliers_offset | image.scales_offset | image.bias_offset |
                      image.zero_points_offset | image.bytes) % 64, 0);
    assert_in_range(image.multipliers_offset - image.weights_bytes, 0, 63);
    assert_in_range(image.scales_offset - image.multipliers_offset - image.multipliers_bytes, 0,
                    63);
    assert_in_range(image.bias_offset - image.scales_offset - 4ull * desc->scale_count, 0, 63);
    assert_in_range(image.zero_points_offset - image.bias_offset -
                    (desc->bias_type ? 4ull * desc->n : 0), 0, 63);
    assert_in_range(image.bytes - image.zero_points_offset -
                    (desc->b_zero_points ? desc->n : 0), 0, 63);
    return true;
}

static void test_types(void **state)
{
    struct gemmd_layer_desc_abi desc = good_desc();
    uint32_t accepted = 0;

    (void)state;
    for (uint32_t word = 0; word < 8 * 8 * 8 * 8 * 8; word++) {
        desc.a_type = word & 7;
        desc.c_type = word >> 3 & 7;
        desc.bias_type = word >> 6 & 7;
        desc.activation = (uint8_t)(word >> 9 & 7);
        desc.b_type = (uint8_t)(word >> 12 & 7);
        desc.group = desc.b_type == GEMMD_ABI_TYPE_S4 ? 64 : 0;
        accepted += assert_desc(&desc);
    }
    /* u8 and s8 rows of s8 weights: to u8, s8, f32, bf16 with 3 biases x 6 activations, to s32 with
     * 2 biases; f32 and bf16 rows of s8 weights, and u8, f32 and bf16 rows of s4 weights: to u8,
     * s8, f32, bf16 with 2 biases x 6 activations. */
    assert_int_equal(accepted, 2 * (4 * 3 * 6 + 2) + (2 + 3) * 4 * 2 * 6);
    for (uint32_t value = 8; value < 256; value++) {
        desc = good_desc();
        desc.a_type = (uint8_t)value;
        assert_false(assert_desc(&desc));
        desc = good_desc();
        desc.c_type = (uint8_t)value;
        assert_false(assert_desc(&desc));
        desc = good_desc();
        desc.bias_type = (uint8_t)value;
        assert_false(assert_desc(&desc));
        desc = good_desc();
        desc.activation = (uint8_t)value;
        assert_false(assert_desc(&desc));
        desc = good_desc();
        desc.b_type = (uint8_t)value;
        assert_false(assert_desc(&desc));
    }
}

/* Fields that only some layers have. */
static void test_options(void **state)
{
    static const uint8_t types[][2] = {{1, 2}, {2, 2}, {4, 2}, {5, 2}, {1, 6}, {4, 6}, {5, 6}};
    static const uint32_t groups[] = {0, 1, 16, 31, 32, 33, 48, 63, 64, 96, 127, 128, 129, 256,
                                      UINT32_MAX};
    uint32_t accepted = 0;

    (void)state;
    for (size_t i = 0; i < COUNT(types); i++)
        for (uint32_t mode = 0; mode < 256; mode++)
            for (uint32_t points = 0; points < 256; points += points < 3 ? 1 : 42)
                for (size_t g = 0; g < COUNT(groups); g++) {
                    struct gemmd_layer_desc_abi desc = good_desc();

                    desc.a_type = types[i][0];
                    desc.b_type = types[i][1];
                    desc.quantize_mode = (uint8_t)mode;
                    desc.b_zero_points = (uint8_t)points;
                    desc.group = groups[g];
                    accepted += assert_desc(&desc);
                }
    /* s8 weights: 2 + 2 x 2 modes, with and without zero points; s4: 3 groups, 1 + 2 x 2 modes. */
    assert_int_equal(accepted, 6 * 2 + 5 * 3);
}

static void test_clip(void **state)
{
    (void)state;
    for (uint8_t activation = 0; activation < 8; activation++)
        for (size_t i = 0; i < COUNT(float_bits); i++)
            for (size_t j = 0; j < COUNT(float_bits); j++) {
                struct gemmd_layer_desc_abi desc = good_desc();

                desc.activation = activation;
                desc.clip_lo = from_bits(float_bits[i]);
                desc.clip_hi = from_bits(float_bits[j]);
                assert_desc(&desc);
            }
}

static void test_row_scales(void **state)
{
    static const uint8_t a_types[] = {1, 2, 4, 5}, b_types[] = {2, 6};
    uint32_t accepted = 0;

    (void)state;
    for (uint32_t scales = 0; scales < 256; scales++)
        for (size_t a = 0; a < COUNT(a_types); a++)
            for (size_t b = 0; b < COUNT(b_types); b++)
                for (uint8_t c_type = 1; c_type <= 5; c_type++)
                    for (uint8_t bias_type = 0; bias_type <= 4; bias_type++) {
                        struct gemmd_layer_desc_abi desc = good_desc();

                        desc.a_row_scales = (uint8_t)scales;
                        desc.a_type = a_types[a];
                        desc.b_type = b_types[b];
                        desc.group = desc.b_type == 6 ? 32 : 0;
                        desc.c_type = c_type;
                        desc.bias_type = bias_type;
                        accepted += assert_desc(&desc) && scales;
                    }
    /* u8 and s8 with s8, u8 with s4; four outputs, with and without an f32 bias. */
    assert_int_equal(accepted, 3 * 4 * 2);
}

static void test_residual(void **state)
{
    uint32_t accepted = 0;

    (void)state;
    for (uint32_t type = 0; type < 256; type++)
        for (uint8_t c_type = 1; c_type <= 5; c_type++)
            for (size_t i = 0; i < COUNT(float_bits); i++)
                for (size_t j = 0; j < COUNT(zero_points); j++) {
                    struct gemmd_layer_desc_abi desc = good_desc();

                    desc.c_type = c_type;
                    desc.residual_type = (uint8_t)type;
                    desc.residual_scale = from_bits(float_bits[i]);
                    desc.residual_zero_point = zero_points[j];
                    accepted += assert_desc(&desc);
                }
    /* None and floats: scales of +-0 and no zero point; u8 and s8: 5 of the zero points, 8 of the
     * scales; all but none: not with an s32 output. */
    assert_int_equal(accepted, (5 + 4 + 4) * 2 + 4 * (5 + 5) * 8);
}

/* With zero points of B the sums have less room. */
static void test_depth_with_zero_points(void **state)
{
    struct gemmd_layer_desc_abi desc = good_desc();

    (void)state;
    desc.b_zero_points = 1;
    for (desc.k = 33000; desc.k < 33050; desc.k++)
        assert_int_equal(assert_desc(&desc), desc.k <= 33025);
    desc.k = 65536;
    assert_false(assert_desc(&desc));
}

static void test_extents(void **state)
{
    struct gemmd_layer_desc_abi desc = good_desc();

    (void)state;
    for (size_t i = 0; i < COUNT(extents); i++)
        for (size_t j = 0; j < COUNT(extents); j++)
            for (size_t k = 0; k < COUNT(extents); k++)
                for (int bias = 0; bias < 2; bias++) {
                    desc.n = extents[i];
                    desc.k = extents[j];
                    desc.scale_count = extents[k];
                    desc.bias_type = bias ? GEMMD_ABI_TYPE_S32 : GEMMD_ABI_TYPE_NONE;
                    assert_desc(&desc);
                    desc.scale_count = desc.n;
                    assert_desc(&desc);
                }
}

/* The image's limit, to the byte: 2^20 x 4095 fits with scales and bias, 4096 does not. */
static void test_image_limit(void **state)
{
    struct gemmd_layer_desc_abi desc = good_desc();

    (void)state;
    desc.n = GEMMD_N_MAX;
    desc.k = 4095;
    assert_true(assert_desc(&desc));
    desc.k = 4096;
    assert_false(assert_desc(&desc));
    desc.n = 65535;
    desc.k = 65536;
    desc.scale_count = 1;
    assert_true(assert_desc(&desc)); /* 2^32 - 65536 + 64 */
    desc.n = 65536;
    assert_false(assert_desc(&desc));
    for (desc.n = 65520; desc.n <= 65536; desc.n++)
        for (int bias = 0; bias < 2; bias++) {
            desc.bias_type = bias ? GEMMD_ABI_TYPE_S32 : GEMMD_ABI_TYPE_NONE;
            desc.scale_count = desc.n;
            assert_desc(&desc);
        }
}

static void test_zero_points(void **state)
{
    struct gemmd_layer_desc_abi desc = good_desc();

    (void)state;
    for (uint8_t a_type = 1; a_type <= 5; a_type++)
        for (uint8_t c_type = 1; c_type <= 5; c_type++)
            for (size_t i = 0; i < COUNT(zero_points); i++)
                for (size_t j = 0; j < COUNT(zero_points); j++) {
                    desc.a_type = a_type;
                    desc.c_type = c_type;
                    desc.a_zero_point = zero_points[i];
                    desc.c_zero_point = zero_points[j];
                    assert_desc(&desc);
                }
}

static void test_scales(void **state)
{
    struct gemmd_layer_desc_abi desc = good_desc();

    (void)state;
    for (size_t i = 0; i < COUNT(float_bits); i++)
        for (size_t j = 0; j < COUNT(float_bits); j++) {
            desc.a_scale = from_bits(float_bits[i]);
            desc.c_scale = from_bits(float_bits[j]);
            for (desc.a_type = 1; desc.a_type <= 5; desc.a_type++)
                assert_desc(&desc);
            desc.a_type = GEMMD_ABI_TYPE_U8;
        }
    for (int i = 0; i < 1000000; i++) {
        desc.a_scale = from_bits((uint32_t)random_u64());
        desc.c_scale = from_bits((uint32_t)random_u64() >> random_below(12));
        assert_desc(&desc);
    }
}

static void test_reserved(void **state)
{
    (void)state;
    for (size_t i = 0; i < 7; i++)
        for (uint32_t bit = 0; bit < 8; bit++) {
            struct gemmd_layer_desc_abi desc = good_desc();

            desc.reserved[i] = (uint8_t)(1u << bit);
            assert_false(assert_desc(&desc));
        }
}

static void test_random_descs(void **state)
{
    (void)state;
    for (int i = 0; i < 1000000; i++) {
        struct gemmd_layer_desc_abi desc = good_desc();
        unsigned char bytes[sizeof(desc)];
        uint32_t flips = random_below(4);

        desc.n = extents[random_below(COUNT(extents))];
        desc.k = extents[random_below(COUNT(extents))];
        desc.scale_count = random_below(2) ? desc.n : 1;
        if (random_below(2)) {
            desc.b_type = GEMMD_ABI_TYPE_S4;
            desc.group = UINT32_C(32) << random_below(3);
        }
        memcpy(bytes, &desc, sizeof(bytes));
        while (flips--)
            bytes[random_below(sizeof(bytes))] ^= (unsigned char)(1 << random_below(8));
        memcpy(&desc, bytes, sizeof(desc));
        assert_desc(&desc);
    }
}

/* ---- values ---------------------------------------------------------------------------------- */

/* An image of exactly its size, so that ASan sees any step beyond. */
static char *make_image(const struct gemmd_layer_desc_abi *desc, struct gemmd_layer_image *image)
{
    char *data;

    assert_int_equal(gemmd_validate_layer_desc(desc, image), GEMMD_STATUS_OK);
    data = aligned_alloc(64, image->bytes);
    assert_non_null(data);
    memset(data, 0, image->bytes);
    return data;
}

static void set_float(char *data, uint64_t offset, uint32_t index, float value)
{
    memcpy(data + offset + 4ull * index, &value, sizeof(value));
}

static void test_scale_values(void **state)
{
    struct gemmd_layer_desc_abi desc = good_desc();
    struct gemmd_layer_image image;
    char *data;

    (void)state;
    desc.scale_count = desc.n;
    data = make_image(&desc, &image);
    for (size_t a = 0; a < COUNT(float_bits); a++) {
        desc.a_scale = from_bits(float_bits[a]);
        if (!oracle_scale(desc.a_scale))
            continue;
        for (size_t b = 0; b < COUNT(float_bits); b++)
            for (uint32_t at = 0; at < desc.n; at++) {
                float value = from_bits(float_bits[b]);
                /* Exact in double; a product rounds to a finite float below 2^128 - 2^103. */
                bool good =
                    oracle_finite(value) && fabs((double)value * desc.a_scale) < 0x1.ffffffp127;

                set_float(data, image.scales_offset, at, value);
                assert_int_equal(gemmd_validate_layer_values(&desc, &image, data),
                                 good ? GEMMD_STATUS_OK : GEMMD_STATUS_B_SCALE);
                set_float(data, image.scales_offset, at, 0.0f);
            }
    }
    free(data);
}

static void test_bias_values(void **state)
{
    struct gemmd_layer_desc_abi desc = good_desc();
    struct gemmd_layer_image image;
    char *data;

    (void)state;
    desc.bias_type = GEMMD_ABI_TYPE_F32;
    data = make_image(&desc, &image);
    for (size_t b = 0; b < COUNT(float_bits); b++)
        for (uint32_t at = 0; at < desc.n; at++) {
            float value = from_bits(float_bits[b]);

            set_float(data, image.bias_offset, at, value);
            assert_int_equal(gemmd_validate_layer_values(&desc, &image, data),
                             oracle_finite(value) ? GEMMD_STATUS_OK : GEMMD_STATUS_BIAS);
            set_float(data, image.bias_offset, at, 0.0f);
        }
    free(data);
    /* An s32 bias may have any bits; weights too. */
    desc.bias_type = GEMMD_ABI_TYPE_S32;
    data = make_image(&desc, &image);
    memset(data + image.bias_offset, 0xff, 4ull * desc.n);
    memset(data, 0xff, image.weights_bytes);
    assert_int_equal(gemmd_validate_layer_values(&desc, &image, data), GEMMD_STATUS_OK);
    free(data);
}

/* ---- names and types ------------------------------------------------------------------------- */

static void test_names(void **state)
{
    char name[GEMMD_NAME_BYTES];

    (void)state;
    for (size_t length = 0; length <= sizeof(name); length++)
        for (size_t at = 0; at < sizeof(name); at++)
            for (int byte = 0; byte < 256; byte++) {
                memset(name, 'x', sizeof(name));
                memset(name + length, 0, sizeof(name) - length);
                name[at] = (char)byte;
                for (int empty = 0; empty < 2; empty++)
                    assert_int_equal(gemmd_validate_name(name, empty), oracle_name(name, empty)
                                                                           ? GEMMD_STATUS_OK
                                                                           : GEMMD_STATUS_NAME);
            }
}

static void test_type_bytes(void **state)
{
    static const uint32_t bytes[] = {0, 1, 1, 4, 4, 2};

    (void)state;
    for (uint32_t type = 0; type < 256; type++)
        assert_int_equal(gemmd_abi_type_bytes((uint8_t)type),
                         type < COUNT(bytes) ? bytes[type] : 0);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_options),      cmocka_unit_test(test_clip),
        cmocka_unit_test(test_residual),     cmocka_unit_test(test_row_scales),
        cmocka_unit_test(test_depth_with_zero_points),
        cmocka_unit_test(test_types),        cmocka_unit_test(test_extents),
        cmocka_unit_test(test_image_limit),  cmocka_unit_test(test_zero_points),
        cmocka_unit_test(test_scales),       cmocka_unit_test(test_reserved),
        cmocka_unit_test(test_random_descs), cmocka_unit_test(test_scale_values),
        cmocka_unit_test(test_bias_values),  cmocka_unit_test(test_names),
        cmocka_unit_test(test_type_bytes),
    };

    random_seed(argc, argv);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
