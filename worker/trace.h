/*
 * What ran when, as a Perfetto (Chrome trace event) JSON file: GEMMD_TRACE=file.  The dispatcher
 * puts events into a ring of memory; the control thread writes them to the file.  When the ring is
 * full events are lost, and counted.
 */
#ifndef GEMMD_WORKER_TRACE_H
#define GEMMD_WORKER_TRACE_H

#include <stdbool.h>
#include <stdint.h>

struct trace;

/* How often the control thread calls trace_drain, ms: at 10^6 events/s the ring holds 0.26 s. */
#define TRACE_DRAIN_MS 50

/* Creates the file.  0 or -errno; *out is NULL then. */
int trace_open(struct trace **out, const char *path);
/* Writes what is left and ends the JSON.  Accepts NULL; *trace becomes NULL. */
void trace_close(struct trace **trace);

/* Dispatcher.  A job of a session: seen, started, completed. */
void trace_job(struct trace *trace, uint32_t session_id, uint64_t user_data, uint64_t seen_ns,
               uint64_t start_ns, uint64_t end_ns, uint32_t rows, int status);
/* Dispatcher.  A slice of a layer (its address tells layers apart). */
void trace_slice(struct trace *trace, const void *layer, uint64_t start_ns, uint64_t end_ns,
                 uint32_t rows, uint32_t panels, uint32_t jobs, bool teamed);

/* Control thread: writes what has come.  0 or -errno of the file; nothing more is written then. */
int trace_drain(struct trace *trace);

/* Any thread: events lost so far. */
uint64_t trace_lost(const struct trace *trace);

#endif
