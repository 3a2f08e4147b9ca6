/* Weights outlive their worker in a service manager's store; and are checked while it lives. */
#include "tests/harness.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "tests/e2e/kept_layers.h"
#include "tests/e2e/layer_case.h"
#include "tests/e2e/machine.h"
#include "tests/e2e/manager.h"

static void finish(struct manager *manager, struct harness_worker *worker)
{
    manager_close(manager);
    harness_stop(worker);
}

/* ---- the service manager's store ------------------------------------------------------------- */

static void test_killed_and_restarted(void **state)
{
    struct harness_worker worker;
    struct manager manager;
    struct gemmd_info info;
    uint64_t start_ns, first_ns, best_ns = UINT64_MAX;

    (void)state;
    manager_open(&manager, &worker);
    assert_true(manager_start(&manager, &worker, pool_arguments, NULL, 0));
    assert_non_null(strstr(manager.status, "serving"));
    create_layers(&worker, LAYERS);
    for (int round = 0; round < 5; round++) {
        harness_kill(&worker);
        manager_listen(&manager, NULL, 0, 0);
        start_ns = machine_now_ns();
        assert_true(manager_start(&manager, &worker, pool_arguments, NULL, 0));
        first_ns = check_layers(&worker, LAYERS, start_ns);
        info = info_of(&worker);
        assert_int_equal(info.layer_count, LAYERS);
        assert_int_equal(info.pool_bytes_kept, info.pool_bytes);
        print_message("restart to first result: %.1f ms (%d layers, %.0f MiB); the worker's CPU "
                      "time until all are verified: %.1f ms\n", (double)first_ns / 1e6, LAYERS,
                      (double)info.layer_bytes / (1 << 20),
                      (double)machine_cpu_ns(worker.pid) / 1e6);
        best_ns = first_ns < best_ns ? first_ns : best_ns;
    }
    if (!machine_is_sanitized())
        assert_true(best_ns < UINT64_C(1000000000)); /* the aim is 100 ms, alone */
    finish(&manager, &worker);
    assert_true(manager.ready == 6);
}

/* Names, hashes and pins are as they were; a client of the same user attaches by the hash. */
static void test_the_table_is_complete(void **state)
{
    struct harness_worker worker;
    struct manager manager;
    struct gemmd *session;
    struct gemmd_layer_info before[3], after[3];
    struct gemmd_layer *handle;

    (void)state;
    manager_open(&manager, &worker);
    assert_true(manager_start(&manager, &worker, pool_arguments, NULL, 0));
    create_layers(&worker, 3);
    session = session_to(worker.socket);
    assert_int_equal(gemmd_layers_pin(session, "m/1", 1), 1);
    for (uint32_t i = 0; i < 3; i++)
        assert_int_equal(gemmd_get_layer_info(session, i, &before[i]), 0);
    gemmd_close(&session);
    harness_kill(&worker);
    manager_listen(&manager, NULL, 0, 0);
    assert_true(manager_start(&manager, &worker, pool_arguments, NULL, 0));
    session = session_to(worker.socket);
    for (uint32_t i = 0; i < 3; i++) {
        assert_int_equal(gemmd_get_layer_info(session, i, &after[i]), 0);
        assert_string_equal(after[i].name, before[i].name);
        assert_memory_equal(after[i].content_id, before[i].content_id, 16);
        assert_int_equal(after[i].pinned, before[i].pinned);
        assert_int_equal(after[i].uid, before[i].uid);
        assert_int_equal(after[i].page_bytes, before[i].page_bytes);
    }
    assert_int_equal(gemmd_layer_create(session, &layers[2].desc, &handle), 1);
    assert_int_equal(gemmd_layer_bytes_new(handle), 0);
    gemmd_close(&session);
    finish(&manager, &worker);
}

/* One bit of one layer: that one is gone, the others stay. */
static void test_a_changed_layer_is_refused(void **state)
{
    struct harness_worker worker;
    struct manager manager;
    struct gemmd *session;
    struct gemmd_layer *handle;
    struct stat status;
    uint8_t *memory;
    int fd;

    (void)state;
    manager_open(&manager, &worker);
    assert_true(manager_start(&manager, &worker, pool_arguments, NULL, 0));
    create_layers(&worker, 3);
    harness_kill(&worker);
    manager_listen(&manager, NULL, 0, 0);
    fd = manager_find(&manager, "gemmd-pool-1");
    assert_true(fd >= 0 && fstat(fd, &status) == 0);
    memory = mmap(NULL, (size_t)status.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    assert_ptr_not_equal(memory, MAP_FAILED);
    memory[N * K / 2] ^= 0x10; /* in the first layer */
    munmap(memory, (size_t)status.st_size);
    assert_true(manager_start(&manager, &worker, pool_arguments, NULL, 0));
    session = session_to(worker.socket);
    assert_int_equal(gemmd_layer_open(session, "m/0", &handle), -ENOENT);
    for (unsigned i = 1; i < 3; i++) {
        char name[8];

        snprintf(name, sizeof(name), "m/%u", i);
        assert_int_equal(gemmd_layer_open(session, name, &handle), 0);
        assert_int_equal(layer_case_check(session, handle, &layers[i], 2, i), 0);
    }
    gemmd_close(&session);
    finish(&manager, &worker);
}

/* The table torn by the writer's death, garbage, another size, missing files, another kernel. */
static void test_a_bad_table_is_a_cold_start(void **state)
{
    static const char *const other_kernel[] = {"GEMMD_CPU_MASK=avx2", NULL};

    (void)state;
    for (int kind = 0; kind < 5; kind++) {
        struct harness_worker worker;
        struct manager manager;
        struct gemmd_info info;
        int fd;

        manager_open(&manager, &worker);
        assert_true(manager_start(&manager, &worker, pool_arguments, NULL, 0));
        create_layers(&worker, 2);
        harness_kill(&worker);
        manager_listen(&manager, NULL, 0, 0);
        fd = manager_find(&manager, "gemmd-table");
        assert_true(fd >= 0);
        if (kind == 0)
            assert_int_equal(ftruncate(fd, 4096), 0);
        if (kind == 1)
            for (off_t at = 0; at < 4096; at += 64) { /* both copies */
                struct stat status;

                assert_int_equal(fstat(fd, &status), 0);
                assert_int_equal(pwrite(fd, "\xff\xff", 2, at), 2);
                assert_int_equal(pwrite(fd, "\xff\xff", 2, status.st_size / 2 + at), 2);
            }
        for (unsigned i = 0; i < manager.count; i++) {
            struct manager_file *file = &manager.files[i];

            if (kind == 2 && file->fd != fd)
                assert_int_equal(ftruncate(file->fd, 0), 0);
            if (kind == 3 && file->fd != fd)
                snprintf(file->name, sizeof(file->name), "gemmd-pool-%u", 70 + i);
        }
        manager.removed = 0;
        assert_true(manager_start(&manager, &worker, pool_arguments,
                                  kind == 4 ? other_kernel : NULL, 0));
        info = info_of(&worker);
        assert_int_equal(info.layer_count, 0);
        manager_listen(&manager, NULL, 0, 0);
        if (kind != 2)
            assert_true(manager.removed > 0); /* no file of no use stays in the store */
        unsetenv("GEMMD_CPU_MASK");
        create_layers(&worker, 2);
        finish(&manager, &worker);
    }
}

static void test_unloading_empties_the_store(void **state)
{
    struct harness_worker worker;
    struct manager manager;
    struct gemmd *session;
    uint64_t freed;

    (void)state;
    manager_open(&manager, &worker);
    assert_true(manager_start(&manager, &worker, pool_arguments, NULL, 0));
    create_layers(&worker, 4);
    manager_listen(&manager, NULL, 0, 0);
    assert_true(manager.count >= 2);
    session = session_to(worker.socket);
    assert_int_equal(gemmd_layers_unload(session, "m", &freed), 4);
    assert_true(freed > UINT64_C(4) * N * K);
    gemmd_close(&session);
    manager_listen(&manager, NULL, 0, 0);
    assert_int_equal(manager.count, 1); /* the table */
    finish(&manager, &worker);
}

/* ---- the rest of the protocol ---------------------------------------------------------------- */

static void test_watchdog_and_stopping(void **state)
{
    struct harness_worker worker;
    struct manager manager;
    uint64_t start_ns, took_ns = UINT64_MAX;

    (void)state;
    manager_open(&manager, &worker);
    assert_true(manager_start(&manager, &worker, pool_arguments, NULL, 400000));
    /* A busy machine's worker is late at times. */
    for (int i = 0; i < 4 && took_ns >= UINT64_C(4000000000); i++) {
        start_ns = machine_now_ns();
        manager.watchdog = 0;
        manager_listen(&manager, &manager.watchdog, 10, 10000);
        assert_int_equal(manager.watchdog, 10); /* every 200 ms, 300 at the latest */
        took_ns = machine_now_ns() - start_ns;
    }
    assert_true(took_ns < UINT64_C(4000000000));
    kill(worker.pid, SIGTERM);
    manager_listen(&manager, &manager.stopping, 1, 10000);
    assert_int_equal(manager.stopping, 1);
    assert_int_equal(harness_join(worker.pid, 10000), 0);
    worker.pid = 0;
    manager_close(&manager);
    harness_discard(&worker);
}

static void test_the_managers_socket(void **state)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct harness_worker worker;
    struct manager manager;
    int fd;

    (void)state;
    manager_open(&manager, &worker);
    fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    memcpy(address.sun_path, worker.socket, strlen(worker.socket));
    assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    assert_int_equal(listen(fd, 16), 0);
    manager_add(&manager, "gemmd.socket", fd);
    assert_true(manager_start(&manager, &worker, pool_arguments, NULL, 0));
    create_layers(&worker, 1);
    kill(worker.pid, SIGTERM);
    assert_int_equal(harness_join(worker.pid, 10000), 0);
    worker.pid = 0;
    assert_int_equal(access(worker.socket, F_OK), 0); /* the manager's, and it listens on */
    manager_listen(&manager, NULL, 0, 0);
    assert_true(manager_start(&manager, &worker, pool_arguments, NULL, 0));
    check_layers(&worker, 1, 0); /* kept over an orderly end, too */
    manager_close(&manager);
    kill(worker.pid, SIGTERM);
    assert_int_equal(harness_join(worker.pid, 10000), 0);
    unlink(worker.socket);
    harness_discard(&worker);
}

/* ---- scrub ----------------------------------------------------------------------------------- */

static void test_scrub_finds_a_flipped_bit(void **state)
{
    struct harness_worker worker;
    struct manager manager;
    struct gemmd *session;
    struct gemmd_layer *handles[2];
    struct gemmd_info info;
    struct stat status;
    uint8_t *memory;
    uint64_t deadline_ns = machine_now_ns() + UINT64_C(30000000000);
    int fd;

    (void)state;
    manager_open(&manager, &worker);
    assert_true(manager_start(&manager, &worker, pool_arguments, NULL, 0));
    create_layers(&worker, 2);
    manager_listen(&manager, NULL, 0, 0);
    session = session_with(worker.socket, 64, 4 << 20, -1);
    for (unsigned i = 0; i < 2; i++)
        assert_int_equal(gemmd_layer_open(session, i ? "m/1" : "m/0", &handles[i]), 0);
    fd = manager_find(&manager, "gemmd-pool-1");
    assert_true(fd >= 0 && fstat(fd, &status) == 0);
    memory = mmap(NULL, (size_t)status.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    assert_ptr_not_equal(memory, MAP_FAILED);
    memory[1000] ^= 1; /* in the first layer, behind the worker's back */
    do {
        usleep(1500000); /* the scrub works after a second without messages */
        assert_int_equal(gemmd_get_info(session, &info), 0);
    } while (info.scrub_faults == 0 && machine_now_ns() < deadline_ns);
    munmap(memory, (size_t)status.st_size);
    assert_int_equal(info.scrub_faults, 1);
    assert_true(info.scrub_bytes >= N * K);
    assert_int_equal(info.layer_count, 1);
    /* Never a wrong result: the handle is stale, the name is gone. */
    assert_int_equal(layer_case_check(session, handles[0], &layers[0], 1, 1), -ESTALE);
    assert_int_equal(layer_case_check(session, handles[1], &layers[1], 1, 1), 0);
    assert_int_equal(gemmd_layer_open(session, "m/0", &handles[0]), -ENOENT);
    assert_true(harness_log_has(&worker, "have changed in memory"));
    gemmd_close(&session);
    finish(&manager, &worker);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_killed_and_restarted),
        cmocka_unit_test(test_the_table_is_complete),
        cmocka_unit_test(test_a_changed_layer_is_refused),
        cmocka_unit_test(test_a_bad_table_is_a_cold_start),
        cmocka_unit_test(test_unloading_empties_the_store),
        cmocka_unit_test(test_watchdog_and_stopping),
        cmocka_unit_test(test_the_managers_socket),
        cmocka_unit_test(test_scrub_finds_a_flipped_bit),
    };

    return HARNESS_RUN(tests, kept_set_up, kept_tear_down, 170);
}
