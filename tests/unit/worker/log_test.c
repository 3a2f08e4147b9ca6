/* The log: levels, the form of a line, and what a flood leaves of it. */
#include "unit.h"

#include "worker/log.h"

static char captured[65536];

/* What body() writes to stderr. */
static const char *capture(void (*body)(void))
{
    FILE *file = tmpfile();
    int saved = dup(STDERR_FILENO);
    ssize_t length;

    assert_non_null(file);
    fflush(stderr);
    dup2(fileno(file), STDERR_FILENO);
    body();
    dup2(saved, STDERR_FILENO);
    close(saved);
    length = pread(fileno(file), captured, sizeof(captured) - 1, 0);
    assert_true(length >= 0);
    captured[length] = '\0';
    fclose(file);
    return captured;
}

static int count_lines(const char *text)
{
    int lines = 0;

    for (; *text; text++)
        lines += *text == '\n';
    return lines;
}

static int reset(void **state)
{
    (void)state;
    unsetenv("JOURNAL_STREAM");
    return log_init(NULL) ? 0 : -1;
}

static void specs(void **state)
{
    static const char *const bad[] = {"loud",  "pool:",  ":info", "pool:loud", "pond:info",
                                      "info,", ",info", "info,,", "info ",     "pool:info:x"};

    (void)state;
    assert_true(log_enabled(LOG_LEVEL_WARN, LOG_TOPIC_POOL));
    assert_false(log_enabled(LOG_LEVEL_INFO, LOG_TOPIC_POOL));
    assert_true(log_init("debug"));
    assert_true(log_enabled(LOG_LEVEL_DEBUG, LOG_TOPIC_JOB));
    assert_true(log_init("pool:debug,error"));
    assert_true(log_enabled(LOG_LEVEL_DEBUG, LOG_TOPIC_POOL));
    assert_true(log_enabled(LOG_LEVEL_ERROR, LOG_TOPIC_LOOP));
    assert_false(log_enabled(LOG_LEVEL_WARN, LOG_TOPIC_LOOP));
    assert_true(log_init("loop:info"));
    assert_true(log_enabled(LOG_LEVEL_INFO, LOG_TOPIC_LOOP));
    assert_false(log_enabled(LOG_LEVEL_INFO, LOG_TOPIC_POOL));
    assert_true(log_enabled(LOG_LEVEL_WARN, LOG_TOPIC_POOL));
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        assert_false(log_init(bad[i]));
    assert_true(log_enabled(LOG_LEVEL_INFO, LOG_TOPIC_LOOP)); /* nothing changed */
    assert_true(log_init(""));
    assert_false(log_enabled(LOG_LEVEL_INFO, LOG_TOPIC_LOOP));
}

static void write_three(void)
{
    errno = EPIPE;
    log_warn(LOG_TOPIC_POOL, "pages: %d", 42);
    assert_int_equal(errno, EPIPE);
    log_info(LOG_TOPIC_POOL, "not wanted");
    log_error(LOG_TOPIC_SESSION, "name %s end", "a\nb\x1b[31m\x7f");
}

static void form(void **state)
{
    const char *text = capture(write_three);
    int year, month, day, hour, minute, second, millisecond, used = 0;

    (void)state;
    assert_int_equal(count_lines(text), 2);
    assert_int_equal(sscanf(text, "%4d-%2d-%2dT%2d:%2d:%2d.%3dZ%n", &year, &month, &day, &hour,
                            &minute, &second, &millisecond, &used), 7);
    assert_int_equal(used, 24);
    assert_memory_equal(text + used, " warn pool: pages: 42\n", 22);
    /* A client's name starts no line of its own. */
    assert_non_null(strstr(text, " error session: name a?b?[31m? end\n"));
}

static void journal(void **state)
{
    (void)state;
    setenv("JOURNAL_STREAM", "8:1", 1);
    assert_true(log_init("debug"));
    assert_string_equal(capture(write_three), "<4>pool: pages: 42\n<6>pool: not wanted\n"
                                              "<3>session: name a?b?[31m? end\n");
}

/* Logging must not disturb the error that its caller is about to return. */
static void errno_is_kept(void **state)
{
    int saved = dup(STDERR_FILENO), after;

    (void)state;
    close(STDERR_FILENO);
    errno = EPIPE;
    log_warn(LOG_TOPIC_POOL, "to nobody");
    after = errno;
    dup2(saved, STDERR_FILENO);
    close(saved);
    assert_int_equal(after, EPIPE);
}

static void flood_one_site(void)
{
    for (int i = 0; i < 1000; i++)
        log_warn(LOG_TOPIC_SESSION, "flood %d", i);
    log_warn(LOG_TOPIC_SESSION, "another site");
}

static void one_line_in_two_windows(void)
{
    for (int i = 0; i < 30; i++) {
        log_warn(LOG_TOPIC_SESSION, "again %d", i);
        if (i == 28)
            usleep(1100000);
    }
}

static void flood(void **state)
{
    const char *text = capture(flood_one_site);

    (void)state;
    /* A second may begin in the middle of it. */
    assert_in_range(count_lines(text), LOG_BURST + 1, 2 * LOG_BURST + 2);
    assert_non_null(strstr(text, "flood 0\n"));
    assert_null(strstr(text, "flood 999\n"));
    assert_non_null(strstr(text, "another site\n"));
    text = capture(one_line_in_two_windows);
    assert_non_null(strstr(text, "session: 19 lines like the next one were suppressed\n"));
    assert_non_null(strstr(text, "again 29\n"));
    assert_int_equal(count_lines(text), LOG_BURST + 2);
}

static void long_line(void)
{
    static char text[5000];

    memset(text, 'x', sizeof(text) - 1);
    log_warn(LOG_TOPIC_JOB, "%s", text);
    log_warn(LOG_TOPIC_JOB, "after");
}

static void cut(void **state)
{
    const char *text = capture(long_line);

    (void)state;
    assert_int_equal(count_lines(text), 2);
    assert_in_range(strcspn(text, "\n"), 900, 1023);
    assert_non_null(strstr(text, "job: after\n"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(specs, reset), cmocka_unit_test_setup(form, reset),
        cmocka_unit_test_setup(journal, reset), cmocka_unit_test_setup(flood, reset),
        cmocka_unit_test_setup(cut, reset),   cmocka_unit_test_setup(errno_is_kept, reset),
    };

    return cmocka_run_group_tests(tests, NULL, NULL) > 0;
}
