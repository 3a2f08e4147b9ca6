/*
 * The second line of defence for memory that clients share: a page of a session's segment that
 * cannot be had (a hardware error; a hole, which the seals deny) costs that session and no other.
 *
 * The SIGBUS handler puts a private page of zeros under the faulting address and marks the
 * session; the instruction then goes on.  Rejected: siglongjmp out of the kernel.  It would leave
 * a half-done job in state that the handler cannot know, lose the rows of other sessions in the
 * same GEMM, and need a window around each access; mapping a page needs none of this.
 * A SIGBUS anywhere else (weights, stacks) is not survivable and ends the process.
 */
#ifndef GEMMD_WORKER_FAULT_H
#define GEMMD_WORKER_FAULT_H

#include <stdint.h>

#include "proto/status.h"

/* Installs the handler.  `notify_fd` is written (u64 1) after a session was marked.  0 or -errno.
 */
int fault_open(int notify_fd);

/* From now on a fault in [memory, memory + bytes) stores SEGMENT_FAULT into *violation unless
 * something is there.  One thread only (the control thread).  0, or -ENOSPC: the table is full. */
int fault_watch(void *memory, uint64_t bytes, uint32_t page_bytes, enum gemmd_status *violation);

/* Before the memory is unmapped.  Memory that is not watched is allowed. */
void fault_unwatch(const void *memory);

#endif
