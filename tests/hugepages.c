/* The lock that programs wait for is the kernel's file itself. */
#include "tests/hugepages.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/file.h>
#include <unistd.h>

#define DIRECTORY "/sys/kernel/mm/hugepages/hugepages-2048kB/"

static const char all_pages[] = DIRECTORY "nr_hugepages";
/* Pages that go when their last user does: not of the number to restore. */
static const char surplus_pages[] = DIRECTORY "surplus_hugepages";
static const char free_pages[] = DIRECTORY "free_hugepages";

static long before = -1;
static int lock = -1;

static long read_number(const char *path)
{
    FILE *file = fopen(path, "re");
    long value = -1;

    if (!file)
        return -1;
    if (fscanf(file, "%ld", &value) != 1)
        value = -1;
    fclose(file);
    return value;
}

static void write_number(long count)
{
    FILE *file = fopen(all_pages, "we");

    if (!file)
        return;
    fprintf(file, "%ld", count);
    fclose(file);
}

bool hugepages_set(long count)
{
    if (geteuid() != 0 || access(all_pages, W_OK) < 0)
        return false;
    if (lock < 0) {
        lock = open(all_pages, O_RDONLY | O_CLOEXEC);
        if (lock < 0 || flock(lock, LOCK_EX) < 0)
            return false;
        before = read_number(all_pages) - read_number(surplus_pages);
    }
    write_number(count);
    return read_number(all_pages) == count && hugepages_free() == count;
}

void hugepages_restore(void)
{
    if (lock < 0)
        return;
    write_number(before);
    close(lock);
    lock = -1;
}

long hugepages_free(void)
{
    return read_number(free_pages);
}
