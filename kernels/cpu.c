/*
 * CPU level detection: cpuid says what the silicon has, xgetbv what the operating system saves at a
 * context switch, arch_prctl whether this process may touch the AMX tiles.  All three must agree: a
 * guest whose kernel does not save zmm would corrupt them silently.
 *
 * Cost: a few cpuid (each an exit to the hypervisor in a guest, some microseconds) and at most one
 * system call.  Call it once and keep the result.
 */
#include "kernels/cpu.h"

#include <stddef.h>
#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#define LEVEL_BIT(level) (UINT32_C(1) << (level))

static const char *const level_names[CPU_LEVEL_COUNT] = {
    [CPU_LEVEL_REF] = "ref",
    [CPU_LEVEL_AVX2] = "avx2",
    [CPU_LEVEL_AVXVNNI] = "avxvnni",
    [CPU_LEVEL_AVX512] = "avx512",
    [CPU_LEVEL_AVX512VNNI] = "avx512vnni",
    [CPU_LEVEL_AMX] = "amx",
};

#if defined(__x86_64__)

enum {
    /* XCR0: the register files the operating system saves (SDM vol. 1, 13.3). */
    XCR0_YMM = 0x06,    /* SSE and AVX state */
    XCR0_ZMM = 0xe6,    /* the above, opmask, upper halves, zmm16-31 */
    XCR0_AMX = 0x60000, /* XTILECFG and XTILEDATA */
    XFEATURE_TILEDATA = 18,
    ARCH_REQ_XCOMP_PERM_VALUE = 0x1023, /* <asm/prctl.h> of kernel 5.16; older headers lack it */
};

/* cpuid.1:ECX */
#define LEAF1_ECX_OSXSAVE (1u << 27)
#define LEAF1_ECX_AVX     (1u << 28)
/* cpuid.7.0 */
#define LEAF7_EBX_AVX2       (1u << 5)
#define LEAF7_EBX_AVX512     (1u << 16 | 1u << 17 | 1u << 30 | 1u << 31) /* F, DQ, BW, VL */
#define LEAF7_ECX_AVX512VNNI (1u << 11)
#define LEAF7_EDX_AMX        (1u << 24 | 1u << 25) /* TILE, INT8 */
/* cpuid.7.1 */
#define LEAF7_1_EAX_AVXVNNI (1u << 4)

static uint32_t xcr0_read(void)
{
    uint32_t low, high;

    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

/* Tile data is 8 KiB more to save per thread, so Linux hands it out on request only.  Refused by
 * kernels before 5.16 and when a thread's sigaltstack is too small for the larger frame. */
static bool amx_permitted(void)
{
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM_VALUE, XFEATURE_TILEDATA) == 0;
}

static bool has_all(uint32_t value, uint32_t bits)
{
    return (value & bits) == bits;
}

uint32_t cpu_detect(void)
{
    uint32_t levels = LEVEL_BIT(CPU_LEVEL_REF);
    uint32_t eax, ebx, ecx, edx, xcr0, leaf7_1_eax = 0;

    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !has_all(ecx, LEAF1_ECX_OSXSAVE | LEAF1_ECX_AVX))
        return levels;
    xcr0 = xcr0_read();
    if (!has_all(xcr0, XCR0_YMM) || !__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) ||
        !has_all(ebx, LEAF7_EBX_AVX2))
        return levels;
    levels |= LEVEL_BIT(CPU_LEVEL_AVX2);
    if (eax >= 1) { /* leaf 7's eax is its highest subleaf */
        uint32_t unused_b, unused_c, unused_d;

        __cpuid_count(7, 1, leaf7_1_eax, unused_b, unused_c, unused_d);
        (void)unused_b, (void)unused_c, (void)unused_d;
    }
    if (has_all(leaf7_1_eax, LEAF7_1_EAX_AVXVNNI))
        levels |= LEVEL_BIT(CPU_LEVEL_AVXVNNI);

    if (!has_all(xcr0, XCR0_ZMM) || !has_all(ebx, LEAF7_EBX_AVX512))
        return levels;
    levels |= LEVEL_BIT(CPU_LEVEL_AVX512);
    if (!has_all(ecx, LEAF7_ECX_AVX512VNNI))
        return levels;
    levels |= LEVEL_BIT(CPU_LEVEL_AVX512VNNI);
    if (has_all(xcr0, XCR0_AMX) && has_all(edx, LEAF7_EDX_AMX) && amx_permitted())
        levels |= LEVEL_BIT(CPU_LEVEL_AMX);
    return levels;
}

#else /* not x86-64: no vector level yet */

uint32_t cpu_detect(void)
{
    return LEVEL_BIT(CPU_LEVEL_REF);
}

#endif

const char *cpu_level_name(enum cpu_level level)
{
    if ((unsigned int)level >= CPU_LEVEL_COUNT)
        return "?";
    return level_names[level];
}

/* The level named by the `length` bytes at `name`; -1: none. */
static int level_find(const char *name, size_t length)
{
    for (int level = 0; level < CPU_LEVEL_COUNT; level++) {
        if (strlen(level_names[level]) == length && !memcmp(level_names[level], name, length))
            return level;
    }
    return -1;
}

bool cpu_mask_parse(const char *text, uint32_t *out)
{
    uint32_t mask = LEVEL_BIT(CPU_LEVEL_REF);
    bool list;

    if (!text || !*text) {
        *out = LEVEL_BIT(CPU_LEVEL_COUNT) - 1;
        return true;
    }
    list = strchr(text, ',') != NULL;
    for (;;) {
        size_t length = strcspn(text, ",");
        int level = level_find(text, length);

        if (level < 0)
            return false;
        mask |= list ? LEVEL_BIT(level) : LEVEL_BIT(level + 1) - 1;
        if (!text[length])
            break;
        text += length + 1;
    }
    *out = mask;
    return true;
}
