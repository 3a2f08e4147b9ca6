/* The table of statuses: wire values that never change, texts, errnos, and who is a violation. */
#include "unit.h"

#include "proto/status.h"

/* As published.  A new status is added here; a changed line is a broken protocol. */
static const struct {
    int value;
    const char *name;
} published[] = {
    {0, "OK"},
    {1, "OP"},
    {2, "FLAGS"},
    {3, "RESERVED"},
    {4, "M"},
    {5, "LAYER"},
    {6, "LAYER_STALE"},
    {7, "A_STRIDE"},
    {8, "C_STRIDE"},
    {9, "A_OFFSET"},
    {10, "C_OFFSET"},
    {11, "OVERLAP"},
    {12, "WORKER_LOST"},
    {13, "SESSION_ENDED"},
    {14, "DEADLINE"},
    {15, "CANCELLED"},
    {16, "CANCEL_MISSED"},
    {17, "PRIORITY"},
    {18, "RESIDUAL_OFFSET"},
    {19, "RESIDUAL_OVERLAP"},
    {20, "RESULT"},
    {32, "STATE"},
    {33, "RING_ENTRIES"},
    {34, "ARENA_BYTES"},
    {35, "N"},
    {36, "K"},
    {37, "A_TYPE"},
    {38, "C_TYPE"},
    {39, "BIAS_TYPE"},
    {40, "ACTIVATION"},
    {41, "SCALE_COUNT"},
    {42, "A_ZERO_POINT"},
    {43, "C_ZERO_POINT"},
    {44, "A_SCALE"},
    {45, "C_SCALE"},
    {46, "B_SCALE"},
    {47, "BIAS"},
    {48, "LAYER_BYTES"},
    {49, "LAYERS_FULL"},
    {50, "NAME"},
    {51, "NAME_UNKNOWN"},
    {52, "NAME_TAKEN"},
    {53, "UPLOAD"},
    {54, "UPLOAD_RANGE"},
    {55, "CONTENT"},
    {56, "NO_MEMORY"},
    {57, "POOL_FULL"},
    {58, "ARENA_NO_MEMORY"},
    {59, "DENIED"},
    {60, "SESSIONS_FULL"},
    {61, "DRAINING"},
    {62, "INDEX"},
    {63, "INTERNAL"},
    {70, "ADMIN"},
    {71, "QUOTA"},
    {72, "LAYER_FILE"},
    {73, "BUSY"},
    {74, "CHANGED"},
    {75, "B_TYPE"},
    {76, "QUANTIZE_MODE"},
    {77, "B_ZERO_POINTS"},
    {78, "GROUP"},
    {79, "CLIP"},
    {80, "RESIDUAL_TYPE"},
    {81, "RESIDUAL_ZERO_POINT"},
    {82, "RESIDUAL_SCALE"},
    {83, "A_ROW_SCALES"},
    {96, "MESSAGE_SHORT"},
    {97, "MESSAGE_LONG"},
    {98, "MESSAGE_TYPE"},
    {99, "MESSAGE_FDS"},
    {100, "MAGIC"},
    {101, "VERSION"},
    {102, "CQ_HEAD"},
    {103, "SEGMENT_FAULT"},
};

static const struct {
    int value, error;
    const char *name, *text;
} table[] = {
#define X(name, value, error, text) {value, error, #name, text},
    GEMMD_STATUS_TABLE(X)
#undef X
};

static void test_published_values(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(published); i++)
        assert_string_equal(gemmd_status_name_of(published[i].value), published[i].name);
    assert_int_equal(COUNT(table), COUNT(published));
}

static void test_functions_follow_the_table(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(table); i++) {
        assert_string_equal(gemmd_status_name_of(table[i].value), table[i].name);
        assert_string_equal(gemmd_status_text_of(table[i].value), table[i].text);
        assert_int_equal(gemmd_status_errno_of(table[i].value), table[i].error);
        assert_true(table[i].value == 0 ? table[i].error == 0 : table[i].error > 0);
        assert_true(strlen(table[i].text) >= 7);
    }
}

static void test_values_and_texts_are_distinct(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(table); i++)
        for (size_t j = 0; j < i; j++) {
            assert_int_not_equal(table[i].value, table[j].value);
            assert_string_not_equal(table[i].text, table[j].text);
        }
}

static void test_unknown_values(void **state)
{
    static const int unknown[] = {-1, 21, 31, 64, 95, 104, 127, INT32_MAX, INT32_MIN};

    (void)state;
    for (size_t i = 0; i < COUNT(unknown); i++) {
        assert_string_equal(gemmd_status_name_of(unknown[i]), "UNKNOWN");
        assert_string_equal(gemmd_status_text_of(unknown[i]), "unknown status");
        assert_int_equal(gemmd_status_errno_of(unknown[i]), EIO);
    }
}

static void test_violations(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(table); i++)
        assert_int_equal(gemmd_status_is_violation(table[i].value), table[i].value >= 96);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_published_values),
        cmocka_unit_test(test_functions_follow_the_table),
        cmocka_unit_test(test_values_and_texts_are_distinct),
        cmocka_unit_test(test_unknown_values),
        cmocka_unit_test(test_violations),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
