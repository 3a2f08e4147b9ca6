/*
 * Memory of the worker, seen from malloc: none is asked for while jobs run, whatever the jobs; and
 * each request of the start and of a session's set-up fails once, and from there on for ever, with
 * a clean end each time.
 *
 * The worker runs in this process, whose malloc is this file's.  The client is a raw one, which
 * allocates nothing.
 */
#include "tests/harness.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "tests/e2e/layer_case.h"
#include "tests/e2e/machine.h"
#include "tests/e2e/raw.h"
#include "worker/worker.h"

#define JOBS     100000
#define REPLY_MS 5000
#define DEAF_MS  500

/* ---- malloc ---------------------------------------------------------------------------------- */

void *__libc_malloc(size_t bytes);
void *__libc_calloc(size_t count, size_t bytes);
void *__libc_realloc(void *memory, size_t bytes);
void *__libc_memalign(size_t align, size_t bytes);

static uint64_t requests;
static int call_error; /* other system calls are requests, too, and fail so; 0: they are not */
static uint64_t fail_from, fail_to; /* requests that fail, by number; 0: none */
static __thread bool is_client;     /* this thread's requests are not the worker's */

/* True when this request is to fail. */
static bool count_request(void)
{
    uint64_t number;

    if (is_client)
        return false;
    number = __atomic_add_fetch(&requests, 1, __ATOMIC_RELAXED);
    return number >= fail_from && number <= fail_to;
}

static void *no_memory(void)
{
    errno = ENOMEM;
    return NULL;
}

void *malloc(size_t bytes)
{
    return count_request() ? no_memory() : __libc_malloc(bytes);
}

void *calloc(size_t count, size_t bytes)
{
    return count_request() ? no_memory() : __libc_calloc(count, bytes);
}

void *realloc(void *memory, size_t bytes)
{
    return count_request() ? no_memory() : __libc_realloc(memory, bytes);
}

void *aligned_alloc(size_t align, size_t bytes)
{
    return count_request() ? no_memory() : __libc_memalign(align, bytes);
}

/* And the kernel's: calls of the worker's own code, through the linker's --wrap. */
void *__wrap_mmap(void *address, size_t bytes, int protection, int flags, int fd, off_t offset);
void *__wrap_mmap64(void *address, size_t bytes, int protection, int flags, int fd, off_t offset);
int __wrap_memfd_create(const char *name, unsigned flags);
int __real_memfd_create(const char *name, unsigned flags);

void *__wrap_mmap(void *address, size_t bytes, int protection, int flags, int fd, off_t offset)
{
    if (count_request()) {
        errno = ENOMEM;
        return MAP_FAILED;
    }
    return (void *)syscall(SYS_mmap, address, bytes, protection, flags, fd, offset);
}

void *__wrap_mmap64(void *address, size_t bytes, int protection, int flags, int fd, off_t offset)
{
    return __wrap_mmap(address, bytes, protection, flags, fd, offset);
}

int __wrap_memfd_create(const char *name, unsigned flags)
{
    if (count_request()) {
        errno = ENFILE;
        return -1;
    }
    return __real_memfd_create(name, flags);
}

/* Other calls that a start and a session need.  Some return an int, some an ssize_t: a long is both
 * in x86-64's and AArch64's return register. */
#define WRAPS(X)                                                                                   \
    X(getrandom, (void *out, size_t bytes, unsigned flags), SYS_getrandom, out, bytes, flags, 0,   \
      0)                                                                                           \
    X(signalfd, (int fd, const sigset_t *mask, int flags), SYS_signalfd4, fd, mask, 8, flags, 0)   \
    X(eventfd, (unsigned count, int flags), SYS_eventfd2, count, flags, 0, 0, 0)                   \
    X(epoll_create1, (int flags), SYS_epoll_create1, flags, 0, 0, 0, 0)                            \
    X(epoll_ctl, (int fd, int what, int target, struct epoll_event *event), SYS_epoll_ctl, fd,     \
      what, target, event, 0)                                                                      \
    X(socket, (int domain, int type, int protocol), SYS_socket, domain, type, protocol, 0, 0)      \
    X(bind, (int fd, const struct sockaddr *address, socklen_t bytes), SYS_bind, fd, address,      \
      bytes, 0, 0)                                                                                 \
    X(listen, (int fd, int backlog), SYS_listen, fd, backlog, 0, 0, 0)                             \
    X(accept4, (int fd, struct sockaddr *address, socklen_t *bytes, int flags), SYS_accept4, fd,   \
      address, bytes, flags, 0)                                                                    \
    X(getsockopt, (int fd, int level, int name, void *value, socklen_t *bytes), SYS_getsockopt,    \
      fd, level, name, value, bytes)                                                               \
    X(recvmsg, (int fd, struct msghdr *message, int flags), SYS_recvmsg, fd, message, flags, 0, 0) \
    X(sendmsg, (int fd, const struct msghdr *message, int flags), SYS_sendmsg, fd, message, flags, \
      0, 0)                                                                                        \
    X(mprotect, (void *memory, size_t bytes, int protection), SYS_mprotect, memory, bytes,         \
      protection, 0, 0)                                                                            \
    X(madvise, (void *memory, size_t bytes, int advice), SYS_madvise, memory, bytes, advice, 0, 0) \
    X(flock, (int fd, int operation), SYS_flock, fd, operation, 0, 0, 0)                           \
    X(chmod, (const char *path, mode_t mode), SYS_chmod, path, mode, 0, 0, 0)                      \
    X(fcntl64, (int fd, int command, long argument), SYS_fcntl, fd, command, argument, 0, 0)       \
    X(ftruncate64, (int fd, off_t bytes), SYS_ftruncate, fd, bytes, 0, 0, 0)

#define X(name, parameters, number, ...)                                                           \
    long __wrap_##name parameters;                                                                 \
    long __wrap_##name parameters                                                                  \
    {                                                                                              \
        if (call_error && count_request()) {                                                       \
            errno = call_error;                                                                    \
            return -1;                                                                             \
        }                                                                                          \
        return syscall(number, __VA_ARGS__);                                                       \
    }
WRAPS(X)
#undef X

/* ---- a worker in this process ---------------------------------------------------------------- */

static char socket_path[] = "/tmp/gemmd-steady-XXXXXX";
static struct worker *worker;
static pthread_t thread;

static void *run_worker(void *argument)
{
    (void)argument;
    return worker_run(worker) == 0 ? NULL : &worker;
}

/* 0, or the worker's exit code. */
static int open_worker(void)
{
    const char *const arguments[] = {"gemmd", "--socket", socket_path, "--sandbox", "off",
                                     "--pool-bytes", "64M", NULL};
    struct options options;
    int code;

    if (options_parse(&options, 7, (char **)(uintptr_t)arguments, &code) != 0)
        return code;
    return worker_open(&worker, &options);
}

static void close_worker(void)
{
    char lock[sizeof(socket_path) + 8];

    worker_close(&worker);
    snprintf(lock, sizeof(lock), "%s.lock", socket_path);
    unlink(lock);
}

static void stop_worker(void)
{
    void *failed;

    kill(getpid(), SIGTERM); /* blocked everywhere: the control thread reads it */
    pthread_join(thread, &failed);
    close_worker();
}

/* ---- a client that takes every refusal ------------------------------------------------------- */

static struct gemmd_layer_desc_abi small_layer = {
    .n = 16, .k = 16, .a_type = GEMMD_ABI_TYPE_U8, .c_type = GEMMD_ABI_TYPE_F32,
    .scale_count = 1, .a_scale = 1.0f, .c_scale = 1.0f, .b_type = GEMMD_ABI_TYPE_S8};
/* Its image: zeros, and the one scale. */
static struct {
    int8_t weights[256];
    float scale;
    char padding[60];
} small_image = {.scale = 1.0f};
static uint64_t small_content[2];

enum progress { CONNECTED, LIVE, SERVED };

/* One request; true when it succeeded.  A refusal must be a status; silence fails the test. */
static bool ask(struct raw *raw, void *request, void *reply, size_t reply_bytes)
{
    struct gemmd_msg_header *header = request, answer;
    int got;

    memset(reply, 0, reply_bytes);
    if (!raw_send(raw->fd, request, header->bytes, NULL, 0))
        return false;
    got = raw_receive(raw->fd, reply, reply_bytes, NULL, NULL, REPLY_MS);
    REQUIRE(got >= 0);
    if (got == 0)
        return false;
    memcpy(&answer, reply, sizeof(answer));
    return answer.status == GEMMD_STATUS_OK;
}

static bool connect_live(struct raw *raw)
{
    struct gemmd_msg_hello hello = raw_hello(64, 1 << 16);
    struct gemmd_msg_mapped mapped;
    struct gemmd_msg_mapped_reply reply;
    unsigned fd_count = 0;
    bool deaf;
    int got;

    memset(raw, 0, sizeof(*raw));
    raw->fd = raw_connect(socket_path);
    if (!raw_send(raw->fd, &hello, sizeof(hello), NULL, 0))
        return false;
    /* While no connection can be accepted at all nobody is there to say so. */
    deaf = call_error && fail_to == UINT64_MAX;
    got = raw_receive(raw->fd, &raw->hello, sizeof(raw->hello), raw->fds, &fd_count,
                      deaf ? DEAF_MS : REPLY_MS);
    REQUIRE(got >= 0 || deaf);
    if (got != sizeof(raw->hello) || raw->hello.header.status != 0 ||
        fd_count != GEMMD_HELLO_FD_COUNT)
        return false;
    raw_map(raw);
    mapped.header = raw_header(raw, GEMMD_MSG_MAPPED, sizeof(mapped));
    return ask(raw, &mapped, &reply, sizeof(reply));
}

static bool upload(struct raw *raw, struct gemmd_msg_layer_reply *reply)
{
    struct gemmd_msg_layer_create create = {.desc = small_layer, .name = "steady"};
    struct gemmd_msg_layer_data data = {.bytes = sizeof(small_image)};
    struct gemmd_msg_layer_data_reply data_reply;
    struct gemmd_msg_layer_commit commit;

    memcpy(create.content_id, small_content, sizeof(small_content));
    create.header = raw_header(raw, GEMMD_MSG_LAYER_CREATE, sizeof(create));
    if (!ask(raw, &create, reply, sizeof(*reply)))
        return false;
    if (reply->layer_gen)
        return true; /* it is there already */
    memcpy(raw->arena, &small_image, sizeof(small_image));
    data.header = raw_header(raw, GEMMD_MSG_LAYER_DATA, sizeof(data));
    commit.header = raw_header(raw, GEMMD_MSG_LAYER_COMMIT, sizeof(commit));
    return ask(raw, &data, &data_reply, sizeof(data_reply)) &&
           ask(raw, &commit, reply, sizeof(*reply));
}

static struct gemmd_sqe job_of(const struct gemmd_msg_layer_reply *handle, uint32_t m)
{
    return (struct gemmd_sqe){.op = GEMMD_OP_GEMM, .m = m, .layer_id = handle->layer_id,
                              .layer_gen = handle->layer_gen, .c_offset = 1 << 15,
                              .a_stride_bytes = 16, .c_stride_bytes = 64};
}

/* How far one gets with a session, a layer and a job. */
static enum progress use_worker(void)
{
    struct gemmd_msg_layer_reply handle;
    struct gemmd_msg_wake_fd wake_fd;
    struct gemmd_msg_wake_fd_reply wake_fd_reply;
    enum progress progress = CONNECTED;
    struct gemmd_sqe sqe;
    struct gemmd_cqe cqe;
    struct raw raw;

    is_client = true;
    if (connect_live(&raw)) {
        progress = LIVE;
        wake_fd.header = raw_header(&raw, GEMMD_MSG_WAKE_FD, sizeof(wake_fd));
        ask(&raw, &wake_fd, &wake_fd_reply, sizeof(wake_fd_reply)); /* its refusal is no obstacle */
        if (upload(&raw, &handle)) {
            sqe = job_of(&handle, 2);
            raw_submit(&raw, &sqe);
            REQUIRE(raw_complete(&raw, &cqe, true, REPLY_MS));
            REQUIRE(cqe.status == GEMMD_STATUS_OK);
            progress = SERVED;
        }
    }
    raw_close(&raw);
    is_client = false;
    return progress;
}

/* ---- nothing is allocated while jobs run ----------------------------------------------------- */

static void run_jobs(struct raw *raw, const struct gemmd_msg_layer_reply *handle, unsigned count)
{
    struct gemmd_cqe cqe;

    for (unsigned submitted = 0, reaped = 0; reaped < count;) {
        while (submitted < count && submitted - reaped < 64) {
            struct gemmd_sqe sqe = job_of(handle, submitted % 5);

            if (submitted % 11 == 3)
                sqe.layer_gen++;
            if (submitted % 11 == 4)
                sqe.a_offset = UINT64_MAX / 2;
            raw_submit(raw, &sqe);
            submitted++;
        }
        while (gemmd_cq_take(&raw->cq, &cqe))
            reaped++;
        gemmd_cq_release(&raw->cq, raw->client);
    }
}

static void test_no_allocation(void **state)
{
    struct gemmd_msg_layer_reply handle;
    uint64_t before, after;
    struct raw raw;

    (void)state;
    REQUIRE(open_worker() == 0);
    REQUIRE(pthread_create(&thread, NULL, run_worker, NULL) == 0);
    is_client = true;
    assert_true(connect_live(&raw));
    assert_true(upload(&raw, &handle));
    run_jobs(&raw, &handle, 1000);
    before = __atomic_load_n(&requests, __ATOMIC_RELAXED);
    run_jobs(&raw, &handle, JOBS);
    for (int i = 0; i < 20; i++) { /* asleep in between */
        usleep(3000);
        run_jobs(&raw, &handle, 3);
    }
    after = __atomic_load_n(&requests, __ATOMIC_RELAXED);
    printf("%d jobs: %lu requests for memory (%lu before them)\n", JOBS + 60,
           (unsigned long)(after - before), (unsigned long)before);
    assert_int_equal(after - before, 0);
    assert_true(before > 10); /* the counter counts */
    raw_close(&raw);
    is_client = false;
    stop_worker();
}

/* ---- each request fails ---------------------------------------------------------------------- */

static unsigned open_fds(void)
{
    unsigned count = 0;

    for (int fd = 0; fd < 256; fd++)
        count += fcntl(fd, F_GETFD) >= 0;
    return count;
}

struct failing {
    uint64_t from, to;
    int call_error;
};

/* In a child.  0: all went well although the request failed (or was never made: 1); 2: a clean
 * refusal at the start; 3: of the session. */
static int live_with_failure(void *argument)
{
    const struct failing *failing = argument;
    unsigned fds = open_fds();
    enum progress progress;
    int code;

    call_error = failing->call_error;
    fail_from = __atomic_load_n(&requests, __ATOMIC_RELAXED) + failing->from;
    fail_to = failing->to == UINT64_MAX ? UINT64_MAX : fail_from;
    code = open_worker();
    if (code) {
        REQUIRE(code >= 64 && code <= 78);
        fail_to = 0;
        close_worker();
        REQUIRE(open_fds() == fds);
        return 2;
    }
    if (pthread_create(&thread, NULL, run_worker, NULL) != 0) { /* the test's own */
        fail_to = 0;
        close_worker();
        return 2;
    }
    progress = use_worker();
    fail_to = 0;
    if (__atomic_load_n(&requests, __ATOMIC_RELAXED) < fail_from) {
        stop_worker();
        REQUIRE(progress == SERVED);
        return 1;
    }
    REQUIRE(use_worker() == SERVED); /* memory is back: so is the service */
    stop_worker();
    REQUIRE(open_fds() == fds);
    return progress == SERVED ? 0 : 3;
}

static void check_failures(bool for_ever, int error)
{
    unsigned outcomes[4] = {0};
    uint64_t number = 1;
    int outcome = 0;

    for (; outcome != 1 && number < 2000; number++) {
        struct failing failing = {number, for_ever ? UINT64_MAX : number, error};

        outcome = harness_join(harness_fork(live_with_failure, &failing), 30000);
        if (outcome < 0 || outcome > 3)
            fprintf(stderr, "request %lu failing %s: outcome %d\n", (unsigned long)number,
                    for_ever ? "for ever" : "once", outcome);
        assert_in_range(outcome, 0, 3);
        outcomes[outcome]++;
    }
    printf("%lu requests failed %s: %u served all the same, %u starts and %u sessions refused\n",
           (unsigned long)(number - 2), for_ever ? "from there on" : "once", outcomes[0],
           outcomes[2], outcomes[3]);
    assert_int_equal(outcomes[1], 1);
    assert_true(outcomes[2] > 3);
}

static void test_fails_once(void **state)
{
    (void)state;
    check_failures(false, 0);
}

static void test_fails_for_ever(void **state)
{
    (void)state;
    check_failures(true, 0);
}

static void test_calls_fail_once(void **state)
{
    (void)state;
    check_failures(false, ENOMEM);
    check_failures(false, EINTR);
    check_failures(false, ENFILE);
}

static void test_calls_fail_for_ever(void **state)
{
    (void)state;
    check_failures(true, ENOMEM);
}

static int start(void **state)
{
    int fd = mkstemp(socket_path);
    XXH3_state_t hash;

    (void)state;
    REQUIRE(fd >= 0);
    close(fd);
    unlink(socket_path);
    unsetenv("GEMMD_SOCKET");
    unsetenv("GEMMD_DEBUG");
    XXH3_128bits_reset(&hash);
    XXH3_128bits_update(&hash, &small_layer, sizeof(small_layer));
    XXH3_128bits_update(&hash, &small_image, sizeof(small_image));
    small_content[0] = XXH3_128bits_digest(&hash).low64;
    small_content[1] = XXH3_128bits_digest(&hash).high64;
    return 0;
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_no_allocation),
        cmocka_unit_test(test_fails_once),
        cmocka_unit_test(test_fails_for_ever),
        cmocka_unit_test(test_calls_fail_once),
        cmocka_unit_test(test_calls_fail_for_ever),
    };

    return HARNESS_RUN(tests, start, NULL, 230);
}
