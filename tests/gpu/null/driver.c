// A CUDA driver without a GPU. It hands out addresses, counts what is asked of it, computes nothing, and reads back zeros.
//
// NULL_CUDA_LEDGER=FILE   where the counts of each step go, a line of JSON a step, and then what the last step's operations were
// NULL_CUDA_STEPS=N       end the program after N steps (0: never)
// NULL_CUDA_MARK=NAME     a step ends where the kernels of this name begin (adamw)
//
// Bytes moved: every array that an operation is given counts once, with its length from there to its end; a kernel of candle's that is
// told how many numbers it works on counts no more than these. Memory is what the program allocates; a use of freed memory, or one beyond
// its end, ends the program, and so does a launch that a GPU would refuse.
#include "null.h"

#include <ctype.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { OK = 0, INVALID_VALUE = 1, NOT_FOUND = 500 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void refuse(const char *name, const char *what) {
    fprintf(stderr, "null CUDA: %s: %s\n", name, what);
    _exit(99);
}

// ---- Memory -------------------------------------------------------------------------------------------------------------------

typedef struct {
    uintptr_t at;
    size_t bytes;
    int live;
    size_t *content; // of a short array that was uploaded
} Block;

// By address: no address is given twice.
static Block *blocks;
static size_t block_count, block_room;
static uintptr_t next_address = 0x500000000000;
static size_t live_bytes, peak_bytes;

static Block *find(uintptr_t at) {
    size_t low = 0, high = block_count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (blocks[middle].at <= at) low = middle + 1;
        else high = middle;
    }
    return low && at < blocks[low - 1].at + blocks[low - 1].bytes ? &blocks[low - 1] : NULL;
}

// The bytes from this address to the end of its block.
static size_t bytes_from(const char *name, uintptr_t at) {
    Block *block = find(at);
    if (!block) refuse(name, "an address that is not allocated");
    if (!block->live) refuse(name, "memory that is freed");
    return block->at + block->bytes - at;
}

void null_check(const char *name, const void *address, double bytes) {
    if (bytes == 0) return;
    pthread_mutex_lock(&lock);
    if (bytes > (double)bytes_from(name, (uintptr_t)address)) refuse(name, "more than the memory there");
    pthread_mutex_unlock(&lock);
}

static int allocate(uintptr_t *at, size_t bytes) {
    if (bytes == 0) return *at = 0, OK;
    pthread_mutex_lock(&lock);
    if (block_count == block_room) blocks = realloc(blocks, (block_room = 2 * block_room + 1024) * sizeof *blocks);
    *at = next_address;
    blocks[block_count++] = (Block){next_address, bytes, 1, NULL};
    next_address += (bytes + 1023) / 512 * 512;
    live_bytes += bytes;
    if (live_bytes > peak_bytes) peak_bytes = live_bytes;
    pthread_mutex_unlock(&lock);
    return OK;
}

static int release(uintptr_t at) {
    if (at == 0) return OK;
    pthread_mutex_lock(&lock);
    Block *block = find(at);
    if (!block || block->at != at || !block->live) refuse("free", "an address that is not allocated");
    block->live = 0;
    free(block->content);
    block->content = NULL;
    live_bytes -= block->bytes;
    pthread_mutex_unlock(&lock);
    return OK;
}

int cuMemAllocAsync(uintptr_t *at, size_t bytes, void *stream) { return allocate(at, bytes); }
int cuMemAlloc_v2(uintptr_t *at, size_t bytes) { return allocate(at, bytes); }
int cuMemFreeAsync(uintptr_t at, void *stream) { return release(at); }
int cuMemFree_v2(uintptr_t at) { return release(at); }

// Memory of the host that a copy may use while the program goes on.
static struct {
    char *at;
    size_t bytes;
} pinned[1024];

int cuMemHostAlloc(void **at, size_t bytes, unsigned flags) {
    pthread_mutex_lock(&lock);
    int i = 0;
    while (i < 1024 && pinned[i].at) i++;
    if (i == 1024) refuse("cuMemHostAlloc", "too many pieces of pinned memory");
    *at = pinned[i].at = calloc(1, bytes);
    pinned[i].bytes = bytes;
    pthread_mutex_unlock(&lock);
    return OK;
}
int cuMemFreeHost(void *at) {
    pthread_mutex_lock(&lock);
    for (int i = 0; i < 1024; i++)
        if (pinned[i].at == at) pinned[i].at = NULL;
    pthread_mutex_unlock(&lock);
    return free(at), OK;
}
static int is_pinned(const char *at) {
    for (int i = 0; i < 1024; i++)
        if (pinned[i].at && at >= pinned[i].at && at < pinned[i].at + pinned[i].bytes) return 1;
    return 0;
}

// ---- The ledger ---------------------------------------------------------------------------------------------------------------

typedef struct {
    char name[64];
    long now, step; // so far, and at the last mark
    double bytes, bytes_step;
} Operation;

static Operation operations[4096];
static size_t operation_count;
static struct {
    long count[KINDS];
    double moved;
} now, then;
static long since_mark = 1000, steps = -1;

static Operation *operation(const char *name) {
    for (size_t i = 0; i < operation_count; i++)
        if (strcmp(operations[i].name, name) == 0) return &operations[i];
    if (operation_count == sizeof operations / sizeof *operations) refuse(name, "too many kinds of operations");
    Operation *new = &operations[operation_count++];
    snprintf(new->name, sizeof new->name, "%s", name);
    return new;
}

// The end of a step: the first launch of the optimiser after many others.
static void end_step(void) {
    const char *path = getenv("NULL_CUDA_LEDGER"), *most = getenv("NULL_CUDA_STEPS");
    FILE *file = path && ++steps ? fopen(path, steps == 1 ? "w" : "a") : NULL;
    if (file) {
        long *a = now.count, *b = then.count;
        fprintf(file, "{\"launches\": %ld, \"uploads\": %ld, \"waits\": %ld, \"bytes_moved\": %.0f, \"peak_bytes\": %zu, \"queries\": %ld}\n",
                a[LAUNCH] - b[LAUNCH], a[UPLOAD] - b[UPLOAD], a[WAIT] - b[WAIT], now.moved - then.moved, peak_bytes, a[QUERY] - b[QUERY]);
        int last = most && steps == atol(most);
        for (size_t i = 0; last && i < operation_count; i++) {
            Operation *o = &operations[i];
            if (o->now > o->step) fprintf(file, "%8ld %12.3f MB  %s\n", o->now - o->step, (o->bytes - o->bytes_step) / 1e6, o->name);
        }
        fclose(file);
        if (last) _exit(0);
    }
    then = now;
    for (size_t i = 0; i < operation_count; i++) operations[i].step = operations[i].now, operations[i].bytes_step = operations[i].bytes;
    peak_bytes = live_bytes;
}

static void count(int kind, const char *name, double bytes) {
    const char *mark = getenv("NULL_CUDA_MARK");
    if (strstr(name, mark ? mark : "adamw")) {
        if (since_mark > 50) end_step();
        since_mark = 0;
    } else {
        since_mark++;
    }
    now.count[kind]++;
    now.moved += bytes;
    Operation *o = operation(name);
    o->now++, o->bytes += bytes;
}

void null_count(int kind, const char *name, double bytes) {
    pthread_mutex_lock(&lock);
    count(kind, name, bytes);
    pthread_mutex_unlock(&lock);
}

// ---- Kernels ------------------------------------------------------------------------------------------------------------------

typedef struct {
    char name[64];
    int params, counted; // counted: the first parameter is the number of elements
    int area;            // the place of the first of two numbers whose product is the number of elements, or 0
    int tables;          // the first parameter is a table of addresses, whose arrays the kernel takes too
    int pointer[32], size[32]; // whether a parameter is a pointer, and the size of what it points to
} Kernel;

static int size_of(const char *type) {
    static const struct {
        const char *name;
        int size;
    } known[] = {{"double", 8}, {"int64_t", 8}, {"size_t", 8}, {"int16_t", 2}, {"uint8_t", 1}, {"half", 2}, {"bfloat16", 2}, {"bf16", 2}, {"fp8", 1}, {"char", 1}, {"short", 2}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strstr(type, known[i].name)) return known[i].size;
    return 4;
}

// Reads a kernel's parameters in the module's text: C, as the stand-in of nvcc leaves it and as NVRTC gets it, or PTX, whose
// parameters of 64 bits are pointers where they hold an address.
static int read_prototype(Kernel *kernel, const char *text, const char *name) {
    size_t length = strlen(name);
    const char *at = text;
    for (;; at += length) {
        if (!(at = strstr(at, name))) return NOT_FOUND;
        int alone = at > text && isspace((unsigned char)at[-1]) && at[length] == '(';
        int entry = at - text > 6 && memcmp(at - 6, "entry ", 6) == 0, kernel_name = at - text > 5 && memcmp(at - 5, "void ", 5) == 0;
        if (alone && (entry || kernel_name)) break;
    }
    snprintf(kernel->name, sizeof kernel->name, "%s", name);
    char list[4096];
    size_t n = strcspn(at + length + 1, ")");
    if (n >= sizeof list) return INVALID_VALUE;
    memcpy(list, at + length + 1, n);
    list[n] = 0;
    for (char *rest = list, *one; (one = strsep(&rest, ","));) {
        if (one[strspn(one, " \n\r\t")] == 0) continue;
        int i = kernel->params++;
        if (i == 32) return INVALID_VALUE;
        kernel->pointer[i] = strchr(one, '*') || strstr(one, ".u64") || strstr(one, ".b64");
        kernel->size[i] = size_of(one);
        if (i == 0) kernel->counted = strstr(one, "numel") != NULL;
        if (strstr(one, "uint32_t d1")) kernel->area = i;
        if (strstr(one, "*table")) kernel->tables = 1;
    }
    return OK;
}

typedef struct {
    char *text;
    Kernel *kernels[4096];
    size_t count;
} Module;

int cuModuleLoadData(void **module, const void *image) {
    Module *new = calloc(1, sizeof *new);
    new->text = strdup(image);
    *module = new;
    return OK;
}
int cuModuleLoad(void **module, const char *path) { return refuse("cuModuleLoad", "modules come from memory"), NOT_FOUND; }
int cuModuleUnload(void *module) { return OK; }

int cuModuleGetFunction(void **function, Module *module, const char *name) {
    pthread_mutex_lock(&lock);
    Kernel *found = NULL;
    for (size_t i = 0; i < module->count && !found; i++)
        if (strcmp(module->kernels[i]->name, name) == 0) found = module->kernels[i];
    if (!found) {
        found = calloc(1, sizeof *found);
        if (read_prototype(found, module->text, name) != OK) refuse(name, "the module has no such kernel");
        module->kernels[module->count++] = found;
    }
    *function = found;
    pthread_mutex_unlock(&lock);
    return OK;
}

int cuLaunchKernel(Kernel *kernel, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared, void *stream,
                   void **params, void **extra) {
    if (!gx || !gy || !gz || gx > 0x7fffffff || gy > 65535 || gz > 65535 || !bx || !by || !bz || (size_t)bx * by * bz > 1024 || shared > 227 << 10)
        refuse(kernel->name, "a launch of this shape is refused by a GPU");
    pthread_mutex_lock(&lock);
    double bytes = 0;
    for (int i = 0; i < kernel->params; i++) {
        if (!kernel->pointer[i]) continue;
        uintptr_t at;
        memcpy(&at, params[i], sizeof at);
        if (at < 0x500000000000 || at >= next_address) continue; // a null pointer, or PTX's number of 64 bits
        double all = (double)bytes_from(kernel->name, at);
        double most = all;
        if (kernel->counted) most = (double)*(size_t *)params[0] * kernel->size[i];
        if (kernel->area) most = (double)*(unsigned *)params[kernel->area] * *(unsigned *)params[kernel->area + 1] * kernel->size[i];
        bytes += all < most ? all : most;
        size_t *content = kernel->tables && i == 0 ? find(at)->content : NULL;
        for (size_t k = 0; content && k < find(at)->bytes / sizeof *content; k++)
            if (content[k] >= 0x500000000000) bytes += (double)bytes_from(kernel->name, content[k]);
    }
    count(LAUNCH, kernel->name, bytes);
    pthread_mutex_unlock(&lock);
    return OK;
}

// ---- Copies and waits ---------------------------------------------------------------------------------------------------------

static int upload(uintptr_t to, const void *from, size_t bytes) {
    if (bytes == 0) return OK;
    null_check("upload", (void *)to, (double)bytes);
    pthread_mutex_lock(&lock);
    Block *block = find(to);
    if (block->at == to && block->bytes == bytes && bytes % sizeof(size_t) == 0 && bytes <= 1 << 20) {
        block->content = realloc(block->content, bytes);
        memcpy(block->content, from, bytes);
    }
    pthread_mutex_unlock(&lock);
    null_count(UPLOAD, "upload", (double)bytes);
    return OK;
}
int cuMemcpyHtoDAsync_v2(uintptr_t to, const void *from, size_t bytes, void *stream) { return upload(to, from, bytes); }
int cuMemcpyHtoD_v2(uintptr_t to, const void *from, size_t bytes) { return upload(to, from, bytes); }

int cuMemcpyDtoHAsync_v2(void *to, uintptr_t from, size_t bytes, void *stream) {
    null_check("read back", (void *)from, (double)bytes);
    if (!is_pinned(to)) null_count(WAIT, "read back and wait", (double)bytes);
    memset(to, 0, bytes);
    return OK;
}
int cuMemcpyDtoH_v2(void *to, uintptr_t from, size_t bytes) { return cuMemcpyDtoHAsync_v2(to, from, bytes, NULL); }

static int copy(uintptr_t to, uintptr_t from, size_t bytes) {
    null_check("copy", (void *)to, (double)bytes);
    null_check("copy", (void *)from, (double)bytes);
    null_count(LAUNCH, "copy", 2.0 * (double)bytes);
    return OK;
}
int cuMemcpyDtoDAsync_v2(uintptr_t to, uintptr_t from, size_t bytes, void *stream) { return copy(to, from, bytes); }
int cuMemcpyDtoD_v2(uintptr_t to, uintptr_t from, size_t bytes) { return copy(to, from, bytes); }
int cuMemcpyPeerAsync(uintptr_t to, void *to_context, uintptr_t from, void *from_context, size_t bytes, void *stream) { return copy(to, from, bytes); }

static int fill(uintptr_t to, size_t bytes) {
    if (bytes == 0) return OK;
    null_check("memset", (void *)to, (double)bytes);
    null_count(LAUNCH, "memset", (double)bytes);
    return OK;
}
int cuMemsetD8Async(uintptr_t to, unsigned char value, size_t bytes, void *stream) { return fill(to, bytes); }
int cuMemsetD8_v2(uintptr_t to, unsigned char value, size_t bytes) { return fill(to, bytes); }

static int wait_for(const char *what) { return null_count(WAIT, what, 0), OK; }
int cuStreamSynchronize(void *stream) { return wait_for("wait for the stream"); }
int cuCtxSynchronize(void) { return wait_for("wait for the context"); }
int cuEventSynchronize(void *event) { return wait_for("wait for an event"); }

// ---- Devices, streams, events -------------------------------------------------------------------------------------------------

static char something[64]; // what handles point to
static _Thread_local void *context;

int cuInit(unsigned flags) { return OK; }
int cuDeviceGetCount(int *n) { return *n = 1, OK; }
int cuDeviceGet(int *device, int ordinal) { return *device = ordinal, ordinal == 0 ? OK : 101; }
int cuDeviceGetName(char *name, int length, int device) { return snprintf(name, (size_t)length, "no GPU"), OK; }
int cuDeviceGetUuid_v2(char *uuid, int device) { return memset(uuid, 0, 16), OK; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { return *bytes = 150000000000, OK; }
int cuMemGetInfo_v2(size_t *left, size_t *all) { return *all = 150000000000, *left = *all - live_bytes, OK; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    static const int known[][2] = {{1, 1024}, {10, 32}, {16, 132}, {39, 2048}, {75, 9}, {76, 0}, {115, 1}};
    *value = 0;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (known[i][0] == attribute) *value = known[i][1];
    return OK;
}
int cuDevicePrimaryCtxRetain(void **new, int device) { return *new = something, OK; }
int cuDevicePrimaryCtxRelease_v2(int device) { return OK; }
int cuCtxGetCurrent(void **current) { return *current = context, OK; }
int cuCtxDestroy_v2(void *old) { return OK; }
int cuCtxSetCurrent(void *new) { return context = new, OK; }
int cuDeviceGetDefaultMemPool(void **pool, int device) { return *pool = something, OK; }
int cuMemPoolSetAttribute(void *pool, int attribute, void *value) { return OK; }
int cuStreamCreate(void **stream, unsigned flags) { return *stream = something, OK; }
int cuStreamDestroy_v2(void *stream) { return OK; }
int cuStreamWaitEvent(void *stream, void *event, unsigned flags) { return OK; }
int cuStreamIsCapturing(void *stream, int *status) { return *status = 0, OK; }
int cuEventCreate(void **event, unsigned flags) { return *event = something, OK; }
int cuEventRecord(void *event, void *stream) { return OK; }
int cuEventDestroy_v2(void *event) { return OK; }
int cuFuncSetAttribute(void *function, int attribute, int value) { return OK; }
int cuGetErrorName(int error, const char **name) { return *name = "an error", OK; }
int cuGetErrorString(int error, const char **text) { return *text = "the driver without a GPU refuses this", OK; }
