/*
 * Log lines on stderr, by topic and level.  Control plane and start-up only: never on the job path
 * (a line costs a system call).
 *
 * A hostile client must not be able to fill a disk: each call site may write LOG_BURST lines a
 * second, further ones are counted, and the count is written with the site's next line.
 * Any thread may log; log_init comes before the first thread.
 */
#ifndef GEMMD_WORKER_LOG_H
#define GEMMD_WORKER_LOG_H

#include <stdbool.h>
#include <stdint.h>

/* LOG_LEVEL_*: the bare LOG_* names belong to syslog.h. */
enum log_level {
    LOG_LEVEL_ERROR = 0,
    LOG_LEVEL_WARN,
    LOG_LEVEL_INFO,
    LOG_LEVEL_DEBUG,
};

enum log_topic {
    LOG_TOPIC_WORKER = 0,
    LOG_TOPIC_CONTROL,
    LOG_TOPIC_SESSION,
    LOG_TOPIC_POOL,
    LOG_TOPIC_LOOP,
    LOG_TOPIC_LAYERS,
    LOG_TOPIC_JOB,
    LOG_TOPIC_COUNT
};

/* Lines per second and call site. */
#define LOG_BURST 10

/* A call site's budget; static at the site, zeroed. */
struct log_site {
    uint64_t window_start_ns;
    uint32_t lines, suppressed;
};

/* Sets the levels from GEMMD_LOG's syntax: "level" or "topic:level[,…]", in that order of
 * strength (a topic's own word wins whatever its place).  NULL or "" = every topic at warn.
 * Under JOURNAL_STREAM lines start with "<3>" and the like, and the journal adds the time.
 * false: the text is wrong, and nothing changed. */
bool log_init(const char *spec);

bool log_enabled(enum log_level level, enum log_topic topic);

/* Use the macros. */
void log_write(struct log_site *site, enum log_level level, enum log_topic topic,
               const char *format, ...) __attribute__((format(printf, 4, 5)));

#define log_at(level, topic, ...)                                                                  \
    do {                                                                                           \
        static struct log_site log_site_here;                                                      \
        if (log_enabled(level, topic))                                                             \
            log_write(&log_site_here, level, topic, __VA_ARGS__);                                  \
    } while (0)

#define log_error(topic, ...) log_at(LOG_LEVEL_ERROR, topic, __VA_ARGS__)
#define log_warn(topic, ...)  log_at(LOG_LEVEL_WARN, topic, __VA_ARGS__)
#define log_info(topic, ...)  log_at(LOG_LEVEL_INFO, topic, __VA_ARGS__)
#define log_debug(topic, ...) log_at(LOG_LEVEL_DEBUG, topic, __VA_ARGS__)

#endif
