/* Fewer privileges for gemmd-pack (tools/pack_restrict.h). */
#include "tools/pack_restrict.h"

#include <grp.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

#define CPU_S       600
#define SPARE_BYTES (UINT64_C(64) << 20)
#define NOBODY      65534

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#endif

static bool limit(__rlimit_resource_t resource, uint64_t value)
{
    struct rlimit limits;

    if (getrlimit(resource, &limits) < 0)
        return false;
    if (value > limits.rlim_max)
        value = limits.rlim_max;
    limits.rlim_cur = limits.rlim_max = value;
    return setrlimit(resource, &limits) == 0;
}

bool pack_restrict(uint64_t input_bytes)
{
    /* The input's mapping, an image and its packed form. */
    uint64_t bytes = 3 * input_bytes + SPARE_BYTES;

#if !defined(SANITIZED) /* its shadow memory is terabytes of addresses, its leak check a thread */
    if (!limit(RLIMIT_AS, bytes) || !limit(RLIMIT_NPROC, 0))
        return false;
#endif
    /* The best scales of weights are searched at about 1 us a value. */
    if (!limit(RLIMIT_CPU, CPU_S + input_bytes / 1000000) || !limit(RLIMIT_FSIZE, bytes) ||
        !limit(RLIMIT_CORE, 0))
        return false;
    if (geteuid() == 0 &&
        (setgroups(0, NULL) < 0 || setresgid(NOBODY, NOBODY, NOBODY) < 0 ||
         setresuid(NOBODY, NOBODY, NOBODY) < 0))
        return false;
#if defined(SANITIZED)
    prctl(PR_SET_DUMPABLE, 1, 0, 0, 0); /* the leak check traces its own process */
#endif
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0;
}
