/* Two rows times a 2 x 3 int8 layer, by a gemmd worker. */
#include <stdio.h>
#include <string.h>
#include "client/gemmd.h"

int main(void)
{
    static const uint8_t rows[2][3] = {{1, 2, 3}, {4, 5, 6}};
    static const int8_t weights[2][3] = {{1, 1, 1}, {-1, 0, 2}};
    static const float bias[2] = {0.5F, -0.5F}, expected[2][2] = {{6.5F, 4.5F}, {15.5F, 7.5F}};
    struct gemmd *session = NULL;
    struct gemmd_layer_desc desc;
    struct gemmd_layer *layer;
    struct gemmd_job job;
    int ok = 0; /* set once the result is right */

    if (gemmd_connect(NULL, &session) == 0) { /* starts a private worker if none runs */
        uint8_t *a = gemmd_buffer_alloc(session, sizeof(rows));
        float *c = gemmd_buffer_alloc(session, sizeof(expected));

        gemmd_layer_desc_init(&desc);
        desc.n = 2;
        desc.k = 3;
        desc.weights = &weights[0][0];
        desc.bias_type = GEMMD_TYPE_F32;
        desc.bias = bias;
        if (a && c && gemmd_layer_create(session, &desc, &layer) >= 0) {
            memcpy(a, rows, sizeof(rows));
            gemmd_job_init(&job, layer, 2, a, c); /* C = A * weights^T + bias */
            if (gemmd_run(session, &job, 1000) == 0)
                ok = memcmp(c, expected, sizeof(expected)) == 0;
            if (ok)
                printf("%g %g\n%g %g\n", c[0], c[1], c[2], c[3]);
        }
    }
    if (!ok)
        fprintf(stderr, "hello: no right result: %s\n", gemmd_error_text(session));
    gemmd_close(&session);
    return ok ? 0 : 1;
}
