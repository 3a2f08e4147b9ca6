/*
 * Doorbell and wake-up (edges D and W of proto/ring.h): one worker, two clients, rings of two
 * slots, on a machine with store buffers as x86 has them (TSO).
 *
 * Each process stores into a FIFO of its own that empties into memory at any later moment; loads
 * read memory.  No load looks into the loader's own buffer, because no process loads a word that it
 * writes: it keeps a private copy.  A fence waits until the buffer is empty.  So do the system
 * calls: eventfd and futex take locks in the kernel.  Timeouts and the rescue sweep are left out,
 * so that whatever they would save is a deadlock here.  An atomic block has at most one access to
 * memory or to the kernel; what it puts into its own buffer nobody sees yet.
 *
 * With KILL one client may die at any step, and what it had stored still reaches memory; the worker
 * waits for nobody and so has no other step to be hindered in.  A CANCEL is a submission like others
 * here (session.pml has what it does).
 *
 * Proven by exhaustive search for one client with three jobs, for two with two and one, and with
 * KILL for two with one each; with --full also for two with two each, and with KILL for two with two
 * and one; searched in part for two with three each:
 *   no lost wake-up   whoever sleeps on a job in flight is woken: the only sleep that may last is
 *                     the worker's when all is done
 *   P2                each job is taken once, in order, and completes once, in order
 *   epochs            at most one doorbell per arming, at most one futex wake per arming
 *   flow control      a worker that sees a job has room for its completion (edges S and H)
 *
 * Mutants, each of which model/run expects to be refuted: see the #ifs.
 */
#ifndef CLIENTS
#define CLIENTS 2
#endif
#ifndef JOBS
#define JOBS 2
#endif
#ifndef JOBS_1
#define JOBS_1 JOBS /* of the second client */
#endif
#define ENTRIES 2

/* Memory: the words of one client's segments.  A slot is its seq. */
#define SQ         0
#define CQ         2
#define CQ_HEAD    4
#define CQ_WAKE_AT 5
#define CQ_ARM     6
#define NEED_KICK  7
#define CQ_FUTEX   8
#define WORDS      9
byte memory[CLIENTS * WORDS];
#define WORD(c, word) memory[(c) * WORDS + (word)]

/* Store buffers: one per client, the worker's last. */
#define WORKER CLIENTS
#define DEPTH  4
chan buffer[CLIENTS + 1] = [DEPTH] of { byte, byte };
#define STORE(owner, c, word, value) buffer[owner] ! (c) * WORDS + (word), (value)
#define FENCE(owner)                 empty(buffer[owner])

/* The kernel's side: readable eventfds, clients inside FUTEX_WAIT. */
bool kicked[CLIENTS], asleep[CLIENTS];
bool killed[CLIENTS];

/* Ghosts: epochs that were rung and woken, one bit each. */
short rung[CLIENTS], woken[CLIENTS];
#define ONCE(set, epoch)                                                                           \
    assert((epoch) / 2 < 15 && !(set & (1 << ((epoch) / 2))));                                     \
    set = set | (1 << ((epoch) / 2))

#ifdef NO_CLIENT_DOORBELL_FENCE
#define CLIENT_DOORBELL_FENCE true
#else
#define CLIENT_DOORBELL_FENCE FENCE(me)
#endif
#ifdef NO_CLIENT_WAKE_FENCE
#define CLIENT_WAKE_FENCE true
#else
#define CLIENT_WAKE_FENCE FENCE(me)
#endif
#ifdef NO_WORKER_DOORBELL_FENCE
#define WORKER_DOORBELL_FENCE true
#else
#define WORKER_DOORBELL_FENCE FENCE(WORKER)
#endif
#ifdef NO_WORKER_WAKE_FENCE
#define WORKER_WAKE_FENCE true
#else
#define WORKER_WAKE_FENCE FENCE(WORKER)
#endif

#ifdef NO_DOORBELL_RECHECK
#define RECHECK false
#else
#define RECHECK true
#endif

/* A store reaches memory. */
proctype store_buffer(byte owner)
{
    byte address, value;

end:
    do
    :: atomic {
           buffer[owner] ? address, value ->
           memory[address] = value;
           address = 0;
           value = 0
       }
    od
}

#define COMPLETED (WORD(me, CQ + reaped % ENTRIES) == reaped + 1) /* gemmd_cq_ready */

proctype client(byte me; byte jobs)
{
    byte submitted, reaped, last_rung, epoch, arm_epoch, futex;
    bool dirty; /* jobs in the ring that no flush has announced */

    {
    do
    :: atomic { submitted < jobs && submitted - reaped < ENTRIES -> /* gemmd_submit */
           STORE(me, me, SQ + submitted % ENTRIES, submitted + 1);
#ifdef LATE_CQ_HEAD
           STORE(me, me, CQ_HEAD, reaped);
#endif
           submitted++;
           dirty = true
       }
    :: atomic { dirty && CLIENT_DOORBELL_FENCE -> /* gemmd_flush: edge D */
           epoch = WORD(me, NEED_KICK);
           dirty = false;
           if
           :: epoch % 2 == 1 && epoch != last_rung
           :: else -> epoch = 0; goto again
           fi
       }
       atomic { FENCE(me) -> /* write(kick_fd) */
#ifndef NO_RING_EPOCH
           last_rung = epoch;
#endif
           ONCE(rung[me], epoch);
           kicked[me] = true;
           epoch = 0
       }
    :: atomic { COMPLETED -> /* gemmd_poll: edges C and H */
           assert(reaped < submitted);
           reaped++;
#ifndef LATE_CQ_HEAD
           STORE(me, me, CQ_HEAD, reaped) /* before any submission into this room */
#endif
       }
    :: !dirty && submitted > reaped && !COMPLETED -> /* gemmd_wait, having spun: edge W */
       atomic {
           futex = WORD(me, CQ_FUTEX);
           arm_epoch = (arm_epoch + 2) | 1;
           STORE(me, me, CQ_WAKE_AT, reaped + 1);
           STORE(me, me, CQ_ARM, arm_epoch)
       }
       if
#ifndef NO_WAKE_RECHECK
       :: atomic { CLIENT_WAKE_FENCE && COMPLETED -> skip }
       :: atomic { CLIENT_WAKE_FENCE && !COMPLETED -> skip }
#else
       :: true
#endif
          atomic { FENCE(me) -> /* futex(FUTEX_WAIT) looks and falls asleep in one step */
              asleep[me] = WORD(me, CQ_FUTEX) == futex
          }
          !asleep[me]
       fi;
       atomic { STORE(me, me, CQ_ARM, 0); futex = 0 }
    :: atomic { submitted == jobs && reaped == jobs -> break }
again:
    od;
    assert(!COMPLETED) /* nothing comes after the last */
    } unless {
        killed[me] /* what it stored still reaches memory; it is never heard of again */
    }
}

/* At any step, or never. */
proctype killer(byte victim)
{
    if
    :: killed[victim] = true
    :: true
    fi
}

#define SUBMITTED(c) (WORD(c, SQ + taken[c] % ENTRIES) == taken[c] + 1) /* gemmd_sq_ready */
#define ANY_HOT      (hot[0] || hot[CLIENTS - 1])

/* One batch of client c, whichever of the worker's options chose it. */
inline serve()
{
    if
    :: atomic { tail[c] - head_seen[c] == ENTRIES -> head_seen[c] = WORD(c, CQ_HEAD) }
    :: else
    fi;
    assert(tail[c] - head_seen[c] < ENTRIES); /* the client's flow control */
    if
    :: atomic { SUBMITTED(c) && taken[c] - head_seen[c] < ENTRIES -> taken[c]++ }
    :: true
    fi;
    atomic {
        do
        :: tail[c] < taken[c] ->
           STORE(WORKER, c, CQ + tail[c] % ENTRIES, tail[c] + 1);
           tail[c]++
        :: else -> break
        od
    }
    /* gemmd_wake_wanted: edge W */
    atomic { WORKER_WAKE_FENCE -> epoch = WORD(c, CQ_ARM);
        if
        :: epoch % 2 == 1 && epoch != last_woken[c]
        :: else -> epoch = 0; goto next
        fi
    }
    atomic {
        if
        :: tail[c] >= WORD(c, CQ_WAKE_AT) ->
#ifndef NO_WAKE_EPOCH
           last_woken[c] = epoch;
#endif
           futex[c]++;
           STORE(WORKER, c, CQ_FUTEX, futex[c])
        :: else -> epoch = 0; goto next
        fi
    }
    atomic { FENCE(WORKER) -> /* futex(FUTEX_WAKE) */
        ONCE(woken[c], epoch);
        asleep[c] = false;
        epoch = 0;
        c = 0
    }
}

/* What the worker may do next for client i; any order of clients is allowed. */
#define OPTIONS(i)                                                                                 \
    :: atomic { hot[i] && SUBMITTED(i) -> c = i; taken[i]++ }                                      \
       serve()                                                                                     \
    :: atomic { hot[i] && !SUBMITTED(i) -> /* becomes cold: edge D */                              \
           doorbell_epoch[i] = doorbell_epoch[i] + 2;                                              \
           STORE(WORKER, i, NEED_KICK, doorbell_epoch[i])                                          \
       }                                                                                           \
       atomic { WORKER_DOORBELL_FENCE ->                                                           \
           if                                                                                      \
           :: RECHECK && SUBMITTED(i) -> STORE(WORKER, i, NEED_KICK, 0)                            \
           :: else -> hot[i] = false                                                               \
           fi                                                                                      \
       }                                                                                           \
    :: atomic { kicked[i] && (ANY_HOT || FENCE(WORKER)) -> /* an event; else it sleeps for one */  \
           kicked[i] = false;                                                                      \
           if                                                                                      \
           :: !hot[i] -> hot[i] = true; STORE(WORKER, i, NEED_KICK, 0)                             \
           :: else                                                                                 \
           fi                                                                                      \
       }

proctype worker()
{
    byte taken[CLIENTS], tail[CLIENTS], head_seen[CLIENTS];
    byte doorbell_epoch[CLIENTS] = 1, last_woken[CLIENTS], futex[CLIENTS];
    bool hot[CLIENTS];
    byte c, epoch;

next:
    c = 0;
end:
    do
    OPTIONS(0)
#if CLIENTS == 2
    OPTIONS(1)
#endif
    od
}

init
{
    atomic {
        WORD(0, NEED_KICK) = 1; /* born cold */
        run client(0, JOBS);
        run store_buffer(0);
#if CLIENTS == 2
        WORD(1, NEED_KICK) = 1;
        run client(1, JOBS_1);
        run store_buffer(1);
#endif
#ifdef KILL
        run killer(CLIENTS - 1);
#endif
        run worker();
        run store_buffer(WORKER)
    }
}
