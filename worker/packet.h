/* One control message on its way through the socket, with the descriptors that travel along. */
#ifndef GEMMD_WORKER_PACKET_H
#define GEMMD_WORKER_PACKET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "proto/status.h"

/* Never waits; false when it was not sent whole. */
bool packet_send(int fd, const void *bytes, size_t count, const int *fds, uint32_t fd_count);

/* Never waits.  What recvmsg returns; *status is gemmd_validate_message's, or MESSAGE_FDS when
 * descriptors came that may not: one with LAYER_LOAD, where `may_pass_fd`, is allowed.  *received
 * is a descriptor of the caller's to close, or -1. */
ssize_t packet_receive(int fd, void *buffer, size_t bytes_max, bool may_pass_fd, int *received,
                       enum gemmd_status *status);

#endif
