/* Processes that start together, run for a time, and leave their passes in shared memory. */
#include "tools/bench_sharing.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* A child that cannot open its side within this time does not count. */
#define OPEN_S 60

struct place {
    uint32_t failed, ready;
    uint64_t passes, weight_bytes;
    uint64_t first_ns, last_ns; /* begin of the first pass, end of the last */
    uint32_t samples_ns[SHARING_SAMPLES];
    uint8_t result[16];
};

struct board {
    uint32_t go, stop;
    struct place places[];
};

static uint64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void nap(uint64_t ns)
{
    const struct timespec span = {(time_t)(ns / 1000000000u), (long)(ns % 1000000000u)};

    nanosleep(&span, NULL);
}

static uint32_t load(const uint32_t *word)
{
    return __atomic_load_n(word, __ATOMIC_ACQUIRE);
}

static void store(uint32_t *word, uint32_t value)
{
    __atomic_store_n(word, value, __ATOMIC_RELEASE);
}

static void run_child(const struct sharing_model *model, const struct sharing_side *side,
                      const char *socket, struct board *board, struct place *place)
{
    void *state = side->open(model, socket);
    uint64_t begin_ns;

    if (!state || !side->pass(state)) {
        store(&place->failed, 1);
        return;
    }
    store(&place->ready, 1);
    while (!load(&board->go))
        nap(100000);
    place->first_ns = begin_ns = now_ns();
    while (!load(&board->stop)) {
        uint64_t end_ns;

        if (!side->pass(state)) {
            store(&place->failed, 1);
            return;
        }
        end_ns = now_ns();
        place->samples_ns[place->passes % SHARING_SAMPLES] = (uint32_t)(end_ns - begin_ns);
        place->passes++;
        begin_ns = end_ns;
    }
    place->last_ns = begin_ns;
    place->weight_bytes = side->weight_bytes(state);
    memcpy(place->result, side->result(state), sizeof(place->result));
}

static bool await_ready(const struct board *board, uint32_t processes)
{
    for (int waited = 0; waited < OPEN_S * 1000; waited++) {
        uint32_t ready = 0;

        for (uint32_t i = 0; i < processes; i++) {
            ready += load(&board->places[i].ready);
            if (load(&board->places[i].failed))
                return false;
        }
        if (ready == processes)
            return true;
        nap(1000000);
    }
    return false;
}

static int compare(const void *left, const void *right)
{
    uint32_t a = *(const uint32_t *)left, b = *(const uint32_t *)right;

    return (a > b) - (a < b);
}

static void summarise(const struct board *board, const struct sharing_model *model,
                      uint32_t processes, struct sharing_outcome *out)
{
    uint32_t *all = calloc((size_t)processes * SHARING_SAMPLES, sizeof(*all));
    size_t count = 0;

    out->ran = all != NULL;
    for (uint32_t i = 0; i < processes && all; i++) {
        const struct place *place = &board->places[i];
        size_t kept = place->passes < SHARING_SAMPLES ? place->passes : SHARING_SAMPLES;

        if (load(&place->failed) || !place->passes)
            out->ran = false;
        memcpy(all + count, place->samples_ns, kept * sizeof(*all));
        count += kept;
        out->weight_bytes += place->weight_bytes;
        if (place->last_ns > place->first_ns)
            out->rows_per_s += (double)place->passes * model->layers * 1e9 /
                               (double)(place->last_ns - place->first_ns);
        if (memcmp(place->result, board->places[0].result, sizeof(place->result)))
            out->ran = false;
    }
    if (count) {
        qsort(all, count, sizeof(*all), compare);
        out->pass_p50_us = all[count / 2] / 1000.0;
        out->pass_p99_us = all[count - 1 - count / 100] / 1000.0;
    }
    memcpy(out->result, board->places[0].result, sizeof(out->result));
    free(all);
}

void sharing_run(const struct sharing_model *model, enum sharing_side_id side, uint32_t processes,
                 double seconds, const char *socket, struct sharing_outcome *out)
{
    size_t bytes = sizeof(struct board) + processes * sizeof(struct place);
    struct board *board =
        mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pid_t pids[SHARING_PROCESSES_MAX];
    uint32_t started = 0;
    bool ready;

    memset(out, 0, sizeof(*out));
    if (board == MAP_FAILED)
        return;
    for (; started < processes; started++) {
        pids[started] = fork();
        if (pids[started] < 0)
            break;
        if (pids[started] == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            run_child(model, &sharing_sides[side], socket, board, &board->places[started]);
            _exit(0);
        }
    }
    ready = started == processes && await_ready(board, processes);
    if (ready) {
        store(&board->go, 1);
        nap((uint64_t)(seconds * 1e9));
        store(&board->stop, 1);
    }
    for (uint32_t i = 0; i < started; i++) {
        if (!ready)
            kill(pids[i], SIGKILL);
        waitpid(pids[i], NULL, 0);
    }
    if (ready)
        summarise(board, model, processes, out);
    munmap(board, bytes);
}
