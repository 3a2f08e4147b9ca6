/*
 * Escapes: each forbidden system call, made from inside each kind of thread's filter.  In kill mode
 * it must end the process, in errno mode it must fail with EPERM; the calls a thread needs must
 * work in both.
 */
#include "unit.h"

#include <linux/io_uring.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include "worker/event_limit.h"
#include "worker/sandbox.h"

/* What nobody in a serving worker may do. */
#define CALL(name) {#name, SYS_##name}
static const struct {
    const char *name;
    long number;
} forbidden[] = {
    CALL(execve), CALL(execveat), CALL(fork), CALL(vfork), CALL(clone), CALL(clone3),
    CALL(ptrace), CALL(process_vm_readv), CALL(process_vm_writev), CALL(kill), CALL(tkill),
    CALL(socket), CALL(socketpair), CALL(connect), CALL(bind), CALL(listen), CALL(sendto),
    CALL(recvfrom), CALL(open), CALL(creat), CALL(rename), CALL(mkdir), CALL(rmdir), CALL(link),
    CALL(symlink), CALL(chmod), CALL(fchmod), CALL(chown), CALL(fchown), CALL(mknod), CALL(mount),
    CALL(umount2), CALL(chroot), CALL(pivot_root), CALL(setuid), CALL(setgid), CALL(setresuid),
    CALL(capset), CALL(unshare), CALL(setns), CALL(personality), CALL(prctl), CALL(seccomp),
    CALL(bpf), CALL(perf_event_open), CALL(keyctl), CALL(add_key), CALL(init_module),
    CALL(finit_module), CALL(delete_module), CALL(kexec_load), CALL(reboot), CALL(swapon),
    CALL(syslog), CALL(iopl), CALL(ioperm), CALL(ioctl), CALL(userfaultfd), CALL(io_uring_setup),
    CALL(io_uring_register), CALL(io_setup), CALL(shmget), CALL(shmat), CALL(pipe2), CALL(dup2),
    CALL(dup3), CALL(truncate), CALL(pwrite64), CALL(sendfile), CALL(splice),
    CALL(vmsplice), CALL(memfd_secret), CALL(pidfd_open), CALL(pidfd_getfd),
    CALL(pidfd_send_signal), CALL(open_by_handle_at), CALL(openat2), CALL(name_to_handle_at),
    CALL(inotify_init1), CALL(fanotify_init), CALL(timer_create), CALL(clock_settime),
    CALL(settimeofday), CALL(adjtimex), CALL(quotactl), CALL(acct), CALL(uname),
};
#define FORBIDDEN_COUNT (sizeof(forbidden) / sizeof(forbidden[0]))

struct attempt {
    enum sandbox_mode mode;
    enum sandbox_thread thread;
    long number;
    long arguments[3];
};

/* 0: denied with EPERM; 1: made; 99: no filter could be loaded. */
static int try_call(void *argument)
{
    const struct attempt *attempt = argument;

    if (sandbox_open(attempt->mode) < 0 || sandbox_enter(attempt->thread) < 0)
        return 99;
    errno = 0;
    syscall(attempt->number, attempt->arguments[0], attempt->arguments[1], attempt->arguments[2], 0,
            0, 0);
    return errno == EPERM ? 0 : 1;
}

static bool is_unfit(void)
{
#ifdef GEMMD_SANDBOX_UNFIT
    return true;
#else
    return false;
#endif
}

static void check_denied(long number, long argument0, long argument1, long argument2)
{
    for (int thread = SANDBOX_CONTROL; thread <= SANDBOX_WATCHDOG; thread++) {
        struct attempt attempt = {SANDBOX_KILL, (enum sandbox_thread)thread, number,
                                  {argument0, argument1, argument2}};

        assert_int_equal(in_child(try_call, &attempt), 1000 + SIGSYS);
        attempt.mode = SANDBOX_ERRNO;
        assert_int_equal(in_child(try_call, &attempt), 0);
    }
}

static void test_forbidden(void **state)
{
    (void)state;
    if (is_unfit())
        skip();
    for (size_t i = 0; i < FORBIDDEN_COUNT; i++)
        check_denied(forbidden[i].number, -1, -1, -1);
    print_message("%zu calls x 3 threads x 2 modes denied\n", FORBIDDEN_COUNT);
}

/* Allowed calls with arguments that make another thing of them. */
static void test_forbidden_arguments(void **state)
{
    (void)state;
    if (is_unfit())
        skip();
    check_denied(SYS_mmap, 0, 4096, PROT_READ | PROT_EXEC);
    check_denied(SYS_mprotect, 0, 4096, PROT_READ | PROT_EXEC);
    check_denied(SYS_openat, AT_FDCWD, (long)"/dev/null", O_RDWR);
    check_denied(SYS_openat, AT_FDCWD, (long)"/dev/null", O_WRONLY);
    check_denied(SYS_openat, AT_FDCWD, (long)"/dev/null", O_RDONLY | O_CREAT);
}

/* Only the control thread looks at files and connections. */
static void test_the_dispatcher_has_less(void **state)
{
    static const long controls_own[] = {SYS_accept4,  SYS_recvmsg, SYS_sendmsg, SYS_openat,
                                        SYS_mprotect, SYS_fcntl,   SYS_unlink,  SYS_memfd_create,
                                        SYS_close,    SYS_ftruncate};

    (void)state;
    if (is_unfit())
        skip();
    for (size_t i = 0; i < sizeof(controls_own) / sizeof(controls_own[0]); i++) {
        struct attempt attempt = {SANDBOX_KILL, SANDBOX_DISPATCHER, controls_own[i], {-1, -1, 0}};

        assert_int_equal(in_child(try_call, &attempt), 1000 + SIGSYS);
        attempt.thread = SANDBOX_WATCHDOG;
        assert_int_equal(in_child(try_call, &attempt), 1000 + SIGSYS);
        attempt.thread = SANDBOX_CONTROL;
        assert_int_equal(in_child(try_call, &attempt), 1);
    }
}

/* ---- files ----------------------------------------------------------------------------------- */

static int error_of_open(const char *path)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd < 0)
        return errno;
    close(fd);
    return 0;
}

static char folder[] = "/tmp/gemmd-sandbox-XXXXXX", beside[64], socket_path[64];

/* 77: there is no Landlock here. */
static int look_at_files(void *argument)
{
    int error;

    (void)argument;
    if (sandbox_open(SANDBOX_KILL) < 0)
        return 99;
    error = sandbox_limit_files(socket_path);
    if (error == -ENOSYS || error == -EOPNOTSUPP || error == -EPERM)
        return 77;
    if (error < 0 || sandbox_enter(SANDBOX_CONTROL) < 0)
        return 98;
    if (error_of_open("/etc/passwd") != EACCES || error_of_open("/proc/1/status") != EACCES ||
        error_of_open("/") != EACCES || error_of_open(socket_path) != EACCES)
        return 1;
    if (error_of_open("/proc/self/smaps") || error_of_open("/sys/devices/system/cpu/online"))
        return 2;
    if (unlink(beside) == 0 || errno != EACCES)
        return 3;
    return unlink(socket_path) == 0 ? 0 : 4;
}

static void touch(const char *path)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);

    assert_true(fd >= 0);
    close(fd);
}

static void test_files(void **state)
{
    int result;

    (void)state;
    if (is_unfit())
        skip();
    assert_non_null(mkdtemp(folder));
    snprintf(socket_path, sizeof(socket_path), "%s/w.sock", folder);
    snprintf(beside, sizeof(beside), "%s-other", folder);
    touch(socket_path);
    touch(beside);
    result = in_child(look_at_files, NULL);
    unlink(socket_path);
    unlink(beside);
    rmdir(folder);
    if (result == 77) {
        print_message("SKIP: no Landlock here\n");
        skip();
    }
    assert_int_equal(result, 0);
}

/* The test of the tests: without a filter the same calls are made. */
static void test_off(void **state)
{
    struct attempt attempt = {SANDBOX_OFF, SANDBOX_CONTROL, SYS_uname, {-1, 0, 0}};

    (void)state;
    assert_int_equal(in_child(try_call, &attempt), 1);
}

static int look_at_privileges(void *argument)
{
    (void)argument;
    if (sandbox_open(SANDBOX_OFF) < 0)
        return 99;
    return prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1 ? 0 : 1;
}

static void test_no_new_privileges(void **state)
{
    (void)state;
    assert_int_equal(in_child(look_at_privileges, NULL), 0);
}

/* ---- the ring -------------------------------------------------------------------------------- */

static int open_ring(struct io_uring_params *parameters)
{
    return (int)syscall(SYS_io_uring_setup, 4, parameters);
}

/* Submits one entry by hand and returns its result. */
static int submit_one(int fd, const struct io_uring_params *parameters, struct io_uring_sqe sqe)
{
    size_t sq_bytes = parameters->sq_off.array + parameters->sq_entries * sizeof(uint32_t);
    size_t cq_bytes = parameters->cq_off.cqes +
                      parameters->cq_entries * sizeof(struct io_uring_cqe);
    char *sq = mmap(NULL, sq_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, IORING_OFF_SQ_RING);
    char *cq = mmap(NULL, cq_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, IORING_OFF_CQ_RING);
    struct io_uring_sqe *sqes = mmap(NULL, parameters->sq_entries * sizeof(*sqes),
                                     PROT_READ | PROT_WRITE, MAP_SHARED, fd, IORING_OFF_SQES);
    const struct io_uring_cqe *cqes;
    int submitted, result;

    assert_true(sq != MAP_FAILED && cq != MAP_FAILED && sqes != MAP_FAILED);
    sqes[0] = sqe;
    ((uint32_t *)(void *)(sq + parameters->sq_off.array))[0] = 0;
    __atomic_store_n((uint32_t *)(void *)(sq + parameters->sq_off.tail), 1, __ATOMIC_RELEASE);
    submitted = (int)syscall(SYS_io_uring_enter, fd, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0);
    cqes = (const struct io_uring_cqe *)(void *)(cq + parameters->cq_off.cqes);
    result = submitted == 1 ? cqes[0].res : -errno;
    munmap(sq, sq_bytes);
    munmap(cq, cq_bytes);
    munmap(sqes, parameters->sq_entries * sizeof(*sqes));
    return result;
}

static int try_operation(uint8_t operation, int target)
{
    struct io_uring_params parameters = {.flags = IORING_SETUP_R_DISABLED};
    struct io_uring_sqe sqe = {.opcode = operation, .fd = target, .poll32_events = 4 /* POLLOUT */};
    int fd = open_ring(&parameters), result;

    if (fd < 0)
        return -ENOSYS;
    assert_int_equal(event_limit_ring(fd), 0);
    result = submit_one(fd, &parameters, sqe);
    close(fd);
    return result;
}

static void test_ring_polls_only(void **state)
{
    int pipe_fds[2];

    (void)state;
    assert_int_equal(pipe(pipe_fds), 0);
    if (try_operation(IORING_OP_POLL_ADD, pipe_fds[1]) == -ENOSYS) {
        print_message("SKIP: io_uring cannot be had here\n");
        skip();
    }
    assert_int_equal(try_operation(IORING_OP_POLL_ADD, pipe_fds[1]), 4);
    for (uint8_t operation = 0; operation <= IORING_OP_SOCKET; operation++)
        if (operation != IORING_OP_POLL_ADD && operation != IORING_OP_POLL_REMOVE)
            assert_int_equal(try_operation(operation, pipe_fds[1]), -EACCES);
    close(pipe_fds[0]);
    close(pipe_fds[1]);
}

static void test_ring_registers_nothing(void **state)
{
    struct io_uring_params parameters = {.flags = IORING_SETUP_R_DISABLED};
    int fd = open_ring(&parameters), target = 0;

    (void)state;
    if (fd < 0)
        skip();
    assert_int_equal(event_limit_ring(fd), 0);
    assert_int_equal(syscall(SYS_io_uring_register, fd, IORING_REGISTER_FILES, &target, 1), -1);
    assert_int_equal(errno, EACCES);
    assert_true(event_limit_ring(fd) < 0); /* once */
    close(fd);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_forbidden),
        cmocka_unit_test(test_forbidden_arguments),
        cmocka_unit_test(test_the_dispatcher_has_less),
        cmocka_unit_test(test_files),
        cmocka_unit_test(test_off),
        cmocka_unit_test(test_no_new_privileges),
        cmocka_unit_test(test_ring_polls_only),
        cmocka_unit_test(test_ring_registers_nothing),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
