/* See kept_layers.h. */
#include "tests/e2e/kept_layers.h"

#include "tests/e2e/machine.h"

const char *const pool_arguments[] = {"--pool-bytes", "512M", NULL};
struct layer_case layers[LAYERS];

void create_layers(const struct harness_worker *worker, unsigned count)
{
    struct gemmd *session = session_with(worker->socket, 64, 16 << 20, -1);

    assert_non_null(session);
    for (unsigned i = 0; i < count; i++) {
        struct gemmd_layer *handle;
        char name[32];

        snprintf(name, sizeof(name), "m/%u", i);
        layers[i].desc.name = name;
        assert_int_equal(gemmd_layer_create(session, &layers[i].desc, &handle), 0);
        layers[i].desc.name = NULL;
    }
    gemmd_close(&session);
}

uint64_t check_layers(const struct harness_worker *worker, unsigned count, uint64_t start_ns)
{
    struct gemmd *session = session_with(worker->socket, 64, 4 << 20, -1);
    uint64_t first_ns = 0;

    assert_non_null(session);
    for (unsigned i = 0; i < count; i++) {
        struct gemmd_layer *handle;
        char name[32];

        snprintf(name, sizeof(name), "m/%u", i);
        assert_int_equal(gemmd_layer_open(session, name, &handle), 0);
        if (i == 0) { /* the oracle is slow: time a job alone */
            uint8_t *a = gemmd_buffer_alloc(session, K);
            float *c = gemmd_buffer_alloc(session, N * sizeof(*c));
            struct gemmd_job job;

            gemmd_job_init(&job, handle, 1, a, c);
            assert_int_equal(gemmd_run(session, &job, 5000), 0);
            first_ns = machine_now_ns() - start_ns;
        }
        assert_int_equal(layer_case_check(session, handle, &layers[i], 1, i), 0);
    }
    gemmd_close(&session);
    return first_ns;
}

struct gemmd_info info_of(const struct harness_worker *worker)
{
    struct gemmd *session = session_to(worker->socket);
    struct gemmd_info info;

    assert_non_null(session);
    assert_int_equal(gemmd_get_info(session, &info), 0);
    gemmd_close(&session);
    return info;
}

int kept_set_up(void **state)
{
    (void)state;
    for (unsigned i = 0; i < LAYERS; i++)
        layer_case_plain(&layers[i], N, K, i + 1);
    return 0;
}

int kept_tear_down(void **state)
{
    (void)state;
    for (unsigned i = 0; i < LAYERS; i++)
        layer_case_fini(&layers[i]);
    return 0;
}
