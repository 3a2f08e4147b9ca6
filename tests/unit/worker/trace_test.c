/* The trace as a file of JSON: what is in it, where it ends, what is said when it cannot go on. */
#include "tests/unit/worker/unit.h"

#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "proto/status.h"
#include "worker/layers.h"
#include "worker/trace.h"

enum { MANY = 300000 }; /* more than the ring holds */

static char path[] = "/tmp/gemmd-trace-XXXXXX";
static const struct layer layer = {.content_id = {0xabc, 1}};

static struct trace *open_trace(uint64_t bytes_max)
{
    struct trace *trace;

    assert_int_equal(trace_open(&trace, path, bytes_max), 0);
    return trace;
}

static void trace_some(struct trace *trace, unsigned count)
{
    for (uint64_t i = 0; i < count; i++)
        trace_job(trace, 7, i, 1000 * i + 1, 1000 * i + 250, 1000 * i + 999, 3, GEMMD_STATUS_OK);
}

/* All events, to be given back. */
static json_t *read_trace(void)
{
    json_error_t error;
    json_t *file = json_load_file(path, 0, &error), *events = json_object_get(file, "traceEvents");

    if (!file)
        print_message("line %d: %s\n", error.line, error.text);
    assert_true(json_is_array(events));
    json_incref(events);
    json_decref(file);
    return events;
}

static double number(const json_t *event, const char *key)
{
    json_t *value = json_object_get(event, key);

    assert_true(json_is_number(value));
    return json_number_value(value);
}

static void check_text(const json_t *event, const char *key, const char *wanted)
{
    const char *text = json_string_value(json_object_get(event, key));

    assert_non_null(text);
    assert_string_equal(text, wanted);
}

static void a_job_and_a_slice(void **state)
{
    static const char *const names[] = {"job", "waits", "waits", "job"};
    static const char *const phases[] = {"b", "b", "e", "e"};
    static const double times[] = {1.5, 1.5, 2.25, 9};
    struct trace *trace = open_trace(TRACE_BYTES_MAX);
    json_t *events, *event, *arguments;

    (void)state;
    trace_job(trace, 7, 0x55, 1500, 2250, 9000, 3, GEMMD_STATUS_CANCELLED);
    trace_slice(trace, &layer, 2000, 5500, 12, 4, 2, true);
    assert_int_equal(trace_drain(trace), 0);
    trace_close(&trace);
    assert_null(trace);
    events = read_trace();
    assert_int_equal(json_array_size(events), 2 + 4 + 1);
    for (size_t i = 0; i < 2; i++)
        check_text(json_array_get(events, i), "ph", "M");
    for (size_t i = 0; i < 4; i++) { /* asynchronous events that belong together: cat, id, pid */
        event = json_array_get(events, 2 + i);
        check_text(event, "name", names[i]);
        check_text(event, "ph", phases[i]);
        check_text(event, "cat", "session 7");
        assert_true(number(event, "ts") == times[i] && number(event, "id") == 1 &&
                    number(event, "pid") == 1);
    }
    arguments = json_object_get(json_array_get(events, 2), "args");
    check_text(arguments, "user_data", "55");
    check_text(arguments, "status", gemmd_status_name_of(GEMMD_STATUS_CANCELLED));
    assert_true(number(arguments, "rows") == 3);
    event = json_array_get(events, 6);
    check_text(event, "ph", "X");
    assert_true(number(event, "ts") == 2 && number(event, "dur") == 3.5);
    arguments = json_object_get(event, "args");
    check_text(arguments, "layer", "0000000000000abc"); /* as gemmctl shows it */
    assert_true(number(arguments, "rows") == 12 && number(arguments, "panels") == 4 &&
                number(arguments, "jobs") == 2);
    assert_true(json_is_true(json_object_get(arguments, "team")));
    json_decref(events);
}

/* The file ends at its limit, and is whole; that is said once, and what is missing is counted. */
static void a_full_file(void **state)
{
    struct trace *trace = open_trace(10000);
    uint64_t lost;
    struct stat status;
    json_t *events;

    (void)state;
    trace_some(trace, 1000);
    assert_int_equal(trace_drain(trace), -EFBIG);
    lost = trace_lost(trace);
    assert_true(lost > 0 && lost < 1000);
    trace_some(trace, 10);
    assert_int_equal(trace_drain(trace), 0);
    assert_int_equal(trace_lost(trace), lost + 10);
    trace_close(&trace);
    assert_int_equal(stat(path, &status), 0);
    assert_true(status.st_size >= 10000 && status.st_size < 11000);
    events = read_trace();
    assert_int_equal(json_array_size(events), 2 + 4 * (1000 - lost));
    json_decref(events);
}

static void a_full_ring(void **state)
{
    struct trace *trace = open_trace(0); /* nothing to write */

    (void)state;
    trace_some(trace, MANY);
    assert_int_equal(trace_lost(trace), MANY - (1 << 18));
    assert_int_equal(trace_drain(trace), -EFBIG);
    assert_int_equal(trace_lost(trace), MANY);
    trace_close(&trace);
}

static void a_full_disk(void **state)
{
    struct trace *trace;

    (void)state;
    assert_int_equal(trace_open(&trace, "/nowhere/at/all", TRACE_BYTES_MAX), -ENOENT);
    assert_null(trace);
    assert_int_equal(trace_open(&trace, "/dev/full", TRACE_BYTES_MAX), 0);
    trace_some(trace, 100); /* more than stdio's buffer holds */
    assert_int_equal(trace_drain(trace), -ENOSPC);
    trace_some(trace, 1);
    assert_int_equal(trace_drain(trace), 0);
    assert_true(trace_lost(trace) > 0);
    trace_close(&trace);
    assert_int_equal(trace_open(&trace, "/dev/full", TRACE_BYTES_MAX), 0);
    assert_int_equal(trace_drain(trace), -ENOSPC); /* less than that */
    trace_close(&trace);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_job_and_a_slice),
        cmocka_unit_test(a_full_file),
        cmocka_unit_test(a_full_ring),
        cmocka_unit_test(a_full_disk),
    };
    int failed;

    if (mkstemp(path) < 0)
        return 1;
    failed = cmocka_run_group_tests(tests, NULL, NULL);
    unlink(path);
    return failed;
}
