/*
 * Life of sessions: one worker (control thread and dispatcher) and clients; with more clients than
 * slots, one gets the slot of another once that is free.  A client may be killed at any step, may
 * break the protocol, cancel what it has submitted, leave with jobs in flight.  The worker may be killed at any step, or told
 * to end.
 *
 * Memory is sequentially consistent here and every submission rings: wake.pml has the rest.
 *
 * Proven by exhaustive search for one client and two submissions, with --full also for three, for two
 * clients that follow each other in one slot, and for two at once with one job of one slice each, of
 * which one (ONE_KILLED) and the worker may be killed; searched in part for two at once with more:
 *   P2        each job of a client that lives ends exactly once: completed, or lost with the worker
 *   memory    the dispatcher touches a session's segments only while they are mapped, and a layer
 *             only while it is referenced
 *   no leak   the worker holds nothing of a client that is gone
 *   no hang   control thread and dispatcher never wait for each other in vain, a client never for
 *             a worker that is gone
 *   drain     an orderly end completes what was submitted before it
 *
 * Mutants, each of which model/run expects to be refuted: see the #ifs.
 */
#ifndef CLIENTS
#define CLIENTS 2
#endif
#ifndef JOBS
#define JOBS 2
#endif
#ifndef SLOTS
#define SLOTS 2
#endif
#define SLOT(s) ((s) % SLOTS)
#ifndef SLICES
#define SLICES 2 /* of a job: orders are taken in between */
#endif
#define NONE    CLIENTS

mtype = { ABSENT, NEW, MAPPING, LIVE, ENDED };              /* states of a session */
mtype = { HELLO, MAPPED, OPEN, CLOSE, OK };                 /* messages; OK is any reply */
mtype = { ATTACH, DETACH, LAYER_OPEN, LAYER_CLOSE, DRAIN }; /* orders to the dispatcher */

/* Connections. */
chan request[CLIENTS] = [1] of { mtype };
chan reply[CLIENTS] = [1] of { mtype };
bool connected[CLIENTS], client_gone[CLIENTS], worker_gone[CLIENTS];
mtype state[CLIENTS] = ABSENT;

/* Segments: free-running counts, the kick eventfd, worker_line.state. */
byte submitted[CLIENTS], completed[CLIENTS];
bool kick[CLIENTS], ended[CLIENTS];
bool scribbled[CLIENTS]; /* cq_head is impossible */
byte cancel_at[CLIENTS];  /* the submission, counted from 1, that is a CANCEL; 0: none is */

/* What the worker holds. */
bool mapped[CLIENTS], attached[CLIENTS], open[CLIENTS];
byte references; /* of the one layer */
bool violation[CLIENTS];
chan mailbox = [0] of { mtype, byte };
chan mailbox_done = [0] of { bit };

bool kill_client[CLIENTS], worker_dead, terminate;
byte must_complete[CLIENTS]; /* ghost: submitted when the drain began */

/* ---- client ---------------------------------------------------------------------------------- */

#define GONE (worker_gone[s] || worker_dead)
#define CALL(message)                                                                              \
    request[s] ! message;                                                                          \
    if                                                                                             \
    :: reply[s] ? OK                                                                               \
    :: GONE -> goto out                                                                            \
    fi

proctype client(byte s)
{
    byte reaped, lost;

    {
        connected[s] = true;
        CALL(HELLO);
        CALL(MAPPED);
        CALL(OPEN);
        do
        :: submitted[s] < JOBS -> submitted[s]++; kick[s] = true
        :: atomic { submitted[s] > 0 && submitted[s] < JOBS && cancel_at[s] == 0 ->
               submitted[s]++; /* of all before */
               cancel_at[s] = submitted[s]
           }
           kick[s] = true
        :: submitted[s] == 1 -> scribbled[s] = true
        :: submitted[s] > 0 -> break
        :: GONE || ended[s] -> break
        od;
        if
        :: CALL(CLOSE) /* the layer, perhaps under its jobs */
        :: true
        fi;
        if
        :: goto leave /* with jobs in flight */
        :: true
        fi;
out:    /* Until nothing is in flight; the ring is emptied before jobs are given up. */
        do
        :: atomic { completed[s] > reaped -> reaped++ }
#ifndef NO_LOST
        :: atomic { completed[s] == reaped && (GONE || ended[s]) ->
               lost = submitted[s] - reaped;
               break
           }
#endif
        :: atomic { reaped == submitted[s] -> break }
        od;
        assert(reaped + lost == submitted[s]);
        assert(worker_dead || violation[s] || !ended[s] || reaped >= must_complete[s]);
leave:  skip
    } unless {
        kill_client[s]
    };
    client_gone[s] = true
}

/* ---- control thread -------------------------------------------------------------------------- */

inline call(order, s)
{
    mailbox ! order, s;
    mailbox_done ? _
}

inline end_session(s)
{
    if
#ifndef NO_DETACH
    :: attached[s] -> call(DETACH, s)
#endif
    :: else
    fi;
    atomic {
        references = references - open[s];
        open[s] = false;
        attached[s] = false;
        mapped[s] = false;
        state[s] = ENDED;
        worker_gone[s] = true
    }
}

#ifdef NO_HANGUP
#define HANGUP(s) false
#else
#define HANGUP(s) client_gone[s]
#endif
#define OPEN_SESSION(s) (state[s] != ABSENT && state[s] != ENDED)
#define SLOT_FREE(s)                                                                               \
    (s < SLOTS || state[(s) - SLOTS] == ENDED ||                                                   \
     (client_gone[(s) - SLOTS] && !connected[(s) - SLOTS]))

#define CONNECTION(s)                                                                              \
    :: atomic { connected[s] && state[s] == ABSENT && SLOT_FREE(s) -> state[s] = NEW }             \
    :: atomic { OPEN_SESSION(s) && request[s] ? [HELLO] -> request[s] ? HELLO;                     \
           mapped[s] = true;                                                                       \
           state[s] = MAPPING;                                                                     \
           reply[s] ! OK                                                                           \
       }                                                                                           \
    :: atomic { OPEN_SESSION(s) && request[s] ? [MAPPED] -> request[s] ? MAPPED }                  \
       call(ATTACH, s);                                                                            \
       atomic { attached[s] = true; state[s] = LIVE; reply[s] ! OK }                               \
    :: atomic { OPEN_SESSION(s) && request[s] ? [OPEN] -> request[s] ? OPEN;                       \
           references++;                                                                           \
           open[s] = true                                                                          \
       }                                                                                           \
       call(LAYER_OPEN, s);                                                                        \
       reply[s] ! OK                                                                               \
    :: atomic { OPEN_SESSION(s) && request[s] ? [CLOSE] -> request[s] ? CLOSE }                    \
       CLOSE_ORDER(s);                                                                             \
       atomic { references--; open[s] = false; reply[s] ! OK }                                     \
    :: OPEN_SESSION(s) && HANGUP(s) && empty(request[s]) -> end_session(s)                         \
    :: OPEN_SESSION(s) && attached[s] && violation[s] -> end_session(s)

#ifdef NO_LAYER_ORDER
#define CLOSE_ORDER(s) skip
#else
#define CLOSE_ORDER(s) call(LAYER_CLOSE, s)
#endif

proctype control()
{
    byte i;

    {
end:    do
        CONNECTION(0)
#if CLIENTS > 1
        CONNECTION(1)
#endif
#if CLIENTS > 2
        CONNECTION(2)
#endif
        :: terminate -> break
        od;
        call(DRAIN, 0);
        do
        :: i < CLIENTS && OPEN_SESSION(i) -> end_session(i); i++
        :: i < CLIENTS && !OPEN_SESSION(i) -> worker_gone[i] = true; i++
        :: i == CLIENTS -> break
        od
    } unless {
        worker_dead
    }
}

/* ---- dispatcher ------------------------------------------------------------------------------ */

#define HERE(s) (session_at[SLOT(s)] == s)
#define WORK(s) (HERE(s) && !violation[s] && (slices[s] > 0 || submitted[s] > taken[s]))

#define CANCELS(s) (submitted[s] > taken[s] && cancel_at[s] == taken[s] + 1)

/* One slice of a job, the admission of the next, or a cancel, which overtakes the job in hand. */
inline serve(s)
{
    atomic {
        assert(mapped[s]);
        if
        :: CANCELS(s) && !scribbled[s] ->
           taken[s]++;
           completed[s] = completed[s] + (slices[s] > 0) + 1;
#ifndef NO_WITHDRAW
           slices[s] = 0
#endif
        :: slices[s] > 0 ->
           assert(references > 0);
           slices[s]--;
           completed[s] = completed[s] + (slices[s] == 0)
        :: slices[s] == 0 && scribbled[s] -> violation[s] = true
        :: slices[s] == 0 && !scribbled[s] && !CANCELS(s) ->
           taken[s]++;
           if
           :: layer[s] -> slices[s] = SLICES
           :: else -> completed[s]++ /* with status LAYER or LAYER_STALE */
           fi
        fi;
        assert(completed[s] <= taken[s] && taken[s] <= submitted[s])
    }
}

#define SESSION(s)                                                                                 \
    :: atomic { HERE(s) && kick[s] -> kick[s] = false; event[SLOT(s)] = true }                     \
    :: hot[SLOT(s)] && WORK(s) -> serve(s)                                                         \
    :: atomic { hot[SLOT(s)] && HERE(s) && !WORK(s) -> hot[SLOT(s)] = false }

#ifdef NO_DRAIN
#define DRAIN_SESSION(s)
#else
#define DRAIN_SESSION(s) :: WORK(s) -> serve(s)
#endif

inline drain()
{
    atomic {
        s = 0;
        do
        :: s < CLIENTS -> must_complete[s] = (HERE(s) && !violation[s] -> submitted[s] : 0); s++
        :: else -> s = 0; break
        od
    }
    do
    DRAIN_SESSION(0)
#if CLIENTS > 1
    DRAIN_SESSION(1)
#endif
#if CLIENTS > 2
    DRAIN_SESSION(2)
#endif
    :: else -> break
    od;
    do
    :: s < CLIENTS -> atomic { ended[s] = HERE(s); s++ }
    :: else -> s = 0; break
    od
}

proctype dispatcher()
{
    byte session_at[SLOTS] = NONE;
    byte taken[CLIENTS], slices[CLIENTS], s;
    bool event[SLOTS], hot[SLOTS], layer[CLIENTS];

    {
end:    do
        :: atomic { mailbox ? ATTACH, s -> session_at[SLOT(s)] = s; s = 0 }
           mailbox_done ! 1
        :: atomic { mailbox ? DETACH, s ->
               session_at[SLOT(s)] = NONE;
               hot[SLOT(s)] = false;
               slices[s] = 0;
               layer[s] = false;
               s = 0
           }
           mailbox_done ! 1
        :: atomic { mailbox ? LAYER_OPEN, s -> layer[s] = true; s = 0 }
           mailbox_done ! 1
        :: atomic { mailbox ? LAYER_CLOSE, s ->
               completed[s] = completed[s] + (slices[s] > 0); /* LAYER_STALE */
               slices[s] = 0;
               layer[s] = false;
               s = 0
           }
           mailbox_done ! 1
        :: mailbox ? DRAIN, s -> drain(); break
        :: atomic { event[0] -> event[0] = false; hot[0] = (session_at[0] != NONE) }
#if SLOTS > 1
        :: atomic { event[1] -> event[1] = false; hot[1] = (session_at[1] != NONE) }
#endif
        SESSION(0)
#if CLIENTS > 1
        SESSION(1)
#endif
#if CLIENTS > 2
        SESSION(2)
#endif
        od;
        mailbox_done ! 1;
        /* Served no more; sessions are still let go. */
end_drained:
        do
        :: atomic { mailbox ? DETACH, s -> session_at[SLOT(s)] = NONE; s = 0 }
           mailbox_done ! 1
        od
    } unless {
        worker_dead
    }
}

/* ---- fate ------------------------------------------------------------------------------------ */

proctype client_killer(byte s)
{
    if
    :: kill_client[s] = true
    :: true
    fi
}

proctype worker_killer()
{
    if
    :: worker_dead = true
    :: terminate = true
    :: true
    fi
}

/* When nothing moves any more: what does the worker still hold? */
proctype auditor()
{
    byte s;

    timeout;
    atomic {
        do
        :: s < CLIENTS ->
           assert(worker_dead || !client_gone[s] || !mapped[s] && !open[s] && !attached[s]);
           s++
        :: else -> break
        od
    }
}

init
{
    byte s;

    atomic {
        do
        :: s < CLIENTS ->
           run client(s);
#ifdef ONE_KILLED
           if
           :: s == CLIENTS - 1 -> run client_killer(s)
           :: else
           fi;
#else
           run client_killer(s);
#endif
           s++
        :: else -> break
        od;
        run control();
        run dispatcher();
        run worker_killer();
        run auditor()
    }
}
