/* How the event loop chooses its level: older kernels, containers without io_uring. */
#include "unit.h"

#include <liburing.h>
#include <seccomp.h>
#include <sys/eventfd.h>

#include "worker/event_loop.h"

#define MS INT64_C(1000000)

static int mailbox = -1;

static int new_eventfd(void)
{
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);

    assert_true(fd >= 0);
    return fd;
}

static void close_level(struct event_loop *loop)
{
    event_loop_close(&loop);
    assert_null(loop);
    close(mailbox);
}

/* ---- choosing a level ------------------------------------------------------------------------ */

/* Set-up flags that the "kernel" does not know. */
static unsigned refused_flags;

int __real_io_uring_queue_init_params(unsigned entries, struct io_uring *ring,
                                      struct io_uring_params *params);
int __wrap_io_uring_queue_init_params(unsigned entries, struct io_uring *ring,
                                      struct io_uring_params *params);

int __wrap_io_uring_queue_init_params(unsigned entries, struct io_uring *ring,
                                      struct io_uring_params *params)
{
    if (params->flags & refused_flags)
        return -EINVAL;
    return __real_io_uring_queue_init_params(entries, ring, params);
}

static void older_kernels(void **state)
{
    static const unsigned refused[] = {IORING_SETUP_DEFER_TASKRUN,
                                       IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_COOP_TASKRUN,
                                       IORING_SETUP_CQSIZE};
    static const char *const names[] = {"F1", "F2", "F3"};
    struct event_loop *loop;

    (void)state;
    mailbox = new_eventfd();
    assert_int_equal(event_loop_open(&loop, -1, 4, mailbox), 0);
    if (strcmp(event_loop_level_name(loop), "F0") != 0) {
        print_message("skipped: this machine has no F0\n");
        close_level(loop);
        skip();
    }
    assert_string_equal(event_loop_lost(loop), "");
    event_loop_close(&loop);
    for (int i = 0; i < 3; i++) {
        refused_flags = refused[i];
        assert_int_equal(event_loop_open(&loop, -1, 4, mailbox), 0);
        assert_string_equal(event_loop_level_name(loop), names[i]);
        assert_non_null(strstr(event_loop_lost(loop), names[i]));
        assert_null(strchr(event_loop_lost(loop), '\n'));
        event_loop_close(&loop);
        assert_int_equal(event_loop_open(&loop, i, 4, mailbox), -ENOTSUP);
        assert_null(loop);
    }
    refused_flags = 0;
    close(mailbox);
}

/* A container's filter: everything but io_uring_setup works. */
static int without_io_uring(void *argument)
{
    scmp_filter_ctx filter = seccomp_init(SCMP_ACT_ALLOW);
    int refusal = *(int *)argument, fd = eventfd(0, EFD_NONBLOCK), bell = eventfd(0, EFD_NONBLOCK);
    struct event_loop *loop;
    struct event event;
    const uint64_t one = 1;

    seccomp_rule_add(filter, SCMP_ACT_ERRNO((uint32_t)refusal), SCMP_SYS(io_uring_setup), 0);
    if (seccomp_load(filter) < 0)
        return 10;
    for (int level = 0; level < 3; level++)
        if (event_loop_open(&loop, level, 4, fd) != -ENOTSUP)
            return 11;
    if (event_loop_open(&loop, -1, 4, fd) < 0)
        return 12;
    if (strcmp(event_loop_level_name(loop), "F3") != 0)
        return 13;
    if (!strstr(event_loop_lost(loop), "F3 instead of F0") ||
        !strstr(event_loop_lost(loop), "seccomp"))
        return 14;
    if (event_loop_add(loop, 3, bell) < 0 || write(bell, &one, 8) != 8 ||
        event_loop_wait(loop, &event, 1, 1000 * MS) != 1 || event.source != 3)
        return 15;
    event_loop_close(&loop);
    return 0;
}

static void io_uring_refused(void **state)
{
    int refusals[] = {EPERM, ENOSYS};

    (void)state;
    for (int i = 0; i < 2; i++)
        assert_int_equal(in_child(without_io_uring, &refusals[i]), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(older_kernels),
        cmocka_unit_test(io_uring_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL) > 0;
}
