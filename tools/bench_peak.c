/*
 * What the machine can do at best: multiplications from registers, reads from each cache and from
 * memory.  Inline assembly, so that no compiler flag and no optimiser decides what is measured.
 *
 * 12 independent sums hide the latency of 5 cycles on two ports; the four C tiles hide tdpbusd's.
 */
#include "tools/bench.h"

#include <string.h>

enum {
    SUMS = 12,
    REPEAT = 2, /* of the 12 in one iteration */
    READ_STEP = 512,
    TARGET_NS = 1000000,
    BEST_OF = 50,       /* of a millisecond each: some of them undisturbed */
    BEST_OF_MEMORY = 7, /* passes over all of it */
};

#define READ_MEMORY_MAX ((size_t)1 << 30)

#if defined(__x86_64__)

#define CLOBBERS                                                                                   \
    "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10",       \
        "xmm11", "xmm12", "xmm13", "memory"
#define TWELVE(first, r, last)                                                                     \
    first r "0" last first r "1" last first r "2" last first r "3" last first r "4" last first r   \
            "5" last first r "6" last first r "7" last first r "8" last first r "9" last first r   \
            "10" last first r "11" last

/* `count` iterations of 24 instructions; operations of one instruction are in the table below. */
#define MULTIPLY(name, instruction)                                                                \
    static void multiply_##name(size_t count)                                                      \
    {                                                                                              \
        __asm__ volatile("1:\n" instruction instruction "dec %0\n jnz 1b\n vzeroupper\n"           \
                         : "+r"(count)                                                             \
                         :                                                                         \
                         : CLOBBERS);                                                              \
    }

MULTIPLY(dpbusd_zmm, TWELVE("vpdpbusd %%zmm13, %%zmm12, %%", "zmm", "\n"))
MULTIPLY(dpbusd_ymm, TWELVE("%{vex%} vpdpbusd %%ymm13, %%ymm12, %%", "ymm", "\n"))
MULTIPLY(maddwd_zmm, TWELVE("vpmaddwd %%zmm13, %%zmm12, %%", "zmm", "\n"))
MULTIPLY(maddwd_ymm, TWELVE("vpmaddwd %%ymm13, %%ymm12, %%", "ymm", "\n"))

static void multiply_tiles(size_t count)
{
    struct {
        uint8_t palette, start, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } config = {.palette = 1};

    for (int i = 0; i < 8; i++) {
        config.row_bytes[i] = 64;
        config.rows[i] = 16;
    }
    __asm__ volatile("ldtilecfg %1\n"
                     "1:\n"
                     "tdpbusd %%tmm6, %%tmm4, %%tmm0\n tdpbusd %%tmm7, %%tmm4, %%tmm1\n"
                     "tdpbusd %%tmm6, %%tmm5, %%tmm2\n tdpbusd %%tmm7, %%tmm5, %%tmm3\n"
                     "dec %0\n jnz 1b\n tilerelease\n"
                     : "+r"(count)
                     : "m"(config)
                     : "memory");
}

#define READ(name, load, r)                                                                        \
    static void read_##name(const uint8_t *from, size_t bytes)                                     \
    {                                                                                              \
        const uint8_t *end = from + bytes;                                                         \
                                                                                                   \
        __asm__ volatile("1:\n" load "(%0), %%" r "0\n" load "64(%0), %%" r "1\n" load             \
                         "128(%0), %%" r "2\n" load "192(%0), %%" r "3\n" load "256(%0), %%" r     \
                         "4\n" load "320(%0), %%" r "5\n" load "384(%0), %%" r "6\n" load          \
                         "448(%0), %%" r "7\n" READ_MORE_##name                                    \
                         "add $512, %0\n cmp %1, %0\n jb 1b\n vzeroupper\n"                        \
                         : "+r"(from)                                                              \
                         : "r"(end)                                                                \
                         : CLOBBERS, "cc");                                                        \
    }
#define READ_MORE_zmm ""
/* The other half of each line. */
#define READ_MORE_ymm                                                                              \
    "vmovdqa 32(%0), %%ymm8\n vmovdqa 96(%0), %%ymm8\n vmovdqa 160(%0), %%ymm8\n"                  \
    "vmovdqa 224(%0), %%ymm8\n vmovdqa 288(%0), %%ymm8\n vmovdqa 352(%0), %%ymm8\n"                \
    "vmovdqa 416(%0), %%ymm8\n vmovdqa 480(%0), %%ymm8\n"

READ(zmm, "vmovdqa64 ", "zmm")
READ(ymm, "vmovdqa ", "ymm")

struct instrument {
    const char *level, *instruction;
    void (*multiply)(size_t count);
    double operations; /* of one iteration; a multiply-add is two */
    void (*read)(const uint8_t *from, size_t bytes);
};

static const struct instrument instruments[] = {
    {"amx", "tdpbusd", multiply_tiles, 4 * 32768.0, read_zmm},
    {"avx512vnni", "vpdpbusd zmm", multiply_dpbusd_zmm, REPEAT *SUMS * 128.0, read_zmm},
    {"avx512", "vpmaddwd zmm", multiply_maddwd_zmm, REPEAT *SUMS * 64.0, read_zmm},
    {"avxvnni", "vpdpbusd ymm", multiply_dpbusd_ymm, REPEAT *SUMS * 64.0, read_ymm},
    {"avx2", "vpmaddwd ymm", multiply_maddwd_ymm, REPEAT *SUMS * 32.0, read_ymm},
};

static const struct instrument *find(const char *level)
{
    for (size_t i = 0; i < sizeof(instruments) / sizeof(instruments[0]); i++) {
        if (!strcmp(instruments[i].level, level))
            return &instruments[i];
    }
    return NULL;
}

static double measure_multiply(const struct instrument *instrument)
{
    size_t count = 1000;
    double best = 0;

    for (int i = 0; i < BEST_OF;) {
        uint64_t begin = bench_now_ns(), ns;

        instrument->multiply(count);
        ns = bench_now_ns() - begin;
        if (ns < TARGET_NS) {
            count *= 2;
            continue;
        }
        if (instrument->operations * (double)count / (double)ns > best)
            best = instrument->operations * (double)count / (double)ns;
        i++;
    }
    return best;
}

static double measure_read(const struct instrument *instrument, const uint8_t *from, size_t bytes,
                           int best_of)
{
    double best = 0;

    instrument->read(from, bytes);
    for (int i = 0; i < best_of; i++) {
        uint64_t begin = bench_now_ns(), end, reads = 0;

        do {
            instrument->read(from, bytes);
            reads++;
            end = bench_now_ns();
        } while (end - begin < TARGET_NS);
        if ((double)bytes * (double)reads / (double)(end - begin) > best)
            best = (double)bytes * (double)reads / (double)(end - begin);
    }
    return best;
}

void bench_peak_measure(struct bench_peak *peak, struct bench_machine *machine, const char *level,
                        bool quick)
{
    const struct instrument *instrument = find(level), *vector;
    uint8_t *memory;

    memset(peak, 0, sizeof(*peak));
    if (!instrument)
        return; /* the reference has no instruction of its own */
    vector = strcmp(level, "amx") ? instrument : find("avx512vnni");
    peak->instruction = instrument->instruction;
    peak->gops = measure_multiply(instrument);
    peak->vector_gops = vector == instrument ? peak->gops : measure_multiply(vector);
    peak->l2_bytes = machine->l2_bytes / 2;
    peak->l3_bytes = machine->l2_bytes * 8 < machine->l3_bytes / 2 ? machine->l2_bytes * 8
                                                                   : machine->l3_bytes / 2;
    peak->memory_bytes =
        machine->l3_bytes * 2 < READ_MEMORY_MAX ? machine->l3_bytes * 2 : READ_MEMORY_MAX;
    if (quick && peak->memory_bytes > (size_t)BENCH_FLUSH_BYTES)
        peak->memory_bytes = BENCH_FLUSH_BYTES;
    peak->l2_bytes -= peak->l2_bytes % READ_STEP;
    peak->l3_bytes -= peak->l3_bytes % READ_STEP;
    peak->memory_bytes -= peak->memory_bytes % READ_STEP;
    memory = bench_alloc(machine, peak->memory_bytes);
    memset(memory, 1, peak->memory_bytes); /* every page its own memory */
    peak->l2_gbps = measure_read(instrument, memory, peak->l2_bytes, BEST_OF);
    peak->l3_gbps = measure_read(instrument, memory, peak->l3_bytes, BEST_OF);
    peak->memory_gbps = measure_read(instrument, memory, peak->memory_bytes, BEST_OF_MEMORY);
    bench_free(memory, peak->memory_bytes);
}

#else /* no instruments for other machines yet */

void bench_peak_measure(struct bench_peak *peak, struct bench_machine *machine, const char *level,
                        bool quick)
{
    (void)machine, (void)level, (void)quick;
    memset(peak, 0, sizeof(*peak));
}

#endif
