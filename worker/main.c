/* gemmd: the worker's process. */
#include "worker/options.h"
#include "worker/worker.h"

int main(int argc, char **argv)
{
    struct options options;
    struct worker *worker;
    int code;

    if (options_parse(&options, argc, argv, &code) != 0)
        return code;
    code = worker_open(&worker, &options);
    if (code == 0)
        code = worker_run(worker);
    worker_close(&worker);
    return code;
}
