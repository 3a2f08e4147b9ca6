/* Small files of sysfs. */
#include "worker/hugepages.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

bool hugepages_are_by_node(void)
{
    return access("/sys/devices/system/node/node1", F_OK) == 0;
}

void hugepages_path(int node, uint64_t page_bytes, const char *name,
                    char out[HUGEPAGES_PATH_BYTES])
{
    unsigned long long kib = page_bytes / 1024;

    if (node >= 0)
        snprintf(out, HUGEPAGES_PATH_BYTES,
                 "/sys/devices/system/node/node%d/hugepages/hugepages-%llukB/%s", node, kib, name);
    else
        snprintf(out, HUGEPAGES_PATH_BYTES, "/sys/kernel/mm/hugepages/hugepages-%llukB/%s", kib,
                 name);
}

long long hugepages_read(int node, uint64_t page_bytes, const char *name)
{
    char path[HUGEPAGES_PATH_BYTES];
    long long value = -1;
    FILE *file;

    hugepages_path(node, page_bytes, name, path);
    file = fopen(path, "re");
    if (!file)
        return -1;
    if (fscanf(file, "%lld", &value) != 1)
        value = -1;
    fclose(file);
    return value;
}

bool hugepages_thp_disabled(void)
{
    char text[64] = "";
    FILE *file = fopen("/sys/kernel/mm/transparent_hugepage/enabled", "re");

    if (!file)
        return true;
    if (!fgets(text, sizeof(text), file))
        text[0] = '\0';
    fclose(file);
    return strstr(text, "[never]") != NULL;
}
