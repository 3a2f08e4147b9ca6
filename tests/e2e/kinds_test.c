/*
 * Each kind of layer: jobs of several sessions that share slices give, bit for bit, what the worker
 * gave to each of them alone (what that is to be: operands_test.c, at all shapes).
 */
#include "tests/harness.h"

#include <string.h>

#include "tests/e2e/layer_case.h"
#include "tests/e2e/machine.h"

static struct harness_worker worker;

enum { GUESTS = 3, GUEST_JOBS = 3, TRIES_MAX = 2000 };

/* A session with the layer, its jobs, and what C was after each of them alone. */
struct guest {
    struct gemmd *session;
    struct gemmd_layer *handle;
    struct gemmd_job jobs[GUEST_JOBS];
    char *c_alone[GUEST_JOBS];
};

static struct guest guests[GUESTS], host; /* the host keeps the worker busy */

static const uint32_t guest_rows[GUEST_JOBS] = {1, 40, 17};

static size_t c_bytes(const struct layer_case *layer, int job)
{
    return guest_rows[job] * layer->desc.n * type_bytes(layer->desc.c_type);
}

static void prepare_guest(struct guest *guest, const struct layer_case *layer, uint64_t seed)
{
    size_t a_row = layer_case_a_row_bytes(layer);

    assert_true(gemmd_layer_create(guest->session, &layer->desc, &guest->handle) >= 0);
    for (int i = 0; i < GUEST_JOBS; i++) {
        size_t bytes = c_bytes(layer, i);
        size_t added = guest_rows[i] * layer->desc.n * type_bytes(layer->desc.residual_type);
        void *a = gemmd_buffer_alloc(guest->session, guest_rows[i] * a_row);
        void *c = gemmd_buffer_alloc(guest->session, bytes);
        void *residual = added ? gemmd_buffer_alloc(guest->session, added) : NULL;

        guest->c_alone[i] = malloc(bytes);
        assert_true(a && c && (residual || !added) && guest->c_alone[i]);
        layer_case_fill(layer, &seed, a, guest_rows[i] * a_row);
        layer_case_fill_residual(layer, &seed, residual, added);
        gemmd_job_init(&guest->jobs[i], guest->handle, guest_rows[i], a, c);
        guest->jobs[i].residual = residual;
        assert_int_equal(gemmd_run(guest->session, &guest->jobs[i], 10000), 0);
        memcpy(guest->c_alone[i], c, bytes);
    }
}

static void dismiss_guest(struct guest *guest)
{
    for (int i = 0; i < GUEST_JOBS; i++) {
        gemmd_buffer_free(guest->session, (void *)(uintptr_t)guest->jobs[i].a);
        gemmd_buffer_free(guest->session, guest->jobs[i].c);
        gemmd_buffer_free(guest->session, (void *)(uintptr_t)guest->jobs[i].residual);
        free(guest->c_alone[i]);
    }
    assert_int_equal(gemmd_layer_close(guest->session, &guest->handle), 0);
}

/* All jobs of all guests while the worker is at the host's; each result as it was alone. */
static void run_together(const struct layer_case *layer)
{
    struct gemmd_completion done[GUEST_JOBS];

    for (int g = 0; g < GUESTS; g++)
        for (int i = 0; i < GUEST_JOBS; i++)
            memset(guests[g].jobs[i].c, 0xa5, c_bytes(layer, i));
    assert_int_equal(gemmd_submit(host.session, &host.jobs[0], 1), 1);
    gemmd_flush(host.session);
    for (int g = 0; g < GUESTS; g++) {
        assert_int_equal(gemmd_submit(guests[g].session, guests[g].jobs, GUEST_JOBS), GUEST_JOBS);
        gemmd_flush(guests[g].session);
    }
    for (int g = 0; g < GUESTS; g++) {
        for (int left = GUEST_JOBS, taken; left; left -= taken) {
            taken = gemmd_wait(guests[g].session, done, (unsigned)left, 20000);
            assert_true(taken > 0);
            for (int i = 0; i < taken; i++)
                assert_int_equal(done[i].status, 0);
        }
        for (int i = 0; i < GUEST_JOBS; i++)
            assert_memory_equal(guests[g].jobs[i].c, guests[g].c_alone[i], c_bytes(layer, i));
    }
    assert_int_equal(gemmd_wait(host.session, done, 1, 20000), 1);
}

static uint64_t shared_slices(void)
{
    struct gemmd_stats stats;

    assert_int_equal(gemmd_get_stats(host.session, &stats), 0);
    return stats.shared_slices;
}

static void check_kind(const struct layer_kind *kind, uint64_t seed)
{
    uint64_t before = shared_slices();
    struct layer_case layer;
    int tries = 0;

    layer_case_init_kind(&layer, 150, 256, kind, true, seed);
    for (int g = 0; g < GUESTS; g++)
        prepare_guest(&guests[g], &layer, seed + (uint64_t)g);
    do
        run_together(&layer);
    while (shared_slices() < before + 2 && ++tries < TRIES_MAX);
    if (tries == TRIES_MAX)
        fail_msg("a %d b %d c %d: nothing was shared", kind->a_type, kind->b_type, kind->c_type);
    for (int g = 0; g < GUESTS; g++)
        dismiss_guest(&guests[g]);
    layer_case_fini(&layer);
}

/* Each type of C for the rows and weights of `kind`; residuals and scales of rows in turn. */
static unsigned check_outputs(struct layer_kind kind, unsigned seed)
{
    static const enum gemmd_type residual_types[] = {GEMMD_TYPE_NONE, GEMMD_TYPE_U8, GEMMD_TYPE_S8,
                                                     GEMMD_TYPE_F32, GEMMD_TYPE_BF16};
    bool integers = kind.a_type == GEMMD_TYPE_U8 || kind.a_type == GEMMD_TYPE_S8;
    unsigned count = 0;

    for (kind.c_type = GEMMD_TYPE_U8; kind.c_type <= GEMMD_TYPE_BF16; kind.c_type++) {
        bool s32 = kind.c_type == GEMMD_TYPE_S32;

        if (s32 && (!integers || kind.b_type == GEMMD_TYPE_S4))
            continue;
        kind.residual_type = s32 ? GEMMD_TYPE_NONE : residual_types[(seed + count) % 5];
        kind.a_row_scales = integers && !s32 && (seed + count) % 3 == 0;
        kind.bias_type = s32 ? GEMMD_TYPE_S32 : GEMMD_TYPE_F32;
        if (!machine_is_sanitized() || (seed + count) % 3 == 0)
            check_kind(&kind, 100 * seed + count);
        count++;
    }
    return count;
}

static void test_each_kind(void **state)
{
    static const enum gemmd_type a_types[] = {GEMMD_TYPE_U8, GEMMD_TYPE_S8, GEMMD_TYPE_F32,
                                              GEMMD_TYPE_BF16};
    struct layer_case busy;
    unsigned count = 0, seed = 1;

    (void)state;
    harness_start(&worker, NULL, NULL);
    host.session = session_with(worker.socket, 64, UINT64_C(4) << 20, -1);
    assert_non_null(host.session);
    layer_case_plain(&busy, 512, 512, 1);
    assert_true(gemmd_layer_create(host.session, &busy.desc, &host.handle) >= 0);
    gemmd_job_init(&host.jobs[0], host.handle, 512, gemmd_buffer_alloc(host.session, 512 * 512),
                   gemmd_buffer_alloc(host.session, 512 * 512 * 4));
    for (int g = 0; g < GUESTS; g++)
        assert_non_null(guests[g].session = session_with(worker.socket, 64, UINT64_C(1) << 20, -1));
    for (int a = 0; a < 4; a++)
        for (int zero_points = 0; zero_points < 2; zero_points++)
            count += check_outputs((struct layer_kind){.a_type = a_types[a],
                                                       .b_zero_points = zero_points}, seed++);
    for (int a = 0; a < 4; a++)
        for (uint32_t group = 32; group <= 128 && a_types[a] != GEMMD_TYPE_S8; group *= 2)
            count += check_outputs((struct layer_kind){.a_type = a_types[a], .group = group,
                                                       .b_type = GEMMD_TYPE_S4}, seed++);
    assert_int_equal(count, 2 * (2 * 5 + 2 * 4) + 3 * 3 * 4);
    for (int g = 0; g < GUESTS; g++)
        gemmd_close(&guests[g].session);
    gemmd_close(&host.session);
    layer_case_fini(&busy);
    harness_stop(&worker);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_each_kind),
    };

    return HARNESS_RUN(tests, NULL, NULL, 110);
}
