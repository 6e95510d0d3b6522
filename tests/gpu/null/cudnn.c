// cuDNN: counts convolutions, what they read and write, and how often it is asked which algorithm is best. A workspace has 1 MiB.
#include "null.h"

#include <stdlib.h>
#include <string.h>

typedef struct {
    int type, dims[4];
} Descriptor;

static double bytes_of(const Descriptor *d) {
    static const int sizes[] = {4, 8, 2, 1, 4, 1, 0, 0, 0, 2}; // f32, f64, f16, ..., bf16
    return (double)d->dims[0] * d->dims[1] * d->dims[2] * d->dims[3] * sizes[d->type];
}

static char something[64];

size_t cudnnGetVersion(void) { return 92100; }
size_t cudnnGetCudartVersion(void) { return 13000; }
const char *cudnnGetErrorString(int status) { return "no error"; }
int cudnnCreate(void **handle) { return *handle = something, 0; }
int cudnnDestroy(void *handle) { return 0; }
int cudnnSetStream(void *handle, void *stream) { return 0; }

static int make(Descriptor **new) { return *new = calloc(1, sizeof **new), 0; }
static int set(Descriptor *d, int type, int a, int b, int c, int e) { return *d = (Descriptor){type, {a, b, c, e}}, 0; }
int cudnnCreateTensorDescriptor(Descriptor **new) { return make(new); }
int cudnnCreateFilterDescriptor(Descriptor **new) { return make(new); }
int cudnnCreateConvolutionDescriptor(Descriptor **new) { return make(new); }
int cudnnDestroyTensorDescriptor(Descriptor *old) { return free(old), 0; }
int cudnnDestroyFilterDescriptor(Descriptor *old) { return free(old), 0; }
int cudnnDestroyConvolutionDescriptor(Descriptor *old) { return free(old), 0; }
int cudnnSetTensor4dDescriptor(Descriptor *d, int format, int type, int n, int c, int h, int w) { return set(d, type, n, c, h, w); }
int cudnnSetTensor4dDescriptorEx(Descriptor *d, int type, int n, int c, int h, int w, int a, int b, int e, int f) { return set(d, type, n, c, h, w); }
int cudnnSetFilter4dDescriptor(Descriptor *d, int type, int format, int k, int c, int h, int w) { return set(d, type, k, c, h, w); }
int cudnnSetConvolution2dDescriptor(void *d, int ph, int pw, int sh, int sw, int dh, int dw, int mode, int type) { return 0; }
int cudnnSetConvolutionNdDescriptor(void *d, int n, const int *p, const int *s, const int *e, int mode, int type) { return 0; }
int cudnnSetConvolutionGroupCount(void *d, int groups) { return 0; }
int cudnnSetConvolutionMathType(void *d, int type) { return 0; }

// What a query returns for each algorithm.
typedef struct {
    int algorithm, status;
    float time;
    size_t memory;
    int determinism, math, reserved[3];
} Choice;

static int choose(const char *name, int *returned, Choice *choices) {
    null_count(QUERY, name, 0);
    *returned = 1;
    choices[0] = (Choice){.algorithm = 1, .memory = 1 << 20, .determinism = 1, .math = 1};
    return 0;
}
int cudnnGetConvolutionForwardAlgorithm_v7(void *handle, void *x, void *w, void *d, void *y, int most, int *returned, Choice *choices) {
    return choose("which algorithm? (forward)", returned, choices);
}
int cudnnGetConvolutionBackwardDataAlgorithm_v7(void *handle, void *w, void *gy, void *d, void *gx, int most, int *returned, Choice *choices) {
    return choose("which algorithm? (backward data)", returned, choices);
}
int cudnnGetConvolutionBackwardFilterAlgorithm_v7(void *handle, void *x, void *gy, void *d, void *gw, int most, int *returned, Choice *choices) {
    return choose("which algorithm? (backward filter)", returned, choices);
}
int cudnnGetConvolutionForwardWorkspaceSize(void *h, void *a, void *b, void *d, void *c, int algorithm, size_t *bytes) { return *bytes = 1 << 20, 0; }
int cudnnGetConvolutionBackwardDataWorkspaceSize(void *h, void *a, void *b, void *d, void *c, int algorithm, size_t *bytes) { return *bytes = 1 << 20, 0; }
int cudnnGetConvolutionBackwardFilterWorkspaceSize(void *h, void *a, void *b, void *d, void *c, int algorithm, size_t *bytes) { return *bytes = 1 << 20, 0; }

static int run(const char *name, const Descriptor *of_a, const void *a, const Descriptor *of_b, const void *b, const Descriptor *of_c, void *c,
               void *workspace, size_t bytes) {
    null_check(name, a, bytes_of(of_a)), null_check(name, b, bytes_of(of_b)), null_check(name, c, bytes_of(of_c));
    if (bytes) null_check(name, workspace, (double)bytes);
    null_count(LAUNCH, name, bytes_of(of_a) + bytes_of(of_b) + bytes_of(of_c));
    return 0;
}
int cudnnConvolutionForward(void *handle, const void *alpha, Descriptor *x, const void *of_x, Descriptor *w, const void *of_w, void *d, int algorithm,
                            void *workspace, size_t bytes, const void *beta, Descriptor *y, void *of_y) {
    return run("convolution", x, of_x, w, of_w, y, of_y, workspace, bytes);
}
int cudnnConvolutionBackwardData(void *handle, const void *alpha, Descriptor *w, const void *of_w, Descriptor *gy, const void *of_gy, void *d,
                                 int algorithm, void *workspace, size_t bytes, const void *beta, Descriptor *gx, void *of_gx) {
    return run("convolution, backward data", w, of_w, gy, of_gy, gx, of_gx, workspace, bytes);
}
int cudnnConvolutionBackwardFilter(void *handle, const void *alpha, Descriptor *x, const void *of_x, Descriptor *gy, const void *of_gy, void *d,
                                   int algorithm, void *workspace, size_t bytes, const void *beta, Descriptor *gw, void *of_gw) {
    return run("convolution, backward filter", x, of_x, gy, of_gy, gw, of_gw, workspace, bytes);
}
