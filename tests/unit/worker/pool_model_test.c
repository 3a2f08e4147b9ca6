/* The weight pool under random allocations and frees, against a shadow list. */
#include "unit.h"

#include "worker/pool.h"

#define KIB UINT64_C(1024)
#define MIB (KIB << 10)

static struct pool *open_pool(uint64_t limit, enum pool_policy policy, bool require)
{
    struct pool_config config = {
        .limit_bytes = limit, .policy = policy, .require_hugepages = require, .node = -1};
    struct pool *pool;

    assert_int_equal(pool_open(&pool, &config), 0);
    return pool;
}

static struct pool_report report_of(const struct pool *pool)
{
    struct pool_report report;

    pool_report(pool, &report);
    assert_int_equal(report.bytes_1g + report.bytes_2m + report.bytes_thp + report.bytes_4k,
                     report.bytes);
    assert_true(report.bytes_thp <= report.bytes && report.bytes_4k <= report.bytes);
    assert_true(report.bytes_used <= report.bytes);
    assert_true(report.bytes <= report.bytes_limit);
    assert_true(report.bytes_on_node <= report.bytes);
    assert_null(strchr(report.lost, '\n'));
    return report;
}

static void fill(struct pool *pool, void *memory, uint64_t bytes, int value)
{
    assert_int_equal(pool_write_begin(pool, memory), 0);
    memset(memory, value, bytes);
    assert_int_equal(pool_write_end(pool, memory), 0);
}

static bool is_filled(const void *memory, uint64_t bytes, int value)
{
    const uint8_t *at = memory;

    return bytes == 0 || (at[0] == (uint8_t)value && memcmp(at, at + 1, bytes - 1) == 0);
}

/* Random sizes against a shadow list: no overlap, nothing kept, nothing forgotten. */
#define SHADOWS 48

struct shadow {
    uint8_t *memory;
    uint64_t bytes;
    int value;
};

static uint64_t random_state;

static uint64_t next_random(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}

static uint64_t rounded(uint64_t bytes)
{
    return (bytes + 4095) & ~UINT64_C(4095);
}

static void check_apart(const struct shadow *shadows, const struct shadow *fresh)
{
    for (int i = 0; i < SHADOWS; i++) {
        const struct shadow *other = &shadows[i];

        if (other->memory && other != fresh)
            assert_true(other->memory + rounded(other->bytes) <= fresh->memory ||
                        fresh->memory + rounded(fresh->bytes) <= other->memory);
    }
}

static void shadow_model(void **state)
{
    struct pool *pool = open_pool(40 * MIB, POOL_POLICY_THP, false);
    struct shadow shadows[SHADOWS] = {{NULL, 0, 0}};
    uint64_t used = 0, refused = 0;

    (void)state;
    random_state = (uint64_t)getpid() * UINT64_C(0x9e3779b97f4a7c15) + 1;
    print_message("seed %llu\n", (unsigned long long)random_state);
    for (int step = 0; step < 1500; step++) {
        struct shadow *shadow = &shadows[next_random() % SHADOWS];
        uint64_t bytes = 1 + next_random() % (UINT64_C(1) << (10 + next_random() % 15));

        if (shadow->memory) {
            assert_true(is_filled(shadow->memory, shadow->bytes, shadow->value));
            pool_free(pool, shadow->memory);
            used -= rounded(shadow->bytes);
            shadow->memory = NULL;
        } else if (pool_alloc(pool, bytes, (void **)&shadow->memory) == 0) {
            shadow->bytes = bytes;
            shadow->value = 1 + step % 255;
            check_apart(shadows, shadow);
            assert_true(is_filled(shadow->memory, rounded(bytes), 0));
            fill(pool, shadow->memory, rounded(bytes), shadow->value);
            used += rounded(bytes);
        } else {
            refused++;
        }
        if (step % 50 == 0)
            assert_int_equal(report_of(pool).bytes_used, used);
    }
    print_message("%llu refused, %llu KiB in use\n", (unsigned long long)refused,
                  (unsigned long long)(used / KIB));
    for (int i = 0; i < SHADOWS; i++) {
        if (shadows[i].memory)
            assert_true(is_filled(shadows[i].memory, shadows[i].bytes, shadows[i].value));
        pool_free(pool, shadows[i].memory);
    }
    assert_int_equal(report_of(pool).bytes_used, 0);
    assert_int_equal(report_of(pool).bytes, 0);
    pool_close(&pool);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(shadow_model),
    };

    return cmocka_run_group_tests(tests, NULL, NULL) > 0;
}
