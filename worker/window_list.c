/* A list of the command line. */
#include "worker/window_list.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Digits only, up to a comma or the end. */
static const char *parse_us(const char *text, uint32_t max_us, uint64_t *ns)
{
    unsigned long value;
    char *end;

    if (*text < '0' || *text > '9')
        return NULL;
    errno = 0;
    value = strtoul(text, &end, 10);
    *ns = (uint64_t)value * 1000;
    return errno || value == 0 || value > max_us || (*end && *end != ',') ? NULL : end;
}

bool window_list_add(struct window_list *list, const char *text, uint32_t max_us)
{
    while (*text) {
        const char *item_end = text + strcspn(text, ","), *colon = item_end;
        size_t length;

        /* The last one: a name may have others. */
        while (colon > text && colon[-1] != ':')
            colon--;
        length = colon > text ? (size_t)(colon - text) - 1 : 0;
        if (length == 0 || length >= GEMMD_NAME_BYTES || list->count == WINDOW_LIST_MAX)
            return false;
        memcpy(list->windows[list->count].name, text, length);
        list->windows[list->count].name[length] = '\0';
        text = parse_us(colon, max_us, &list->windows[list->count].ns);
        if (!text)
            return false;
        list->count++;
        if (*text == ',' && !*++text)
            return false;
    }
    return true;
}
