/*
 * gemmd-stress: throughput and truth of a worker under many sessions.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sysexits.h>

#include "tools/stress.h"

int main(int argc, char **argv)
{
    static struct stress_options options; /* 4 KiB of CPUs */
    int status = stress_options_parse(&options, argc, argv);

    if (status < 0)
        return EX_OK;
    if (status > 0)
        return status;
    status = options.transport ? stress_transport(&options) : stress_run(&options);
    if (fflush(stdout) != 0 || ferror(stdout)) {
        fprintf(stderr, "gemmd-stress: cannot write the report: %s\n", strerror(errno));
        return status ? status : EX_SOFTWARE;
    }
    return status;
}
