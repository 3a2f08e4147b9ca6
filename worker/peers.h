/*
 * Who may connect.  The kernel says who a peer is (SO_PEERCRED, SO_PEERGROUPS: as of its connect
 * call); the worker's own user and root are always admitted, others by list.
 */
#ifndef GEMMD_WORKER_PEERS_H
#define GEMMD_WORKER_PEERS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define PEERS_MAX 32

struct peers {
    uint32_t uid_count, gid_count, weight_count;
    uid_t uids[PEERS_MAX];
    gid_t gids[PEERS_MAX];
    uid_t weight_uids[PEERS_MAX];
    uint32_t weights[PEERS_MAX]; /* of the sessions of these; 1 of all others */
};

/* Adds the users or groups of a list "name,1000,…" ("" adds none).  false: an unknown name, not a
 * number, or more than PEERS_MAX.  Asks the system's user database: before the sandbox. */
bool peers_add_users(struct peers *peers, const char *list);
bool peers_add_groups(struct peers *peers, const char *list);
/* Adds weights of a list "name:4,1000:2,…", each 1 to `max`.  Only the operator gives them: a
 * client that could would take the most.  false: *why says what is wrong with which item. */
struct peers_fault {
    char text[128];
};
bool peers_add_weights(struct peers *peers, const char *list, uint32_t max,
                       struct peers_fault *why);
uint32_t peers_weight(const struct peers *peers, uid_t uid);
/* Adds the group `gemmd` when the system has it. */
void peers_add_default_group(struct peers *peers);

/* Who is connected to `fd`, and whether it is admitted. */
bool peers_admit(const struct peers *peers, int fd, pid_t *pid, uid_t *uid);

/* Opens a bound socket's file (mode 0600) to those admitted: 0660 and its group for one group
 * alone, 0666 otherwise, where peers_admit decides.  0, or -EPERM when the file cannot be given to
 * the group: it stays 0600. */
int peers_open_socket(const struct peers *peers, const char *path);

#endif
