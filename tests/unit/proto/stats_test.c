/* Buckets of the latency histogram: every value in exactly one, known to 1/16. */
#include "unit.h"

#include "proto/stats.h"

static const uint64_t last_ns = UINT64_C(1) << 36;

static void assert_bucket(uint64_t ns)
{
    uint32_t bucket = gemmd_histogram_bucket(ns);

    assert_true(bucket < GEMMD_HISTOGRAM_BUCKETS);
    assert_true(gemmd_histogram_floor(bucket) <= ns);
    if (ns >= last_ns)
        assert_int_equal(bucket, GEMMD_HISTOGRAM_BUCKETS - 1);
    else if (bucket + 1 < GEMMD_HISTOGRAM_BUCKETS)
        assert_true(ns < gemmd_histogram_floor(bucket + 1));
}

static void test_floor_and_bucket_are_inverse(void **state)
{
    (void)state;
    for (uint32_t bucket = 0; bucket < GEMMD_HISTOGRAM_BUCKETS; bucket++) {
        uint64_t floor = gemmd_histogram_floor(bucket);

        assert_int_equal(gemmd_histogram_bucket(floor), bucket);
        if (bucket > 0) {
            assert_int_equal(gemmd_histogram_bucket(floor - 1), bucket - 1);
            assert_true(floor > gemmd_histogram_floor(bucket - 1));
            /* The width of the one before is at most 1/16 of its floor. */
            if (bucket > 16)
                assert_true((floor - gemmd_histogram_floor(bucket - 1)) * 16 <=
                            gemmd_histogram_floor(bucket - 1));
        }
    }
}

static void test_boundaries(void **state)
{
    (void)state;
    for (uint32_t bit = 0; bit < 64; bit++)
        for (int64_t delta = -2; delta <= 2; delta++)
            assert_bucket((UINT64_C(1) << bit) + (uint64_t)delta);
    for (uint64_t ns = 0; ns < 1 << 16; ns++)
        assert_bucket(ns);
    assert_int_equal(gemmd_histogram_bucket(0), 0);
    assert_int_equal(gemmd_histogram_bucket(15), 15);
    assert_int_equal(gemmd_histogram_bucket(16), 16);
    assert_int_equal(gemmd_histogram_bucket(31), 31);
    assert_int_equal(gemmd_histogram_bucket(32), 32);
    assert_int_equal(gemmd_histogram_bucket(33), 32);
    assert_int_equal(gemmd_histogram_bucket(last_ns - 1), GEMMD_HISTOGRAM_BUCKETS - 1);
    assert_int_equal(gemmd_histogram_bucket(UINT64_MAX), GEMMD_HISTOGRAM_BUCKETS - 1);
}

static void test_random_values(void **state)
{
    (void)state;
    for (int i = 0; i < 1000000; i++)
        assert_bucket(random_u64() >> random_below(64));
}

static void test_counter(void **state)
{
    uint64_t word = UINT64_MAX - 1;

    (void)state;
    gemmd_counter_add(&word, 1);
    assert_true(gemmd_counter_read(&word) == UINT64_MAX);
    gemmd_counter_add(&word, 3); /* free-running */
    assert_int_equal(gemmd_counter_read(&word), 2);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_floor_and_bucket_are_inverse),
        cmocka_unit_test(test_boundaries),
        cmocka_unit_test(test_random_values),
        cmocka_unit_test(test_counter),
    };

    random_seed(argc, argv);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
