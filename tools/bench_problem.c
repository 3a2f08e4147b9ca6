/* The operands of one shape: full-range bytes, or weights of fewer bits; outputs spread over u8. */
#include "tools/bench.h"

#include <math.h>
#include <string.h>

static uint64_t state;
static uint32_t weight_bits = 8;

static uint64_t random_u64(void)
{
    uint64_t z = state += UINT64_C(0x9e3779b97f4a7c15); /* splitmix64 */

    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

static void fill(void *to, size_t bytes)
{
    for (size_t i = 0; i < bytes; i += sizeof(uint64_t)) {
        uint64_t value = random_u64();

        memcpy((uint8_t *)to + i, &value, bytes - i < sizeof(value) ? bytes - i : sizeof(value));
    }
}

void bench_problem_set_weight_bits(uint32_t bits)
{
    weight_bits = bits;
}

void bench_problem_open(struct bench_problem *problem, struct bench_machine *machine,
                        const struct bench_shape *shape)
{
    /* Standard deviation of a sum of k products of uniform bytes, about 148 * 74 * sqrt(k). */
    float spread = ldexpf(11000.0f * sqrtf((float)shape->k), (int)weight_bits - 8);

    state = 1;
    problem->shape = *shape;
    problem->a_bytes = (size_t)shape->m * shape->k;
    problem->b_bytes = (size_t)shape->n * shape->k;
    problem->c_bytes = (size_t)shape->m * shape->n;
    problem->column_bytes = ((size_t)shape->n + 64) * sizeof(float);
    problem->a = bench_alloc(machine, problem->a_bytes);
    problem->b = bench_alloc(machine, problem->b_bytes);
    problem->c = bench_alloc(machine, problem->c_bytes);
    problem->scale = bench_alloc(machine, problem->column_bytes);
    problem->bias = bench_alloc(machine, problem->column_bytes);
    fill(problem->a, problem->a_bytes);
    fill(problem->b, problem->b_bytes);
    for (size_t i = 0; i < problem->b_bytes; i++)
        problem->b[i] = (int8_t)(problem->b[i] >> (8 - weight_bits));
    for (uint32_t j = 0; j < shape->n; j++) {
        problem->scale[j] = 64.0f / spread * (1.0f + (float)(j % 16) / 64.0f);
        problem->bias[j] = (float)(j % 33) - 16.0f;
    }
}

void bench_problem_close(struct bench_problem *problem)
{
    bench_free(problem->a, problem->a_bytes);
    bench_free(problem->b, problem->b_bytes);
    bench_free(problem->c, problem->c_bytes);
    bench_free(problem->scale, problem->column_bytes);
    bench_free(problem->bias, problem->column_bytes);
}
