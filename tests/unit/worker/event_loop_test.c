/* The event loop: one body of tests over all four levels. */
#include "unit.h"

#include <pthread.h>
#include <seccomp.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <sys/time.h>

#include "worker/clock.h"
#include "worker/event_loop.h"

#define SOURCES 256
#define MS      INT64_C(1000000)

static int mailbox = -1;

static int new_eventfd(void)
{
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);

    assert_true(fd >= 0);
    return fd;
}

static void kick(int fd)
{
    const uint64_t one = 1;

    assert_int_equal(write(fd, &one, sizeof(one)), sizeof(one));
}

static struct event_loop *open_level(void **state, unsigned sources)
{
    int level = *(const int *)*state, error;
    struct event_loop *loop;

    mailbox = new_eventfd();
    error = event_loop_open(&loop, level, sources, mailbox);
    if (error == -ENOTSUP) {
        print_message("skipped: this machine has no F%d\n", level);
        close(mailbox);
        skip();
    }
    assert_int_equal(error, 0);
    assert_int_equal(event_loop_level_name(loop)[1] - '0', level);
    return loop;
}

static void close_level(struct event_loop *loop)
{
    event_loop_close(&loop);
    assert_null(loop);
    close(mailbox);
}

/* Collects events until `timeout_ns` pass without one; counts by source, mailbox at SOURCES. */
static int collect(struct event_loop *loop, unsigned counts[SOURCES + 1], int64_t timeout_ns)
{
    struct event events[16];
    int total = 0, found;

    memset(counts, 0, (SOURCES + 1) * sizeof(counts[0]));
    while ((found = event_loop_wait(loop, events, 16, timeout_ns)) > 0) {
        for (int i = 0; i < found; i++)
            counts[events[i].type == EVENT_MAILBOX ? SOURCES : events[i].source]++;
        total += found;
        assert_true(total < 100000);
    }
    assert_int_equal(found, 0);
    return total;
}

static void one_doorbell(void **state)
{
    struct event_loop *loop = open_level(state, SOURCES);
    struct event event = {EVENT_MAILBOX, 99};
    unsigned counts[SOURCES + 1];
    int fd = new_eventfd();

    assert_int_equal(event_loop_add(loop, 7, fd), 0);
    assert_int_equal(collect(loop, counts, 5 * MS), 0);
    for (int round = 0; round < 3; round++) {
        kick(fd); /* before the wait: must not sleep through it */
        assert_int_equal(event_loop_wait(loop, &event, 1, 5000 * MS), 1);
        assert_int_equal(event.type, EVENT_DOORBELL);
        assert_int_equal(event.source, 7);
        collect(loop, counts, 0);
    }
    close_level(loop);
    close(fd);
}

static void many_doorbells(void **state)
{
    struct event_loop *loop = open_level(state, 200);
    unsigned counts[SOURCES + 1];
    int fds[200];

    for (unsigned i = 0; i < 200; i++) {
        fds[i] = new_eventfd();
        assert_int_equal(event_loop_add(loop, i, fds[i]), 0);
    }
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < 200; i++)
            if (round != 1 || i % 3 == 0)
                kick(fds[i]);
        collect(loop, counts, 20 * MS);
        for (int i = 0; i < 200; i++)
            assert_int_equal(counts[i] > 0, round != 1 || i % 3 == 0);
    }
    close_level(loop);
    for (int i = 0; i < 200; i++)
        close(fds[i]);
}

static void kick_before_add(void **state)
{
    struct event_loop *loop = open_level(state, 4);
    unsigned counts[SOURCES + 1];
    int fd = new_eventfd();

    kick(fd);
    assert_int_equal(event_loop_add(loop, 3, fd), 0);
    assert_true(collect(loop, counts, 20 * MS) > 0);
    assert_true(counts[3] > 0);
    close_level(loop);
    close(fd);
}

/* As a busy dispatcher does, for 20 ms: looks, and harvests without sleeping. */
static void collect_awake(struct event_loop *loop, unsigned counts[SOURCES + 1])
{
    uint64_t end = clock_now_ns() + 20 * MS;
    struct event events[16];

    memset(counts, 0, (SOURCES + 1) * sizeof(counts[0]));
    while (clock_now_ns() < end) {
        int found = event_loop_pending(loop) ? event_loop_wait(loop, events, 16, 0) : 0;

        for (int i = 0; i < found; i++)
            counts[events[i].type == EVENT_MAILBOX ? SOURCES : events[i].source]++;
    }
}

/* More kicks than the completion queue holds: polls end, and must come back. */
static void storm(void **state)
{
    struct event_loop *loop = open_level(state, 4);
    unsigned counts[SOURCES + 1];
    int fds[2] = {new_eventfd(), new_eventfd()};

    for (unsigned i = 0; i < 2; i++)
        assert_int_equal(event_loop_add(loop, i, fds[i]), 0);
    for (int round = 0; round < 4; round++) {
        for (int i = 0; i < 5000; i++)
            kick(fds[0]);
        kick(fds[1]);
        kick(mailbox);
        if (round % 2)
            collect_awake(loop, counts);
        else
            collect(loop, counts, 10 * MS);
        assert_true(counts[0] > 0);
        assert_true(counts[1] > 0);
        assert_true(counts[SOURCES] > 0);
    }
    kick(fds[1]);
    collect(loop, counts, 10 * MS);
    assert_int_equal(counts[0], 0);
    assert_true(counts[1] > 0);
    close_level(loop);
    close(fds[0]);
    close(fds[1]);
}

static void removed_is_silent(void **state)
{
    struct event_loop *loop = open_level(state, 4);
    unsigned counts[SOURCES + 1];
    int old_fd = new_eventfd(), new_fd = new_eventfd();

    assert_int_equal(event_loop_add(loop, 2, old_fd), 0);
    kick(old_fd); /* on its way when the source goes */
    event_loop_remove(loop, 2);
    assert_int_equal(collect(loop, counts, 10 * MS), 0);
    kick(old_fd);
    assert_int_equal(collect(loop, counts, 10 * MS), 0);
    event_loop_remove(loop, 2);
    event_loop_remove(loop, 1000);

    /* The slot's next tenant hears its own bell only, even of an event that was under way. */
    assert_int_equal(event_loop_add(loop, 2, old_fd), 0);
    kick(old_fd);
    (void)event_loop_pending(loop);
    event_loop_remove(loop, 2);
    assert_int_equal(event_loop_add(loop, 2, new_fd), 0);
    kick(old_fd);
    assert_int_equal(collect(loop, counts, 10 * MS), 0);
    kick(new_fd);
    assert_true(collect(loop, counts, 10 * MS) > 0);
    assert_true(counts[2] > 0);
    close_level(loop);
    close(old_fd);
    close(new_fd);
}

/* The file itself is released: a hung-up client's eventfd must not live on in the ring. */
static void remove_releases_file(void **state)
{
    struct event_loop *loop = open_level(state, 4);
    unsigned counts[SOURCES + 1];
    int ends[2];

    assert_int_equal(pipe2(ends, O_CLOEXEC | O_NONBLOCK), 0);
    assert_int_equal(event_loop_add(loop, 0, ends[0]), 0);
    event_loop_remove(loop, 0);
    /* F0 lets go when it next enters the kernel, the others at once. */
    if (*(const int *)*state == 0)
        assert_int_equal(collect(loop, counts, 5 * MS), 0);
    close(ends[0]);
    signal(SIGPIPE, SIG_IGN);
    assert_int_equal(write(ends[1], "", 1), -1);
    assert_int_equal(errno, EPIPE);
    close_level(loop);
    close(ends[1]);
}

static void timeouts(void **state)
{
    struct event_loop *loop = open_level(state, 4);
    static const int64_t wanted[] = {300000, 2 * MS, 30 * MS};
    struct event event;

    for (int i = 0; i < 3; i++) {
        int64_t best = INT64_MAX;

        for (int round = 0; round < 5; round++) {
            uint64_t start = clock_now_ns();
            int64_t took;

            assert_int_equal(event_loop_wait(loop, &event, 1, wanted[i]), 0);
            took = (int64_t)(clock_now_ns() - start);
            assert_true(took >= wanted[i]);
            best = took < best ? took : best;
        }
        assert_true(best < 10 * wanted[i]);
    }
    close_level(loop);
}

static void on_alarm(int signal_number)
{
    (void)signal_number;
}

static void interrupted_sleep(void **state)
{
    struct event_loop *loop = open_level(state, 4);
    struct sigaction action = {.sa_handler = on_alarm}, before;
    struct itimerval timer = {{0, 5000}, {0, 5000}}, off = {{0, 0}, {0, 0}};
    uint64_t start = clock_now_ns();
    struct event event;

    sigaction(SIGALRM, &action, &before);
    setitimer(ITIMER_REAL, &timer, NULL);
    assert_int_equal(event_loop_wait(loop, &event, 1, 40 * MS), 0);
    setitimer(ITIMER_REAL, &off, NULL);
    sigaction(SIGALRM, &before, NULL);
    assert_true(clock_now_ns() - start >= 40 * MS);
    close_level(loop);
}

static void *kick_soon(void *argument)
{
    usleep(20000);
    kick(*(int *)argument);
    return NULL;
}

/* Another thread rings: asleep without a limit, then awake and only looking. */
static void rung_from_outside(void **state)
{
    struct event_loop *loop = open_level(state, 4);
    struct event event = {EVENT_MAILBOX, 99};
    unsigned counts[SOURCES + 1];
    int fd = new_eventfd();
    pthread_t thread;
    uint64_t start, syscalls;

    assert_int_equal(event_loop_add(loop, 1, fd), 0);
    assert_int_equal(pthread_create(&thread, NULL, kick_soon, &fd), 0);
    assert_int_equal(event_loop_wait(loop, &event, 1, -1), 1);
    assert_int_equal(event.source, 1);
    pthread_join(thread, NULL);
    collect(loop, counts, 0);

    assert_int_equal(pthread_create(&thread, NULL, kick_soon, &fd), 0);
    start = clock_now_ns();
    syscalls = event_loop_syscalls(loop);
    if (*(const int *)*state < 3)
        assert_false(event_loop_pending(loop));
    while (!event_loop_pending(loop))
        assert_true(clock_now_ns() - start < 5000 * MS);
    assert_int_equal(event_loop_syscalls(loop), syscalls);
    pthread_join(thread, NULL);
    collect(loop, counts, 0);
    assert_true(counts[1] > 0);
    close_level(loop);
    close(fd);
}

/* In a child that is killed for any system call but exit. */
static int pending_without_syscalls(void *argument)
{
    scmp_filter_ctx filter = seccomp_init(SCMP_ACT_KILL_PROCESS);
    struct event_loop *loop;
    int fd = eventfd(0, EFD_NONBLOCK), level = *(int *)argument;
    const uint64_t one = 1;
    bool seen = false;

    if (event_loop_open(&loop, level, 4, eventfd(0, EFD_NONBLOCK)) < 0 ||
        event_loop_add(loop, 0, fd) < 0)
        return 10;
    if (level < 3 && event_loop_pending(loop))
        return 11;
    seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(exit_group), 0);
    if (level == 3) /* machines whose clock is not readable in user space */
        seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(clock_gettime), 0);
    if (write(fd, &one, sizeof(one)) != sizeof(one) || seccomp_load(filter) < 0)
        return 12;
    for (int i = 0; i < 1000; i++)
        seen |= event_loop_pending(loop);
    /* Bare: a sanitizer's _exit looks for leaks, with system calls of its own. */
    syscall(SYS_exit_group, seen ? 0 : 13);
    return 14;
}

static void pending_makes_no_syscall(void **state)
{
    close_level(open_level(state, 4));
    assert_int_equal(in_child(pending_without_syscalls, *state), 0);
}

static void syscall_count(void **state)
{
    struct event_loop *loop = open_level(state, 4);
    int level = *(const int *)*state, fd = new_eventfd();
    unsigned counts[SOURCES + 1];
    struct event event;
    uint64_t before;

    assert_int_equal(event_loop_add(loop, 0, fd), 0);
    collect(loop, counts, MS);
    before = event_loop_syscalls(loop);
    assert_true(before > 0);
    assert_int_equal(event_loop_wait(loop, &event, 1, 0), 0);
    assert_int_equal(event_loop_syscalls(loop) - before, level == 3);
    before = event_loop_syscalls(loop);
    assert_int_equal(event_loop_wait(loop, &event, 1, MS), 0);
    assert_in_range(event_loop_syscalls(loop) - before, 1, 2);
    before = event_loop_syscalls(loop);
    kick(fd);
    assert_int_equal(event_loop_wait(loop, &event, 1, 1000 * MS), 1);
    /* F1's and F2's completion is posted on the way out of our own write. */
    assert_int_equal(event_loop_syscalls(loop) - before, level == 0 || level == 3);
    close_level(loop);
    close(fd);
}

static void mailbox_event(void **state)
{
    struct event_loop *loop = open_level(state, 4);
    struct event event = {EVENT_DOORBELL, 99};
    uint64_t count;

    for (int round = 0; round < 3; round++) {
        kick(mailbox);
        assert_int_equal(event_loop_wait(loop, &event, 1, 1000 * MS), 1);
        assert_int_equal(event.type, EVENT_MAILBOX);
        assert_int_equal(read(mailbox, &count, sizeof(count)), sizeof(count));
        assert_int_equal(event_loop_wait(loop, &event, 1, 0), 0);
    }
    close_level(loop);
}

/* A client fills its counter, or makes reads block and steals the value: its own loss only. */
static int hostile_eventfd(void *argument)
{
    struct event_loop *loop;
    struct event events[4];
    int level = *(int *)argument, fd = eventfd(0, EFD_NONBLOCK), other = eventfd(0, EFD_NONBLOCK);
    uint64_t value = UINT64_MAX - 1;
    bool heard = false;

    if (event_loop_open(&loop, level, 4, eventfd(0, EFD_NONBLOCK)) < 0 ||
        event_loop_add(loop, 0, fd) < 0 || event_loop_add(loop, 1, other) < 0)
        return 10;
    if (write(fd, &value, 8) != 8 || fcntl(fd, F_SETFL, 0) < 0 || read(fd, &value, 8) != 8)
        return 11;
    event_loop_wait(loop, events, 4, 0); /* a loop that reads hangs here */
    value = UINT64_MAX - 1;
    if (write(fd, &value, 8) != 8)
        return 12;
    value = 1;
    if (write(other, &value, 8) != 8)
        return 13;
    for (int found; (found = event_loop_wait(loop, events, 4, 5 * MS)) > 0;)
        for (int i = 0; i < found; i++)
            heard |= events[i].source == 1;
    event_loop_remove(loop, 0);
    event_loop_close(&loop);
    return heard ? 0 : 14;
}

static void hostile_counter(void **state)
{
    close_level(open_level(state, 4));
    assert_int_equal(in_child(hostile_eventfd, *state), 0);
}

static void *open_and_arm(void *argument)
{
    struct event_loop *loop = NULL;
    int fd = new_eventfd(), *level = argument;

    if (event_loop_open(&loop, *level, 4, mailbox) == 0)
        event_loop_add(loop, 0, fd);
    close(fd);
    return loop;
}

static void closed_by_another_thread(void **state)
{
    struct event_loop *loop;
    pthread_t thread;
    void *result;

    close_level(open_level(state, 4));
    mailbox = new_eventfd();
    assert_int_equal(pthread_create(&thread, NULL, open_and_arm, *state), 0);
    pthread_join(thread, &result);
    loop = result;
    assert_non_null(loop);
    close_level(loop);
}

static void bad_arguments(void **state)
{
    struct event_loop *loop = open_level(state, 4), *other;
    struct event event;
    int fd = new_eventfd();

    assert_int_equal(event_loop_add(loop, 4, fd), -EINVAL);
    assert_int_equal(event_loop_add(loop, UINT32_MAX, fd), -EINVAL);
    assert_int_equal(event_loop_add(loop, 0, -1), -EINVAL);
    assert_int_equal(event_loop_add(loop, 0, fd), 0);
    assert_int_equal(event_loop_add(loop, 0, fd), -EEXIST);
    assert_int_equal(event_loop_wait(loop, &event, 0, 0), -EINVAL);
    assert_int_equal(event_loop_open(&other, 4, 4, mailbox), -EINVAL);
    assert_null(other);
    assert_int_equal(event_loop_open(&other, -1, 0, mailbox), -EINVAL);
    close_level(loop);
    close(fd);
}

#define BODY(function) {#function, function}

static const struct {
    const char *name;
    CMUnitTestFunction function;
} bodies[] = {
    BODY(one_doorbell),      BODY(many_doorbells),       BODY(kick_before_add),
    BODY(storm),             BODY(removed_is_silent),    BODY(remove_releases_file),
    BODY(timeouts),          BODY(interrupted_sleep),    BODY(rung_from_outside),
    BODY(syscall_count),     BODY(mailbox_event),        BODY(pending_makes_no_syscall),
    BODY(hostile_counter),   BODY(closed_by_another_thread), BODY(bad_arguments),
};

#define BODY_COUNT (sizeof(bodies) / sizeof(bodies[0]))

int main(void)
{
    static int levels[EVENT_LEVEL_COUNT] = {0, 1, 2, 3};
    static char names[EVENT_LEVEL_COUNT * BODY_COUNT][64];
    static struct CMUnitTest by_level[EVENT_LEVEL_COUNT * BODY_COUNT];

    for (size_t i = 0; i < EVENT_LEVEL_COUNT * BODY_COUNT; i++) {
        snprintf(names[i], sizeof(names[i]), "F%d %s", levels[i / BODY_COUNT],
                 bodies[i % BODY_COUNT].name);
        by_level[i] = (struct CMUnitTest){names[i], bodies[i % BODY_COUNT].function, NULL, NULL,
                                          &levels[i / BODY_COUNT]};
    }
    return cmocka_run_group_tests(by_level, NULL, NULL) > 0;
}
