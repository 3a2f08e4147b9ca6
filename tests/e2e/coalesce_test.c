/*
 * Jobs of several processes for the same layers, at once: bit for bit what each would have got
 * alone, whatever shares a scan with it; and that they do share is counted.
 */
#include "tests/harness.h"

#include <errno.h>
#include <string.h>

#include "tests/e2e/layer_case.h"
#include "tests/e2e/machine.h"

static struct harness_worker worker;

enum { CLIENTS = 6, LAYERS = 8, DEPTH = 8, ROWS_MAX = 90 };

/* Of each client.  The oracle is what takes the time, many times over under a sanitizer. */
static unsigned jobs_wanted(void)
{
    return DEPTH * (machine_is_sanitized() ? 20 : 150);
}

/* One narrower than a panel, one wide, one deep, one that ends in the middle of a panel; then rows
 * that the worker makes when they board: quantised, quantised for s4 weights, summed; and rows
 * with scales, whose results are added to what is there. */
static const struct {
    uint32_t n, k;
    struct layer_kind kind;
} shapes[LAYERS] = {
    {40, 300, {.a_type = GEMMD_TYPE_U8}},
    {1024, 256, {.a_type = GEMMD_TYPE_S8, .c_type = GEMMD_TYPE_U8}},
    {300, 1500, {.a_type = GEMMD_TYPE_U8}},
    {777, 777, {.a_type = GEMMD_TYPE_S8}},
    {640, 400, {.a_type = GEMMD_TYPE_F32, .c_type = GEMMD_TYPE_BF16, .b_zero_points = true}},
    {500, 700, {.a_type = GEMMD_TYPE_BF16, .b_type = GEMMD_TYPE_S4, .group = 64}},
    {400, 500, {.a_type = GEMMD_TYPE_U8, .b_zero_points = true}},
    {500, 300, {.a_type = GEMMD_TYPE_U8, .residual_type = GEMMD_TYPE_F32, .a_row_scales = true}},
};

struct flight {
    struct gemmd_job job;
    uint32_t layer, rows;
    uint8_t *a;
    char *c;
    char *wanted;
};

struct client {
    struct gemmd *session;
    struct layer_case layers[LAYERS];
    struct gemmd_layer *handles[LAYERS];
    struct flight flights[DEPTH];
    uint64_t seed;
};

static void open_client(struct client *client, uint64_t seed)
{
    memset(client, 0, sizeof(*client));
    client->seed = seed;
    client->session = session_with(worker.socket, 64, UINT64_C(16) << 20, -1);
    REQUIRE(client->session);
    for (int i = 0; i < LAYERS; i++) {
        struct layer_kind kind = shapes[i].kind;

        kind.bias_type = GEMMD_TYPE_F32;
        kind.activation = i < 4 ? GEMMD_ACTIVATION_RELU : GEMMD_ACTIVATION_NONE;
        layer_case_init_kind(&client->layers[i], shapes[i].n, shapes[i].k, &kind, true,
                             100 + (uint64_t)i);
        REQUIRE(gemmd_layer_create(client->session, &client->layers[i].desc,
                                   &client->handles[i]) >= 0);
    }
    for (int i = 0; i < DEPTH; i++) {
        client->flights[i].a = gemmd_buffer_alloc(client->session, ROWS_MAX * 1600);
        client->flights[i].c = gemmd_buffer_alloc(client->session, ROWS_MAX * 1024 * 4);
        client->flights[i].wanted = malloc(ROWS_MAX * 1024 * 4);
        REQUIRE(client->flights[i].a && client->flights[i].c && client->flights[i].wanted);
    }
}

static void launch(struct client *client, int index)
{
    struct flight *flight = &client->flights[index];
    const struct layer_case *layer;
    size_t a_row, c_row;

    flight->layer = (uint32_t)(random_next(&client->seed) % LAYERS);
    flight->rows = 1 + (uint32_t)(random_next(&client->seed) % 4);
    if (random_next(&client->seed) % 8 == 0)
        flight->rows = 1 + (uint32_t)(random_next(&client->seed) % ROWS_MAX);
    layer = &client->layers[flight->layer];
    c_row = layer->desc.n * type_bytes(layer->desc.c_type);
    a_row = layer_case_a_row_bytes(layer);
    layer_case_fill(layer, &client->seed, flight->a, flight->rows * a_row);
    memset(flight->c, 0xee, flight->rows * c_row);
    if (layer->desc.residual_type)
        layer_case_fill_residual(layer, &client->seed, flight->c, flight->rows * c_row);
    layer_case_expect_residual(layer, flight->rows, flight->a, a_row, flight->c, flight->wanted,
                               c_row);
    gemmd_job_init(&flight->job, client->handles[flight->layer], flight->rows, flight->a,
                   flight->c);
    flight->job.residual = layer->desc.residual_type ? flight->c : NULL;
    flight->job.user_data = (uint64_t)index;
    flight->job.priority = (enum gemmd_priority)(random_next(&client->seed) % 3);
    REQUIRE(gemmd_submit(client->session, &flight->job, 1) == 1);
    gemmd_flush(client->session); /* the next one's oracle takes longer than a worker stays awake */
}

static void check(struct client *client, const struct gemmd_completion *done)
{
    const struct flight *flight = &client->flights[done->user_data];
    const struct layer_case *layer = &client->layers[flight->layer];

    REQUIRE(done->status == 0);
    REQUIRE(memcmp(flight->c, flight->wanted,
                   flight->rows * layer->desc.n * type_bytes(layer->desc.c_type)) == 0);
}

static int run_client(void *argument)
{
    struct client client;
    unsigned left = jobs_wanted(), launched = 0;

    open_client(&client, 1000 + (uint64_t)(uintptr_t)argument);
    for (; launched < DEPTH; launched++)
        launch(&client, (int)launched);
    while (left) {
        struct gemmd_completion done[DEPTH];
        int taken = gemmd_wait(client.session, done, DEPTH, 20000);

        REQUIRE(taken > 0);
        left -= (unsigned)taken;
        for (int i = 0; i < taken; i++) {
            check(&client, &done[i]);
            if (launched < jobs_wanted()) {
                launch(&client, (int)done[i].user_data);
                launched++;
            }
        }
    }
    gemmd_close(&client.session);
    return 0;
}

static void run_clients(const char *const *arguments, struct gemmd_stats *stats)
{
    pid_t pids[CLIENTS];
    struct gemmd *observer;

    harness_start(&worker, arguments, NULL);
    for (uintptr_t i = 0; i < CLIENTS; i++)
        pids[i] = harness_fork(run_client, (void *)i);
    for (int i = 0; i < CLIENTS; i++)
        assert_int_equal(harness_join(pids[i], 120000), 0);
    observer = session_to(worker.socket);
    assert_non_null(observer);
    assert_int_equal(gemmd_get_stats(observer, stats), 0);
    gemmd_close(&observer);
    harness_stop(&worker);
    assert_int_equal(stats->jobs, CLIENTS * jobs_wanted());
    assert_int_equal(stats->jobs_failed, 0);
    assert_int_equal(stats->rescues, 0);
}

static void test_shared(void **state)
{
    struct gemmd_stats stats;

    (void)state;
    run_clients(NULL, &stats);
    assert_true(stats.shared_slices > 0);
    assert_true(stats.panel_rows > stats.panels);
    print_message("%.2f rows per panel, %llu of %llu slices shared, %llu on the team\n",
                  (double)stats.panel_rows / (double)stats.panels,
                  (unsigned long long)stats.shared_slices, (unsigned long long)stats.slices,
                  (unsigned long long)stats.team_slices);
}

static void test_one_cpu(void **state)
{
    static const char *const arguments[] = {"--cpus", "0", NULL};
    struct gemmd_stats stats;

    (void)state;
    run_clients(arguments, &stats);
    assert_int_equal(stats.team_slices, 0);
}

static void test_alone(void **state)
{
    static const char *const arguments[] = {"--no-coalescing", NULL};
    struct gemmd_stats stats;

    (void)state;
    run_clients(arguments, &stats);
    assert_int_equal(stats.shared_slices, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shared),
        cmocka_unit_test(test_one_cpu),
        cmocka_unit_test(test_alone),
    };

    return HARNESS_RUN(tests, NULL, NULL, 400);
}
