/* See ladder.h. */
#include "worker/ladder.h"

#include <errno.h>
#include <stddef.h>

static uint64_t round_up(uint64_t bytes, uint64_t unit)
{
    return (bytes + unit - 1) / unit * unit;
}

/* One rung: an extent of the usual size, else, where memory is short, just of what is needed. */
static int try_rung(const struct ladder *ladder, enum extent_rung rung, struct extent **out)
{
    uint64_t page = extent_rung_bytes(rung);
    uint64_t room = ladder->room / page * page;
    uint64_t least = round_up(ladder->bytes, page);
    uint64_t usual = round_up(ladder->usual_bytes, page);
    int error;

    if (least > room)
        return -ENOSPC;
    if (usual < least)
        usual = least;
    if (usual > room)
        usual = room;
    error = extent_map(out, rung, usual, ladder->node);
    if (error < 0 && least < usual)
        error = extent_map(out, rung, least, ladder->node);
    return error;
}

int ladder_map(const struct ladder *ladder, struct extent **out, uint32_t *failed)
{
    int error = -ENOMEM;

    *out = NULL;
    *failed = 0;
    for (int rung = (int)ladder->first; rung <= (int)ladder->last && !*out; rung++) {
        error = try_rung(ladder, (enum extent_rung)rung, out);
        if (error < 0 && error != -ENOSPC && rung <= EXTENT_2M)
            *failed |= UINT32_C(1) << rung;
    }
    if (*out)
        return 0;
    return error == -ENOSPC ? -ENOSPC : -ENOMEM;
}
