/* What the fuzz targets share.  A target is a program for libFuzzer (clang, -Dfuzzers=true) or,
 * with replay/main.c, for any compiler over the committed inputs. */
#ifndef GEMMD_TESTS_FUZZ_FUZZ_H
#define GEMMD_TESTS_FUZZ_FUZZ_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#ifdef NDEBUG
#error "fuzzers need their assertions"
#endif

/* Stays in every build: an input that breaks it is a finding. */
#define FUZZ_ASSERT(condition)                                                                     \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                        \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

#endif
