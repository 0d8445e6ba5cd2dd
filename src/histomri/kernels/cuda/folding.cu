// The smallest one-sided Jacobian determinant of kernels/folding.py, of a field (depth, height, width, 3) inside a mask.

typedef long long Integer;
#define WORKER ((Integer)blockIdx.x * blockDim.x + threadIdx.x)

// the difference along an axis towards a side; towards the other one at the border, 0 along an axis of one node
__device__ inline double one_sided(const float* field, Integer node, Integer at, Integer size, Integer step, int side, int component) {
    if (size == 1) return 0;
    const int towards = at + side >= 0 && at + side < size ? side : -side;
    return towards * ((double)field[(node + towards * step) * 3 + component] - (double)field[node * 3 + component]);
}

__device__ inline double determinant(const double m[3][3]) {
    return m[0][0] * (m[1][1] * m[2][2] - m[1][2] * m[2][1]) - m[0][1] * (m[1][0] * m[2][2] - m[1][2] * m[2][0]) +
           m[0][2] * (m[1][0] * m[2][1] - m[1][1] * m[2][0]);
}

// out (workers,): infinite where a worker has no node inside; NaN counts as no fold, as on the CPU
extern "C" __global__ void least_jacobian(
    const float* field, const unsigned char* mask, Integer depth, Integer height, Integer width, Integer workers,
    double infinity, double* out) {
    const Integer size[3] = {depth, height, width}, step[3] = {height * width, width, 1};
    double least = infinity;
    for (Integer node = WORKER; node < depth * height * width; node += workers) {
        if (!mask[node]) continue;
        const Integer at[3] = {node / step[0], node / width % height, node % width};
        for (int signs = 0; signs < 8; ++signs) {
            double m[3][3];
            for (int c = 0; c < 3; ++c)
                for (int k = 0; k < 3; ++k)
                    m[c][k] = one_sided(field, node, at[k], size[k], step[k], (signs >> k & 1) ? 1 : -1, c) + (c == k);
            const double found = determinant(m);
            least = found < least ? found : least;
        }
    }
    out[WORKER] = least;
}
