// cuRAND: a generator is made and not asked for numbers.
static char something[64];

int curandCreateGenerator(void **generator, int kind) { return *generator = something, 0; }
int curandDestroyGenerator(void *generator) { return 0; }
int curandSetPseudoRandomGeneratorSeed(void *generator, unsigned long long seed) { return 0; }
int curandSetStream(void *generator, void *stream) { return 0; }
