/*
 * gemmd-pack: safetensors → packed layer file (worker/layer_file.h).  It parses files nobody has
 * vouched for, so the worker runs it as a process without privileges and believes nothing it
 * writes; what remains for it is to be strict and to name what is wrong.
 *
 * One layer is in memory at a time; the input is mapped, and its pages are given back after use.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <sysexits.h>
#include <unistd.h>

#include "kernels/cpu.h"
#include "kernels/gemm.h"
#include "proto/validate.h"
#include "tools/pack_manifest.h"
#include "tools/pack_restrict.h"
#include "tools/pack_weights.h"
#include "tools/safetensors.h"
#include "worker/layer_file.h"
#include "worker/layer_memory.h"

struct packer {
    const char *input, *output, *manifest;
    int input_fd, output_fd; /* -1: by name */
    FILE *manifest_file;     /* of `manifest`; NULL: none */
    const struct gemm_kernel *kernel; /* NULL: images only */
    bool raw;                         /* with images */
    bool report;                      /* of what quantising costs */
    struct layer_file_header header;
    struct layer_file_entry *entries;
    uint64_t end; /* of what is written or promised */
};

static const char usage_text[] =
    "usage: gemmd-pack [option …] INPUT.safetensors\n"
    "Packs the layers of a safetensors file for a worker's --model and for gemmctl load.\n"
    "  --output FILE    what to write (needed)\n"
    "  --manifest FILE  JSON: {\"layer\": {\"weights\": \"tensor\", \"a_type\": \"u8\", …}, …}\n"
    "                   (default: every tensor P.weight is a layer P)\n"
    "  --kernel NAME    pack for this kernel (auto: this machine's best; none: raw weights only)\n"
    "  --report         say what quantising F32 and BF16 weights costs in accuracy\n"
    "  --no-raw         leave out the raw weights: half the size, for one kernel only\n"
    "  --input-fd N, --output-fd N  open files instead of names\n"
    "  --version, --help\n"
    "exit status: 0 ok, 64 usage, 65 the input is not valid, 66 it cannot be read, 70 internal,\n"
    "73 the output cannot be written\n";

static int complain(const struct packer *packer, int code, const char *text)
{
    fprintf(stderr, "gemmd-pack: %s: %s\n", packer->input, text);
    return code;
}

static uint64_t aligned(uint64_t offset)
{
    return (offset + LAYER_FILE_ALIGN - 1) / LAYER_FILE_ALIGN * LAYER_FILE_ALIGN;
}

/* ---- one layer ------------------------------------------------------------------------------- */

/* The pages of a tensor are not needed again: a packing process holds one layer, not the file. */
static void give_back(const struct safetensors_tensor *tensor)
{
    uintptr_t begin = ((uintptr_t)tensor->data + 4095) & ~(uintptr_t)4095;
    uintptr_t end = ((uintptr_t)tensor->data + tensor->bytes) & ~(uintptr_t)4095;

    if (end > begin)
        madvise((void *)begin, end - begin, MADV_DONTNEED);
}

static bool write_at(const struct packer *packer, uint64_t offset, const void *bytes,
                     uint64_t count)
{
    const char *from = bytes;

    while (count) {
        ssize_t written = pwrite(packer->output_fd, from, count, (off_t)offset);

        if (written < 0 && errno == EINTR)
            continue;
        if (written <= 0)
            return false;
        from += written;
        offset += (uint64_t)written;
        count -= (uint64_t)written;
    }
    return true;
}

/* 64-byte aligned and zeroed; NULL: no memory. */
static void *map_memory(uint64_t bytes)
{
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    return memory == MAP_FAILED ? NULL : memory;
}

static int write_memory(struct packer *packer, struct layer_file_entry *entry, const void *image)
{
    uint64_t bytes = layer_memory_bytes(packer->kernel, &entry->desc);
    struct layer_hash hash;
    void *memory = map_memory(bytes);
    enum gemmd_status status;
    bool written;

    if (!memory)
        return complain(packer, EX_OSERR, "no memory");
    layer_memory_fill(packer->kernel, &entry->desc, image, memory);
    status = layer_memory_check(packer->kernel, &entry->desc, memory);
    if (status != GEMMD_STATUS_OK) {
        munmap(memory, bytes);
        return complain(packer, EX_DATAERR, gemmd_status_text_of(status));
    }
    layer_hash_begin(&hash);
    layer_hash_add(&hash, memory, bytes);
    layer_hash_end(&hash, entry->memory_hash);
    entry->memory_offset = aligned(packer->end);
    entry->memory_bytes = bytes;
    packer->end = entry->memory_offset + bytes;
    written = write_at(packer, entry->memory_offset, memory, bytes);
    munmap(memory, bytes);
    return written ? 0 : complain(packer, EX_CANTCREAT, strerror(errno));
}

static int pack_image(struct packer *packer, const struct pack_layer *layer,
                      const struct gemmd_layer_image *places, char *image,
                      struct layer_file_entry *entry)
{
    char text[256];
    enum gemmd_status status = GEMMD_STATUS_OK;

    if (!pack_weights(layer, places, image, packer->report)) {
        snprintf(text, sizeof(text), "layer '%s': tensor '%.100s': a weight is not finite",
                 layer->name, layer->weights->name);
        return complain(packer, EX_DATAERR, text);
    }
    give_back(layer->weights);
    status = gemmd_validate_layer_values(&layer->desc, places, image);
    if (status != GEMMD_STATUS_OK) {
        const struct safetensors_tensor *tensor = status == GEMMD_STATUS_BIAS ? layer->bias
                                                                              : layer->scales;

        snprintf(text, sizeof(text), "layer '%s': tensor '%.100s': %s", layer->name,
                 tensor ? tensor->name : layer->weights->name, gemmd_status_text_of(status));
        return complain(packer, EX_DATAERR, text);
    }
    layer_content_id(&layer->desc, image, places->bytes, entry->content_id);
    if (packer->raw) {
        entry->image_offset = aligned(packer->end);
        entry->image_bytes = places->bytes;
        packer->end = entry->image_offset + places->bytes;
        if (!write_at(packer, entry->image_offset, image, places->bytes))
            return complain(packer, EX_CANTCREAT, strerror(errno));
    }
    return packer->kernel ? write_memory(packer, entry, image) : 0;
}

static int pack_layer(struct packer *packer, const struct pack_layer *layer,
                      struct layer_file_entry *entry)
{
    struct gemmd_layer_image places;
    enum gemmd_status status = gemmd_validate_name(layer->name, false);
    char text[256];
    char *image;
    int code;

    if (status == GEMMD_STATUS_OK)
        status = gemmd_validate_layer_desc(&layer->desc, &places);
    if (status != GEMMD_STATUS_OK) {
        snprintf(text, sizeof(text), "layer '%s': %s", layer->name, gemmd_status_text_of(status));
        return complain(packer, EX_DATAERR, text);
    }
    entry->desc = layer->desc;
    memcpy(entry->name, layer->name, sizeof(entry->name));
    image = map_memory(places.bytes);
    if (!image)
        return complain(packer, EX_OSERR, "no memory");
    code = pack_image(packer, layer, &places, image, entry);
    munmap(image, places.bytes);
    return code;
}

/* ---- the file -------------------------------------------------------------------------------- */

static void fill_header(struct packer *packer, size_t count)
{
    struct layer_file_header *header = &packer->header;

    header->magic = LAYER_FILE_MAGIC;
    header->version = LAYER_FILE_VERSION;
    header->layer_count = (uint32_t)count;
    header->file_bytes = packer->end;
    header->memory_version = LAYER_MEMORY_VERSION;
    if (packer->kernel) {
        header->kernel_id = packer->kernel->id;
        header->nr = packer->kernel->nr;
        header->kr = packer->kernel->kr;
        header->level = (uint16_t)packer->kernel->level;
        snprintf(header->kernel_name, sizeof(header->kernel_name), "%s", packer->kernel->name);
    }
    layer_file_seal(header, packer->entries);
}

static int pack_layers(struct packer *packer, const struct pack_layer *layers, size_t count)
{
    int code = 0;

    packer->entries = calloc(count, sizeof(*packer->entries));
    if (!packer->entries)
        return complain(packer, EX_OSERR, "no memory");
    packer->end = sizeof(packer->header) + count * sizeof(*packer->entries);
    for (size_t i = 0; i < count && code == 0; i++)
        code = pack_layer(packer, &layers[i], &packer->entries[i]);
    if (code)
        return code;
    /* The header last: a file that was cut short has no magic. */
    fill_header(packer, count);
    if (!write_at(packer, sizeof(packer->header), packer->entries,
                  count * sizeof(*packer->entries)) ||
        !write_at(packer, 0, &packer->header, sizeof(packer->header)))
        return complain(packer, EX_CANTCREAT, strerror(errno));
    return 0;
}

/* Both files are open; parses with as few privileges as can be. */
static int pack_file(struct packer *packer)
{
    struct safetensors *file = NULL;
    struct pack_layer *layers = NULL;
    struct pack_error error;
    struct stat status;
    size_t count;
    int result, code;

    if (fstat(packer->input_fd, &status) < 0 || !S_ISREG(status.st_mode))
        return complain(packer, EX_NOINPUT, "not a regular file");
    if (!pack_restrict((uint64_t)status.st_size))
        return complain(packer, EX_OSERR, "cannot give up privileges");
    result = safetensors_open_fd(packer->input_fd, packer->input, &file, error.text,
                                 sizeof(error.text));
    if (result < 0) {
        fprintf(stderr, "gemmd-pack: %s\n", error.text);
        return result == -EBADMSG ? EX_DATAERR : EX_NOINPUT;
    }
    result = pack_manifest_read(file, packer->manifest_file, &layers, &count, &error);
    if (result < 0)
        code = complain(packer, result == -EBADMSG ? EX_DATAERR : EX_OSERR,
                        result == -EBADMSG ? error.text : "no memory");
    else
        code = pack_layers(packer, layers, count);
    free(packer->entries);
    free(layers);
    safetensors_close(&file);
    return code;
}

/* Whoever may rename the output must not parse the input. */
static int pack_in_child(struct packer *packer)
{
    pid_t pid = fork();
    int status = 0;

    if (pid < 0)
        return complain(packer, EX_OSERR, strerror(errno));
    if (pid == 0)
        _exit(pack_file(packer));
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    if (WIFEXITED(status))
        return WEXITSTATUS(status);
    fprintf(stderr, "gemmd-pack: %s: ended by signal %d: a limit, or a fault of this program\n",
            packer->input, WTERMSIG(status));
    return EX_SOFTWARE;
}

/* Writes beside the output and renames: who reads it sees the old file or the new one. */
static int pack_to_name(struct packer *packer)
{
    char temporary[4096];
    int code;

    if (snprintf(temporary, sizeof(temporary), "%s.part", packer->output) >=
        (int)sizeof(temporary))
        return complain(packer, EX_USAGE, "--output: the name is too long");
    packer->output_fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (packer->output_fd < 0) {
        fprintf(stderr, "gemmd-pack: %s: %s\n", temporary, strerror(errno));
        return EX_CANTCREAT;
    }
    code = pack_in_child(packer);
    if (code == 0 && (fsync(packer->output_fd) < 0 || rename(temporary, packer->output) < 0))
        code = complain(packer, EX_CANTCREAT, strerror(errno));
    close(packer->output_fd);
    if (code)
        unlink(temporary);
    return code;
}

/* ---- options --------------------------------------------------------------------------------- */

static bool set_kernel(struct packer *packer, const char *name)
{
    size_t count;
    const struct gemm_kernel *kernels = gemm_kernels(&count);

    packer->kernel = NULL;
    if (strcmp(name, "none") == 0)
        return true;
    if (strcmp(name, "auto") == 0)
        packer->kernel = gemm_select(cpu_detect());
    for (size_t i = 0; i < count && !packer->kernel; i++)
        if (!kernels[i].narrow_pairs && strcmp(kernels[i].name, name) == 0)
            packer->kernel = &kernels[i];
    if (packer->kernel)
        return true;
    fprintf(stderr, "gemmd-pack: --kernel %s: give auto, none or one of\n", name);
    for (size_t i = 0; i < count; i++)
        if (!kernels[i].narrow_pairs)
            fprintf(stderr, "  %s\n", kernels[i].name);
    return false;
}

static bool set_fd(int *fd, const char *text)
{
    char *end;
    long value = strtol(text, &end, 10);

    *fd = (int)value;
    return *text && *end == '\0' && value >= 0 && value < 1024;
}

static const struct option long_options[] = {
    {"output", required_argument, NULL, 'o'},    {"manifest", required_argument, NULL, 'm'},
    {"kernel", required_argument, NULL, 'k'},    {"no-raw", no_argument, NULL, 'n'},
    {"report", no_argument, NULL, 'r'},
    {"input-fd", required_argument, NULL, 'i'},  {"output-fd", required_argument, NULL, 'O'},
    {"version", no_argument, NULL, 'v'},         {"help", no_argument, NULL, 'h'},
    {NULL, 0, NULL, 0},
};

/* -1: go on; else the exit code. */
static int apply(struct packer *packer, int option)
{
    switch (option) {
    case 'o':
        packer->output = optarg;
        return -1;
    case 'm':
        packer->manifest = optarg;
        return -1;
    case 'k':
        return set_kernel(packer, optarg) ? -1 : EX_USAGE;
    case 'n':
        packer->raw = false;
        return -1;
    case 'r':
        packer->report = true;
        return -1;
    case 'i':
        return set_fd(&packer->input_fd, optarg) ? -1 : EX_USAGE;
    case 'O':
        return set_fd(&packer->output_fd, optarg) ? -1 : EX_USAGE;
    case 'v':
        puts("gemmd-pack " GEMMD_PACK_VERSION);
        return EX_OK;
    case 'h':
        fputs(usage_text, stdout);
        return EX_OK;
    default:
        fputs(usage_text, stderr);
        return EX_USAGE;
    }
}

int main(int argc, char **argv)
{
    struct packer packer = {.input_fd = -1, .output_fd = -1, .raw = true};
    int option, code;

    packer.kernel = gemm_select(cpu_detect());
    while ((option = getopt_long(argc, argv, "", long_options, NULL)) != -1) {
        code = apply(&packer, option);
        if (code >= 0)
            return code;
    }
    if (argc - optind != 1 || !packer.output == (packer.output_fd < 0) ||
        (!packer.raw && !packer.kernel)) {
        fprintf(stderr, "gemmd-pack: one input, one output, and something to write\n%s",
                usage_text);
        return EX_USAGE;
    }
    packer.input = argv[optind];
    if (packer.input_fd < 0)
        packer.input_fd = open(packer.input, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (packer.input_fd < 0)
        return complain(&packer, EX_NOINPUT, strerror(errno));
    if (packer.manifest) {
        packer.manifest_file = fopen(packer.manifest, "re");
        if (!packer.manifest_file)
            return complain(&packer, EX_NOINPUT, "--manifest: it cannot be read");
    }
    return packer.output ? pack_to_name(&packer) : pack_file(&packer);
}
