/* The learned spin: never beyond the cap, short where gaps are long, back when they are short. */
#include "unit.h"

#include "proto/spin.h"

#define CAP 50000

/* One pause: how long was spun, and whether the gap ended in it.  A wake-up takes half a cap. */
static uint64_t live_pause(struct gemmd_spin *spin, uint64_t gap_ns, uint64_t cap_ns, bool *hit)
{
    uint64_t budget_ns = gemmd_spin_budget(spin, cap_ns);

    assert_true(budget_ns <= cap_ns);
    *hit = gap_ns <= budget_ns;
    gemmd_spin_learn(spin, *hit ? gap_ns : gap_ns + cap_ns / 2, !*hit, cap_ns);
    return *hit ? gap_ns : budget_ns;
}

/* Hits of `count` pauses; *spun_ns: spinning in all. */
static unsigned live(struct gemmd_spin *spin, uint64_t gap_ns, unsigned count, uint64_t *spun_ns)
{
    unsigned hits = 0;

    *spun_ns = 0;
    for (unsigned i = 0; i < count; i++) {
        bool hit;

        *spun_ns += live_pause(spin, gap_ns, CAP, &hit);
        hits += hit;
    }
    return hits;
}

static void test_no_cap_no_spin(void **state)
{
    struct gemmd_spin spin = {0};

    (void)state;
    for (int i = 0; i < 100; i++) {
        assert_int_equal(gemmd_spin_budget(&spin, 0), 0);
        gemmd_spin_learn(&spin, (uint64_t)i * 1000, i % 2, 0);
    }
}

/* Gaps within half a cap are caught from the start, nearly all of them. */
static void test_short_gaps(void **state)
{
    uint64_t spun_ns;

    (void)state;
    for (uint64_t gap_ns = 0; gap_ns <= CAP / 2; gap_ns += 500) {
        struct gemmd_spin spin = {0};

        assert_in_range(live(&spin, gap_ns, 1000, &spun_ns), 980, 1000);
    }
}

/* Gaps beyond the cap cost next to nothing: less than a sixth of spinning the cap each time. */
static void test_long_gaps(void **state)
{
    uint64_t spun_ns;

    (void)state;
    for (uint64_t gap_ns = 2 * CAP; gap_ns < UINT64_C(1) << 50; gap_ns *= 2) {
        struct gemmd_spin spin = {0};

        live(&spin, gap_ns, 100, &spun_ns); /* learns */
        assert_int_equal(live(&spin, gap_ns, 1000, &spun_ns), 0);
        assert_true(spun_ns < UINT64_C(1000) * CAP / 6);
    }
}

/* One long pause among short ones changes nothing; a peer that becomes quick is followed soon, also
 * if its wake-ups make its gaps look longer than they are. */
static void test_changes(void **state)
{
    struct gemmd_spin spin = {0};
    uint64_t spun_ns;
    bool hit;

    (void)state;
    live(&spin, 5000, 100, &spun_ns);
    live_pause(&spin, UINT64_C(10000000000), CAP, &hit);
    assert_in_range(live(&spin, 5000, 100, &spun_ns), 99, 100);
    live(&spin, UINT64_C(10000000), 1000, &spun_ns);
    live(&spin, 20000, 48, &spun_ns); /* three probes */
    assert_in_range(live(&spin, 20000, 100, &spun_ns), 98, 100);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_no_cap_no_spin),
        cmocka_unit_test(test_short_gaps),
        cmocka_unit_test(test_long_gaps),
        cmocka_unit_test(test_changes),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
