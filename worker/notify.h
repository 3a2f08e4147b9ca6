/*
 * The service manager's side of the worker, as systemd's sd_notify(3) and sd_listen_fds(3) describe
 * it, written out: readiness, status, watchdog, and descriptors that the manager keeps over a
 * restart or passes at the start.  Without a manager every call does nothing.
 */
#ifndef GEMMD_WORKER_NOTIFY_H
#define GEMMD_WORKER_NOTIFY_H

#include <stdbool.h>
#include <stdint.h>

struct notify;

/* Reads and removes $NOTIFY_SOCKET, $WATCHDOG_USEC, $WATCHDOG_PID, $LISTEN_PID, $LISTEN_FDS and
 * $LISTEN_FDNAMES; passed descriptors become close-on-exec.  0 or -ENOMEM. */
int notify_open(struct notify **out);
/* Closes the passed descriptors that nobody took.  Accepts NULL; *notify becomes NULL. */
void notify_close(struct notify **notify);

/* "READY=1\nSTATUS=…". */
void notify_say(const struct notify *notify, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
/* The manager keeps a copy of fd under the name (letters, digits, '-'), or lets it go. */
void notify_store(const struct notify *notify, const char *name, int fd);
void notify_unstore(const struct notify *notify, const char *name);

/* True when a manager listens. */
bool notify_has_manager(const struct notify *notify);
/* How often it wants to hear WATCHDOG=1; 0: it does not. */
uint64_t notify_watchdog_ns(const struct notify *notify);

/* Takes the passed descriptor of that name (the first of several); -1: there is none. */
int notify_take(struct notify *notify, const char *name);
/* Takes the first passed descriptor that is a listening socket of our kind; -1: there is none. */
int notify_take_listener(struct notify *notify);
/* The index-th name among those not taken; NULL past the last. */
const char *notify_name(const struct notify *notify, uint32_t index);

#endif
