/*
 * One write(2) per line, so that lines of several threads never mix.  The mutex covers a site's
 * counters only; levels are set before the first thread starts and never change.
 */
#include "worker/log.h"

#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "worker/clock.h"

#define LINE_BYTES 1024
#define WINDOW_NS UINT64_C(1000000000)

static const char *const level_names[] = {"error", "warn", "info", "debug"};
static const char *const topic_names[LOG_TOPIC_COUNT] = {"worker", "control", "session", "pool",
                                                         "loop",   "layers",  "job"};
/* What sd-daemon.h calls SD_ERR, SD_WARNING, SD_INFO, SD_DEBUG. */
static const char *const journal_prefixes[] = {"<3>", "<4>", "<6>", "<7>"};

static enum log_level levels[LOG_TOPIC_COUNT] = {
    LOG_LEVEL_WARN, LOG_LEVEL_WARN, LOG_LEVEL_WARN, LOG_LEVEL_WARN,
    LOG_LEVEL_WARN, LOG_LEVEL_WARN, LOG_LEVEL_WARN,
};
static bool journal;
static pthread_mutex_t site_mutex = PTHREAD_MUTEX_INITIALIZER;

static int find(const char *const *names, int count, const char *word, size_t length)
{
    for (int i = 0; i < count; i++)
        if (strlen(names[i]) == length && memcmp(names[i], word, length) == 0)
            return i;
    return -1;
}

/* One "level" or "topic:level" into the pass it belongs to. */
static bool parse_word(const char *word, size_t length, int *everywhere, int by_topic[])
{
    const char *colon = memchr(word, ':', length);
    size_t topic_length = colon ? (size_t)(colon - word) : 0;
    const char *level_word = colon ? colon + 1 : word;
    int level = find(level_names, 4, level_word, length - (size_t)(level_word - word));
    int topic = colon ? find(topic_names, LOG_TOPIC_COUNT, word, topic_length) : 0;

    if (level < 0 || topic < 0)
        return false;
    *(colon ? &by_topic[topic] : everywhere) = level;
    return true;
}

bool log_init(const char *spec)
{
    int everywhere = LOG_LEVEL_WARN, by_topic[LOG_TOPIC_COUNT];

    for (int i = 0; i < LOG_TOPIC_COUNT; i++)
        by_topic[i] = -1;
    for (const char *word = spec && *spec ? spec : NULL; word;) {
        size_t length = strcspn(word, ",");

        if (!parse_word(word, length, &everywhere, by_topic))
            return false;
        word = word[length] ? word + length + 1 : NULL;
    }
    for (int i = 0; i < LOG_TOPIC_COUNT; i++)
        levels[i] = (enum log_level)(by_topic[i] >= 0 ? by_topic[i] : everywhere);
    journal = getenv("JOURNAL_STREAM") != NULL;
    return true;
}

bool log_enabled(enum log_level level, enum log_topic topic)
{
    return level <= levels[topic];
}

/* False: over budget.  *suppressed is what to report before this line. */
static bool take_budget(struct log_site *site, uint32_t *suppressed)
{
    uint64_t now_ns = clock_now_ns();
    bool allowed;

    *suppressed = 0;
    pthread_mutex_lock(&site_mutex);
    if (site->window_start_ns == 0 || now_ns - site->window_start_ns >= WINDOW_NS) {
        *suppressed = site->suppressed;
        site->window_start_ns = now_ns;
        site->lines = site->suppressed = 0;
    }
    allowed = site->lines < LOG_BURST;
    if (allowed)
        site->lines++;
    else
        site->suppressed++;
    pthread_mutex_unlock(&site_mutex);
    return allowed;
}

/* Time, level and topic: returns its length. */
static size_t put_prefix(char *line, enum log_level level, enum log_topic topic)
{
    struct timespec now;
    struct tm utc;
    char stamp[32];
    int length;

    if (journal) {
        length = snprintf(line, LINE_BYTES, "%s%s: ", journal_prefixes[level], topic_names[topic]);
        return (size_t)length;
    }
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &utc);
    strftime(stamp, sizeof(stamp), "%Y-%m-%dT%H:%M:%S", &utc);
    length = snprintf(line, LINE_BYTES, "%s.%03ldZ %s %s: ", stamp, now.tv_nsec / 1000000,
                      level_names[level], topic_names[topic]);
    return (size_t)length;
}

/* Names chosen by clients end up in lines: none may start a line of its own or drive a terminal. */
static void put_line(char *line, size_t length)
{
    for (size_t i = 0; i < length; i++)
        if ((unsigned char)line[i] < 0x20 || line[i] == 0x7f)
            line[i] = '?';
    line[length] = '\n';
    /* Nobody is left to tell when stderr is gone. */
    if (write(STDERR_FILENO, line, length + 1) < 0)
        return;
}

void log_write(struct log_site *site, enum log_level level, enum log_topic topic,
               const char *format, ...)
{
    char line[LINE_BYTES];
    uint32_t suppressed;
    size_t start;
    va_list arguments;
    int saved_errno = errno, length;

    if (!take_budget(site, &suppressed))
        return;
    start = put_prefix(line, level, topic);
    if (suppressed > 0) {
        length = snprintf(line + start, sizeof(line) - start,
                          "%u lines like the next one were suppressed", suppressed);
        put_line(line, start + (size_t)length);
    }
    /* The caller may have %m in its format, or look at errno afterwards. */
    errno = saved_errno;
    va_start(arguments, format);
    length = vsnprintf(line + start, sizeof(line) - start, format, arguments);
    va_end(arguments);
    if (length < 0)
        length = 0;
    if ((size_t)length > sizeof(line) - start - 1)
        length = (int)(sizeof(line) - start - 1);
    put_line(line, start + (size_t)length);
    errno = saved_errno;
}
