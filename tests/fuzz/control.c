/*
 * Control messages: what the control thread does with a packet before it acts on it.  The first
 * byte chooses: even, the rest is a packet; odd, it is a layer's description and the bytes of its
 * image, repeated to fill it.  Every verdict is compared with the oracle's.
 */
#include "tests/fuzz/fuzz.h"

#include <math.h>
#include <string.h>

#include "tests/unit/proto/oracle.h"

/* Images are real memory here: larger ones are checked by their description only. */
#define IMAGE_BYTES_MAX (1 << 16)

static void check_desc(const struct gemmd_layer_desc_abi *desc, struct gemmd_layer_image *image,
                       enum gemmd_status *status)
{
    *status = gemmd_validate_layer_desc(desc, image);
    FUZZ_ASSERT(oracle_agrees(*status, oracle_layer_desc(desc)));
    if (*status != GEMMD_STATUS_OK)
        return;
    FUZZ_ASSERT((oracle_int)image->bytes == oracle_image_bytes(desc));
    FUZZ_ASSERT(image->weights_bytes <= image->multipliers_offset);
    FUZZ_ASSERT(image->multipliers_offset + image->multipliers_bytes <= image->scales_offset);
    FUZZ_ASSERT(image->scales_offset + 4ull * desc->scale_count <= image->bias_offset);
    FUZZ_ASSERT(image->bias_offset + (desc->bias_type ? 4ull * desc->n : 0) <=
                image->zero_points_offset);
    FUZZ_ASSERT(image->zero_points_offset + (desc->b_zero_points ? desc->n : 0) <= image->bytes);
}

static void check_name(const char *name, bool may_be_empty)
{
    enum gemmd_status status = gemmd_validate_name(name, may_be_empty);

    FUZZ_ASSERT(status == (oracle_name(name, may_be_empty) ? GEMMD_STATUS_OK : GEMMD_STATUS_NAME));
}

static void check_packet(const uint8_t *data, size_t bytes)
{
    enum gemmd_status status = gemmd_validate_message(data, bytes);
    union {
        struct gemmd_msg_header header;
        struct gemmd_msg_hello hello;
        struct gemmd_msg_layer_create create;
        struct gemmd_msg_layer_open open;
    } message;
    struct gemmd_layer_image image;
    uint32_t version = 0;
    bool good;

    memset(&message, 0, sizeof(message));
    memcpy(&message, data, bytes < sizeof(message) ? bytes : sizeof(message));
    good = bytes >= 16 && bytes == message.header.bytes &&
           bytes == oracle_request_bytes(message.header.type);
    FUZZ_ASSERT(status == GEMMD_STATUS_OK ? good : !good && gemmd_status_is_violation(status));
    if (!good)
        return;
    switch (message.header.type) {
    case GEMMD_MSG_HELLO:
        status = gemmd_validate_hello(&message.hello, &version);
        FUZZ_ASSERT((status == GEMMD_STATUS_OK) == oracle_hello(&message.hello));
        FUZZ_ASSERT(status != GEMMD_STATUS_OK || version == 1);
        break;
    case GEMMD_MSG_LAYER_CREATE:
        check_desc(&message.create.desc, &image, &status);
        check_name(message.create.name, true);
        break;
    case GEMMD_MSG_LAYER_OPEN:
        check_name(message.open.name, false);
        break;
    default:
        break;
    }
}

static bool values_good(const struct gemmd_layer_desc_abi *desc,
                        const struct gemmd_layer_image *image, const char *data)
{
    float value;

    for (uint32_t i = 0; i < desc->scale_count; i++) {
        memcpy(&value, data + image->scales_offset + 4ull * i, sizeof(value));
        /* The product is exact in double; it rounds to a finite float below 2^128 - 2^103. */
        if (!oracle_finite(value) || fabs((double)value * desc->a_scale) >= 0x1.ffffffp127)
            return false;
    }
    for (uint32_t i = 0; desc->bias_type == GEMMD_ABI_TYPE_F32 && i < desc->n; i++) {
        memcpy(&value, data + image->bias_offset + 4ull * i, sizeof(value));
        if (!oracle_finite(value))
            return false;
    }
    return true;
}

static void check_layer(const uint8_t *data, size_t bytes)
{
    struct gemmd_layer_desc_abi desc;
    struct gemmd_layer_image image;
    enum gemmd_status status;
    char *memory;

    if (bytes < sizeof(desc))
        return;
    memcpy(&desc, data, sizeof(desc));
    data += sizeof(desc);
    bytes -= sizeof(desc);
    check_desc(&desc, &image, &status);
    if (status != GEMMD_STATUS_OK || image.bytes > IMAGE_BYTES_MAX)
        return;
    memory = aligned_alloc(64, image.bytes);
    FUZZ_ASSERT(memory);
    for (uint64_t i = 0; i < image.bytes; i++)
        memory[i] = bytes ? (char)data[i % bytes] : 0;
    status = gemmd_validate_layer_values(&desc, &image, memory);
    FUZZ_ASSERT((status == GEMMD_STATUS_OK) == values_good(&desc, &image, memory));
    free(memory);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    if (bytes == 0)
        return 0;
    if (data[0] & 1)
        check_layer(data + 1, bytes - 1);
    else
        check_packet(data + 1, bytes - 1);
    return 0;
}
