// Warps, one thread per pixel of the fixed grid: the formula at the top of kernels/interpolate.py.
//
// whole (6, 3): the moving array's size, the output's shape, the taps per axis, (channels, edge, kind of field), the coarse
// field's nodes, (ndim, ndim, ndim); real (4, 3): the moving array's origin, the output's start, the coarse field's scale and its
// offset. Axes are (z, y, x). Kinds of field: 0 none, 1 dense (pixels, ndim), 2 coarse (z, y, ndim, x).

typedef long long Integer;

struct Job {
    const Integer* whole;
    const double* real;
    const double* matrix;
    const float* dense;
    const float* coarse;
};

struct Place {
    Integer cell[3];
    float part[3];
};

__device__ inline double between(double value, double low, double high) {
    value = value > low ? value : low;  // not a number counts as low
    return value < high ? value : high;
}

__device__ inline Integer clamped(Integer index, Integer last) {
    return index < 0 ? 0 : index > last ? last : index;
}

__device__ inline void find_node(Job job, int axis, double index, Integer* before, float* part) {
    const Integer nodes = job.whole[12 + axis];
    const double place = between(index * job.real[6 + axis] + job.real[9 + axis], 0.0, nodes - 1.0);
    *before = (Integer)place < nodes - 2 ? (Integer)place : (nodes > 1 ? nodes - 2 : 0);
    *part = (float)(place - *before);
}

__device__ inline float blended(Job job, const Integer* before, const float* part, int component) {
    const Integer *nodes = job.whole + 12, ndim = job.whole[15];
    float sum = 0;
    for (int corner = 0; corner < 8; ++corner) {
        Integer at = 0;
        float weight = 1;
        for (int axis = 0; axis < 3; ++axis) {
            const int up = corner >> (2 - axis) & 1;
            const Integer node = clamped(before[axis] + up, nodes[axis] - 1);
            at = axis < 2 ? at * nodes[axis] + node : (at * ndim + component) * nodes[2] + node;
            weight *= up ? part[axis] : 1 - part[axis];
        }
        sum += weight * job.coarse[at];
    }
    return sum;
}

// u(p), (z, y, x)
__device__ inline void displacement(Job job, Integer pixel, const double* index, float* moved) {
    const int ndim = (int)job.whole[15], kind = (int)job.whole[11];
    Integer before[3];
    float part[3];
    moved[0] = moved[1] = moved[2] = 0;
    for (int axis = 0; kind == 2 && axis < 3; ++axis) find_node(job, axis, index[axis], before + axis, part + axis);
    for (int k = 0; k < ndim; ++k) {
        if (kind == 1) moved[3 - ndim + k] = job.dense[pixel * ndim + k];
        if (kind == 2) moved[3 - ndim + k] = blended(job, before, part, k);
    }
}

// q = A p + A u, the cell in which q + half lies, and the fractions in it
__device__ inline Place place(Job job, Integer pixel, double half) {
    const Integer *size = job.whole, *shape = job.whole + 3;
    const int ndim = (int)job.whole[15];
    const double index[3] = {
        job.real[3] + (double)(pixel / (shape[1] * shape[2])),
        job.real[4] + (double)(pixel / shape[2] % shape[1]),
        job.real[5] + (double)(pixel % shape[2])};
    float moved[3];
    displacement(job, pixel, index, moved);
    Place found = {{0, 0, 0}, {0, 0, 0}};
    for (int axis = 3 - ndim; axis < 3; ++axis) {
        const double* row = job.matrix + (axis - 3 + ndim) * (ndim + 1);
        double start = row[ndim];
        float shift = 0;
        for (int k = 0; k < ndim; ++k) {
            start += row[k] * index[3 - ndim + k];
            shift += (float)row[k] * moved[3 - ndim + k];
        }
        const double low = job.real[axis], high = low + size[axis] - 1.0;
        // just below the last centre the neighbourhood is whole, and the fraction is 1 in float
        const double q = (job.whole[10] ? between(start + shift, low, nextafter(high, low - 1)) : between(start + shift, low - 4, high + 4)) + half;
        const double cell = floor(q);
        found.cell[axis] = (Integer)(cell - low);
        found.part[axis] = (float)(q - cell);
    }
    return found;
}

// weights of the taps at the fraction f and their derivatives: 1 - f, f; or Keys' cubic convolution, a = -1/2
__device__ inline void weigh(int taps, float f, float* weight, float* slope) {
    weight[0] = 1;
    slope[0] = 0;
    if (taps == 2) {
        weight[0] = 1 - f;
        weight[1] = f;
        slope[0] = -1;
        slope[1] = 1;
    }
    if (taps == 4) {
        weight[0] = 0.5f * f * (f * (2 - f) - 1);
        weight[1] = 0.5f * (f * f * (3 * f - 5) + 2);
        weight[2] = 0.5f * f * (f * (4 - 3 * f) + 1);
        weight[3] = 0.5f * f * f * (f - 1);
        slope[0] = 0.5f * (f * (4 - 3 * f) - 1);
        slope[1] = 0.5f * f * (9 * f - 10);
        slope[2] = 0.5f * (f * (8 - 9 * f) + 1);
        slope[3] = 0.5f * f * (3 * f - 2);
    }
}

// where the pixel lies in the moving array, -1 where that does not hold it
__device__ inline Integer held(Job job, Integer z, Integer y, Integer x) {
    const Integer* size = job.whole;
    const Integer cz = clamped(z, size[0] - 1), cy = clamped(y, size[1] - 1), cx = clamped(x, size[2] - 1);
    const bool inside = job.whole[10] || (cz == z && cy == y && cx == x);
    return inside ? (cz * size[1] + cy) * size[2] + cx : -1;
}

template <typename T>
__device__ inline void warp(const T* values, Job job, float* out, float* slopes) {
    const Integer pixel = (Integer)blockIdx.x * blockDim.x + threadIdx.x;
    if (pixel >= job.whole[3] * job.whole[4] * job.whole[5]) return;
    const Integer *taps = job.whole + 6, channels = job.whole[9];
    const int ndim = (int)job.whole[15];
    const Place at = place(job, pixel, 0.0);
    float weight[3][4], slope[3][4];
    for (int axis = 0; axis < 3; ++axis) weigh((int)taps[axis], at.part[axis], weight[axis], slope[axis]);
    for (Integer c = 0; c < channels; ++c) {
        float sum[4] = {0, 0, 0, 0};
        for (int k = 0; k < taps[0]; ++k)
            for (int j = 0; j < taps[1]; ++j)
                for (int i = 0; i < taps[2]; ++i) {
                    const Integer from =
                        held(job, at.cell[0] + k - taps[0] / 4, at.cell[1] + j - taps[1] / 4, at.cell[2] + i - taps[2] / 4);
                    const float value = from < 0 ? 0.0f : (float)values[from * channels + c];
                    sum[0] += weight[0][k] * weight[1][j] * weight[2][i] * value;
                    sum[1] += slope[0][k] * weight[1][j] * weight[2][i] * value;
                    sum[2] += weight[0][k] * slope[1][j] * weight[2][i] * value;
                    sum[3] += weight[0][k] * weight[1][j] * slope[2][i] * value;
                }
        out[pixel * channels + c] = sum[0];
        if (!slopes) continue;
        for (int k = 0; k < ndim; ++k) {
            float along = 0;
            for (int axis = 0; axis < ndim; ++axis) along += (float)job.matrix[axis * (ndim + 1) + k] * sum[4 - ndim + axis];
            slopes[(pixel * channels + c) * ndim + k] = along;
        }
    }
}

template <typename T>
__device__ inline void nearest(const T* values, Job job, T* out) {
    const Integer pixel = (Integer)blockIdx.x * blockDim.x + threadIdx.x;
    if (pixel >= job.whole[3] * job.whole[4] * job.whole[5]) return;
    const Integer channels = job.whole[9];
    const Place at = place(job, pixel, 0.5);
    const Integer from = held(job, at.cell[0], at.cell[1], at.cell[2]);
    for (Integer c = 0; c < channels; ++c) out[pixel * channels + c] = from < 0 ? T(0) : values[from * channels + c];
}

#define ARGUMENTS(T) \
    const T *values, const Integer *whole, const double *real, const double *matrix, const float *dense, const float *coarse
#define JOB {whole, real, matrix, dense, coarse}

// slopes may be null
extern "C" __global__ void warp_float32(ARGUMENTS(float), float* out, float* slopes) { const Job job = JOB; warp(values, job, out, slopes); }
extern "C" __global__ void warp_uint8(ARGUMENTS(unsigned char), float* out, float* slopes) { const Job job = JOB; warp(values, job, out, slopes); }
extern "C" __global__ void warp_uint16(ARGUMENTS(unsigned short), float* out, float* slopes) { const Job job = JOB; warp(values, job, out, slopes); }
extern "C" __global__ void nearest_float32(ARGUMENTS(float), float* out) { const Job job = JOB; nearest(values, job, out); }
extern "C" __global__ void nearest_uint8(ARGUMENTS(unsigned char), unsigned char* out) { const Job job = JOB; nearest(values, job, out); }
extern "C" __global__ void nearest_uint16(ARGUMENTS(unsigned short), unsigned short* out) { const Job job = JOB; nearest(values, job, out); }
extern "C" __global__ void nearest_int32(ARGUMENTS(int), int* out) { const Job job = JOB; nearest(values, job, out); }
