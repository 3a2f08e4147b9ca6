/* gemmd-bench team: large jobs by a worker of one thread, and by one of several. */
#ifndef GEMMD_TOOLS_BENCH_TEAM_H
#define GEMMD_TOOLS_BENCH_TEAM_H

/* argv[0] is "team".  An exit status. */
int bench_team(int argc, char **argv);

#endif
