/* Texts and errnos of the statuses, generated from the one table in status.h. */
#include "proto/status.h"

#include <errno.h>
#include <stddef.h>

static const struct {
    int status;
    int error;
    const char *name;
    const char *text;
} table[] = {
#define X(name_, value_, error_, text_) {value_, error_, #name_, text_},
    GEMMD_STATUS_TABLE(X)
#undef X
};

/* -1 for a value outside the table.  Never on the job path, so a scan is fine. */
static int find(int status)
{
    for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++)
        if (table[i].status == status)
            return (int)i;
    return -1;
}

const char *gemmd_status_name_of(int status)
{
    int i = find(status);
    return i < 0 ? "UNKNOWN" : table[i].name;
}

const char *gemmd_status_text_of(int status)
{
    int i = find(status);
    return i < 0 ? "unknown status" : table[i].text;
}

int gemmd_status_errno_of(int status)
{
    int i = find(status);
    return i < 0 ? EIO : table[i].error;
}
