// One axis of the separable Gaussian of kernels/gaussian.py, edges replicated, one thread per number of (outer, size, inner).

extern "C" __global__ void smooth_axis(
    const float* values, const float* weights, long long outer, long long size, long long inner, long long reach, float* out) {
    const long long number = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (number >= outer * size * inner) return;
    const long long at = number / inner % size;
    const float* line = values + number - at * inner;
    float sum = weights[0] * line[at * inner];
    for (long long k = 1; k <= reach; ++k) {
        const long long before = at >= k ? at - k : 0, after = at + k < size ? at + k : size - 1;
        sum += weights[k] * (line[before * inner] + line[after * inner]);
    }
    out[number] = sum;
}
