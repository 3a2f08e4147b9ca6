/*
 * The shapes: every GEMM of the benchmarks of FBGEMM (2026-08), and of common transformers.  A
 * shape that comes twice is measured once, under the group that comes first.
 */
#include "tools/bench.h"

enum { M_VALUES = 24, NK_VALUES = 24 };

struct nk {
    uint16_t n, k;
};

/* All m with all (n, k); a list ends at its first zero. */
struct product {
    const char *group;
    uint32_t m[M_VALUES];
    struct nk nk[NK_VALUES];
};

static const struct product products[] = {
    {"acc32", {156800}, {{4, 36}, {8, 36}, {16, 36}}},
    {"acc32",
     {1},
     {{128, 512},
      {1024, 256},
      {2048, 512},
      {4096, 1024},
      {800, 3200},
      {800, 8000},
      {128, 2876},
      {128, 2722}}},
    {"acc32",
     {6},
     {{256, 1024},
      {256, 2048},
      {512, 512},
      {1024, 256},
      {2048, 256},
      {2048, 512},
      {4096, 256},
      {4096, 1024},
      {4096, 2048}}},
    {"acc32", {10, 20}, {{2048, 256}, {4096, 1024}}},
    {"acc32", {16}, {{256, 1500}, {256, 1567}, {128, 1567}, {256, 512}}},
    {"acc32", {102}, {{1024, 512}, {2323, 256}, {512, 256}}},
    {"acc16", {64}, {{68, 17}}},
    {"acc16", {60}, {{128, 64}}},
    {"resnet50", {25088}, {{256, 64}, {64, 64}, {64, 576}, {64, 256}}},
    {"resnet50", {6272}, {{512, 256}, {128, 256}, {128, 1152}, {512, 128}, {128, 512}}},
    {"resnet50", {1568}, {{1024, 512}, {256, 512}, {256, 2304}, {1024, 256}, {256, 1024}}},
    {"resnet50", {392}, {{2048, 1024}, {512, 1024}, {512, 4608}, {2048, 512}, {512, 2048}}},
    {"gemms", {64}, {{800, 320}, {768, 512}}},
    {"gemms", {16}, {{256, 512}}},
    {"gemms", {128}, {{128, 128}}},
    {"gemms", {256}, {{512, 256}}},
    {"gemms", {1024}, {{1024, 1024}}},
    {"spmm", {1}, {{128, 160}, {16, 128}, {256, 160}}},
    {"spmm", {168, 176}, {{15, 197}, {8, 197}}},
    {"spmm",
     {21, 22},
     {{120, 512},
      {125, 300},
      {128, 120},
      {128, 176},
      {16, 128},
      {256, 5018},
      {256, 512},
      {2955, 512},
      {5018, 256},
      {512, 128},
      {512, 2125},
      {512, 256},
      {512, 3851},
      {512, 4085},
      {8, 512},
      {1, 1027}}},
    {"spmm", {256}, {{256, 256}}},
    {"spmm", {512}, {{512, 512}}},
    {"roberta",
     {25, 51},
     {{2304, 768},
      {768, 768},
      {3072, 768},
      {768, 3072},
      {3072, 1024},
      {1024, 1024},
      {4096, 1024},
      {1024, 4096}}},
    {"lstm", {1, 16, 18}, {{2560, 640}, {2560, 720}}},
    {"rnnt",
     {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20},
     {{4096, 640}, {640, 1024}, {4096, 1024}, {1024, 640}, {4096, 1280}}},
    {"transformer",
     {1, 4, 8, 16, 32, 64, 128, 256, 512},
     {{384, 384},
      {1536, 384},
      {384, 1536},
      {768, 768},
      {3072, 768},
      {768, 3072},
      {1024, 1024},
      {4096, 1024},
      {1024, 4096},
      {4096, 4096}}},
};

static const struct bench_shape quick_shapes[] = {
    {1, 128, 512, "quick"},   {1, 4096, 1024, "quick"},  {6, 2048, 512, "quick"},
    {16, 256, 1500, "quick"}, {102, 2323, 256, "quick"}, {64, 768, 768, "quick"},
};

static size_t add(struct bench_shape *out, size_t count, struct bench_shape shape)
{
    for (size_t i = 0; i < count; i++) {
        if (out[i].m == shape.m && out[i].n == shape.n && out[i].k == shape.k)
            return count;
    }
    if (count < BENCH_SHAPES_MAX)
        out[count++] = shape;
    return count;
}

size_t bench_shapes(struct bench_shape *out, bool quick)
{
    size_t count = 0;

    if (quick) {
        for (size_t i = 0; i < sizeof(quick_shapes) / sizeof(quick_shapes[0]); i++)
            count = add(out, count, quick_shapes[i]);
        return count;
    }
    for (size_t p = 0; p < sizeof(products) / sizeof(products[0]); p++) {
        const struct product *product = &products[p];

        for (size_t i = 0; i < M_VALUES && product->m[i]; i++) {
            for (size_t j = 0; j < NK_VALUES && product->nk[j].n; j++)
                count = add(out, count,
                            (struct bench_shape){product->m[i], product->nk[j].n, product->nk[j].k,
                                                 product->group});
        }
    }
    for (uint32_t m = 1; m <= 119; m++) /* FP16Benchmark, FP32Benchmark */
        count = add(out, count, (struct bench_shape){m, 512, 512, "fp16"});
    return count;
}
