/*
 * How long to spin before sleeping: the same rule on both sides, learned from recent gaps.
 *
 * Spinning pays when what is waited for comes within about the time that a wake-up takes.  `cap`
 * (worker: --spin-us, client: gemmd_options.spin_ns) is set to about that, so a spin that ends in
 * vain costs at most as much again (A. Karlin et al., SODA 1990).  A peer whose gaps are far apart
 * should not cost even that, least of all on the core that it needs itself: the budget follows a
 * moving mean of the gaps, and is next to nothing while the mean is above the cap.
 *
 * Private to the process that spins; arithmetic only.
 */
#ifndef GEMMD_PROTO_SPIN_H
#define GEMMD_PROTO_SPIN_H

#include <stdbool.h>
#include <stdint.h>

struct gemmd_spin {
    uint64_t gap_ns; /* moving mean, weight 1/8; 0 at first: spins */
    uint32_t spins;
};

/* Each so many spins one has the whole cap, whatever was learned: gaps that a wake-up has ended are
 * known only roughly, so they alone could hold back a peer that has become quick. */
#define GEMMD_SPIN_PROBE 16

/* A gap has ended.  `slept`: by a wake-up, whose own time (half the cap) is not part of the gap.  A
 * long gap counts as four caps, so that one pause is forgotten after some short gaps. */
static inline void gemmd_spin_learn(struct gemmd_spin *spin, uint64_t gap_ns, bool slept,
                                    uint64_t cap_ns)
{
    uint64_t wake_ns = slept ? cap_ns / 2 : 0;

    gap_ns = gap_ns > wake_ns ? gap_ns - wake_ns : 0;
    gap_ns = gap_ns < 4 * cap_ns ? gap_ns : 4 * cap_ns;
    spin->gap_ns = spin->gap_ns - spin->gap_ns / 8 + gap_ns / 8;
}

/* For the spin that begins now, cap_ns at most: four mean gaps, since they vary. */
static inline uint64_t gemmd_spin_budget(struct gemmd_spin *spin, uint64_t cap_ns)
{
    uint64_t budget_ns = cap_ns / 8 + 4 * spin->gap_ns;

    if (++spin->spins % GEMMD_SPIN_PROBE == 0)
        return cap_ns;
    if (spin->gap_ns > cap_ns)
        return cap_ns / 16;
    return budget_ns < cap_ns ? budget_ns : cap_ns;
}

#endif
