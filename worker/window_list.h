/* The operator's windows, by the names of layers (window.c says what one does). */
#ifndef GEMMD_WORKER_WINDOW_LIST_H
#define GEMMD_WORKER_WINDOW_LIST_H

#include <stdbool.h>
#include <stdint.h>

#include "proto/limits.h"

#define WINDOW_LIST_MAX 32

struct window_list {
    uint32_t count;
    struct {
        char name[GEMMD_NAME_BYTES]; /* of a layer, or of all below it */
        uint64_t ns;
    } windows[WINDOW_LIST_MAX];
};

/* Adds those of a list "name:50,model/layer:20,…", in us, each 1 to max_us; "" adds none.  false:
 * no such list, a name that no layer can have, or more than WINDOW_LIST_MAX. */
bool window_list_add(struct window_list *list, const char *text, uint32_t max_us);

#endif
