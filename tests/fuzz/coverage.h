/* Tells libFuzzer, if the process has it, which code of a kernel runs and what it compares.
 *
 * gcc calls a function at every branch (-fsanitize-coverage=trace-pc) where libFuzzer wants counters, so each kernel
 * gets its own table of them. The symbols are hidden: every kernel calls its own copy. Without libFuzzer the
 * counters are filled and nobody reads them. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>

#define HIDDEN __attribute__((visibility("hidden"), no_sanitize_coverage, noinline))
#define N_COUNTERS 4096 /* power of two; two branches that share one are seen as one */

extern const char __ehdr_start __attribute__((visibility("hidden")));

static uint8_t counters[N_COUNTERS];
static uintptr_t table[N_COUNTERS][2]; /* address and flags of each counter */

HIDDEN void __sanitizer_cov_trace_pc(void)
{
    uintptr_t offset = (uintptr_t)__builtin_return_address(0) - (uintptr_t)&__ehdr_start;
    counters[(offset * 0x9E3779B97F4A7C15u) >> 52]++;
}

/* A jump, not a call: libFuzzer tells comparisons apart by where they return to. */
#define FORWARD(name, ...)                                                                                             \
    static void (*real_##name)() = 0;                                                                                  \
    HIDDEN __attribute__((optimize("O2"))) void __sanitizer_cov_##name(__VA_ARGS__)

FORWARD(trace_cmp1, uint8_t a, uint8_t b) { if (real_trace_cmp1) real_trace_cmp1(a, b); }
FORWARD(trace_cmp2, uint16_t a, uint16_t b) { if (real_trace_cmp2) real_trace_cmp2(a, b); }
FORWARD(trace_cmp4, uint32_t a, uint32_t b) { if (real_trace_cmp4) real_trace_cmp4(a, b); }
FORWARD(trace_cmp8, uint64_t a, uint64_t b) { if (real_trace_cmp8) real_trace_cmp8(a, b); }
FORWARD(trace_const_cmp1, uint8_t a, uint8_t b) { if (real_trace_const_cmp1) real_trace_const_cmp1(a, b); }
FORWARD(trace_const_cmp2, uint16_t a, uint16_t b) { if (real_trace_const_cmp2) real_trace_const_cmp2(a, b); }
FORWARD(trace_const_cmp4, uint32_t a, uint32_t b) { if (real_trace_const_cmp4) real_trace_const_cmp4(a, b); }
FORWARD(trace_const_cmp8, uint64_t a, uint64_t b) { if (real_trace_const_cmp8) real_trace_const_cmp8(a, b); }
FORWARD(trace_switch, uint64_t value, uint64_t *cases) { if (real_trace_switch) real_trace_switch(value, cases); }
/* libFuzzer has nothing to learn from floating point. */
HIDDEN void __sanitizer_cov_trace_cmpf(float a, float b) { (void)a, (void)b; }
HIDDEN void __sanitizer_cov_trace_cmpd(double a, double b) { (void)a, (void)b; }

#define FIND(name) real_##name = (void (*)())dlsym(RTLD_DEFAULT, "__sanitizer_cov_" #name)

__attribute__((constructor, no_sanitize_coverage)) static void introduce(void)
{
    void (*take_counters)(uint8_t *, uint8_t *) =
        (void (*)(uint8_t *, uint8_t *))dlsym(RTLD_DEFAULT, "__sanitizer_cov_8bit_counters_init");
    void (*take_table)(const uintptr_t *, const uintptr_t *) =
        (void (*)(const uintptr_t *, const uintptr_t *))dlsym(RTLD_DEFAULT, "__sanitizer_cov_pcs_init");
    if (!take_counters || !take_table)
        return;
    for (uintptr_t i = 0; i < N_COUNTERS; i++)
        table[i][0] = (uintptr_t)&__ehdr_start + i;
    take_counters(counters, counters + N_COUNTERS);
    take_table(table[0], table[N_COUNTERS]);
    FIND(trace_cmp1), FIND(trace_cmp2), FIND(trace_cmp4), FIND(trace_cmp8), FIND(trace_switch);
    FIND(trace_const_cmp1), FIND(trace_const_cmp2), FIND(trace_const_cmp4), FIND(trace_const_cmp8);
}
