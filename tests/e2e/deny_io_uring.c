/*
 * Runs the worker as a container would that denies io_uring: GEMMD_TEST_DENY is the errno its calls
 * get, GEMMD_TEST_TARGET the worker; the arguments pass through.
 */
#include <errno.h>
#include <seccomp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    static const char *const calls[] = {"io_uring_setup", "io_uring_enter", "io_uring_register"};
    const char *target = getenv("GEMMD_TEST_TARGET"), *deny = getenv("GEMMD_TEST_DENY");
    uint32_t denial = deny && strcmp(deny, "ENOSYS") == 0 ? ENOSYS : EPERM;
    scmp_filter_ctx filter = seccomp_init(SCMP_ACT_ALLOW);

    (void)argc;
    if (!target || !filter)
        return 96;
    for (size_t i = 0; i < sizeof(calls) / sizeof(calls[0]); i++) {
        int number = seccomp_syscall_resolve_name(calls[i]);

        if (number < 0 || seccomp_rule_add(filter, SCMP_ACT_ERRNO(denial), number, 0) < 0)
            return 96;
    }
    if (seccomp_load(filter) < 0)
        return 96;
    seccomp_release(filter);
    execv(target, argv);
    return 97;
}
