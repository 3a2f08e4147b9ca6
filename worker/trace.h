/*
 * What ran when, as a Perfetto (Chrome trace event) JSON file: GEMMD_TRACE=file.  The dispatcher
 * puts events into a ring of memory; the control thread writes them to the file.  When the ring is
 * full, and once the file is, events are lost, and counted.
 */
#ifndef GEMMD_WORKER_TRACE_H
#define GEMMD_WORKER_TRACE_H

#include <stdbool.h>
#include <stdint.h>

struct layer;
struct trace;

/* The file ends here: more than the user interface opens with ease, and no disk is filled. */
#define TRACE_BYTES_MAX (UINT64_C(256) << 20)
/* How often the control thread calls trace_drain, ms: at 10^6 events/s the ring holds 0.26 s. */
#define TRACE_DRAIN_MS 50

/* Creates the file, of at most so many bytes and an event.  0 or -errno; *out is NULL then. */
int trace_open(struct trace **out, const char *path, uint64_t bytes_max);
/* Writes what is left and ends the JSON.  Accepts NULL; *trace becomes NULL. */
void trace_close(struct trace **trace);

/* Dispatcher.  A job of a session: seen, started, completed. */
void trace_job(struct trace *trace, uint32_t session_id, uint64_t user_data, uint64_t seen_ns,
               uint64_t start_ns, uint64_t end_ns, uint32_t rows, int status);
/* Dispatcher.  A slice of a layer. */
void trace_slice(struct trace *trace, const struct layer *layer, uint64_t start_ns, uint64_t end_ns,
                 uint32_t rows, uint32_t panels, uint32_t jobs, bool teamed);

/* Control thread: writes what has come.  0; the first time that nothing more can be written -errno,
 * -EFBIG at the limit. */
int trace_drain(struct trace *trace);

/* Control thread: events lost so far. */
uint64_t trace_lost(const struct trace *trace);

#endif
