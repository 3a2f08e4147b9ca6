/* What the protocol's unit tests share.  Everything is static: each test is one program. */
#ifndef GEMMD_TESTS_UNIT_PROTO_UNIT_H
#define GEMMD_TESTS_UNIT_PROTO_UNIT_H

#ifdef NDEBUG
#error "tests need their assertions"
#endif

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

/* splitmix64 (Steele, Lea and Flood, 2014): every seed is good, 0 too. */
static uint64_t random_state;

__attribute__((unused)) static uint64_t random_u64(void)
{
    uint64_t z = random_state += UINT64_C(0x9e3779b97f4a7c15);

    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

__attribute__((unused)) static uint32_t random_below(uint32_t limit)
{
    return (uint32_t)(random_u64() % limit);
}

/* The seed is the first argument, or new and printed: run the same again with it. */
__attribute__((unused)) static void random_seed(int argc, char **argv)
{
    if (argc > 1)
        random_state = strtoull(argv[1], NULL, 0);
    else if (getentropy(&random_state, sizeof(random_state)) < 0)
        abort();
    printf("seed 0x%llx\n", (unsigned long long)random_state);
    fflush(stdout);
}

#endif
