// cuBLASLt: linked, not used.
int cublasLtGetVersion(void) { return 0; }
