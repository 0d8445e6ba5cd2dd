// det(I + du/dp) of kernels/fields.py, central differences, one-sided at the edges, one thread per pixel.

// d field[component] / d axis at a place of a grid of the given size and step
__device__ inline float slope(const float* field, long long pixel, long long at, long long size, long long step, int ndim, int component) {
    const long long before = at > 0 ? at - 1 : 0, after = at + 1 < size ? at + 1 : size - 1;
    const float apart = after > before ? (float)(after - before) : 1.0f;
    const float low = field[(pixel + (before - at) * step) * ndim + component];
    return (field[(pixel + (after - at) * step) * ndim + component] - low) / apart;
}

extern "C" __global__ void determinant_2d(const float* field, long long height, long long width, float* out) {
    const long long pixel = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (pixel >= height * width) return;
    float m[2][2];
    for (int k = 0; k < 2; ++k) {
        m[k][0] = slope(field, pixel, pixel / width, height, width, 2, k) + (k == 0);
        m[k][1] = slope(field, pixel, pixel % width, width, 1, 2, k) + (k == 1);
    }
    out[pixel] = m[0][0] * m[1][1] - m[0][1] * m[1][0];
}

extern "C" __global__ void determinant_3d(const float* field, long long depth, long long height, long long width, float* out) {
    const long long pixel = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (pixel >= depth * height * width) return;
    float m[3][3];
    for (int k = 0; k < 3; ++k) {
        m[k][0] = slope(field, pixel, pixel / (height * width), depth, height * width, 3, k) + (k == 0);
        m[k][1] = slope(field, pixel, pixel / width % height, height, width, 3, k) + (k == 1);
        m[k][2] = slope(field, pixel, pixel % width, width, 1, 3, k) + (k == 2);
    }
    out[pixel] = m[0][0] * (m[1][1] * m[2][2] - m[1][2] * m[2][1]) - m[0][1] * (m[1][0] * m[2][2] - m[1][2] * m[2][0]) +
                 m[0][2] * (m[1][0] * m[2][1] - m[1][1] * m[2][0]);
}
