/*
 * What the parts of gemmd-bench share.  gemmd-bench.c owns the command line, bench_kernels.c the
 * order of measurements; the others are one side, one instrument or one form of report each.
 */
#ifndef GEMMD_TOOLS_BENCH_H
#define GEMMD_TOOLS_BENCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

enum {
    BENCH_SHAPES_MAX = 512,
    BENCH_ROUNDS_MAX = 31,
    BENCH_THREADS = 2,
    BENCH_FLUSH_BYTES = 128 * 1024 * 1024,
};

struct bench_shape {
    uint32_t m, n, k;
    const char *group;
};

struct bench_options {
    const char *level; /* NULL: what gemm_select_measured chooses */
    struct bench_shape shapes[BENCH_SHAPES_MAX];
    size_t shape_count;
    unsigned int rounds;
    unsigned int cpus[BENCH_THREADS];
    bool cpus_given;
    unsigned int threads; /* 1: no measurements on two threads */
    uint32_t weight_bits; /* 8: full-range */
    bool quick, json, peer;
    const char *plot; /* path of a PNG, or NULL */
};

/* `count` numbers, 1 (or 0, where `zero`) to their maxima, separated by commas. */
bool bench_parse_numbers(const char *text, const uint32_t *max, uint32_t *out, size_t count,
                         bool zero);

/* Numbers of min to max separated by commas: how many, 0 when that is no such list. */
uint32_t bench_parse_list(const char *text, uint32_t min, uint32_t max, uint32_t *out,
                          uint32_t capacity);

/* ---- machine (bench_machine.c) --------------------------------------------------------------- */

enum bench_pages { BENCH_PAGES_HUGETLB, BENCH_PAGES_THP, BENCH_PAGES_SMALL };

struct bench_machine {
    char cpu[96], kernel[140];
    size_t l2_bytes, l3_bytes;
    enum bench_pages pages; /* the worst that an allocation got */
};

uint64_t bench_now_ns(void);
/* Pins the calling thread to `count` CPUs; 0 or -errno. */
int bench_pin(const unsigned int *cpus, unsigned int count);
/* The first `count` CPUs this process may use; the number found. */
unsigned int bench_cpus(unsigned int *cpus, unsigned int count);
void bench_machine_open(struct bench_machine *machine);
const char *bench_pages_name(enum bench_pages pages);

/* Zeroed memory on 2 MiB pages: MAP_HUGETLB, else THP, else what there is (noted in the machine).
 * Never NULL: exits where there is no memory.  Release with bench_free(same bytes). */
void *bench_alloc(struct bench_machine *machine, size_t bytes);
void bench_free(void *memory, size_t bytes);

/* ---- medians (bench_median.c) ---------------------------------------------------------------- */

void bench_sort(double *values, size_t count);
/* Of up to BENCH_ROUNDS_MAX rounds. */
double bench_median(const double *values, unsigned int count);
/* Of the ratios of neighbouring measurements. */
double bench_median_ratio(const double *above, const double *below, unsigned int count);

/* ---- instruments (bench_peak.c) -------------------------------------------------------------- */

/* What the machine gives, from the same run: GOPS and GB/s (1e9). */
struct bench_peak {
    const char *instruction; /* the level's multiplication */
    double gops;
    double vector_gops; /* of vpdpbusd, where the level is amx; else gops */
    double l2_gbps, l3_gbps, memory_gbps;
    size_t l2_bytes, l3_bytes, memory_bytes; /* what was read over and over */
};

/* Best of some repetitions, on the calling thread.  `level`: the name of a kernel level. */
void bench_peak_measure(struct bench_peak *peak, struct bench_machine *machine, const char *level,
                        bool quick);

/* ---- the problem of one shape (bench_problem.c) ---------------------------------------------- */

struct bench_problem {
    struct bench_shape shape;
    uint8_t *a;   /* m x k */
    int8_t *b;    /* n x k */
    uint8_t *c;   /* m x n: u8 = clamp(round(relu(acc * scale[j] + bias[j]))) */
    float *scale; /* n */
    float *bias;
    size_t a_bytes, b_bytes, c_bytes, column_bytes;
};

/* How many bits the weights of problems opened from now on use: 2 to 8, which is what they have
 * without this. */
void bench_problem_set_weight_bits(uint32_t bits);
void bench_problem_open(struct bench_problem *problem, struct bench_machine *machine,
                        const struct bench_shape *shape);
void bench_problem_close(struct bench_problem *problem);

/* ---- our side (bench_ours.c) ----------------------------------------------------------------- */

struct bench_ours;

/* The level's kernel; NULL `level`: the measured choice.  NULL when this machine lacks it.  Writes
 * the name of what runs (narrow: for weights with narrow pairs) and the level's. */
bool bench_ours_select(const char *level, bool narrow, const char **kernel_name,
                       const char **level_name);
/* The kernel of this name; false when there is none, or this machine lacks it. */
bool bench_ours_select_kernel(const char *name);
struct bench_ours *bench_ours_open(const struct bench_problem *problem,
                                   struct bench_machine *machine);
void bench_ours_close(struct bench_ours *ours);
void bench_ours_run(struct bench_ours *ours);
/* The same result from copies of A in turn, so that its rows are not in L1: strided; each row in a
 * buffer of its own, in no order; 16 rows in each, as jobs that share a call have them. */
void bench_ours_run_strided(struct bench_ours *ours);
void bench_ours_run_gathered(struct bench_ours *ours);
void bench_ours_run_runs(struct bench_ours *ours);
/* On two threads: the calling one, pinned by the caller, and one on `cpu` from start to stop. */
void bench_ours_start(struct bench_ours *ours, unsigned int cpu);
void bench_ours_run_two(struct bench_ours *ours);
void bench_ours_stop(struct bench_ours *ours);

/* ---- the peer (bench_peer.c) ----------------------------------------------------------------- */

struct bench_peer;

/* Limits the peer to `level`'s instructions; false where there is no peer.  *version_out says what
 * it is, or why there is none. */
bool bench_peer_init(const char *level, const char **version_out);
/* NULL when the peer refuses the shape. */
struct bench_peer *bench_peer_open(const struct bench_problem *problem,
                                   struct bench_machine *machine, unsigned int threads);
void bench_peer_run(struct bench_peer *peer);
/* Has the peer's threads awake and spinning. */
void bench_peer_wake(const struct bench_peer *peer);
/* The implementation the peer chose, e.g. "inner_product brgemm:avx512_core_vnni". */
const char *bench_peer_implementation(const struct bench_peer *peer);
void bench_peer_close(struct bench_peer *peer);

/* ---- results --------------------------------------------------------------------------------- */

/* Nanoseconds per call, medians; 0: not measured. */
struct bench_result {
    struct bench_shape shape;
    double hot_ns, cold_ns, two_hot_ns, two_cold_ns, strided_ns, gathered_ns, runs_ns;
    double peer_hot_ns, peer_cold_ns, peer_two_hot_ns, peer_two_cold_ns;
    /* Medians of the ratios of neighbouring measurements: peer / ours; gathered, runs / strided. */
    double hot_ratio, cold_ratio, two_hot_ratio, two_cold_ratio, two_speedup;
    double gathered_ratio, runs_ratio, again_ratio; /* again: strided, the noise of these */
    double peer_off; /* share of the peer's bytes that differ from ours by more than 1 */
    char peer_implementation[80];
};

struct bench_report {
    const struct bench_options *options;
    struct bench_machine machine;
    struct bench_peak peak;
    const char *kernel_name, *level_name, *peer_version;
    bool has_peer;
    struct bench_result *results;
    size_t count;
};

/* Measures options->shapes; `done` sees each result as it comes. */
void bench_kernels(struct bench_report *report,
                   void (*done)(const struct bench_report *, const struct bench_result *));

double bench_gops(const struct bench_shape *shape, double ns);
/* GOPS that multiplication and reading the weights allow: min(peak, 2 m * bandwidth), with the
 * weights where a repeated call finds them. */
double bench_bound_gops(const struct bench_report *report, const struct bench_shape *shape);

void bench_text_head(const struct bench_report *report);
void bench_text_row(const struct bench_report *report, const struct bench_result *result);
void bench_text_tail(const struct bench_report *report);
void bench_json(const struct bench_report *report, FILE *to);
/* 0, or -errno. */
int bench_plot(const struct bench_report *report, const char *path);

/* ---- shapes (bench_shapes.c) ----------------------------------------------------------------- */

/* The built-in shapes (quick: some of each kind), without repetitions; the number written. */
size_t bench_shapes(struct bench_shape *out, bool quick);

#endif
