/* Looking at the worker: its own answers, and the counters page that it shares read-only. */
#include "client/internal.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* Strings of a reply are not taken to be terminated. */
#define COPY_TEXT(out, in)                                                                         \
    do {                                                                                           \
        static_assert(sizeof(out) == sizeof(in), "texts of the same size");                        \
        memcpy((out), (in), sizeof(out));                                                          \
        (out)[sizeof(out) - 1] = '\0';                                                             \
    } while (0)

int gemmd_get_info(struct gemmd *session, struct gemmd_info *out)
{
    struct gemmd_msg_info message = {.header.type = GEMMD_MSG_INFO};
    struct gemmd_msg_info_reply reply;
    int error = gemmd_ask(session, &message, sizeof(message), &reply, sizeof(reply), NULL);

    if (error < 0)
        return error;
    *out = (struct gemmd_info){
        .pid = reply.pid,
        .node = reply.node,
        .cpu_count = reply.cpu_count,
        .dispatcher_cpu = reply.dispatcher_cpu,
        .uptime_ns = reply.uptime_ns,
        .session_count = reply.session_count,
        .layer_count = reply.layer_count,
        .pool_bytes = reply.pool_bytes,
        .pool_bytes_used = reply.pool_bytes_used,
        .pool_bytes_limit = reply.pool_bytes_limit,
        .pool_bytes_1g = reply.pool_bytes_1g,
        .pool_bytes_2m = reply.pool_bytes_2m,
        .pool_bytes_thp = reply.pool_bytes_thp,
        .pool_bytes_4k = reply.pool_bytes_4k,
        .pool_bytes_on_node = reply.pool_bytes_on_node,
        .arena_bytes = reply.arena_bytes,
        .layer_bytes = reply.layer_bytes,
        .layer_bytes_unused = reply.layer_bytes_unused,
        .layer_bytes_pinned = reply.layer_bytes_pinned,
        .layer_evictions = reply.layer_evictions,
        .scrub_bytes = reply.scrub_bytes,
        .scrub_passes = reply.scrub_passes,
        .scrub_faults = reply.scrub_faults,
        .pool_bytes_kept = reply.pool_bytes_kept,
    };
    COPY_TEXT(out->worker_version, reply.worker_version);
    COPY_TEXT(out->socket, session->socket);
    COPY_TEXT(out->level, reply.level);
    COPY_TEXT(out->kernel, reply.kernel);
    COPY_TEXT(out->event_level, reply.event_level);
    COPY_TEXT(out->lost, reply.lost);
    return 0;
}

/* The index-th of a list; -ENOENT past its end. */
static int ask_list(struct gemmd *session, uint32_t type, uint32_t index, void *reply,
                    size_t reply_bytes)
{
    struct gemmd_msg_list message = {.header.type = type, .index = index};
    enum gemmd_status status;
    int error = gemmd_ask(session, &message, sizeof(message), reply, reply_bytes, &status);

    return status == GEMMD_STATUS_INDEX ? -ENOENT : error;
}

int gemmd_get_layer_info(struct gemmd *session, uint32_t index, struct gemmd_layer_info *out)
{
    struct gemmd_msg_layers_reply reply;
    int error = ask_list(session, GEMMD_MSG_LAYERS, index, &reply, sizeof(reply));

    if (error < 0)
        return error;
    *out = (struct gemmd_layer_info){
        .content_id = {reply.content_id[0], reply.content_id[1]},
        .n = reply.desc.n,
        .k = reply.desc.k,
        .a_type = (enum gemmd_type)reply.desc.a_type,
        .c_type = (enum gemmd_type)reply.desc.c_type,
        .weight_bytes = reply.weight_bytes,
        .page_bytes = reply.page_bytes,
        .node = reply.node,
        .references = reply.references,
        .jobs = reply.jobs,
        .rows = reply.rows,
        .bias_type = (enum gemmd_type)reply.desc.bias_type,
        .b_type = (enum gemmd_type)reply.desc.b_type,
        .residual_type = (enum gemmd_type)reply.desc.residual_type,
        .uid = reply.uid,
        .pinned = (reply.flags & GEMMD_LAYER_PINNED) != 0,
        .unloaded = (reply.flags & GEMMD_LAYER_UNLOADED) != 0,
        .exec_ns = reply.exec_ns,
        .panels = reply.panels,
        .panel_rows = reply.panel_rows,
        .queue_p50_ns = reply.latency.queue_p50_ns,
        .queue_p99_ns = reply.latency.queue_p99_ns,
        .exec_p50_ns = reply.latency.exec_p50_ns,
        .exec_p99_ns = reply.latency.exec_p99_ns,
        .hits = reply.hits,
        .deadline_misses = reply.deadline_misses,
    };
    COPY_TEXT(out->name, reply.name);
    COPY_TEXT(out->kernel, reply.kernel);
    return 0;
}

static const char *state_name(uint32_t state)
{
    switch (state) {
    case GEMMD_SESSION_NEW:
        return "new";
    case GEMMD_SESSION_MAPPING:
        return "mapping";
    case GEMMD_SESSION_LIVE:
        return "live";
    default:
        return "unknown";
    }
}

int gemmd_get_session_info(struct gemmd *session, uint32_t index, struct gemmd_session_info *out)
{
    struct gemmd_msg_sessions_reply reply;
    int error = ask_list(session, GEMMD_MSG_SESSIONS, index, &reply, sizeof(reply));

    if (error < 0)
        return error;
    *out = (struct gemmd_session_info){
        .session_id = reply.session_id,
        .pid = reply.pid,
        .uid = reply.uid,
        .ring_entries = reply.ring_entries,
        .layers = reply.layers,
        .state = state_name(reply.state),
        .arena_bytes = reply.arena_bytes,
        .jobs = reply.jobs,
        .jobs_failed = reply.jobs_failed,
        .rows = reply.rows,
        .exec_ns = reply.exec_ns,
        .doorbells = reply.doorbells,
        .wakeups = reply.wakeups,
        .age_ns = reply.age_ns,
        .queue_p50_ns = reply.latency.queue_p50_ns,
        .queue_p99_ns = reply.latency.queue_p99_ns,
        .exec_p50_ns = reply.latency.exec_p50_ns,
        .exec_p99_ns = reply.latency.exec_p99_ns,
        .deadline_misses = reply.deadline_misses,
        .cancelled = reply.cancelled,
        .in_flight = reply.in_flight,
        .weight = reply.weight,
    };
    return 0;
}

/* ---- counters -------------------------------------------------------------------------------- */

static int map_stats(struct gemmd *session)
{
    struct gemmd_msg_stats message = {.header.type = GEMMD_MSG_STATS};
    struct gemmd_msg_stats_reply reply;
    uint64_t deadline_ns = gemmd_now_ns() + (uint64_t)session->timeout_ms * 1000000;
    const uint64_t bytes = sizeof(struct gemmd_stats_page);
    void *memory = NULL;
    int fd, error;

    error = gemmd_call(session, &message, sizeof(message), &reply, sizeof(reply), &fd, 1,
                       deadline_ns, NULL);
    if (error < 0)
        return error;
    if (fd < 0 || reply.bytes < bytes)
        error = gemmd_fail(session, -EPROTO, "the counters page of %s is too small",
                           session->socket);
    else
        error = gemmd_map(session, fd, bytes, PROT_READ, "counters page", &memory);
    if (fd >= 0)
        close(fd);
    session->syscalls++;
    if (error < 0)
        return error;
    session->stats = memory;
    session->stats_bytes = bytes;
    if (session->stats->magic == GEMMD_STATS_MAGIC &&
        session->stats->version == GEMMD_STATS_VERSION)
        return 0;
    munmap(memory, bytes);
    session->stats = NULL;
    return gemmd_fail(session, -EPROTO, "the counters page of %s has another version",
                      session->socket);
}

/* The largest value that a bucket counts: a percentile is never reported too low. */
static uint64_t bucket_top(uint32_t bucket)
{
    return gemmd_histogram_floor(bucket + 1) - 1;
}

/* Counters go on while we read: ranks are of the sum of the copy. */
static void summarise(const struct gemmd_histogram *histogram, struct gemmd_percentiles *out)
{
    static const uint32_t per_mille[] = {500, 900, 990, 999};
    uint64_t *const results[] = {&out->p50, &out->p90, &out->p99, &out->p999};
    uint64_t count[GEMMD_HISTOGRAM_BUCKETS], seen = 0;
    size_t next = 0;

    memset(out, 0, sizeof(*out));
    for (uint32_t i = 0; i < GEMMD_HISTOGRAM_BUCKETS; i++) {
        count[i] = gemmd_counter_read(&histogram->count[i]);
        out->count += count[i];
    }
    for (uint32_t i = 0; i < GEMMD_HISTOGRAM_BUCKETS; i++) {
        if (count[i] == 0)
            continue;
        seen += count[i];
        out->max = bucket_top(i);
        /* In floating point: count * 999 may exceed 64 bits in a hostile page only. */
        while (next < 4 && (double)seen * 1000.0 >= (double)out->count * per_mille[next])
            *results[next++] = out->max;
    }
}

static_assert(GEMMD_CORES_MAX == GEMMD_STATS_CORES_MAX, "as many as the page has");

static void summarise_cores(const struct gemmd_stats_page *page, struct gemmd_stats *out)
{
    uint64_t count = gemmd_counter_read(&page->core_count);

    out->core_count = count < GEMMD_CORES_MAX ? (uint32_t)count : GEMMD_CORES_MAX;
    for (uint32_t i = 0; i < out->core_count; i++)
        out->cores[i] = (struct gemmd_core_time){
            .cpu = (uint32_t)gemmd_counter_read(&page->cores[i].cpu),
            .busy_ns = gemmd_counter_read(&page->cores[i].busy_ns),
            .spin_ns = gemmd_counter_read(&page->cores[i].spin_ns),
            .sleep_ns = gemmd_counter_read(&page->cores[i].sleep_ns),
        };
}

int gemmd_get_stats(struct gemmd *session, struct gemmd_stats *out)
{
    const struct gemmd_stats_page *page;
    int error = gemmd_check(session);

    if (error == 0 && !session->stats)
        error = map_stats(session);
    if (error < 0)
        return error;
    page = session->stats;
    memset(out, 0, sizeof(*out));
#define COUNTER(name) out->name = gemmd_counter_read(&page->name)
    COUNTER(jobs);
    COUNTER(jobs_failed);
    COUNTER(rows);
    COUNTER(macs);
    COUNTER(exec_ns);
    COUNTER(turns);
    COUNTER(sleeps);
    COUNTER(doorbells);
    COUNTER(wakes);
    COUNTER(syscalls);
    COUNTER(spins_hit);
    COUNTER(spins_missed);
    COUNTER(rescues);
    COUNTER(sessions_opened);
    COUNTER(sessions_closed);
    COUNTER(sessions_violated);
    COUNTER(layers_created);
    COUNTER(layers_attached);
    COUNTER(slices);
    COUNTER(preempted);
    COUNTER(panels);
    COUNTER(panel_rows);
    COUNTER(shared_slices);
    COUNTER(team_slices);
    COUNTER(deadline_misses);
    COUNTER(cancelled);
    COUNTER(repinned);
    COUNTER(trace_lost);
    COUNTER(verified);
    COUNTER(verify_faults);
#undef COUNTER
    summarise(&page->queue_ns, &out->queue);
    summarise(&page->exec_ns_histogram, &out->exec);
    summarise_cores(page, out);
    out->session_jobs = session->jobs;
    out->session_doorbells = session->doorbells;
    out->session_sleeps = session->sleeps;
    out->session_syscalls = session->syscalls;
    out->session_recoveries = session->recoveries;
    return 0;
}
