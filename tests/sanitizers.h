/* Which sanitizer this build has: gcc has a macro for each, clang a feature. */
#ifndef GEMMD_TESTS_SANITIZERS_H
#define GEMMD_TESTS_SANITIZERS_H

#ifndef __has_feature
#define __has_feature(feature) 0
#endif
#if defined(__SANITIZE_THREAD__) || __has_feature(thread_sanitizer)
#define HAS_TSAN 1
#else
#define HAS_TSAN 0
#endif
#if defined(__SANITIZE_ADDRESS__) || __has_feature(address_sanitizer)
#define HAS_ASAN 1
#else
#define HAS_ASAN 0
#endif

#endif
