// What the libraries in the place of CUDA's count. See driver.c.
#include <stddef.h>

enum { LAUNCH, UPLOAD, WAIT, QUERY, KINDS };

// One operation by this name, which moves so many bytes.
void null_count(int kind, const char *name, double bytes);

// Ends the program unless `address` lies in memory that is allocated and has so many bytes from there.
void null_check(const char *name, const void *address, double bytes);
