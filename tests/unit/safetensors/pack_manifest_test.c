/*
 * tools/pack_manifest: what a manifest or the names of tensors say becomes exactly that, and what
 * they must not say is refused with a reason that names the layer and the field.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "proto/limits.h"
#include "tools/pack_manifest.h"

#ifdef NDEBUG
#error "tests need their assertions"
#endif

static bool calloc_fails;

void *__real_calloc(size_t count, size_t bytes);
void *__wrap_calloc(size_t count, size_t bytes);

void *__wrap_calloc(size_t count, size_t bytes)
{
    return calloc_fails ? NULL : __real_calloc(count, bytes);
}

/* A file of these tensors, whose data is zeros. */
static struct safetensors *open_file(const char *header, uint64_t data_bytes)
{
    int fd = memfd_create("manifest-test", MFD_CLOEXEC);
    uint64_t bytes = strlen(header);
    struct safetensors *file;
    char error[512];

    assert_true(fd >= 0);
    assert_int_equal(write(fd, &bytes, sizeof(bytes)), sizeof(bytes));
    assert_int_equal(write(fd, header, bytes), bytes);
    assert_int_equal(ftruncate(fd, (off_t)(sizeof(bytes) + bytes + data_bytes)), 0);
    if (safetensors_open_fd(fd, "test", &file, error, sizeof(error)) != 0)
        fail_msg("%s", error);
    close(fd);
    return file;
}

/* Tensors of all the kinds that are asked for, right and wrong. */
static const char tensors[] =
    "{\"i.weight\":{\"dtype\":\"I8\",\"shape\":[2,3],\"data_offsets\":[0,6]},"
    "\"f.weight\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[6,30]},"
    "\"h.weight\":{\"dtype\":\"BF16\",\"shape\":[2,3],\"data_offsets\":[30,42]},"
    "\"s1\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[42,46]},"
    "\"s2\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[46,54]},"
    "\"s3\":{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[54,66]},"
    "\"s22\":{\"dtype\":\"F32\",\"shape\":[2,1],\"data_offsets\":[66,74]},"
    "\"b2\":{\"dtype\":\"I32\",\"shape\":[2],\"data_offsets\":[74,82]},"
    "\"rank1\":{\"dtype\":\"I8\",\"shape\":[2],\"data_offsets\":[82,84]},"
    "\"u8\":{\"dtype\":\"U8\",\"shape\":[2,3],\"data_offsets\":[84,90]},"
    "\"no rows\":{\"dtype\":\"I8\",\"shape\":[0,3],\"data_offsets\":[90,90]},"
    "\"no columns\":{\"dtype\":\"I8\",\"shape\":[2,0],\"data_offsets\":[90,90]},"
    "\"high\":{\"dtype\":\"I8\",\"shape\":[1048577,0],\"data_offsets\":[90,90]},"
    "\"wide\":{\"dtype\":\"I8\",\"shape\":[1,65537],\"data_offsets\":[90,65627]}}";
#define TENSOR_BYTES 65627

static int read_text(const struct safetensors *file, const char *text, struct pack_layer **layers,
                     size_t *count, struct pack_error *error)
{
    FILE *manifest = fmemopen((void *)(uintptr_t)text, strlen(text), "r");
    int result;

    assert_non_null(manifest);
    result = pack_manifest_read(file, manifest, layers, count, error);
    fclose(manifest);
    return result;
}

/* ---- what is read ---------------------------------------------------------------------------- */

static void test_defaults(void **state)
{
    struct safetensors *file = open_file(tensors, TENSOR_BYTES);
    struct pack_layer *layers;
    struct pack_error error;
    size_t count;

    (void)state;
    assert_int_equal(read_text(file, "{\"i\":{}}", &layers, &count, &error), 0);
    assert_int_equal(count, 1);
    assert_string_equal(layers->name, "i");
    assert_ptr_equal(layers->weights, safetensors_find(file, "i.weight"));
    assert_null(layers->scales);
    assert_null(layers->bias);
    assert_int_equal(layers->method, QUANTIZE_MIN_MAX);
    assert_int_equal(layers->desc.n, 2);
    assert_int_equal(layers->desc.k, 3);
    assert_int_equal(layers->desc.scale_count, 1);
    assert_int_equal(layers->desc.a_type, GEMMD_ABI_TYPE_U8);
    assert_int_equal(layers->desc.b_type, GEMMD_ABI_TYPE_S8);
    assert_int_equal(layers->desc.c_type, GEMMD_ABI_TYPE_F32);
    assert_int_equal(layers->desc.bias_type, GEMMD_ABI_TYPE_NONE);
    assert_true(layers->desc.a_scale == 1 && layers->desc.c_scale == 1);
    assert_int_equal(layers->desc.group, 0);
    free(layers);
    safetensors_close(&file);
}

static void test_every_field(void **state)
{
    static const char text[] =
        "{\"all\":{\"weights\":\"f.weight\",\"bias\":\"b2\",\"a_type\":\"s8\",\"c_type\":\"u8\","
        "\"activation\":\"clip\",\"a_scale\":0.5,\"a_zero_point\":-3,\"c_scale\":\"0.25\","
        "\"c_zero_point\":7,\"b_type\":\"s4\",\"group\":32,\"quantize_mode\":\"symmetric\","
        "\"clip_lo\":-1,\"clip_hi\":1.5,\"residual_type\":\"u8\",\"a_row_scales\":1,"
        "\"residual_scale\":2,\"residual_zero_point\":5,\"quantize_method\":\"l2\"},"
        "\"h\":{\"b_type\":\"s4\"},\"i\":{\"scales\":\"s2\",\"a_row_scales\":2}}";
    struct safetensors *file = open_file(tensors, TENSOR_BYTES);
    const struct gemmd_layer_desc_abi *desc;
    struct pack_layer *layers;
    struct pack_error error;
    size_t count;

    (void)state;
    assert_int_equal(read_text(file, text, &layers, &count, &error), 0);
    assert_int_equal(count, 3);
    desc = &layers[0].desc;
    assert_int_equal(desc->a_type, GEMMD_ABI_TYPE_S8);
    assert_int_equal(desc->b_type, GEMMD_ABI_TYPE_S4);
    assert_int_equal(desc->c_type, GEMMD_ABI_TYPE_U8);
    assert_int_equal(desc->activation, GEMMD_ABI_ACTIVATION_CLIP);
    assert_true(desc->a_scale == 0.5F && desc->c_scale == 0.25F);
    assert_int_equal(desc->a_zero_point, -3);
    assert_int_equal(desc->c_zero_point, 7);
    assert_int_equal(desc->group, 32);
    assert_int_equal(desc->quantize_mode, GEMMD_ABI_QUANTIZE_SYMMETRIC);
    assert_true(desc->clip_lo == -1 && desc->clip_hi == 1.5F);
    assert_int_equal(desc->residual_type, GEMMD_ABI_TYPE_U8);
    assert_true(desc->residual_scale == 2);
    assert_int_equal(desc->residual_zero_point, 5);
    assert_int_equal(desc->a_row_scales, 1);
    assert_int_equal(desc->bias_type, GEMMD_ABI_TYPE_S32);
    assert_int_equal(desc->scale_count, 2); /* floats get one for each channel */
    assert_int_equal(layers[0].method, QUANTIZE_L2);
    assert_int_equal(layers[1].desc.group, 64); /* of s4, unless it is said */
    assert_int_equal(layers[2].desc.scale_count, 2);
    assert_int_equal(layers[2].desc.a_row_scales, 255); /* the description's check refuses it */
    free(layers);
    safetensors_close(&file);
}

/* ---- what is refused ------------------------------------------------------------------------- */

#define I(fields) "{\"i\":{" fields "}}"
#define F(fields) "{\"f\":{" fields "}}"
#define A20 "aaaaaaaaaaaaaaaaaaaa"
#define A300 A20 A20 A20 A20 A20 A20 A20 A20 A20 A20 A20 A20 A20 A20 A20

static void test_refusals(void **state)
{
    static const char *const cases[][2] = {
        {" ", "manifest: line"},
        {"[]", "manifest: not an object"},
        {"{}", "0 layers; 1 to"},
        {"{\"i\":{},\"i\":{}}", "manifest: line 1: duplicate"},
        {"{\"i\":1}", "layer 'i': not an object"},
        {"{\"a\\u001bb\":1}", "layer 'a?b': not an object"},
        {"{\"" A20 A20 A20 A20 "\":{}}", "name: longer than 63 bytes"},
        {I("\"Weights\":\"x\""), "'Weights' is not a field"},
        {I("\"weights\":1"), "weights: tensor '1' is missing"},
        {I("\"weights\":[]"), "weights: not the name of a tensor"},
        {I("\"weights\":\"" A300 "\""), "weights: not the name of a tensor"},
        {I("\"scales\":\"none\""), "scales: tensor 'none' is missing"},
        {I("\"bias\":\"none\""), "bias: tensor 'none' is missing"},
        {"{\"j\":{}}", "weights: no tensor 'j.weight'"},
        {I("\"weights\":\"rank1\""), "is not of rank 2"},
        {I("\"weights\":\"u8\""), "is U8; I8, F32 and BF16 are read"},
        {I("\"weights\":\"no rows\""), "weights: n is 0"},
        {I("\"weights\":\"high\""), "weights: n is 1048577"},
        {I("\"weights\":\"no columns\""), "weights: k is 0"},
        {I("\"weights\":\"wide\""), "weights: k is 65537"},
        {I("\"scales\":\"b2\""), "scales: tensor 'b2' is not F32"},
        {I("\"scales\":\"s3\""), "scales: tensor 's3' is not F32"},
        {I("\"scales\":\"s22\""), "scales: tensor 's22' is not F32"},
        {F("\"scales\":\"s1\""), "scales: the weights are not quantised"},
        {I("\"bias\":\"rank1\""), "bias: tensor 'rank1' is not F32 or I32"},
        {I("\"bias\":\"s22\""), "bias: tensor 's22' is not F32 or I32"},
        {I("\"bias\":\"s3\""), "bias: tensor 's3' is not F32 or I32"},
        {I("\"a_type\":\"f64\""), "a_type: 'f64' is unknown"},
        {I("\"a_type\":true"), "a_type: not a string"},
        {I("\"b_type\":\"i4\""), "b_type: 'i4' is unknown"},
        {I("\"b_type\":\"s4\""), "b_type: s4 is made of F32 and BF16"},
        {I("\"c_type\":\"x\""), "c_type: 'x' is unknown"},
        {I("\"activation\":\"tanh\""), "activation: 'tanh' is unknown"},
        {I("\"residual_type\":\"x\""), "residual_type: 'x' is unknown"},
        {I("\"quantize_mode\":\"x\""), "quantize_mode: 'x' is unknown"},
        {I("\"quantize_method\":\"x\""), "quantize_method: 'x' is unknown"},
        {I("\"quantize_method\":\"l2\""), "quantize_method: the weights 'i.weight' are"},
        {I("\"a_scale\":\"1x\""), "a_scale: '1x' is not a number"},
        {I("\"a_scale\":\"inf\""), "a_scale: 'inf' is not a number"},
        {I("\"a_scale\":\"nan\""), "a_scale: 'nan' is not a number"},
        {I("\"a_scale\":{}"), "a_scale: not a number"},
        {I("\"c_scale\":null"), "c_scale: not a number"},
        {I("\"clip_lo\":\"-\""), "clip_lo: '-' is not a number"},
        {I("\"clip_hi\":\"-\""), "clip_hi: '-' is not a number"},
        {I("\"residual_scale\":\"-\""), "residual_scale: '-' is not a number"},
        {I("\"residual_zero_point\":0.5"), "residual_zero_point: 0.5 is not an integer"},
        {I("\"a_zero_point\":1e10"), "a_zero_point: 1e+10 is not an integer"},
        {I("\"c_zero_point\":-2147483648"), "c_zero_point: -2.14748e+09 is not an integer"},
        {I("\"a_row_scales\":\"x\""), "a_row_scales: 'x' is not a number"},
        {I("\"group\":1.5"), "group: 1.5 is not an integer"},
        /* The first of two is named, whatever the second says. */
        {"{\"i\":{\"x\":1},\"f\":2}", "layer 'i': 'x' is not a field"},
    };
    struct safetensors *file = open_file(tensors, TENSOR_BYTES);

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct pack_layer *layers = (void *)-1;
        struct pack_error error;
        size_t count;

        if (read_text(file, cases[i][0], &layers, &count, &error) != -EBADMSG ||
            !strstr(error.text, cases[i][1]))
            fail_msg("%s: \"%s\" does not say \"%s\"", cases[i][0], error.text, cases[i][1]);
        assert_null(layers);
    }
    safetensors_close(&file);
}

/* ---- by names -------------------------------------------------------------------------------- */

static void test_by_names(void **state)
{
    static const char header[] =
        "{\"__metadata__\":{\"p.q.c_type\":\"s8\",\"p.q.a_zero_point\":\"12\"},"
        "\"p.q.weight\":{\"dtype\":\"I8\",\"shape\":[2,3],\"data_offsets\":[0,6]},"
        "\"p.q.weight_scale\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[6,14]},"
        "\"p.q.bias\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[14,22]},"
        "\"norm.weight\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[22,30]},"
        "\".weight\":{\"dtype\":\"I8\",\"shape\":[1,1],\"data_offsets\":[30,31]},"
        "\"weights\":{\"dtype\":\"I8\",\"shape\":[1,1],\"data_offsets\":[31,32]},"
        "\"a longer name\":{\"dtype\":\"I8\",\"shape\":[1,1],\"data_offsets\":[32,33]}}";
    struct safetensors *file = open_file(header, 33);
    struct pack_layer *layers;
    struct pack_error error;
    size_t count;

    (void)state;
    assert_int_equal(pack_manifest_read(file, NULL, &layers, &count, &error), 0);
    assert_int_equal(count, 1);
    assert_string_equal(layers->name, "p.q");
    assert_int_equal(layers->desc.c_type, GEMMD_ABI_TYPE_S8);
    assert_int_equal(layers->desc.a_zero_point, 12);
    assert_int_equal(layers->desc.scale_count, 2);
    assert_int_equal(layers->desc.bias_type, GEMMD_ABI_TYPE_F32);
    free(layers);
    safetensors_close(&file);

    file = open_file("{\"__metadata__\":{\"p.c_type\":\"q\"},"
                     "\"p.weight\":{\"dtype\":\"I8\",\"shape\":[1,1],\"data_offsets\":[0,1]}}", 1);
    assert_int_equal(pack_manifest_read(file, NULL, &layers, &count, &error), -EBADMSG);
    assert_string_equal(error.text, "layer 'p': c_type: 'q' is unknown");
    assert_null(layers);
    safetensors_close(&file);

    file = open_file("{}", 0);
    assert_int_equal(pack_manifest_read(file, NULL, &layers, &count, &error), -EBADMSG);
    assert_non_null(strstr(error.text, "0 layers"));
    safetensors_close(&file);
}

/* One more than a worker has room for. */
static void test_too_many(void **state)
{
    enum { COUNT = GEMMD_WORKER_LAYERS_MAX + 1, EACH = 80 };
    char *header = malloc((size_t)COUNT * EACH + 3);
    struct safetensors *file;
    struct pack_layer *layers;
    struct pack_error error;
    size_t count, at = 0;

    (void)state;
    assert_non_null(header);
    for (unsigned i = 0; i < COUNT; i++)
        at += (size_t)snprintf(header + at, EACH, "%c\"%u.weight\":{\"dtype\":\"I8\",\"shape\":"
                               "[1,1],\"data_offsets\":[%u,%u]}", i ? ',' : '{', i, i, i + 1);
    memcpy(header + at, "}", 2);
    file = open_file(header, COUNT);
    free(header);
    assert_int_equal(pack_manifest_read(file, NULL, &layers, &count, &error), -EBADMSG);
    assert_non_null(strstr(error.text, "4097 layers; 1 to 4096"));
    assert_null(layers);
    safetensors_close(&file);
}

static void test_no_memory(void **state)
{
    struct safetensors *file = open_file(tensors, TENSOR_BYTES);
    struct pack_layer *layers;
    struct pack_error error;
    size_t count;

    (void)state;
    calloc_fails = true;
    assert_int_equal(read_text(file, I(""), &layers, &count, &error), -ENOMEM);
    assert_null(layers);
    assert_int_equal(pack_manifest_read(file, NULL, &layers, &count, &error), -ENOMEM);
    assert_null(layers);
    calloc_fails = false;
    safetensors_close(&file);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults),
        cmocka_unit_test(test_every_field),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_by_names),
        cmocka_unit_test(test_too_many),
        cmocka_unit_test(test_no_memory),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
