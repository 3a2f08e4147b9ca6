/* The weight pool as an allocator: limit, joined ranges, random requests beside a shadow list. */
#include "unit.h"

#include "tests/sanitizers.h"
#include "worker/pool.h"

#define KIB UINT64_C(1024)
#define MIB (KIB << 10)
#define GIB (MIB << 10)

static struct pool *open_pool(uint64_t limit, enum pool_policy policy, bool require)
{
    struct pool_config config = {
        .limit_bytes = limit, .policy = policy, .require_hugepages = require, .node = -1};
    struct pool *pool;

    assert_int_equal(pool_open(&pool, &config), 0);
    return pool;
}

static void *alloc(struct pool *pool, uint64_t bytes)
{
    void *memory;

    assert_int_equal(pool_alloc(pool, bytes, &memory), 0);
    assert_non_null(memory);
    assert_int_equal((uintptr_t)memory % 4096, 0);
    assert_int_equal(pool_write_end(pool, memory), 0);
    return memory;
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

static void limit(void **state)
{
    struct pool *pool = open_pool(41 * MIB + 4 * KIB, POOL_POLICY_THP, false);
    void *memory[2], *none;

    (void)state;
    assert_int_equal(pool_limit_bytes(pool), 41 * MIB + 4 * KIB);
    assert_int_equal(pool_alloc(pool, 41 * MIB + 4 * KIB + 1, &none), -ENOSPC);
    assert_int_equal(pool_alloc(pool, UINT64_MAX, &none), -ENOSPC);
    assert_int_equal(pool_alloc(pool, 0, &none), -EINVAL);
    memory[0] = alloc(pool, 32 * MIB);
    assert_int_equal(pool_alloc(pool, 10 * MIB, &none), -ENOSPC);
    assert_null(none);
    memory[1] = alloc(pool, 9 * MIB + 4 * KIB); /* to the last page, on the rung that divides it */
    assert_int_equal(report_of(pool).bytes, 41 * MIB + 4 * KIB);
    assert_int_equal(pool_alloc(pool, 1, &none), -ENOSPC);
    pool_free(pool, memory[0]);
    assert_int_equal(report_of(pool).bytes, 9 * MIB + 4 * KIB);
    pool_free(pool, memory[1]);
    pool_free(pool, NULL);
    assert_int_equal(report_of(pool).bytes, 0);
    pool_close(&pool);
    pool_close(&pool);
}

static void neighbours_join(void **state)
{
    struct pool *pool = open_pool(GIB, POOL_POLICY_NONE, false);
    void *memory[8], *again;

    (void)state;
    for (int i = 0; i < 8; i++)
        memory[i] = alloc(pool, 4 * MIB);
    assert_int_equal(report_of(pool).bytes, 32 * MIB);
    for (int i = 0; i < 8; i += 2)
        pool_free(pool, memory[i]);
    /* 16 MiB are free, no 8 of them in a row: a new extent. */
    again = alloc(pool, 8 * MIB);
    assert_int_equal(report_of(pool).bytes, 64 * MIB);
    pool_free(pool, again);
    assert_int_equal(report_of(pool).bytes, 32 * MIB);
    /* Joined with the free range behind it, and with the one before it. */
    pool_free(pool, memory[3]);
    assert_ptr_equal(alloc(pool, 12 * MIB), memory[2]);
    assert_int_equal(report_of(pool).bytes, 32 * MIB);
    pool_free(pool, (char *)memory[2] + 4096); /* not an allocation: nothing happens */
    assert_int_equal(report_of(pool).bytes_used, 24 * MIB);
    pool_close(&pool);
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
            assert_int_equal(pool_write_end(pool, shadow->memory), 0);
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

/*
 * A day of layers that come and go: 4 KiB to 1 MiB in a pool of 64, log-uniform, always replaced
 * by others when the pool refuses: the oldest first, as the registry does, or any.  At each refusal
 * the room that is free and cannot be used is stranded.
 */
#if HAS_ASAN || HAS_TSAN
#define DAY_OPERATIONS 4000
#else
#define DAY_OPERATIONS 20000
#endif
#define DAY_LIMIT      (64 * MIB)
#define DAY_LAYERS     4096

struct day {
    struct pool *pool;
    struct shadow *layers[DAY_LAYERS]; /* oldest first */
    uint32_t count;
    uint64_t used, moved_bytes;
};

static bool day_may_move(void *context, void *owner)
{
    (void)context;
    return ((struct shadow *)owner)->bytes % 8 != 1; /* some are held where they are */
}

static void day_moved(void *context, void *owner, void *to)
{
    struct day *day = context;
    struct shadow *layer = owner;

    assert_memory_equal(to, layer->memory, layer->bytes);
    day->moved_bytes += layer->bytes;
    layer->memory = to;
}

static void day_remove(struct day *day, uint32_t index)
{
    struct shadow *layer = day->layers[index];

    assert_int_equal(layer->memory[0], layer->value);
    assert_int_equal(layer->memory[layer->bytes - 1], layer->value);
    pool_free(day->pool, layer->memory);
    day->used -= rounded(layer->bytes);
    free(layer);
    day->count--;
    memmove(&day->layers[index], &day->layers[index + 1],
            (day->count - index) * sizeof(day->layers[0]));
}

static void day_add(struct day *day, void *memory, uint64_t bytes, int value)
{
    struct shadow *layer = malloc(sizeof(*layer));

    assert_non_null(layer);
    assert_true(day->count < DAY_LAYERS);
    *layer = (struct shadow){memory, bytes, value};
    memset(memory, value, 1);
    memset((char *)memory + bytes - 1, value, 1);
    assert_int_equal(pool_write_end(day->pool, memory), 0);
    pool_set_owner(day->pool, memory, layer);
    day->layers[day->count++] = layer;
    day->used += rounded(bytes);
}

static void live_a_day(bool oldest_first, bool moving, int operations)
{
    static struct day day;
    const struct pool_mover mover = {day_may_move, day_moved, &day};
    uint64_t refusals = 0, stranded = 0, worst = 0;

    day = (struct day){.pool = open_pool(DAY_LIMIT, POOL_POLICY_THP, false)};
    pool_set_mover(day.pool, moving ? &mover : NULL);
    for (int step = 0; step < operations; step++) {
        uint64_t bytes = (UINT64_C(4) << 10) << (next_random() % 8);
        void *memory;

        bytes += next_random() % bytes;
        while (pool_alloc(day.pool, bytes, &memory) < 0) {
            uint64_t unused = DAY_LIMIT - day.used;

            refusals++;
            stranded += unused;
            worst = unused > worst ? unused : worst;
            assert_true(day.count > 0);
            day_remove(&day, oldest_first ? 0 : (uint32_t)(next_random() % day.count));
        }
        day_add(&day, memory, bytes, step % 251);
    }
    assert_int_equal(report_of(day.pool).bytes_used, day.used);
    print_message("%d operations, %s goes, %s: stranded when refused %.1f %% on average, %.1f %% "
                  "at worst; %.0f bytes moved for each operation\n", operations,
                  oldest_first ? "the oldest" : "any", moving ? "others move" : "none moves",
                  100.0 * (double)stranded / (double)refusals / (double)DAY_LIMIT,
                  100.0 * (double)worst / (double)DAY_LIMIT,
                  (double)day.moved_bytes / operations);
    if (moving)
        assert_true(worst <= DAY_LIMIT / 10);
    while (day.count)
        day_remove(&day, 0);
    assert_int_equal(report_of(day.pool).bytes, 0); /* nothing leaked */
    pool_close(&day.pool);
}

static void a_day_strands_little(void **state)
{
    (void)state;
    random_state = (uint64_t)getpid() * UINT64_C(0x9e3779b97f4a7c15) + 7;
    print_message("seed %llu\n", (unsigned long long)random_state);
    live_a_day(true, true, DAY_OPERATIONS);
    live_a_day(false, true, DAY_OPERATIONS);
    /* What placement alone comes to. */
    live_a_day(true, false, DAY_OPERATIONS / 4);
    live_a_day(false, false, DAY_OPERATIONS / 4);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(limit),
        cmocka_unit_test(neighbours_join),
        cmocka_unit_test(shadow_model),
        cmocka_unit_test(a_day_strands_little),
    };

    return cmocka_run_group_tests(tests, NULL, NULL) > 0;
}
