/*
 * digits: several processes classify handwritten digits through one gemmd worker.
 *
 *     digits --model model.safetensors --test test.safetensors
 *            [--socket PATH] [--clients 4] [--repeat 400] [--json]
 *
 * Exit: 0 everything was right; 1 something was wrong or missing (stderr says what); 64 usage.
 */
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "examples/digits/report.h"

enum { EXIT_USAGE = 64, REPEAT_MAX = 1000000 };

struct options {
    const char *model, *test, *socket;
    uint32_t clients, repeat;
    bool json;
};

static int usage(void)
{
    fprintf(stderr,
            "usage: digits --model FILE --test FILE [--socket PATH] [--clients 1..%d]\n"
            "              [--repeat 1..%d] [--json]\n",
            RUN_CLIENTS_MAX, REPEAT_MAX);
    return EXIT_USAGE;
}

static int parse_count(const char *name, const char *text, long max, uint32_t *out)
{
    char *end;
    long value;

    errno = 0;
    value = strtol(text, &end, 10);
    if (errno || end == text || *end || value < 1 || value > max) {
        fprintf(stderr, "digits: --%s %s: not a number of 1..%ld\n", name, text, max);
        return -1;
    }
    *out = (uint32_t)value;
    return 0;
}

static int parse_options(int argc, char **argv, struct options *options)
{
    static const struct option table[] = {
        {"model", required_argument, NULL, 'm'},
        {"test", required_argument, NULL, 't'},
        {"socket", required_argument, NULL, 's'},
        {"clients", required_argument, NULL, 'c'},
        {"repeat", required_argument, NULL, 'r'},
        {"json", no_argument, NULL, 'j'},
        {NULL, 0, NULL, 0},
    };
    int option, result = 0;

    while (result == 0 && (option = getopt_long(argc, argv, "", table, NULL)) != -1) {
        if (option == 'm')
            options->model = optarg;
        else if (option == 't')
            options->test = optarg;
        else if (option == 's')
            options->socket = optarg;
        else if (option == 'c')
            result = parse_count("clients", optarg, RUN_CLIENTS_MAX, &options->clients);
        else if (option == 'r')
            result = parse_count("repeat", optarg, REPEAT_MAX, &options->repeat);
        else if (option == 'j')
            options->json = true;
        else
            result = -1;
    }
    return result || optind != argc || !options->model || !options->test ? -1 : 0;
}

/* That the two files belong together. */
static int check_fit(const struct model *model, const struct held_out *images, uint32_t clients)
{
    uint32_t i;

    if (images->pixels != model->inputs) {
        fprintf(stderr, "digits: images of %u pixels for a model of %u inputs\n", images->pixels,
                model->inputs);
        return -1;
    }
    if (images->count < clients) {
        fprintf(stderr, "digits: fewer images than clients\n");
        return -1;
    }
    for (i = 0; i < images->count; i++) {
        if (images->labels[i] >= model->classes) {
            fprintf(stderr, "digits: label %u of image %u is no class of the model\n",
                    images->labels[i], i);
            return -1;
        }
    }
    return 0;
}

static int classify(const struct options *options, const struct model *model,
                    const struct held_out *images)
{
    struct run run = {
        .model = model,
        .images = images,
        .socket = options->socket,
        .clients = options->clients,
        .repeat = options->repeat,
    };
    struct report report;
    int result = run_clients(&run);

    if (result == 0) {
        result = report_fill(&run, &report);
        if (result)
            fprintf(stderr, "digits: no memory\n");
    }
    if (result == 0) {
        if (options->json)
            result = report_print_json(&report);
        else
            report_print_text(&report);
        /* before the verdict, which goes to stderr */
        if (fflush(stdout) || report_verdict(&report) > 0)
            result = -1;
    }
    run_free(&run);
    return result ? 1 : 0;
}

int main(int argc, char **argv)
{
    struct options options = {.clients = 4, .repeat = 400};
    struct held_out images;
    struct model model;
    int result = 1;

    if (parse_options(argc, argv, &options))
        return usage();
    if (model_open(options.model, &model))
        return 1;
    if (held_out_open(options.test, &images) == 0) {
        if (check_fit(&model, &images, options.clients) == 0)
            result = classify(&options, &model, &images);
        held_out_close(&images);
    }
    model_close(&model);
    return result;
}
