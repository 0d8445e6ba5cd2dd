// The Gauss-Newton terms of kernels/flow.py and flow_3d.py, one thread per pixel of the fixed grid, N axes in space.

typedef long long Integer;

// value and gradient by q of a channel in the cell that begins at ``cell``, at the place ``part`` in it
template <int N>
__device__ inline float sampled(
    const float* moving, const Integer* size, Integer channels, Integer c, const Integer* cell, const float* part, float* slope) {
    float value = 0;
    for (int k = 0; k < N; ++k) slope[k] = 0;
    for (int corner = 0; corner < 1 << N; ++corner) {
        Integer at = 0;
        float weight = 1;
        for (int k = 0; k < N; ++k) {
            const int up = corner >> (N - 1 - k) & 1;
            at = at * size[k] + cell[k] + up;
            weight *= up ? part[k] : 1 - part[k];
        }
        const float m = moving[at * channels + c];
        value += weight * m;
        for (int k = 0; k < N; ++k) {
            float along = (corner >> (N - 1 - k) & 1) ? 1.0f : -1.0f;
            for (int j = 0; j < N; ++j)
                if (j != k) along *= (corner >> (N - 1 - j) & 1) ? part[j] : 1 - part[j];
            slope[k] += along * m;
        }
    }
    return value;
}

// out (*shape, N (N + 1) / 2 + N + 1): the upper triangle of T, b, e, all times the weight; where the map leaves the moving image
// that and its gradient are 0
template <int N>
__device__ inline void terms(
    const float* fixed, const float* moving, const float* weight, const Integer* shape, const Integer* size, Integer channels,
    const double* matrix, const float* field, float* out) {
    const int upper = N * (N + 1) / 2, count = upper + N + 1;
    Integer pixel = (Integer)blockIdx.x * blockDim.x + threadIdx.x, pixels = 1, left = pixel;
    for (int k = 0; k < N; ++k) pixels *= shape[k];
    if (pixel >= pixels) return;
    double point[N];
    for (int k = N - 1; k >= 0; --k) {
        point[k] = (double)(left % shape[k]) + field[pixel * N + k];
        left /= shape[k];
    }
    Integer cell[N];
    float part[N], sum[N * (N + 1) / 2 + N + 1];
    bool inside = true;
    for (int i = 0; i < N; ++i) {
        double q = matrix[i * (N + 1) + N];
        for (int k = 0; k < N; ++k) q += matrix[i * (N + 1) + k] * point[k];
        inside = inside && q >= 0 && q < size[i] - 1;
        cell[i] = inside ? (Integer)q : 0;
        part[i] = inside ? (float)(q - cell[i]) : 0.0f;
    }
    for (int k = 0; k < count; ++k) sum[k] = 0;
    const float w = weight[pixel];
    for (Integer c = 0; w != 0 && c < channels; ++c) {
        float slope[N], g[N], r = -fixed[pixel * channels + c];
        if (inside) {
            r += sampled<N>(moving, size, channels, c, cell, part, slope);
            int place = 0;
            for (int k = 0; k < N; ++k) {
                g[k] = 0;
                for (int i = 0; i < N; ++i) g[k] += (float)matrix[i * (N + 1) + k] * slope[i];
            }
            for (int i = 0; i < N; ++i)
                for (int j = i; j < N; ++j) sum[place++] += g[i] * g[j];
            for (int i = 0; i < N; ++i) sum[upper + i] += r * g[i];
        }
        sum[count - 1] += r * r;
    }
    for (int k = 0; k < count; ++k) out[pixel * count + k] = w * sum[k];
}

#define ARGUMENTS                                                                                                              \
    const float *fixed, const float *moving, const float *weight, const Integer *shape, const Integer *size, Integer channels, \
        const double *matrix, const float *field, float *out
#define CALL fixed, moving, weight, shape, size, channels, matrix, field, out

extern "C" __global__ void terms_2d(ARGUMENTS) { terms<2>(CALL); }
extern "C" __global__ void terms_3d(ARGUMENTS) { terms<3>(CALL); }
