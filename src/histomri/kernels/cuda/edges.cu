// Normalised gradient fields, kernels/similarity/gradient_fields.py: coefficients c and their sums, then D^T c.
// An image is a volume of one row per plane; then there are no differences along the rows.

typedef long long Integer;
#define WORKER ((Integer)blockIdx.x * blockDim.x + threadIdx.x)

__device__ inline float lower(float a, float b) { return a < b ? a : b; }

// c (3, size), not divided by sum v; sums (2, workers) of v <h, g>^2 / (a b) and of v over the core
extern "C" __global__ void edge_coefficients(
    const float* fixed, const float* warped, const float* weight, const Integer* shape, const Integer* core, Integer volume,
    Integer workers, double* sums, float* out) {
    const Integer height = shape[1], width = shape[2], size = shape[0] * height * width;
    const Integer step[3] = {height * width, width, 1};
    double aligned = 0, total = 0;
    for (Integer p = WORKER; p < size; p += workers) {
        const Integer at[3] = {p / step[0], p / width % height, p % width};
        bool inside = true, counted = true;
        for (int k = 0; k < 3; ++k) {
            if (k == 1 && !volume) continue;
            inside = inside && at[k] > 0 && at[k] < shape[k] - 1;
            counted = counted && at[k] >= core[k] && at[k] < core[3 + k];
        }
        float h[3] = {0, 0, 0}, g[3] = {0, 0, 0}, v = inside ? weight[p] : 0.0f, a = 1, b = 1, along = 0;
        for (int k = 0; inside && k < 3; ++k) {
            if (k == 1 && !volume) continue;
            h[k] = 0.5f * (fixed[p + step[k]] - fixed[p - step[k]]);
            g[k] = 0.5f * (warped[p + step[k]] - warped[p - step[k]]);
            v = lower(v, lower(weight[p + step[k]], weight[p - step[k]]));
            a += h[k] * h[k];
            b += g[k] * g[k];
            along += h[k] * g[k];
        }
        const float first = along / (a * b), second = first * along / b;
        for (int k = 0; k < 3; ++k) out[k * size + p] = -2 * v * (first * h[k] - second * g[k]);
        if (counted) {
            aligned += (double)(v * along * first);
            total += (double)v;
        }
    }
    sums[WORKER] = aligned;
    sums[workers + WORKER] = total;
}

// scale sum_axis (c(p - e) - c(p + e)) / 2
extern "C" __global__ void edge_force(const float* c, const Integer* shape, Integer volume, float scale, float* force) {
    const Integer height = shape[1], width = shape[2], size = shape[0] * height * width, p = WORKER;
    if (p >= size) return;
    const Integer step[3] = {height * width, width, 1}, at[3] = {p / step[0], p / width % height, p % width};
    float sum = 0;
    for (int k = 0; k < 3; ++k) {
        if (k == 1 && !volume) continue;
        const float before = at[k] > 0 ? c[k * size + p - step[k]] : 0.0f;
        const float after = at[k] < shape[k] - 1 ? c[k * size + p + step[k]] : 0.0f;
        sum += before - after;
    }
    force[p] = scale * 0.5f * sum;
}
