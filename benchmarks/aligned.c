/* Reports the size of every aligned allocation of a process on its standard error, in bytes. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

int posix_memalign(void **memory, size_t alignment, size_t size) {
    static int (*real)(void **, size_t, size_t);
    if (!real) real = (int (*)(void **, size_t, size_t))dlsym(RTLD_NEXT, "posix_memalign");
    fprintf(stderr, "aligned %zu\n", size);
    return real(memory, alignment, size);
}
