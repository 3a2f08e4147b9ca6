/* Segments: what each side of a session can and cannot do before and after the seals. */
#include "unit.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "worker/memory.h"
#include "worker/segment.h"

#define MIB (UINT64_C(1) << 20)

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

/* ---- faults put into the kernel's answers ---------------------------------------------------- */

static bool no_populate, steal_pages;
static int advice_error, advice_failures; /* the next populating ones fail so */
static int seals_error_at = -1;           /* index of the call for seals that fails; -1: none */
static bool seals_lost;                   /* none of them is ever there */
static void *refused;                     /* where a mapping was refused; NULL: none is */

int __real_madvise(void *memory, size_t bytes, int advice);
int __wrap_madvise(void *memory, size_t bytes, int advice);
void *__wrap_mmap(void *address, size_t bytes, int protection, int flags, int fd, off_t offset);
void *__wrap_mmap64(void *address, size_t bytes, int protection, int flags, int fd, off_t offset);

int __wrap_madvise(void *memory, size_t bytes, int advice)
{
    if (no_populate && advice == MADV_POPULATE_WRITE) {
        errno = EINVAL; /* before Linux 5.14 */
        return -1;
    }
    if (advice_failures) {
        advice_failures--;
        errno = advice_error;
        return -1;
    }
    return __real_madvise(memory, bytes, advice);
}

int __real_fcntl64(int fd, int command, int argument);
int __wrap_fcntl64(int fd, int command, int argument);

int __wrap_fcntl64(int fd, int command, int argument)
{
    if (seals_error_at >= 0 && seals_error_at-- == 0) {
        errno = EBUSY;
        return -1;
    }
    return seals_lost ? 0 : __real_fcntl64(fd, command, argument);
}

/* Somebody else's huge pages. */
static void *stolen = MAP_FAILED;
#define STOLEN_BYTES (8 * 2 * MIB)

static void *real_mmap(void *address, size_t bytes, int protection, int flags, int fd, off_t offset)
{
    return (void *)syscall(SYS_mmap, address, bytes, protection, flags, fd, offset);
}

void *__wrap_mmap(void *address, size_t bytes, int protection, int flags, int fd, off_t offset)
{
    void *memory;

    if (refused && flags & MAP_FIXED) {
        refused = address;
        errno = ENOMEM;
        return MAP_FAILED;
    }
    if (!steal_pages || fd < 0)
        return real_mmap(address, bytes, protection, flags, fd, offset);
    memory = real_mmap(address, bytes, protection, flags | MAP_NORESERVE, fd, offset);
    if (stolen == MAP_FAILED)
        stolen = real_mmap(NULL, STOLEN_BYTES, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | MAP_POPULATE, -1, 0);
    return memory;
}

/* What mmap is called where off_t was asked to have 64 bits. */
void *__wrap_mmap64(void *address, size_t bytes, int protection, int flags, int fd, off_t offset)
{
    return __wrap_mmap(address, bytes, protection, flags, fd, offset);
}

/* ---- attacks --------------------------------------------------------------------------------- */

enum attack {
    SHRINK,
    EXTEND,
    PUNCH,
    REMOVE_BY_OLD_MAP,
    MAP_WRITABLE,
    REOPEN,
    MAKE_WRITABLE,
    WRITE_BY_FD,
    ATTACK_COUNT
};

struct attacker {
    int fd;
    uint64_t bytes;
    char *old_map;  /* writable, made before the seals; NULL: none */
    int done;       /* attacks that succeeded, bit by bit, in memory shared with the child */
};

static bool attack_by_map(int fd, uint64_t bytes)
{
    char *map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

    if (map == MAP_FAILED)
        return false;
    munmap(map, bytes);
    return true;
}

static bool attack_by_reopening(const struct attacker *attacker)
{
    char path[64];
    bool done;
    int fd;

    snprintf(path, sizeof(path), "/proc/self/fd/%d", attacker->fd);
    fd = open(path, O_RDWR);
    if (fd < 0)
        return false;
    done = attack_by_map(fd, attacker->bytes) || ftruncate(fd, 0) == 0;
    close(fd);
    return done;
}

static bool attack_by_mprotect(const struct attacker *attacker)
{
    void *map = mmap(NULL, attacker->bytes, PROT_READ, MAP_SHARED, attacker->fd, 0);

    if (map == MAP_FAILED)
        exit(99); /* reading must stay possible */
    return mprotect(map, attacker->bytes, PROT_READ | PROT_WRITE) == 0;
}

static int try_all(void *argument)
{
    const struct attacker *attacker = argument;
    int fd = attacker->fd, done = 0;
    int64_t page = (int64_t)(attacker->bytes < 2 * MIB ? 4096 : 2 * MIB);

    /* Those that destroy come last. */
    done |= attack_by_map(fd, attacker->bytes) << MAP_WRITABLE;
    done |= attack_by_mprotect(attacker) << MAKE_WRITABLE;
    done |= (pwrite(fd, "x", 1, 100) == 1) << WRITE_BY_FD;
    done |= (ftruncate(fd, (off_t)(2 * attacker->bytes)) == 0) << EXTEND;
    done |= (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, page) == 0) << PUNCH;
    if (attacker->old_map)
        done |= (madvise(attacker->old_map, (size_t)page, MADV_REMOVE) == 0) << REMOVE_BY_OLD_MAP;
    done |= (ftruncate(fd, 0) == 0) << SHRINK;
    done |= attack_by_reopening(attacker) << REOPEN;
    return done;
}

static int attack(const struct segment *segment, void *old_map)
{
    struct attacker attacker = {segment->fd, segment->bytes, old_map, 0};

    return in_child(try_all, &attacker);
}

static void check_life(uint64_t bytes, bool hugepages, uint32_t page_bytes)
{
    struct segment segment;
    char *client;
    int before;

    assert_int_equal(segment_create(&segment, "gemmd-test", bytes, hugepages, -1), 0);
    assert_int_equal(segment.page_bytes, page_bytes);
    assert_int_equal(segment.bytes, bytes);
    assert_int_equal(fcntl(segment.fd, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
    for (uint64_t i = 0; i < bytes; i++)
        assert_int_equal(((char *)segment.memory)[i], 0);
    client = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, segment.fd, 0);
    assert_ptr_not_equal(client, MAP_FAILED);

    /* The attacks are real: without FUTURE_WRITE they work, but for the size. */
    before = attack(&segment, client);
    assert_int_equal(before & (1 << SHRINK | 1 << EXTEND), 0);
    assert_int_equal(before & (1 << PUNCH | 1 << REMOVE_BY_OLD_MAP | 1 << MAP_WRITABLE |
                               1 << REOPEN | 1 << MAKE_WRITABLE),
                     1 << PUNCH | 1 << REMOVE_BY_OLD_MAP | 1 << MAP_WRITABLE | 1 << REOPEN |
                         1 << MAKE_WRITABLE);

    assert_int_equal(segment_seal(&segment), 0);
    assert_int_equal(attack(&segment, client), 0);
    /* The mappings made before go on, both ways. */
    memcpy(client + 5, "from the client", sizeof("from the client"));
    assert_string_equal((char *)segment.memory + 5, "from the client");
    memcpy((char *)segment.memory + bytes - 20, "from the worker", sizeof("from the worker"));
    assert_string_equal(client + bytes - 20, "from the worker");
    assert_int_equal(segment_seal(&segment), 0);
    munmap(client, bytes);
    segment_destroy(&segment);
    assert_int_equal(segment.fd, -1);
    assert_null(segment.memory);
    segment_destroy(&segment);
}

static void life_on_small_pages(void **state)
{
    (void)state;
    check_life(20480, false, 4096);
}

static void life_on_huge_pages(void **state)
{
    (void)state;
    NEED_HUGEPAGES(8);
    check_life(4 * MIB, true, 2 * MIB);
    assert_int_equal(hugepages_free(), 8);
}

/* w2c: sealed first, passed on afterwards. */
static void sealed_before_it_is_passed(void **state)
{
    struct segment segment;
    char *client;

    (void)state;
    assert_int_equal(segment_create(&segment, "gemmd-test", 8192, false, -1), 0);
    assert_int_equal(segment_seal(&segment), 0);
    assert_int_equal(attack(&segment, NULL), 0);
    client = mmap(NULL, segment.bytes, PROT_READ, MAP_SHARED, segment.fd, 0);
    assert_ptr_not_equal(client, MAP_FAILED);
    *(char *)segment.memory = 'w';
    assert_int_equal(*client, 'w');
    munmap(client, segment.bytes);
    segment_destroy(&segment);
}

static int write_to(void *argument)
{
    *(volatile char *)argument = 1;
    return 0;
}

static void worker_cannot_write_c2w(void **state)
{
    struct segment segment;

    (void)state;
    assert_int_equal(segment_create(&segment, "gemmd-test", 8192, false, -1), 0);
    assert_int_equal(in_child(write_to, (char *)segment.memory + 5000), 0);
    assert_int_equal(segment_protect_readonly(&segment), 0);
    signal(SIGSEGV, SIG_DFL);
    assert_int_not_equal(in_child(write_to, segment.memory), 0);
    assert_int_not_equal(in_child(write_to, (char *)segment.memory + 5000), 0);
    segment_destroy(&segment);
}

/* A client that seals the seals first cannot make the worker believe that all is well. */
static void client_seals_first(void **state)
{
    struct segment segment;

    (void)state;
    assert_int_equal(segment_create(&segment, "gemmd-test", 8192, false, -1), 0);
    assert_int_equal(fcntl(segment.fd, F_ADD_SEALS, F_SEAL_SEAL), 0);
    assert_int_equal(segment_seal(&segment), -EPERM);
    segment_destroy(&segment);
}

static void sizes(void **state)
{
    struct segment segment;

    (void)state;
    assert_int_equal(segment_create(&segment, "gemmd-test", 1, false, -1), 0);
    assert_int_equal(segment.bytes, 4096);
    segment_destroy(&segment);
    assert_int_equal(segment_create(&segment, "gemmd-test", 0, false, -1), -EINVAL);
    assert_int_equal(segment.fd, -1);
    assert_int_equal(segment_create(&segment, "gemmd-test", UINT64_MAX, false, -1), -EINVAL);
    /* More than any machine has: an error, not a death by SIGBUS or the OOM killer. */
    assert_true(segment_create(&segment, "gemmd-test", UINT64_C(1) << 60, true, -1) < 0);
    assert_null(segment.memory);
    assert_int_equal(segment.fd, -1);
}

static void falls_back_to_small_pages(void **state)
{
    struct segment segment;

    (void)state;
    NEED_HUGEPAGES(1);
    assert_int_equal(segment_create(&segment, "gemmd-test", 4 * MIB, true, -1), 0);
    assert_int_equal(segment.page_bytes, 4096);
    assert_int_equal(hugepages_free(), 1);
    segment_destroy(&segment);
    assert_int_equal(segment_create(&segment, "gemmd-test", 2 * MIB - 4096, true, -1), 0);
    assert_int_equal(segment.page_bytes, 2 * MIB);
    assert_int_equal(segment.bytes, 2 * MIB);
    segment_destroy(&segment);
}

/* Bytes of huge pages at the start of a mapping, as the kernel shows them. */
static uint64_t huge_bytes(const void *memory)
{
    FILE *file = fopen("/proc/self/smaps", "re");
    unsigned long long start, kib, bytes = 0;
    bool inside = false;
    char line[512], end;

    assert_non_null(file);
    while (fgets(line, sizeof(line), file))
        if (sscanf(line, "%llx-%*x %c", &start, &end) == 2)
            inside = start == (uintptr_t)memory;
        else if (inside && sscanf(line, "ShmemPmdMapped: %llu kB", &kib) == 1)
            bytes = kib << 10;
    fclose(file);
    return bytes;
}

/* Small pages become transparent huge ones, whole 2 MiB at a time, where the kernel has them. */
static void collapses(void **state)
{
    struct segment segment;

    (void)state;
    assert_int_equal(segment_create(&segment, "gemmd-test", 5 * MIB, false, -1), 0);
    assert_int_equal(segment.page_bytes, 4096);
    assert_int_equal(segment.bytes, 5 * MIB);
    assert_int_equal((uintptr_t)segment.memory % (2 * MIB), 0);
    if (madvise(segment.memory, 2 * MIB, MADV_COLLAPSE) == 0) /* it did before, or can now */
        assert_int_equal(huge_bytes(segment.memory), 4 * MIB);
    for (uint64_t i = 0; i < segment.bytes; i += 512)
        assert_int_equal(((char *)segment.memory)[i], 0);
    segment_destroy(&segment);
}

/* The room is there, the mapping in it is refused: nothing stays mapped. */
static void mapping_refused(void **state)
{
    struct segment segment;
    unsigned char resident;

    (void)state;
    refused = &segment;
    assert_int_equal(segment_create(&segment, "gemmd-test", 4 * MIB, false, -1), -ENOMEM);
    assert_null(segment.memory);
    assert_int_equal(segment.fd, -1);
    assert_ptr_not_equal(refused, &segment);
    assert_int_equal(mincore(refused, 1, &resident), -1);
    assert_int_equal(errno, ENOMEM); /* not mapped */
    refused = NULL;
}

/* Pages vanish between mapping and populating: with both ways of populating. */
static int create_while_pages_vanish(void *argument)
{
    struct segment segment;

    steal_pages = true;
    no_populate = *(bool *)argument;
    if (segment_create(&segment, "gemmd-test", 4 * MIB, true, -1) < 0)
        return 10;
    if (stolen == MAP_FAILED)
        return 11;
    memset(segment.memory, 1, segment.bytes);
    return segment.page_bytes == 4096 ? 0 : 12;
}

static void stolen_pages(void **state)
{
    bool old_kernel[] = {false, true};

    (void)state;
    for (int i = 0; i < 2; i++) {
        NEED_HUGEPAGES(8);
        assert_int_equal(in_child(create_while_pages_vanish, &old_kernel[i]), 0);
    }
}

static void without_populate(void **state)
{
    struct segment segment;

    (void)state;
    no_populate = true;
    assert_int_equal(segment_create(&segment, "gemmd-test", MIB, false, -1), 0);
    no_populate = false;
    memset(segment.memory, 1, segment.bytes);
    segment_destroy(&segment);
}

/* Every page is there before the first job: no fault is left for the dispatcher. */
static void populated(void **state)
{
    unsigned char resident[256];
    struct segment segment;

    (void)state;
    assert_int_equal(segment_create(&segment, "gemmd-test", MIB, false, 0), 0);
    assert_int_equal(mincore(segment.memory, segment.bytes, resident), 0);
    for (int i = 0; i < 256; i++)
        assert_int_equal(resident[i] & 1, 1);
    segment_destroy(&segment);
}

/* A kernel that refuses, or says yes and does nothing, is believed in neither. */
static void seals_that_fail(void **state)
{
    (void)state;
    for (int call = 0; call < 4; call++) {
        struct segment segment;
        int error;

        assert_int_equal(segment_create(&segment, "gemmd-test", 8192, false, -1), 0);
        seals_error_at = call;
        error = segment_seal(&segment);
        seals_error_at = -1;
        assert_int_equal(error, call < 3 ? -EBUSY : 0); /* get, add, get */
        seals_lost = true;
        error = segment_seal(&segment);
        seals_lost = false;
        assert_int_equal(error, -EPERM);
        segment_destroy(&segment);
    }
}

static void holes_that_cannot_be_filled(void **state)
{
    static const int errors[][3] = {
        {EINTR, 3, 0}, {EAGAIN, 3, 0}, {EINVAL, 1, 0}, {EFAULT, 1, -ENOMEM}, {EIO, 1, -EIO}};

    (void)state;
    for (size_t i = 0; i < sizeof(errors) / sizeof(errors[0]); i++) {
        struct segment segment;

        assert_int_equal(segment_create(&segment, "gemmd-test", 8192, false, -1), 0);
        if (i % 2)
            assert_int_equal(segment_protect_readonly(&segment), 0);
        advice_error = errors[i][0];
        advice_failures = errors[i][1];
        assert_int_equal(segment_fill_holes(&segment), errors[i][2]);
        assert_int_equal(advice_failures, 0);
        segment_destroy(&segment);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(life_on_small_pages),
        cmocka_unit_test(sealed_before_it_is_passed),
        cmocka_unit_test(worker_cannot_write_c2w),
        cmocka_unit_test(client_seals_first),
        cmocka_unit_test(sizes),
        cmocka_unit_test(without_populate),
        cmocka_unit_test(seals_that_fail),
        cmocka_unit_test(holes_that_cannot_be_filled),
        cmocka_unit_test(populated),
        cmocka_unit_test(collapses),
        cmocka_unit_test(mapping_refused),
        cmocka_unit_test(life_on_huge_pages),
        cmocka_unit_test(falls_back_to_small_pages),
        cmocka_unit_test(stolen_pages),
    };

    return cmocka_run_group_tests(tests, NULL, restore_hugepages) > 0;
}
