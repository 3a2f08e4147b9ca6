/* What a test asks of the machine and of /proc. */
#ifndef GEMMD_TESTS_E2E_MACHINE_H
#define GEMMD_TESTS_E2E_MACHINE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/* CLOCK_MONOTONIC. */
uint64_t machine_now_ns(void);

/* CPUs this process may run on. */
unsigned machine_cpus(void);

/* Each ends the test as skipped, with the reason, unless the machine has it. */
void machine_skip_unless_cpus(unsigned count);
void machine_skip_unless_root(void);

/* Open file descriptors of a process. */
unsigned machine_fds(pid_t pid);

/* The same once it has stayed for 100 ms: sessions of a moment ago have been closed. */
unsigned machine_fds_settled(pid_t pid);

/* Lines of /proc/PID/maps that hold `text`: mappings of a segment. */
unsigned machine_mappings(pid_t pid, const char *text);

/* CPU time of a process, all threads, in ns as the scheduler counted them. */
uint64_t machine_cpu_ns(pid_t pid);

struct harness_worker;

/* Starts a worker of the last allowed CPU; this process and its children take the others if there
 * are any.  At most 8 more arguments, ended by NULL. */
void machine_start_apart(struct harness_worker *worker, const char *const *arguments);

/* How often its threads have got a CPU. */
uint64_t machine_turns(pid_t pid);

/* The thread whose name begins so.  Waits for it: a thread gives itself its name, perhaps after the
 * worker said that it is ready. */
pid_t machine_thread(pid_t pid, const char *name);

/* Waits until the process has slept (state S in every thread) for 10 ms; false after timeout_ms. */
bool machine_wait_asleep(pid_t pid, int timeout_ms);

/* Processes that lose their parent become this program's children. */
void machine_adopt_orphans(void);

/* True in a build with a sanitizer, where times and memory are another program's. */
bool machine_is_sanitized(void);
/* The thread sanitizer alone: it holds signals that another process sent back until a system call.
 */
bool machine_delays_signals(void);

#endif
