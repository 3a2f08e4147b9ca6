/*
 * Runs a fuzz target over committed inputs, with any compiler: each whole, cut at every byte, and
 * with every byte changed.  Inputs are copied to memory of exactly their size, so that ASan sees a
 * look beyond.
 *
 * usage: replay_TARGET DIRECTORY
 */
#include <dirent.h>
#include <string.h>

#include "tests/fuzz/fuzz.h"

#define INPUT_BYTES_MAX (1 << 16)

static uint64_t runs;

static void run(const uint8_t *input, size_t bytes)
{
    uint8_t *copy = malloc(bytes ? bytes : 1);

    FUZZ_ASSERT(copy);
    memcpy(copy, input, bytes);
    FUZZ_ASSERT(LLVMFuzzerTestOneInput(copy, bytes) == 0);
    free(copy);
    runs++;
}

static void replay(const char *path)
{
    static const uint8_t changes[] = {0x01, 0x80, 0xff};
    static uint8_t input[INPUT_BYTES_MAX];
    FILE *file = fopen(path, "re");
    size_t bytes;

    FUZZ_ASSERT(file);
    bytes = fread(input, 1, sizeof(input), file);
    fclose(file);
    for (size_t cut = 0; cut <= bytes; cut++)
        run(input, cut);
    for (size_t at = 0; at < bytes; at++)
        for (size_t i = 0; i < sizeof(changes); i++) {
            input[at] ^= changes[i];
            run(input, bytes);
            input[at] ^= changes[i];
        }
}

int main(int argc, char **argv)
{
    struct dirent *entry;
    unsigned files = 0;
    DIR *directory;

    if (argc != 2 || !(directory = opendir(argv[1]))) {
        fprintf(stderr, "usage: %s DIRECTORY\n", argv[0]);
        return 64;
    }
    while ((entry = readdir(directory))) {
        char path[4096];

        if (entry->d_name[0] == '.')
            continue;
        snprintf(path, sizeof(path), "%s/%s", argv[1], entry->d_name);
        replay(path);
        files++;
    }
    closedir(directory);
    printf("%u inputs, %llu runs\n", files, (unsigned long long)runs);
    return files ? 0 : 1;
}
