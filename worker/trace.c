/*
 * One producer, one consumer, free-running indices; each side owns one and publishes it with
 * release.  The JSON is the trace event format: slices as complete events of the thread "slices",
 * jobs as asynchronous events of their session (they overlap), with a nested one for the wait.
 * Layers have the ids of `gemmctl layers`.
 */
#include "worker/trace.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "proto/status.h"
#include "worker/layers.h"

#define TRACE_EVENTS (UINT32_C(1) << 18)

enum trace_kind { TRACE_JOB, TRACE_SLICE };

struct trace_event {
    uint64_t key; /* user_data; layer */
    uint64_t seen_ns, start_ns, end_ns;
    uint32_t session_id, rows;
    uint32_t panels, jobs;
    int32_t status;
    uint8_t kind, teamed;
};

struct trace {
    FILE *file;
    struct trace_event *events;
    uint32_t tail; /* dispatcher */
    uint32_t head; /* control */
    uint64_t lost; /* in the ring */
    /* control */
    uint64_t dropped; /* at the file */
    uint64_t bytes, bytes_max;
    uint64_t serial; /* tells asynchronous events apart */
    int error;
};

static void put(struct trace *trace, const char *format, ...) __attribute__((format(printf, 2, 3)));

static void put(struct trace *trace, const char *format, ...)
{
    va_list arguments;
    int length;

    va_start(arguments, format);
    length = vfprintf(trace->file, format, arguments);
    va_end(arguments);
    if (length >= 0)
        trace->bytes += (uint64_t)length;
    else if (!trace->error)
        trace->error = -errno;
}

int trace_open(struct trace **out, const char *path, uint64_t bytes_max)
{
    struct trace *trace = calloc(1, sizeof(*trace));
    int error;

    *out = NULL;
    if (!trace)
        return -ENOMEM;
    trace->events = calloc(TRACE_EVENTS, sizeof(*trace->events));
    trace->file = fopen(path, "we");
    if (!trace->events || !trace->file) {
        error = trace->file ? -ENOMEM : -errno;
        if (trace->file)
            fclose(trace->file);
        free(trace->events);
        free(trace);
        return error;
    }
    trace->bytes_max = bytes_max;
    put(trace, "{\"displayTimeUnit\":\"ns\",\"traceEvents\":[\n"
               "{\"name\":\"process_name\",\"ph\":\"M\",\"pid\":1,"
               "\"args\":{\"name\":\"gemmd\"}},\n"
               "{\"name\":\"thread_name\",\"ph\":\"M\",\"pid\":1,\"tid\":0,"
               "\"args\":{\"name\":\"slices\"}}");
    *out = trace;
    return 0;
}

static void push(struct trace *trace, const struct trace_event *event)
{
    /* Pairs with the control thread's release of what it has read. */
    uint32_t head = __atomic_load_n(&trace->head, __ATOMIC_ACQUIRE);

    if (trace->tail - head == TRACE_EVENTS) {
        __atomic_store_n(&trace->lost, trace->lost + 1, __ATOMIC_RELAXED);
        return;
    }
    trace->events[trace->tail % TRACE_EVENTS] = *event;
    __atomic_store_n(&trace->tail, trace->tail + 1, __ATOMIC_RELEASE);
}

void trace_job(struct trace *trace, uint32_t session_id, uint64_t user_data, uint64_t seen_ns,
               uint64_t start_ns, uint64_t end_ns, uint32_t rows, int status)
{
    const struct trace_event event = {.kind = TRACE_JOB, .key = user_data, .seen_ns = seen_ns,
                                      .start_ns = start_ns, .end_ns = end_ns, .rows = rows,
                                      .session_id = session_id, .status = status};

    push(trace, &event);
}

void trace_slice(struct trace *trace, const struct layer *layer, uint64_t start_ns, uint64_t end_ns,
                 uint32_t rows, uint32_t panels, uint32_t jobs, bool teamed)
{
    const struct trace_event event = {.kind = TRACE_SLICE, .key = layer->content_id[0],
                                      .start_ns = start_ns, .end_ns = end_ns, .rows = rows,
                                      .panels = panels, .jobs = jobs, .teamed = teamed};

    push(trace, &event);
}

static void write_slice(struct trace *trace, const struct trace_event *event)
{
    put(trace, ",\n{\"name\":\"%" PRIu32 " rows\",\"cat\":\"slice\",\"ph\":\"X\",\"pid\":1,"
        "\"tid\":0,\"ts\":%.3f,\"dur\":%.3f,\"args\":{\"layer\":\"%016" PRIx64 "\","
        "\"rows\":%" PRIu32 ",\"panels\":%" PRIu32 ",\"jobs\":%" PRIu32 ",\"team\":%s}}",
        event->rows, (double)event->start_ns / 1000.0,
        (double)(event->end_ns - event->start_ns) / 1000.0, event->key, event->rows,
        event->panels, event->jobs, event->teamed ? "true" : "false");
}

static void write_async(struct trace *trace, const struct trace_event *event, const char *name,
                        const char *phase, uint64_t ns)
{
    put(trace, ",\n{\"name\":\"%s\",\"cat\":\"session %" PRIu32 "\",\"ph\":\"%s\",\"pid\":1,"
        "\"tid\":%" PRIu32 ",\"id\":%" PRIu64 ",\"ts\":%.3f", name, event->session_id, phase,
        event->session_id, trace->serial, (double)ns / 1000.0);
}

static void write_job(struct trace *trace, const struct trace_event *event)
{
    trace->serial++;
    write_async(trace, event, "job", "b", event->seen_ns);
    put(trace, ",\"args\":{\"user_data\":\"%" PRIx64 "\",\"rows\":%" PRIu32
        ",\"status\":\"%s\"}}", event->key, event->rows, gemmd_status_name_of(event->status));
    write_async(trace, event, "waits", "b", event->seen_ns);
    put(trace, "}");
    write_async(trace, event, "waits", "e", event->start_ns);
    put(trace, "}");
    write_async(trace, event, "job", "e", event->end_ns);
    put(trace, "}");
}

int trace_drain(struct trace *trace)
{
    uint32_t tail = __atomic_load_n(&trace->tail, __ATOMIC_ACQUIRE); /* pairs with push */
    uint32_t head = trace->head;
    int before = trace->error;

    for (; head != tail; head++) {
        const struct trace_event *event = &trace->events[head % TRACE_EVENTS];

        if (!trace->error && trace->bytes >= trace->bytes_max)
            trace->error = -EFBIG;
        if (trace->error)
            trace->dropped++;
        else if (event->kind == TRACE_SLICE)
            write_slice(trace, event);
        else
            write_job(trace, event);
    }
    __atomic_store_n(&trace->head, head, __ATOMIC_RELEASE);
    if (fflush(trace->file) != 0 && (!trace->error || trace->error == -EFBIG))
        trace->error = -errno;
    return before ? 0 : trace->error;
}

uint64_t trace_lost(const struct trace *trace)
{
    return __atomic_load_n(&trace->lost, __ATOMIC_RELAXED) + trace->dropped;
}

void trace_close(struct trace **trace_p)
{
    struct trace *trace = *trace_p;

    if (!trace)
        return;
    trace_drain(trace);
    fputs("\n]}\n", trace->file);
    fclose(trace->file);
    free(trace->events);
    free(trace);
    *trace_p = NULL;
}
