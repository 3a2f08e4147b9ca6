/*
 * gemmctl's parts: what was asked of the worker, and the two ways to print it.  Every printer
 * writes to stdout and leaves error detection to main, which asks ferror once at the end.
 */
#ifndef GEMMCTL_H
#define GEMMCTL_H

#include <stdbool.h>
#include <stddef.h>

#include "client/gemmd.h"

struct gemmctl {
    const char *socket;
    const char *argument; /* of the command; NULL: none */
    bool json;
    unsigned watch_s; /* stats: a line of rates so often; 0: once */
    struct gemmd *session;
};

/* 0; -errno that the session explains; or an exit status after saying why. */
int gemmctl_load(struct gemmctl *ctl);
int gemmctl_unload(struct gemmctl *ctl);
int gemmctl_pin(struct gemmctl *ctl);
int gemmctl_unpin(struct gemmctl *ctl);
int gemmctl_upgrade(struct gemmctl *ctl);
/* {"layers": count, "bytes": bytes}. */
int gemmctl_json_change(int count, uint64_t bytes);
/* The path of a program beside this one, or `name` for a search in PATH. */
void gemmctl_beside(const char *name, char *out, size_t out_bytes);

/* "u8"; "none" for a value outside the enumeration. */
const char *gemmctl_type_name(enum gemmd_type type);

void gemmctl_text_info(const struct gemmd_info *info);
void gemmctl_text_layers(const struct gemmd_layer_info *layers, size_t count);
void gemmctl_text_sessions(const struct gemmd_session_info *sessions, size_t count);
void gemmctl_text_stats(const struct gemmd_stats *stats);
/* One line: what happened between the two. */
void gemmctl_text_watch(const struct gemmd_stats *before, const struct gemmd_stats *now,
                        double seconds);

/* Each prints one JSON document.  0 or -ENOMEM. */
int gemmctl_json_info(const struct gemmd_info *info);
int gemmctl_json_layers(const struct gemmd_layer_info *layers, size_t count);
int gemmctl_json_sessions(const struct gemmd_session_info *sessions, size_t count);
int gemmctl_json_stats(const struct gemmd_stats *stats);

#endif
