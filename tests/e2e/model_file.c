/* See model_file.h. */
#include "tests/e2e/model_file.h"

#include <fcntl.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kernels/quantize.h"
#include "tests/harness.h"

static const char *type_name(enum gemmd_type type)
{
    static const char *const names[] = {"none", "u8", "s8", "s32", "f32", "bf16", "s4"};

    return names[type];
}

/* One tensor's entry; *at moves on. */
static void add_tensor(FILE *header, unsigned layer, const char *name, const char *dtype,
                       const char *shape, uint64_t bytes, uint64_t *at)
{
    fprintf(header, ",\"l%u.%s\":{\"dtype\":\"%s\",\"shape\":[%s],\"data_offsets\":[%llu,%llu]}",
            layer, name, dtype, shape, (unsigned long long)*at, (unsigned long long)(*at + bytes));
    *at += bytes;
}

static void add_metadata(FILE *header, unsigned i, const struct layer_case *layer)
{
    const struct gemmd_layer_desc *desc = &layer->desc;
    static const char *const activations[] = {"none",      "relu",     "clip",
                                              "gelu_tanh", "gelu_erf", "silu"};

    fprintf(header,
            "%s\"l%u.a_type\":\"%s\",\"l%u.c_type\":\"%s\",\"l%u.a_scale\":\"%.9g\","
            "\"l%u.c_scale\":\"%.9g\",\"l%u.a_zero_point\":\"%d\",\"l%u.c_zero_point\":\"%d\","
            "\"l%u.activation\":\"%s\"",
            i ? "," : "", i, type_name(desc->a_type), i, type_name(desc->c_type), i,
            (double)desc->a_scale, i, (double)desc->c_scale, i, desc->a_zero_point, i,
            desc->c_zero_point, i, activations[desc->activation]);
    if (desc->activation == GEMMD_ACTIVATION_CLIP)
        fprintf(header, ",\"l%u.clip_lo\":\"%.9g\",\"l%u.clip_hi\":\"%.9g\"", i,
                (double)desc->clip_lo, i, (double)desc->clip_hi);
    if (desc->quantize_mode == GEMMD_QUANTIZE_SYMMETRIC)
        fprintf(header, ",\"l%u.quantize_mode\":\"symmetric\"", i);
    if (layer->method == GEMMD_QUANTIZE_L2)
        fprintf(header, ",\"l%u.quantize_method\":\"l2\"", i);
    if (desc->a_row_scales)
        fprintf(header, ",\"l%u.a_row_scales\":\"1\"", i);
    if (desc->residual_type)
        fprintf(header, ",\"l%u.residual_type\":\"%s\"", i, type_name(desc->residual_type));
    if (desc->residual_scale != 0)
        fprintf(header, ",\"l%u.residual_scale\":\"%.9g\",\"l%u.residual_zero_point\":\"%d\"", i,
                (double)desc->residual_scale, i, desc->residual_zero_point);
    if (desc->b_type == GEMMD_TYPE_S4)
        fprintf(header, ",\"l%u.b_type\":\"s4\",\"l%u.group\":\"%u\"", i, i, desc->group);
}

static void add_tensors(FILE *header, unsigned i, const struct layer_case *layer, uint64_t *at)
{
    const struct gemmd_layer_desc *desc = &layer->desc;
    char shape[32];

    snprintf(shape, sizeof(shape), "%u,%u", desc->n, desc->k);
    if (layer->source) {
        add_tensor(header, i, "weight", "F32", shape, (uint64_t)desc->n * desc->k * 4, at);
    } else {
        add_tensor(header, i, "weight", "I8", shape, (uint64_t)desc->n * desc->k, at);
        snprintf(shape, sizeof(shape), "%u", desc->scale_count);
        add_tensor(header, i, "b_scale", "F32", shape, (uint64_t)desc->scale_count * 4, at);
    }
    if (desc->bias_type == GEMMD_TYPE_NONE)
        return;
    snprintf(shape, sizeof(shape), "%u", desc->n);
    add_tensor(header, i, "bias", desc->bias_type == GEMMD_TYPE_F32 ? "F32" : "I32", shape,
               (uint64_t)desc->n * 4, at);
}

static void write_all(FILE *file, const void *bytes, size_t count)
{
    REQUIRE(fwrite(bytes, 1, count, file) == count);
}

void model_quantised_case(struct layer_case *layer, uint32_t n, uint32_t k,
                          const struct layer_kind *kind, enum gemmd_quantize_method method,
                          uint64_t seed)
{
    size_t row_bytes = (k + (size_t)1) / 2, groups;

    layer_case_init_kind(layer, n, k, kind, true, seed);
    layer->method = method;
    layer->source = malloc((size_t)n * k * sizeof(*layer->source));
    REQUIRE(layer->source != NULL);
    for (size_t i = 0; i < (size_t)n * k; i++) { /* with outliers */
        layer->source[i] = (float)(int32_t)(random_next(&seed) >> 32) * 0x1p-35f;
        if (random_next(&seed) % 100 == 0)
            layer->source[i] *= 4.0f;
    }
    if (kind->b_type != GEMMD_TYPE_S4) {
        quantize_weight_scales((enum quantize_method)method, 8, false, n, k, layer->source, k,
                               layer->scales);
        quantize_weights(8, n, k, layer->source, k, layer->scales, NULL, layer->weights);
        return;
    }
    groups = (k + (size_t)kind->group - 1) / kind->group;
    for (uint32_t j = 0; j < n; j++)
        layer->scales[j] = quantize_s4((enum quantize_method)method, k, kind->group,
                                       layer->source + j * k,
                                       (uint8_t *)layer->weights + j * row_bytes,
                                       layer->multipliers + j * groups);
}

void model_write(const char *path, const struct layer_case *layers, unsigned count)
{
    char *text = NULL;
    size_t text_bytes = 0;
    uint64_t at = 0, length;
    FILE *header = open_memstream(&text, &text_bytes), *file = fopen(path, "we");

    REQUIRE(header && file);
    fputs("{\"__metadata__\":{", header);
    for (unsigned i = 0; i < count; i++)
        add_metadata(header, i, &layers[i]);
    fputs("}", header);
    for (unsigned i = 0; i < count; i++)
        add_tensors(header, i, &layers[i], &at);
    fputs("}", header);
    fclose(header);
    length = text_bytes;
    write_all(file, &length, 8);
    write_all(file, text, text_bytes);
    for (unsigned i = 0; i < count; i++) {
        const struct gemmd_layer_desc *desc = &layers[i].desc;

        if (layers[i].source) {
            write_all(file, layers[i].source, (size_t)desc->n * desc->k * 4);
        } else {
            write_all(file, desc->weights, (size_t)desc->n * desc->k);
            write_all(file, desc->b_scales, (size_t)desc->scale_count * 4);
        }
        if (desc->bias_type != GEMMD_TYPE_NONE)
            write_all(file, desc->bias, (size_t)desc->n * 4);
    }
    REQUIRE(fclose(file) == 0);
    free(text);
}

int model_pack(const char *input, const char *output, const char *option, const char *value,
               char *error, size_t error_bytes)
{
    const char *program = getenv("GEMMD_TEST_PACK");
    const char *arguments[] = {program, "--output", output, input, option, value, NULL};
    int ends[2], status;
    size_t count = 0;
    ssize_t got;
    char spill[512];
    pid_t pid;

    REQUIRE(program && pipe(ends) == 0);
    fflush(NULL);
    pid = fork();
    REQUIRE(pid >= 0);
    if (pid == 0) {
        dup2(ends[1], STDERR_FILENO);
        close(ends[0]);
        close(ends[1]);
        execv(program, (char *const *)(uintptr_t)arguments);
        _exit(97);
    }
    close(ends[1]);
    while ((got = read(ends[0], spill, sizeof(spill))) > 0)
        for (ssize_t i = 0; i < got; i++)
            if (error && count + 1 < error_bytes)
                error[count++] = spill[i];
    if (error)
        error[count] = '\0';
    close(ends[0]);
    REQUIRE(waitpid(pid, &status, 0) == pid);
    return WIFSIGNALED(status) ? 1000 + WTERMSIG(status) : WEXITSTATUS(status);
}

int model_load(struct gemmd *session, const char *path, const char *prefix, uint64_t *bytes_new)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC), result;

    REQUIRE(fd >= 0);
    result = gemmd_layers_load(session, fd, prefix, bytes_new);
    close(fd);
    return result;
}

uint8_t *model_read(const char *path, size_t *bytes)
{
    FILE *file = fopen(path, "re");
    uint8_t *data;
    long size;

    REQUIRE(file && fseek(file, 0, SEEK_END) == 0);
    size = ftell(file);
    data = malloc((size_t)size + 1);
    REQUIRE(size >= 0 && data && fseek(file, 0, SEEK_SET) == 0);
    REQUIRE(fread(data, 1, (size_t)size, file) == (size_t)size);
    fclose(file);
    *bytes = (size_t)size;
    return data;
}

void model_write_bytes(const char *path, const void *bytes, size_t count)
{
    FILE *file = fopen(path, "we");

    REQUIRE(file != NULL);
    write_all(file, bytes, count);
    REQUIRE(fclose(file) == 0);
}
