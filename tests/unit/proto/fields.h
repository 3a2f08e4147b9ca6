/*
 * Every field of every struct of the protocol.  S(struct) opens a struct, F(struct, field) names
 * its fields; abi_test.c proves that none is missing (their sizes add up to the struct's).
 */
#ifndef GEMMD_TESTS_UNIT_PROTO_FIELDS_H
#define GEMMD_TESTS_UNIT_PROTO_FIELDS_H

#define ABI_FIELDS(S, F)                                                                           \
    S(gemmd_segment_header)                                                                        \
    F(gemmd_segment_header, magic)                                                                 \
    F(gemmd_segment_header, version)                                                               \
    F(gemmd_segment_header, kind)                                                                  \
    F(gemmd_segment_header, bytes)                                                                 \
    F(gemmd_segment_header, ring_entries)                                                          \
    F(gemmd_segment_header, ring_start)                                                            \
    F(gemmd_segment_header, session_id)                                                            \
    F(gemmd_segment_header, reserved)                                                              \
    S(gemmd_client_line)                                                                           \
    F(gemmd_client_line, cq_head)                                                                  \
    F(gemmd_client_line, cq_wake_at)                                                               \
    F(gemmd_client_line, cq_arm)                                                                   \
    F(gemmd_client_line, reserved)                                                                 \
    S(gemmd_doorbell_line)                                                                         \
    F(gemmd_doorbell_line, need_kick)                                                              \
    F(gemmd_doorbell_line, reserved)                                                               \
    S(gemmd_worker_line)                                                                           \
    F(gemmd_worker_line, cq_futex)                                                                 \
    F(gemmd_worker_line, state)                                                                    \
    F(gemmd_worker_line, reserved)                                                                 \
    S(gemmd_sqe)                                                                                   \
    F(gemmd_sqe, op)                                                                               \
    F(gemmd_sqe, flags)                                                                            \
    F(gemmd_sqe, priority)                                                                         \
    F(gemmd_sqe, reserved0)                                                                        \
    F(gemmd_sqe, m)                                                                                \
    F(gemmd_sqe, layer_id)                                                                         \
    F(gemmd_sqe, layer_gen)                                                                        \
    F(gemmd_sqe, a_offset)                                                                         \
    F(gemmd_sqe, c_offset)                                                                         \
    F(gemmd_sqe, a_stride_bytes)                                                                   \
    F(gemmd_sqe, c_stride_bytes)                                                                   \
    F(gemmd_sqe, deadline_ns)                                                                      \
    F(gemmd_sqe, user_data)                                                                        \
    F(gemmd_sqe, residual_offset)                                                                  \
    F(gemmd_sqe, seq)                                                                              \
    S(gemmd_cqe)                                                                                   \
    F(gemmd_cqe, user_data)                                                                        \
    F(gemmd_cqe, status)                                                                           \
    F(gemmd_cqe, queue_ns)                                                                         \
    F(gemmd_cqe, exec_ns)                                                                          \
    F(gemmd_cqe, kernel_id)                                                                        \
    F(gemmd_cqe, flags)                                                                            \
    F(gemmd_cqe, reserved)                                                                         \
    F(gemmd_cqe, seq)

#define HANDSHAKE_FIELDS(S, F)                                                                     \
    S(gemmd_msg_header)                                                                            \
    F(gemmd_msg_header, type)                                                                      \
    F(gemmd_msg_header, bytes)                                                                     \
    F(gemmd_msg_header, serial)                                                                    \
    F(gemmd_msg_header, status)                                                                    \
    S(gemmd_msg_hello)                                                                             \
    F(gemmd_msg_hello, header)                                                                     \
    F(gemmd_msg_hello, magic)                                                                      \
    F(gemmd_msg_hello, version_min)                                                                \
    F(gemmd_msg_hello, version_max)                                                                \
    F(gemmd_msg_hello, features)                                                                   \
    F(gemmd_msg_hello, flags)                                                                      \
    F(gemmd_msg_hello, ring_entries)                                                               \
    F(gemmd_msg_hello, arena_bytes)                                                                \
    F(gemmd_msg_hello, reserved)                                                                   \
    S(gemmd_msg_hello_reply)                                                                       \
    F(gemmd_msg_hello_reply, header)                                                               \
    F(gemmd_msg_hello_reply, magic)                                                                \
    F(gemmd_msg_hello_reply, version)                                                              \
    F(gemmd_msg_hello_reply, session_id)                                                           \
    F(gemmd_msg_hello_reply, features)                                                             \
    F(gemmd_msg_hello_reply, ring_entries)                                                         \
    F(gemmd_msg_hello_reply, ring_start)                                                           \
    F(gemmd_msg_hello_reply, c2w_bytes)                                                            \
    F(gemmd_msg_hello_reply, w2c_bytes)                                                            \
    F(gemmd_msg_hello_reply, arena_bytes)                                                          \
    F(gemmd_msg_hello_reply, arena_page_bytes)                                                     \
    F(gemmd_msg_hello_reply, worker_epoch)                                                         \
    F(gemmd_msg_hello_reply, spin_ns_max)                                                          \
    F(gemmd_msg_hello_reply, dispatcher_cpu)

#define LAYER_FIELDS(S, F)                                                                         \
    S(gemmd_layer_desc_abi)                                                                        \
    F(gemmd_layer_desc_abi, n)                                                                     \
    F(gemmd_layer_desc_abi, k)                                                                     \
    F(gemmd_layer_desc_abi, a_type)                                                                \
    F(gemmd_layer_desc_abi, c_type)                                                                \
    F(gemmd_layer_desc_abi, bias_type)                                                             \
    F(gemmd_layer_desc_abi, activation)                                                            \
    F(gemmd_layer_desc_abi, scale_count)                                                           \
    F(gemmd_layer_desc_abi, a_zero_point)                                                          \
    F(gemmd_layer_desc_abi, c_zero_point)                                                          \
    F(gemmd_layer_desc_abi, a_scale)                                                               \
    F(gemmd_layer_desc_abi, c_scale)                                                               \
    F(gemmd_layer_desc_abi, b_type)                                                                \
    F(gemmd_layer_desc_abi, quantize_mode)                                                         \
    F(gemmd_layer_desc_abi, b_zero_points)                                                         \
    F(gemmd_layer_desc_abi, residual_type)                                                         \
    F(gemmd_layer_desc_abi, group)                                                                 \
    F(gemmd_layer_desc_abi, clip_lo)                                                               \
    F(gemmd_layer_desc_abi, clip_hi)                                                               \
    F(gemmd_layer_desc_abi, residual_zero_point)                                                   \
    F(gemmd_layer_desc_abi, residual_scale)                                                        \
    F(gemmd_layer_desc_abi, a_row_scales)                                                          \
    F(gemmd_layer_desc_abi, reserved)                                                              \
    S(gemmd_msg_layer_create)                                                                      \
    F(gemmd_msg_layer_create, header)                                                              \
    F(gemmd_msg_layer_create, desc)                                                                \
    F(gemmd_msg_layer_create, content_id)                                                          \
    F(gemmd_msg_layer_create, name)                                                                \
    S(gemmd_msg_layer_open)                                                                        \
    F(gemmd_msg_layer_open, header)                                                                \
    F(gemmd_msg_layer_open, name)                                                                  \
    S(gemmd_msg_layer_reply)                                                                       \
    F(gemmd_msg_layer_reply, header)                                                               \
    F(gemmd_msg_layer_reply, layer_id)                                                             \
    F(gemmd_msg_layer_reply, layer_gen)                                                            \
    F(gemmd_msg_layer_reply, desc)                                                                 \
    F(gemmd_msg_layer_reply, content_id)                                                           \
    F(gemmd_msg_layer_reply, weight_bytes_new)                                                     \
    S(gemmd_msg_layer_data)                                                                        \
    F(gemmd_msg_layer_data, header)                                                                \
    F(gemmd_msg_layer_data, image_offset)                                                          \
    F(gemmd_msg_layer_data, arena_offset)                                                          \
    F(gemmd_msg_layer_data, bytes)                                                                 \
    S(gemmd_msg_layer_data_reply)                                                                  \
    F(gemmd_msg_layer_data_reply, header)                                                          \
    F(gemmd_msg_layer_data_reply, received)                                                        \
    S(gemmd_msg_layer_close)                                                                       \
    F(gemmd_msg_layer_close, header)                                                               \
    F(gemmd_msg_layer_close, layer_id)                                                             \
    F(gemmd_msg_layer_close, layer_gen)

#define INFO_FIELDS(S, F)                                                                          \
    S(gemmd_msg_info_reply)                                                                        \
    F(gemmd_msg_info_reply, header)                                                                \
    F(gemmd_msg_info_reply, worker_version)                                                        \
    F(gemmd_msg_info_reply, pid)                                                                   \
    F(gemmd_msg_info_reply, node)                                                                  \
    F(gemmd_msg_info_reply, cpu_count)                                                             \
    F(gemmd_msg_info_reply, dispatcher_cpu)                                                        \
    F(gemmd_msg_info_reply, level)                                                                 \
    F(gemmd_msg_info_reply, kernel)                                                                \
    F(gemmd_msg_info_reply, event_level)                                                           \
    F(gemmd_msg_info_reply, uptime_ns)                                                             \
    F(gemmd_msg_info_reply, session_count)                                                         \
    F(gemmd_msg_info_reply, layer_count)                                                           \
    F(gemmd_msg_info_reply, pool_bytes)                                                            \
    F(gemmd_msg_info_reply, pool_bytes_used)                                                       \
    F(gemmd_msg_info_reply, pool_bytes_1g)                                                         \
    F(gemmd_msg_info_reply, pool_bytes_2m)                                                         \
    F(gemmd_msg_info_reply, pool_bytes_thp)                                                        \
    F(gemmd_msg_info_reply, pool_bytes_4k)                                                         \
    F(gemmd_msg_info_reply, pool_bytes_on_node)                                                    \
    F(gemmd_msg_info_reply, pool_bytes_limit)                                                      \
    F(gemmd_msg_info_reply, arena_bytes)                                                           \
    F(gemmd_msg_info_reply, worker_epoch)                                                          \
    F(gemmd_msg_info_reply, lost)                                                                  \
    F(gemmd_msg_info_reply, layer_bytes)                                                           \
    F(gemmd_msg_info_reply, layer_bytes_unused)                                                    \
    F(gemmd_msg_info_reply, layer_bytes_pinned)                                                    \
    F(gemmd_msg_info_reply, layer_evictions)                                                       \
    F(gemmd_msg_info_reply, scrub_bytes)                                                           \
    F(gemmd_msg_info_reply, scrub_passes)                                                          \
    F(gemmd_msg_info_reply, scrub_faults)                                                          \
    F(gemmd_msg_info_reply, pool_bytes_kept)

#define LIST_FIELDS(S, F)                                                                          \
    S(gemmd_msg_list)                                                                              \
    F(gemmd_msg_list, header)                                                                      \
    F(gemmd_msg_list, index)                                                                       \
    F(gemmd_msg_list, reserved)                                                                    \
    S(gemmd_msg_layer_load)                                                                        \
    F(gemmd_msg_layer_load, header)                                                                \
    F(gemmd_msg_layer_load, prefix)                                                                \
    S(gemmd_msg_layer_load_reply)                                                                  \
    F(gemmd_msg_layer_load_reply, header)                                                          \
    F(gemmd_msg_layer_load_reply, weight_bytes_new)                                                \
    F(gemmd_msg_layer_load_reply, layers)                                                          \
    F(gemmd_msg_layer_load_reply, reserved)                                                        \
    F(gemmd_msg_layer_load_reply, reason)                                                          \
    S(gemmd_msg_layer_unload)                                                                      \
    F(gemmd_msg_layer_unload, header)                                                              \
    F(gemmd_msg_layer_unload, name)                                                                \
    S(gemmd_msg_layer_unload_reply)                                                                \
    F(gemmd_msg_layer_unload_reply, header)                                                        \
    F(gemmd_msg_layer_unload_reply, bytes_freed)                                                   \
    F(gemmd_msg_layer_unload_reply, layers)                                                        \
    F(gemmd_msg_layer_unload_reply, reserved)                                                      \
    S(gemmd_msg_layer_pin)                                                                         \
    F(gemmd_msg_layer_pin, header)                                                                 \
    F(gemmd_msg_layer_pin, name)                                                                   \
    F(gemmd_msg_layer_pin, pin)                                                                    \
    F(gemmd_msg_layer_pin, reserved)                                                               \
    S(gemmd_msg_layer_pin_reply)                                                                   \
    F(gemmd_msg_layer_pin_reply, header)                                                           \
    F(gemmd_msg_layer_pin_reply, layers)                                                           \
    F(gemmd_msg_layer_pin_reply, reserved)                                                         \
    S(gemmd_msg_takeover_reply)                                                                    \
    F(gemmd_msg_takeover_reply, header)                                                            \
    F(gemmd_msg_takeover_reply, generation)                                                        \
    F(gemmd_msg_takeover_reply, file_id)                                                           \
    F(gemmd_msg_takeover_reply, count)                                                             \
    F(gemmd_msg_takeover_reply, reserved)                                                          \
    S(gemmd_msg_takeover_commit)                                                                   \
    F(gemmd_msg_takeover_commit, header)                                                           \
    F(gemmd_msg_takeover_commit, generation)                                                       \
    S(gemmd_abi_latency)                                                                           \
    F(gemmd_abi_latency, queue_p50_ns)                                                             \
    F(gemmd_abi_latency, queue_p99_ns)                                                             \
    F(gemmd_abi_latency, exec_p50_ns)                                                              \
    F(gemmd_abi_latency, exec_p99_ns)                                                              \
    S(gemmd_msg_layers_reply)                                                                      \
    F(gemmd_msg_layers_reply, header)                                                              \
    F(gemmd_msg_layers_reply, desc)                                                                \
    F(gemmd_msg_layers_reply, content_id)                                                          \
    F(gemmd_msg_layers_reply, name)                                                                \
    F(gemmd_msg_layers_reply, weight_bytes)                                                        \
    F(gemmd_msg_layers_reply, page_bytes)                                                          \
    F(gemmd_msg_layers_reply, node)                                                                \
    F(gemmd_msg_layers_reply, references)                                                          \
    F(gemmd_msg_layers_reply, jobs)                                                                \
    F(gemmd_msg_layers_reply, rows)                                                                \
    F(gemmd_msg_layers_reply, kernel)                                                              \
    F(gemmd_msg_layers_reply, uid)                                                                 \
    F(gemmd_msg_layers_reply, flags)                                                               \
    F(gemmd_msg_layers_reply, exec_ns)                                                             \
    F(gemmd_msg_layers_reply, panels)                                                              \
    F(gemmd_msg_layers_reply, panel_rows)                                                          \
    F(gemmd_msg_layers_reply, latency)                                                             \
    F(gemmd_msg_layers_reply, hits)                                                                \
    F(gemmd_msg_layers_reply, deadline_misses)                                                     \
    S(gemmd_msg_sessions_reply)                                                                    \
    F(gemmd_msg_sessions_reply, header)                                                            \
    F(gemmd_msg_sessions_reply, session_id)                                                        \
    F(gemmd_msg_sessions_reply, pid)                                                               \
    F(gemmd_msg_sessions_reply, uid)                                                               \
    F(gemmd_msg_sessions_reply, ring_entries)                                                      \
    F(gemmd_msg_sessions_reply, arena_bytes)                                                       \
    F(gemmd_msg_sessions_reply, jobs)                                                              \
    F(gemmd_msg_sessions_reply, jobs_failed)                                                       \
    F(gemmd_msg_sessions_reply, rows)                                                              \
    F(gemmd_msg_sessions_reply, exec_ns)                                                           \
    F(gemmd_msg_sessions_reply, doorbells)                                                         \
    F(gemmd_msg_sessions_reply, wakeups)                                                           \
    F(gemmd_msg_sessions_reply, layers)                                                            \
    F(gemmd_msg_sessions_reply, state)                                                             \
    F(gemmd_msg_sessions_reply, age_ns)                                                            \
    F(gemmd_msg_sessions_reply, latency)                                                           \
    F(gemmd_msg_sessions_reply, deadline_misses)                                                   \
    F(gemmd_msg_sessions_reply, cancelled)                                                         \
    F(gemmd_msg_sessions_reply, in_flight)                                                         \
    F(gemmd_msg_sessions_reply, weight)                                                            \
    S(gemmd_msg_stats_reply)                                                                       \
    F(gemmd_msg_stats_reply, header)                                                               \
    F(gemmd_msg_stats_reply, bytes)

#define STATS_FIELDS(S, F)                                                                         \
    S(gemmd_stats_page)                                                                            \
    F(gemmd_stats_page, magic)                                                                     \
    F(gemmd_stats_page, version)                                                                   \
    F(gemmd_stats_page, bytes)                                                                     \
    F(gemmd_stats_page, jobs)                                                                      \
    F(gemmd_stats_page, jobs_failed)                                                               \
    F(gemmd_stats_page, rows)                                                                      \
    F(gemmd_stats_page, macs)                                                                      \
    F(gemmd_stats_page, exec_ns)                                                                   \
    F(gemmd_stats_page, slices)                                                                    \
    F(gemmd_stats_page, preempted)                                                                 \
    F(gemmd_stats_page, panels)                                                                    \
    F(gemmd_stats_page, panel_rows)                                                                \
    F(gemmd_stats_page, shared_slices)                                                             \
    F(gemmd_stats_page, team_slices)                                                               \
    F(gemmd_stats_page, deadline_misses)                                                           \
    F(gemmd_stats_page, cancelled)                                                                 \
    F(gemmd_stats_page, turns)                                                                     \
    F(gemmd_stats_page, sleeps)                                                                    \
    F(gemmd_stats_page, doorbells)                                                                 \
    F(gemmd_stats_page, wakes)                                                                     \
    F(gemmd_stats_page, syscalls)                                                                  \
    F(gemmd_stats_page, spins_hit)                                                                 \
    F(gemmd_stats_page, spins_missed)                                                              \
    F(gemmd_stats_page, rescues)                                                                   \
    F(gemmd_stats_page, sessions_opened)                                                           \
    F(gemmd_stats_page, sessions_closed)                                                           \
    F(gemmd_stats_page, sessions_violated)                                                         \
    F(gemmd_stats_page, layers_created)                                                            \
    F(gemmd_stats_page, layers_attached)                                                           \
    F(gemmd_stats_page, repinned)                                                                  \
    F(gemmd_stats_page, trace_lost)                                                                \
    F(gemmd_stats_page, heartbeat)                                                                 \
    F(gemmd_stats_page, verified)                                                                  \
    F(gemmd_stats_page, verify_faults)                                                             \
    F(gemmd_stats_page, queue_ns)                                                                  \
    F(gemmd_stats_page, exec_ns_histogram)                                                         \
    F(gemmd_stats_page, core_count)                                                                \
    F(gemmd_stats_page, cores)                                                                     \
    S(gemmd_core_stats)                                                                            \
    F(gemmd_core_stats, cpu)                                                                       \
    F(gemmd_core_stats, busy_ns)                                                                   \
    F(gemmd_core_stats, spin_ns)                                                                   \
    F(gemmd_core_stats, sleep_ns)

#define PROTO_FIELDS(S, F)                                                                         \
    ABI_FIELDS(S, F)                                                                               \
    HANDSHAKE_FIELDS(S, F)                                                                         \
    LAYER_FIELDS(S, F)                                                                             \
    INFO_FIELDS(S, F)                                                                              \
    LIST_FIELDS(S, F)                                                                              \
    STATS_FIELDS(S, F)

#endif
