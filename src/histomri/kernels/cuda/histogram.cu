// The histograms of kernels/similarity/parzen.py and ratio.py. Shares are added as whole numbers of 1 / scale: such sums do not
// depend on their order. A block of threads has a histogram of its own in shared memory and adds it to the whole at its end.

typedef long long Integer;
typedef unsigned long long Cell;
#define CELLS 4096
#define WORKER ((Integer)blockIdx.x * blockDim.x + threadIdx.x)

__device__ inline Cell whole_number(double share, double scale) { return (Cell)(Integer)floor(share * scale + 0.5); }

// first bin and place in it of a value (0 for one that is not a number)
__device__ inline int place(float value, int bins, bool cubic, float* part) {
    const float low = cubic ? 2.0f : 0.0f, span = cubic ? bins - 4.0f : bins - 1.0f;
    float x = value * span;
    x = x > 0 ? x : 0;
    x = low + (x < span ? x : span);
    const float last = low + span - 1;
    const int first = (int)(x < last ? x : last);
    *part = x - first;
    return first;
}

__device__ inline void empty(Cell* cells, int count) {
    for (int k = threadIdx.x; k < count; k += blockDim.x) cells[k] = 0;
    __syncthreads();
}

__device__ inline void deliver(const Cell* cells, int count, Cell* out) {
    __syncthreads();
    for (int k = threadIdx.x; k < count; k += blockDim.x)
        if (cells[k]) atomicAdd(out + k, cells[k]);
}

// sum_i w_i s_k(f_i) s_l(m_i) scale, (bins, bins), windows linear or box and cubic
extern "C" __global__ void joint_histogram(
    const float* fixed, const float* warped, const float* weight, Integer size, Integer workers, Integer bins, Integer cubic,
    double scale, Cell* out) {
    __shared__ Cell cells[CELLS];
    empty(cells, (int)(bins * bins));
    for (Integer i = WORKER; i < size; i += workers) {
        float a, t;
        const int k = place(fixed[i], (int)bins, cubic, &a), n = place(warped[i], (int)bins, cubic, &t);
        const float w = weight[i], s = 1 - t;
        if (w == 0) continue;
        Cell* row = cells + k * bins + n;
        if (cubic) {
            atomicAdd(row - 1, whole_number(w * (s * s * s / 6), scale));
            atomicAdd(row, whole_number(w * ((4 - 6 * t * t + 3 * t * t * t) / 6), scale));
            atomicAdd(row + 1, whole_number(w * ((4 - 6 * s * s + 3 * s * s * s) / 6), scale));
            atomicAdd(row + 2, whole_number(w * (t * t * t / 6), scale));
        } else {
            atomicAdd(row, whole_number(w * (1 - a) * s, scale));
            atomicAdd(row + 1, whole_number(w * (1 - a) * t, scale));
            atomicAdd(row + bins, whole_number(w * a * s, scale));
            atomicAdd(row + bins + 1, whole_number(w * a * t, scale));
        }
    }
    deliver(cells, (int)(bins * bins), out);
}

// w_i sum_kl s_k(f_i) s_l'(m_i) T_kl; table as in parzen.pulled_back
extern "C" __global__ void pulled_back(
    const float* fixed, const float* warped, const float* weight, Integer size, Integer bins, Integer cubic, const float* table,
    float* out) {
    const Integer i = WORKER;
    if (i >= size) return;
    float a, t, slant;
    const int k = place(fixed[i], (int)bins, cubic, &a), n = place(warped[i], (int)bins, cubic, &t);
    const float* row = table + k * bins + n;
    const float s = 1 - t, m = warped[i];
    if (cubic)
        slant = -s * s * row[-1] + (3 * t - 4) * t * row[0] + (4 - 3 * s) * s * row[1] + t * t * row[2];
    else
        slant = row[0] + a * (row[bins] - row[0]);
    out[i] = m >= 0 && m <= 1 ? weight[i] * slant : 0.0f;
}

// sums of w, w m, w m m in each bin of the fixed values, (3, bins), times their scales
extern "C" __global__ void binned(
    const float* fixed, const float* warped, const float* weight, Integer size, Integer workers, Integer bins, double scale,
    double scale_1, double scale_2, Cell* out) {
    __shared__ Cell cells[CELLS];
    empty(cells, (int)(3 * bins));
    for (Integer i = WORKER; i < size; i += workers) {
        float b;
        const int k = place(fixed[i], (int)bins, false, &b);
        const double m = warped[i], w = weight[i], upper = w * b, lower = w - upper;
        if (w == 0) continue;
        atomicAdd(cells + k, whole_number(lower, scale));
        atomicAdd(cells + k + 1, whole_number(upper, scale));
        atomicAdd(cells + bins + k, whole_number(lower * m, scale_1));
        atomicAdd(cells + bins + k + 1, whole_number(upper * m, scale_1));
        atomicAdd(cells + 2 * bins + k, whole_number(lower * m * m, scale_2));
        atomicAdd(cells + 2 * bins + k + 1, whole_number(upper * m * m, scale_2));
    }
    deliver(cells, (int)(3 * bins), out);
}

// scale w (ratio (m - mean) - E(f)), E linear between the bins' means
extern "C" __global__ void expected_force(
    const float* fixed, const float* warped, const float* weight, Integer size, Integer bins, const float* means, float scale,
    float ratio, float mean, float* out) {
    const Integer i = WORKER;
    if (i >= size) return;
    float b;
    const int k = place(fixed[i], (int)bins, false, &b);
    out[i] = scale * weight[i] * (ratio * (warped[i] - mean) - (means[k] + b * (means[k + 1] - means[k])));
}
