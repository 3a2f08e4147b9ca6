#ifndef GEMMD_TOOLS_BENCH_OPERANDS_H
#define GEMMD_TOOLS_BENCH_OPERANDS_H

/* gemmd-bench operands: by the worker that a client finds, or a private one.  An exit status. */
int bench_operands(void);

#endif
