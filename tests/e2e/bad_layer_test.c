/*
 * Layers that cannot be: each description, upload and name that is wrong gets the status of the
 * field at fault over the wire, and -errno with a text that names the field from the library.
 */
#include "tests/harness.h"

#include <errno.h>
#include <math.h>
#include <string.h>
#include <unistd.h>

#include "tests/e2e/layer_case.h"
#include "tests/e2e/machine.h"
#include "tests/e2e/raw.h"

static struct harness_worker worker;

static struct gemmd_layer_desc_abi good_desc(void)
{
    return (struct gemmd_layer_desc_abi){.n = 4,
                                         .k = 8,
                                         .a_type = GEMMD_ABI_TYPE_U8,
                                         .c_type = GEMMD_ABI_TYPE_F32,
                                         .scale_count = 1,
                                         .a_scale = 1.0f,
                                         .c_scale = 1.0f,
                                         .b_type = GEMMD_ABI_TYPE_S8};
}

static int create(struct raw *raw, const struct gemmd_layer_desc_abi *desc, const char *name)
{
    struct gemmd_msg_layer_create request = {
        .header = raw_header(raw, GEMMD_MSG_LAYER_CREATE, sizeof(request)), .desc = *desc};
    struct gemmd_msg_layer_reply reply;

    request.content_id[0] = 0x1234;
    if (name)
        memcpy(request.name, name, strlen(name));
    return raw_call(raw, &request, &reply, sizeof(reply));
}

/* ---- descriptions over the wire -------------------------------------------------------------- */

#define WRONG(field, value, expected)                                                              \
    do {                                                                                           \
        struct gemmd_layer_desc_abi wrong = good_desc();                                           \
        wrong.field = (value);                                                                     \
        assert_int_equal(create(&raw, &wrong, NULL), GEMMD_STATUS_##expected);                     \
    } while (0)

static void test_descriptions(void **state)
{
    struct gemmd_layer_desc_abi desc = good_desc();
    struct raw raw;

    (void)state;
    raw_open(&raw, worker.socket, 8, 1 << 16);
    WRONG(n, 0, N);
    WRONG(n, GEMMD_N_MAX + 1, N);
    WRONG(n, UINT32_MAX, N);
    WRONG(k, 0, K);
    WRONG(k, GEMMD_K_MAX + 1, K);
    WRONG(a_type, GEMMD_ABI_TYPE_NONE, A_TYPE);
    WRONG(a_type, GEMMD_ABI_TYPE_S32, A_TYPE);
    WRONG(a_type, GEMMD_ABI_TYPE_S4, A_TYPE);
    WRONG(a_type, 255, A_TYPE);
    WRONG(c_type, GEMMD_ABI_TYPE_NONE, C_TYPE);
    WRONG(c_type, GEMMD_ABI_TYPE_S4, C_TYPE);
    WRONG(c_type, 7, C_TYPE);
    WRONG(bias_type, GEMMD_ABI_TYPE_U8, BIAS_TYPE);
    WRONG(bias_type, 77, BIAS_TYPE);
    WRONG(activation, 6, ACTIVATION);
    WRONG(scale_count, 0, SCALE_COUNT);
    WRONG(scale_count, 5, SCALE_COUNT);
    WRONG(a_zero_point, -1, A_ZERO_POINT);
    WRONG(a_zero_point, 256, A_ZERO_POINT);
    WRONG(c_zero_point, 1, C_ZERO_POINT); /* an f32 output has none */
    WRONG(a_scale, 0.0f, A_SCALE);
    WRONG(a_scale, -1.0f, A_SCALE);
    WRONG(a_scale, NAN, A_SCALE);
    WRONG(c_scale, INFINITY, C_SCALE);
    WRONG(c_scale, 1e-45f, C_SCALE); /* its inverse is infinite */
    WRONG(reserved[0], 1, RESERVED);
    WRONG(reserved[1], 1, RESERVED);
    desc.c_type = GEMMD_ABI_TYPE_S32;
    desc.activation = GEMMD_ABI_ACTIVATION_RELU;
    assert_int_equal(create(&raw, &desc, NULL), GEMMD_STATUS_ACTIVATION);
    desc = good_desc();
    desc.n = GEMMD_N_MAX;
    desc.k = GEMMD_K_MAX; /* 64 GiB */
    assert_int_equal(create(&raw, &desc, NULL), GEMMD_STATUS_LAYER_BYTES);
    desc.k = 1024; /* 1 GiB, above --pool-bytes 256M */
    assert_int_equal(create(&raw, &desc, NULL), GEMMD_STATUS_POOL_FULL);
    desc = good_desc();
    assert_int_equal(create(&raw, &desc, "sp ace"), GEMMD_STATUS_NAME);
    assert_int_equal(create(&raw, &desc, "\x01"), GEMMD_STATUS_NAME);
    assert_int_equal(create(&raw, &desc, "0123456789012345678901234567890123456789"
                                         "012345678901234567890123"), GEMMD_STATUS_NAME);
    assert_int_equal(create(&raw, &desc, "good"), GEMMD_STATUS_OK);
    raw_close(&raw);
}

#define WRONG_OF(base, field, value, expected)                                                     \
    do {                                                                                           \
        struct gemmd_layer_desc_abi wrong = (base);                                                \
        wrong.field = (value);                                                                     \
        assert_int_equal(create(raw, &wrong, NULL), GEMMD_STATUS_##expected);                      \
    } while (0)

static void check_float_rows(struct raw *raw)
{
    struct gemmd_layer_desc_abi desc = good_desc();

    for (desc.a_type = GEMMD_ABI_TYPE_F32; desc.a_type <= GEMMD_ABI_TYPE_BF16; desc.a_type++) {
        assert_int_equal(create(raw, &desc, NULL), GEMMD_STATUS_OK);
        WRONG_OF(desc, c_type, GEMMD_ABI_TYPE_S32, C_TYPE);
        WRONG_OF(desc, bias_type, GEMMD_ABI_TYPE_S32, BIAS_TYPE);
        WRONG_OF(desc, quantize_mode, 2, QUANTIZE_MODE);
        WRONG_OF(desc, a_row_scales, 1, A_ROW_SCALES);
        WRONG_OF(desc, quantize_mode, 255, QUANTIZE_MODE);
        WRONG_OF(desc, a_zero_point, 1, A_ZERO_POINT);
        WRONG_OF(desc, a_scale, 0.5f, A_SCALE);
        WRONG_OF(desc, a_scale, NAN, A_SCALE);
    }
}

static void check_s4_weights(struct raw *raw)
{
    struct gemmd_layer_desc_abi desc = good_desc();

    desc.b_type = GEMMD_ABI_TYPE_S4;
    desc.group = 128;
    assert_int_equal(create(raw, &desc, NULL), GEMMD_STATUS_OK);
    WRONG_OF(desc, group, 0, GROUP);
    WRONG_OF(desc, group, 1, GROUP);
    WRONG_OF(desc, group, 33, GROUP);
    WRONG_OF(desc, group, 256, GROUP);
    WRONG_OF(desc, group, UINT32_MAX, GROUP);
    WRONG_OF(desc, a_type, GEMMD_ABI_TYPE_S8, B_TYPE);
    WRONG_OF(desc, c_type, GEMMD_ABI_TYPE_S32, C_TYPE);
    WRONG_OF(desc, bias_type, GEMMD_ABI_TYPE_S32, BIAS_TYPE);
    WRONG_OF(desc, b_zero_points, 1, B_ZERO_POINTS);
}

static void check_clip_and_depth(struct raw *raw)
{
    struct gemmd_layer_desc_abi desc = good_desc();

    desc.activation = GEMMD_ABI_ACTIVATION_CLIP;
    assert_int_equal(create(raw, &desc, NULL), GEMMD_STATUS_OK);
    WRONG_OF(desc, clip_lo, 1.0f, CLIP); /* above clip_hi */
    WRONG_OF(desc, clip_lo, -INFINITY, CLIP);
    WRONG_OF(desc, clip_lo, NAN, CLIP);
    WRONG_OF(desc, clip_hi, INFINITY, CLIP);
    WRONG_OF(desc, clip_hi, NAN, CLIP);
    desc = good_desc();
    desc.b_zero_points = 1;
    assert_int_equal(create(raw, &desc, NULL), GEMMD_STATUS_OK);
    WRONG_OF(desc, k, GEMMD_K_MAX_B_ZERO_POINTS + 1, K);
}

static void check_residual(struct raw *raw)
{
    struct gemmd_layer_desc_abi desc = good_desc();

    desc.residual_type = GEMMD_ABI_TYPE_BF16;
    assert_int_equal(create(raw, &desc, NULL), GEMMD_STATUS_OK);
    WRONG_OF(desc, residual_scale, 1.0f, RESIDUAL_SCALE);
    WRONG_OF(desc, residual_zero_point, 1, RESIDUAL_ZERO_POINT);
    WRONG_OF(desc, residual_type, GEMMD_ABI_TYPE_S32, RESIDUAL_TYPE);
    WRONG_OF(desc, residual_type, GEMMD_ABI_TYPE_S4, RESIDUAL_TYPE);
    WRONG_OF(desc, residual_type, 255, RESIDUAL_TYPE);
    WRONG_OF(desc, c_type, GEMMD_ABI_TYPE_S32, RESIDUAL_TYPE);
    WRONG_OF(desc, residual_type, GEMMD_ABI_TYPE_U8, RESIDUAL_SCALE); /* 0 */
    desc.residual_type = GEMMD_ABI_TYPE_S8;
    desc.residual_scale = 0.5f;
    desc.residual_zero_point = -128;
    assert_int_equal(create(raw, &desc, NULL), GEMMD_STATUS_OK);
    WRONG_OF(desc, residual_zero_point, -129, RESIDUAL_ZERO_POINT);
    WRONG_OF(desc, residual_scale, -0.5f, RESIDUAL_SCALE);
    WRONG_OF(desc, residual_scale, NAN, RESIDUAL_SCALE);
    WRONG_OF(desc, residual_scale, INFINITY, RESIDUAL_SCALE);
    WRONG_OF(desc, residual_type, GEMMD_ABI_TYPE_NONE, RESIDUAL_ZERO_POINT);
}

/* Fields that only some layers have. */
static void test_optional_fields(void **state)
{
    struct raw raw;

    (void)state;
    raw_open(&raw, worker.socket, 8, 1 << 16);
    WRONG(b_type, GEMMD_ABI_TYPE_NONE, B_TYPE);
    WRONG(b_type, GEMMD_ABI_TYPE_U8, B_TYPE);
    WRONG(b_type, 255, B_TYPE);
    WRONG(b_type, GEMMD_ABI_TYPE_S4, GROUP);
    WRONG(group, 64, GROUP); /* s8 weights have none */
    WRONG(quantize_mode, GEMMD_ABI_QUANTIZE_SYMMETRIC, QUANTIZE_MODE); /* u8 rows */
    WRONG(b_zero_points, 2, B_ZERO_POINTS);
    WRONG(clip_lo, -1.0f, CLIP); /* no CLIP */
    WRONG(clip_hi, NAN, CLIP);
    WRONG(a_row_scales, 2, A_ROW_SCALES);
    check_float_rows(&raw);
    check_s4_weights(&raw);
    check_clip_and_depth(&raw);
    check_residual(&raw);
    raw_close(&raw);
}

/* ---- uploads --------------------------------------------------------------------------------- */

static int send_data(struct raw *raw, uint64_t image_offset, uint64_t arena_offset, uint64_t bytes)
{
    struct gemmd_msg_layer_data data = {
        .header = raw_header(raw, GEMMD_MSG_LAYER_DATA, sizeof(data)),
        .image_offset = image_offset,
        .arena_offset = arena_offset,
        .bytes = bytes};
    struct gemmd_msg_layer_data_reply reply;

    return raw_call(raw, &data, &reply, sizeof(reply));
}

static int commit(struct raw *raw)
{
    struct gemmd_msg_layer_commit request = {
        raw_header(raw, GEMMD_MSG_LAYER_COMMIT, sizeof(request))};
    struct gemmd_msg_layer_reply reply;

    return raw_call(raw, &request, &reply, sizeof(reply));
}

/* The image of good_desc(): 64 bytes of weights, 64 of scales. */
static void test_uploads(void **state)
{
    struct gemmd_layer_desc_abi desc = good_desc();
    uint64_t arena;
    struct raw raw;

    (void)state;
    raw_open(&raw, worker.socket, 8, 1 << 16);
    arena = raw.hello.arena_bytes;
    assert_int_equal(send_data(&raw, 0, 0, 64), GEMMD_STATUS_UPLOAD); /* none is open */
    assert_int_equal(commit(&raw), GEMMD_STATUS_UPLOAD);
    assert_int_equal(create(&raw, &desc, NULL), GEMMD_STATUS_OK);
    assert_int_equal(commit(&raw), GEMMD_STATUS_UPLOAD); /* nothing has come */
    assert_int_equal(send_data(&raw, 64, 0, 64), GEMMD_STATUS_UPLOAD);
    assert_int_equal(send_data(&raw, 0, 0, 0), GEMMD_STATUS_UPLOAD_RANGE);
    assert_int_equal(send_data(&raw, 0, 0, 129), GEMMD_STATUS_UPLOAD_RANGE);
    assert_int_equal(send_data(&raw, 0, arena, 64), GEMMD_STATUS_UPLOAD_RANGE);
    assert_int_equal(send_data(&raw, 0, arena - 63, 64), GEMMD_STATUS_UPLOAD_RANGE);
    assert_int_equal(send_data(&raw, 0, UINT64_MAX, 64), GEMMD_STATUS_UPLOAD_RANGE);
    assert_int_equal(send_data(&raw, 0, UINT64_MAX - 63, 64), GEMMD_STATUS_UPLOAD_RANGE);
    assert_int_equal(send_data(&raw, 0, 0, UINT64_MAX), GEMMD_STATUS_UPLOAD_RANGE);
    assert_int_equal(send_data(&raw, 0, arena - 64, 64), GEMMD_STATUS_OK);
    assert_int_equal(send_data(&raw, 0, 0, 64), GEMMD_STATUS_UPLOAD); /* twice */
    assert_int_equal(commit(&raw), GEMMD_STATUS_UPLOAD);
    assert_int_equal(send_data(&raw, 64, 0, 64), GEMMD_STATUS_OK);
    assert_int_equal(commit(&raw), GEMMD_STATUS_CONTENT); /* 0x1234 is not its hash */
    assert_int_equal(commit(&raw), GEMMD_STATUS_UPLOAD);
    raw_close(&raw);

    raw_open(&raw, worker.socket, 8, 1 << 16); /* dies in the middle */
    assert_int_equal(create(&raw, &desc, NULL), GEMMD_STATUS_OK);
    assert_int_equal(send_data(&raw, 0, 0, 64), GEMMD_STATUS_OK);
    raw_close(&raw);
    assert_true(harness_is_alive(&worker));
}

/* ---- handles and names ----------------------------------------------------------------------- */

static int close_layer(struct raw *raw, uint32_t id, uint32_t gen)
{
    struct gemmd_msg_layer_close close = {
        .header = raw_header(raw, GEMMD_MSG_LAYER_CLOSE, sizeof(close)),
        .layer_id = id,
        .layer_gen = gen};
    struct gemmd_msg_layer_close_reply reply;

    return raw_call(raw, &close, &reply, sizeof(reply));
}

static int open_name(struct raw *raw, const char name[GEMMD_NAME_BYTES])
{
    struct gemmd_msg_layer_open open = {
        .header = raw_header(raw, GEMMD_MSG_LAYER_OPEN, sizeof(open))};
    struct gemmd_msg_layer_reply reply;

    memcpy(open.name, name, sizeof(open.name));
    return raw_call(raw, &open, &reply, sizeof(reply));
}

static void test_handles_and_names(void **state)
{
    struct gemmd *owner = session_to(worker.socket);
    struct gemmd_msg_layer_reply handle;
    struct layer_case layer;
    struct gemmd_layer *named;
    char name[GEMMD_NAME_BYTES];
    struct raw raw;

    (void)state;
    layer_case_plain(&layer, 5, 6, 1);
    layer.desc.name = "named";
    assert_int_equal(gemmd_layer_create(owner, &layer.desc, &named), 0);
    raw_open(&raw, worker.socket, 8, 1 << 16);
    raw_open_layer(&raw, "named", &handle);
    assert_int_equal(close_layer(&raw, handle.layer_id + 1, 1), GEMMD_STATUS_LAYER);
    assert_int_equal(close_layer(&raw, GEMMD_SESSION_LAYERS_MAX, 1), GEMMD_STATUS_LAYER);
    assert_int_equal(close_layer(&raw, UINT32_MAX, UINT32_MAX), GEMMD_STATUS_LAYER);
    assert_int_equal(close_layer(&raw, handle.layer_id, handle.layer_gen + 1),
                     GEMMD_STATUS_LAYER_STALE);
    assert_int_equal(close_layer(&raw, handle.layer_id, handle.layer_gen), GEMMD_STATUS_OK);
    assert_int_equal(close_layer(&raw, handle.layer_id, handle.layer_gen), GEMMD_STATUS_LAYER);
    memset(name, 'x', sizeof(name)); /* no end */
    assert_int_equal(open_name(&raw, name), GEMMD_STATUS_NAME);
    memset(name, 0, sizeof(name));
    assert_int_equal(open_name(&raw, name), GEMMD_STATUS_NAME);
    memcpy(name, "named", 6); /* what is behind the end does not matter */
    name[10] = 'y';
    assert_int_equal(open_name(&raw, name), GEMMD_STATUS_OK);
    name[4] = 'e';
    assert_int_equal(open_name(&raw, name), GEMMD_STATUS_NAME_UNKNOWN);
    raw_close(&raw);
    assert_int_equal(layer_case_check(owner, named, &layer, 4, 9), 0);
    gemmd_close(&owner);
    layer_case_fini(&layer);
}

static void test_lists(void **state)
{
    struct raw raw;

    (void)state;
    raw_open(&raw, worker.socket, 8, 1 << 16);
    for (uint32_t type = GEMMD_MSG_LAYERS; type <= GEMMD_MSG_SESSIONS; type++) {
        struct gemmd_msg_list list = {.header = raw_header(&raw, type, sizeof(list)),
                                      .index = UINT32_MAX};
        struct gemmd_msg_layers_reply reply;

        assert_int_equal(raw_call(&raw, &list, &reply, sizeof(reply)), GEMMD_STATUS_INDEX);
        list.index = 0;
        list.reserved = 1;
        assert_int_equal(raw_call(&raw, &list, &reply, sizeof(reply)), GEMMD_STATUS_RESERVED);
        list.header = raw_header(&raw, GEMMD_MSG_TAKEOVER, sizeof(list));
        assert_int_equal(raw_call(&raw, &list, &reply, sizeof(reply)), GEMMD_STATUS_RESERVED);
    }
    raw_close(&raw);
}

/* ---- the library's words --------------------------------------------------------------------- */

#define REFUSED(field, value, error, word)                                                         \
    do {                                                                                           \
        struct gemmd_layer_desc wrong = layer.desc;                                                \
        wrong.field = (value);                                                                     \
        expect_refusal(session, &wrong, error, word);                                              \
    } while (0)

static void expect_refusal(struct gemmd *session, const struct gemmd_layer_desc *desc, int error,
                           const char *word)
{
    struct gemmd_layer *handle = (struct gemmd_layer *)(uintptr_t)1;
    int result = gemmd_layer_create(session, desc, &handle);

    if (result != error || !strstr(gemmd_error_text(session), word))
        fprintf(stderr, "%d \"%s\", expected %d with \"%s\"\n", result, gemmd_error_text(session),
                error, word);
    assert_int_equal(result, error);
    assert_non_null(strstr(gemmd_error_text(session), word));
    assert_null(handle);
}

static void test_library_names_the_field(void **state)
{
    struct gemmd *session = session_to(worker.socket);
    static const float bad_scales[] = {1.0f, NAN, 1.0f, 1.0f}, bad_bias[] = {0, 0, 0, INFINITY};
    static const uint16_t multipliers[4] = {1, 1, 1, 1};
    struct layer_case layer;
    struct gemmd_layer *handle;

    (void)state;
    layer_case_plain(&layer, 4, 8, 2);
    REFUSED(n, 0, -EINVAL, "n:");
    REFUSED(n, (UINT32_C(1) << 20) + 1, -EINVAL, "n:");
    REFUSED(k, 0, -EINVAL, "k:");
    REFUSED(k, 65537, -EINVAL, "k:");
    REFUSED(a_type, GEMMD_TYPE_S32, -EINVAL, "a_type");
    REFUSED(a_type, GEMMD_TYPE_F32, -EINVAL, "a_zero_point"); /* it has one */
    REFUSED(b_type, GEMMD_TYPE_S4, -EINVAL, "group");
    REFUSED(b_type, GEMMD_TYPE_F32, -EINVAL, "b_type");
    REFUSED(group, 32, -EINVAL, "group");
    REFUSED(multipliers, multipliers, -EINVAL, "multipliers");
    REFUSED(quantize_mode, GEMMD_QUANTIZE_SYMMETRIC, -EINVAL, "quantize_mode");
    REFUSED(clip_hi, 1.0f, -EINVAL, "clip");
    REFUSED(a_row_scales, 257, -EINVAL, "a_row_scales");
    REFUSED(a_row_scales, -1, -EINVAL, "a_row_scales");
    REFUSED(residual_type, GEMMD_TYPE_S32, -EINVAL, "residual_type");
    REFUSED(residual_type, GEMMD_TYPE_U8, -EINVAL, "residual_scale");
    REFUSED(residual_scale, 1.0f, -EINVAL, "residual_scale");
    REFUSED(residual_zero_point, 1, -EINVAL, "residual_zero_point");
    REFUSED(c_type, GEMMD_TYPE_NONE, -EINVAL, "c_type");
    REFUSED(c_type, (enum gemmd_type)9, -EINVAL, "c_type");
    REFUSED(bias_type, GEMMD_TYPE_U8, -EINVAL, "bias_type");
    REFUSED(activation, (enum gemmd_activation)9, -EINVAL, "activation");
    REFUSED(scale_count, 3, -EINVAL, "scale_count");
    REFUSED(a_zero_point, 256, -EINVAL, "a_zero_point");
    REFUSED(c_zero_point, 5, -EINVAL, "c_zero_point");
    REFUSED(a_scale, -1.0f, -EINVAL, "a_scale");
    REFUSED(c_scale, 0.0f, -EINVAL, "c_scale");
    REFUSED(b_scales, bad_scales, -EINVAL, "b_scale");
    REFUSED(bias, bad_bias, -EINVAL, "bias");
    REFUSED(name, "has space", -EINVAL, "name");
    REFUSED(weights, NULL, -EINVAL, "weights");
    REFUSED(size, 8, -EINVAL, "size");
    REFUSED(reserved[3], 1, -EINVAL, "reserved");
    assert_int_equal(gemmd_layer_create(session, &layer.desc, &handle), 0);
    assert_int_equal(layer_case_check(session, handle, &layer, 2, 3), 0);
    gemmd_close(&session);
    layer_case_fini(&layer);
}

static int start(void **state)
{
    (void)state;
    harness_start(&worker, NULL, NULL);
    return 0;
}

static int stop(void **state)
{
    (void)state;
    harness_stop(&worker);
    return 0;
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_descriptions),      cmocka_unit_test(test_optional_fields),
        cmocka_unit_test(test_uploads),
        cmocka_unit_test(test_handles_and_names), cmocka_unit_test(test_lists),
        cmocka_unit_test(test_library_names_the_field),
    };

    return HARNESS_RUN(tests, start, stop, 60);
}
