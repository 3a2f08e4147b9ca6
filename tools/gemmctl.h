/*
 * gemmctl's parts: what was asked of the worker, and the two ways to print it.  Every printer
 * writes to stdout and leaves error detection to main, which asks ferror once at the end.
 */
#ifndef GEMMCTL_H
#define GEMMCTL_H

#include <stddef.h>

#include "client/gemmd.h"

/* "u8"; "none" for a value outside the enumeration. */
const char *gemmctl_type_name(enum gemmd_type type);

void gemmctl_text_info(const struct gemmd_info *info);
void gemmctl_text_layers(const struct gemmd_layer_info *layers, size_t count);
void gemmctl_text_sessions(const struct gemmd_session_info *sessions, size_t count);
void gemmctl_text_stats(const struct gemmd_stats *stats);
/* One line: what happened between the two. */
void gemmctl_text_watch(const struct gemmd_stats *before, const struct gemmd_stats *now,
                        unsigned seconds);

/* Each prints one JSON document.  0 or -ENOMEM. */
int gemmctl_json_info(const struct gemmd_info *info);
int gemmctl_json_layers(const struct gemmd_layer_info *layers, size_t count);
int gemmctl_json_sessions(const struct gemmd_session_info *sessions, size_t count);
int gemmctl_json_stats(const struct gemmd_stats *stats);

#endif
