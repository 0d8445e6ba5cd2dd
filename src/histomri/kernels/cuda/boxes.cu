// Local correlation, kernels/similarity/local_correlation.py. A thread walks through the planes of a segment above one place of
// (y, x): the sums over its box are those of the plane that enters less those of the plane that leaves, in double, as on the CPU.
//
//     coefficients   sums of w, w f, w m, w f f, w m m, w f m  ->  a, b, g, and sum w R over the core
//     box_force      sums of a, b, g                           ->  the force

typedef long long Integer;
#define WORKER ((Integer)blockIdx.x * blockDim.x + threadIdx.x)

// shape: depth, height, width; the radius along planes, rows, columns; the core's first and last indices; planes of a segment
struct Walk {
    const Integer* shape;
    const Integer* radius;
    const Integer* core;
    Integer planes;
};

struct Place {
    Integer y, x, begin, end;
};

__device__ inline bool found(Walk walk, Integer worker, Place* at) {
    const Integer depth = walk.shape[0], height = walk.shape[1], width = walk.shape[2];
    at->x = worker % width;
    at->y = worker / width % height;
    at->begin = worker / (width * height) * walk.planes;
    at->end = at->begin + walk.planes < depth ? at->begin + walk.planes : depth;
    return at->begin < depth;
}

__device__ inline bool in_core(Walk walk, Integer z, Integer y, Integer x) {
    const Integer* c = walk.core;
    return z >= c[0] && z < c[3] && y >= c[1] && y < c[4] && x >= c[2] && x < c[5];
}

// the window of a plane around a place, cut off at the border
__device__ inline void window(Walk walk, Place at, Integer* rows, Integer* columns) {
    rows[0] = at.y > walk.radius[1] ? at.y - walk.radius[1] : 0;
    rows[1] = at.y + walk.radius[1] + 1 < walk.shape[1] ? at.y + walk.radius[1] + 1 : walk.shape[1];
    columns[0] = at.x > walk.radius[2] ? at.x - walk.radius[2] : 0;
    columns[1] = at.x + walk.radius[2] + 1 < walk.shape[2] ? at.x + walk.radius[2] + 1 : walk.shape[2];
}

__device__ inline void add_plane(
    Walk walk, Place at, Integer z, double sign, const float* fixed, const float* warped, const float* weight, float mean_f,
    float mean_m, double* sums) {
    if (z < 0 || z >= walk.shape[0]) return;
    Integer rows[2], columns[2];
    window(walk, at, rows, columns);
    double s[6] = {0, 0, 0, 0, 0, 0};
    for (Integer j = rows[0]; j < rows[1]; ++j)
        for (Integer i = columns[0]; i < columns[1]; ++i) {
            const Integer k = (z * walk.shape[1] + j) * walk.shape[2] + i;
            const double w = weight[k], f = fixed[k] - mean_f, m = warped[k] - mean_m, wf = w * f, wm = w * m;
            s[0] += w;
            s[1] += wf;
            s[2] += wm;
            s[3] += wf * f;
            s[4] += wm * m;
            s[5] += wf * m;
        }
    for (int q = 0; q < 6; ++q) sums[q] += sign * s[q];
}

extern "C" __global__ void box_coefficients(
    const float* fixed, const float* warped, const float* weight, const Integer* shape, const Integer* radius,
    const Integer* core, Integer planes, Integer workers, float mean_f, float mean_m, float floor_, double* values, float* out) {
    if (WORKER >= workers) return;
    const Walk walk = {shape, radius, core, planes};
    const Integer size = shape[0] * shape[1] * shape[2];
    Place at;
    double sums[6] = {0, 0, 0, 0, 0, 0}, value = 0;
    if (found(walk, WORKER, &at)) {
        for (Integer z = at.begin - radius[0]; z < at.begin + radius[0]; ++z)
            add_plane(walk, at, z, 1, fixed, warped, weight, mean_f, mean_m, sums);
        for (Integer z = at.begin; z < at.end; ++z) {
            add_plane(walk, at, z + radius[0], 1, fixed, warped, weight, mean_f, mean_m, sums);
            const Integer k = (z * shape[1] + at.y) * shape[2] + at.x;
            const double share = 1 / (sums[0] > 1e-12 ? sums[0] : 1e-12), f = sums[1] * share, m = sums[2] * share;
            const float var_f = (float)(sums[3] * share - f * f), var_m = (float)(sums[4] * share - m * m);
            const float cov = (float)(sums[5] * share - f * m), w = weight[k];
            const float vf = (var_f > 0 ? var_f : 0) + floor_, vm = (var_m > 0 ? var_m : 0) + floor_, part = cov / (vf * vm);
            const float slope = 2 * w * (float)share * part, ratio = part * vf;
            out[k] = slope;
            out[size + k] = slope * ratio;
            out[2 * size + k] = slope * (ratio * (float)m - (float)f);
            if (in_core(walk, z, at.y, at.x)) value += (double)(w * cov * part);
            add_plane(walk, at, z - radius[0], -1, fixed, warped, weight, mean_f, mean_m, sums);
        }
    }
    values[WORKER] = value;
}

__device__ inline void add_coefficients(Walk walk, Place at, Integer z, double sign, const float* coefficients, double* sums) {
    if (z < 0 || z >= walk.shape[0]) return;
    const Integer size = walk.shape[0] * walk.shape[1] * walk.shape[2];
    Integer rows[2], columns[2];
    window(walk, at, rows, columns);
    for (int q = 0; q < 3; ++q) {
        double s = 0;
        for (Integer j = rows[0]; j < rows[1]; ++j)
            for (Integer i = columns[0]; i < columns[1]; ++i)
                s += coefficients[q * size + (z * walk.shape[1] + j) * walk.shape[2] + i];
        sums[q] += sign * s;
    }
}

extern "C" __global__ void box_force(
    const float* fixed, const float* warped, const float* weight, const float* coefficients, const Integer* shape,
    const Integer* radius, const Integer* core, Integer planes, Integer workers, float mean_f, float mean_m, double scale,
    float* force) {
    if (WORKER >= workers) return;
    const Walk walk = {shape, radius, core, planes};
    Place at;
    double sums[3] = {0, 0, 0};
    if (!found(walk, WORKER, &at)) return;
    for (Integer z = at.begin - radius[0]; z < at.begin + radius[0]; ++z) add_coefficients(walk, at, z, 1, coefficients, sums);
    for (Integer z = at.begin; z < at.end; ++z) {
        add_coefficients(walk, at, z + radius[0], 1, coefficients, sums);
        const Integer k = (z * shape[1] + at.y) * shape[2] + at.x;
        const double f = fixed[k] - mean_f, m = warped[k] - mean_m;
        force[k] = (float)(-scale * weight[k] * (f * sums[0] - m * sums[1] + sums[2]));
        add_coefficients(walk, at, z - radius[0], -1, coefficients, sums);
    }
}
