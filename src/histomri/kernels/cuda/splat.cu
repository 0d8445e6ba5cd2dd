// The transpose of a squaring, kernels/splat.py, of fields (depth, height, width, 3). The scatter adds whole numbers of 1 / scale:
// such sums do not depend on their order.

typedef long long Integer;
typedef unsigned long long Cell;
#define WORKER ((Integer)blockIdx.x * blockDim.x + threadIdx.x)

struct Target {
    Integer first[3], second[3];
    double part[3];
    bool moves[3];
};

// where a node is taken, clamped to the grid, and along which axes it moves freely
__device__ inline Target target(const float* field, const Integer* size, Integer node) {
    const Integer at[3] = {node / (size[1] * size[2]), node / size[2] % size[1], node % size[2]};
    Target t;
    for (int k = 0; k < 3; ++k) {
        const double last = size[k] - 1.0, place = (double)at[k] + (double)field[node * 3 + k];
        t.moves[k] = place > 0 && place < last;
        const double held = place > 0 ? (place < last ? place : last) : 0.0;
        const Integer cell = (Integer)held, most = size[k] > 1 ? size[k] - 2 : 0;
        t.first[k] = cell < most ? cell : most;
        t.second[k] = t.first[k] + 1 < size[k] ? t.first[k] + 1 : size[k] - 1;
        t.part[k] = held - t.first[k];
    }
    return t;
}

__device__ inline Integer corner_of(Target t, const Integer* size, int corner) {
    const Integer z = corner & 4 ? t.second[0] : t.first[0], y = corner & 2 ? t.second[1] : t.first[1];
    return (z * size[1] + y) * size[2] + (corner & 1 ? t.second[2] : t.first[2]);
}

// the corner's weight, but along ``axis`` the sign of its slope
__device__ inline double weight_of(Target t, int corner, int axis) {
    double weight = 1;
    for (int k = 0; k < 3; ++k) {
        const bool up = corner >> (2 - k) & 1;
        weight *= k == axis ? (up ? 1.0 : -1.0) : (up ? t.part[k] : 1 - t.part[k]);
    }
    return weight;
}

extern "C" __global__ void scatter(const float* field, const double* force, const Integer* size, double scale, Cell* cells) {
    const Integer node = WORKER;
    if (node >= size[0] * size[1] * size[2]) return;
    const Target t = target(field, size, node);
    for (int corner = 0; corner < 8; ++corner) {
        const double weight = weight_of(t, corner, -1) * scale;
        const Integer at = corner_of(t, size, corner);
        for (int c = 0; c < 3; ++c) atomicAdd(cells + at * 3 + c, (Cell)(Integer)floor(weight * force[node * 3 + c] + 0.5));
    }
}

// g + what was scattered + Du(q)^T g
extern "C" __global__ void gathered(
    const float* field, const double* force, const Integer* size, double scale, const Cell* cells, double* out) {
    const Integer node = WORKER;
    if (node >= size[0] * size[1] * size[2]) return;
    const Target t = target(field, size, node);
    for (int k = 0; k < 3; ++k) {
        double along = 0;
        for (int corner = 0; t.moves[k] && corner < 8; ++corner) {
            const Integer at = corner_of(t, size, corner);
            for (int c = 0; c < 3; ++c) along += weight_of(t, corner, k) * field[at * 3 + c] * force[node * 3 + c];
        }
        out[node * 3 + k] = force[node * 3 + k] + (double)(Integer)cells[node * 3 + k] / scale + along;
    }
}
