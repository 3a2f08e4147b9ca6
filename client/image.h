/*
 * A layer's image (proto/control.h) without its copy: the weights are read in place; the rest is
 * copied, to check and to pad it.
 */
#ifndef GEMMD_CLIENT_IMAGE_H
#define GEMMD_CLIENT_IMAGE_H

#include "client/internal.h"
#include "proto/validate.h"

struct gemmd_image {
    struct gemmd_layer_image layout;
    const void *weights;
    uint8_t *tail; /* from layout.multipliers_offset to the end */
    void *quantised; /* what was made of float weights; or NULL */
    void (*progress)(void *context, uint64_t bytes_sent, uint64_t bytes); /* or NULL */
    void *progress_context;
};

/* Checks desc, quantises its weights if they are floats, and fills in *abi and *image, which the
 * caller closes in any case.  0 or -errno. */
int gemmd_image_open(struct gemmd *session, const struct gemmd_layer_desc *desc,
                     struct gemmd_layer_desc_abi *abi, struct gemmd_image *image);
/* Also one that is all zeros. */
void gemmd_image_close(struct gemmd_image *image);
void gemmd_image_hash(const struct gemmd_layer_desc_abi *abi, const struct gemmd_image *image,
                      uint64_t content_id[2]);
/* `bytes` of the image from `offset` on. */
void gemmd_image_copy(const struct gemmd_image *image, uint8_t *out, uint64_t offset,
                      uint64_t bytes);

#endif
