/* What the three libraries and kernels.py share beside CANN's own interface. */
#pragma once

#include <stddef.h>

/* A task of a stream (NULL: of the device's default one): run(argument), after what was queued there before. */
void emulated_queue(void *stream, void (*run)(void *), void *argument);

/* Whether this thread's synchronisations are left out of the counters. */
void emulated_look_away(int away);

/* All of a device's memory. */
char *emulated_memory(int device, size_t *bytes);

/* Whether the chip saturates float16; the flag that says it has. */
int emulated_saturates(void);
void emulated_raise_overflow(void);
int emulated_take_overflow(int clear);

void emulated_count_collective(const char *name);

/* All counters as JSON; the caller frees it. */
char *emulated_counters(void);
