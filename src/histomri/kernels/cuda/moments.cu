// The sums of kernels/similarity/moments.py and squared.py. Each of a fixed number of workers takes every workers-th pixel, in
// order, in double; what they sum is added afterwards in the order of the workers, so no result depends on the GPU's scheduling.

#define WORKER ((long long)blockIdx.x * blockDim.x + threadIdx.x)

// sums (6, workers) of w, w f, w m, w f f, w m m, w f m
extern "C" __global__ void weighted_sums(
    const float* fixed, const float* warped, const float* weight, long long size, long long workers, double* sums) {
    double s[6] = {0, 0, 0, 0, 0, 0};
    for (long long i = WORKER; i < size; i += workers) {
        const double w = weight[i], f = fixed[i], m = warped[i], wf = w * f, wm = w * m;
        s[0] += w;
        s[1] += wf;
        s[2] += wm;
        s[3] += wf * f;
        s[4] += wm * m;
        s[5] += wf * m;
    }
    for (int k = 0; k < 6; ++k) sums[k * workers + WORKER] = s[k];
}

// w (a f + b m + c)
extern "C" __global__ void weighted_line(
    const float* fixed, const float* warped, const float* weight, long long size, double a, double b, double c, float* out) {
    const long long i = WORKER;
    if (i < size) out[i] = (float)(weight[i] * (a * fixed[i] + b * warped[i] + c));
}

// values (workers,) of w r^2 and the force scale w r, r = m - f, of (size / channels, channels) numbers
extern "C" __global__ void squared(
    const float* fixed, const float* warped, const float* weight, long long size, long long channels, long long workers,
    float scale, double* values, float* force) {
    double value = 0;
    for (long long i = WORKER; i < size; i += workers) {
        const float w = weight[i / channels], r = warped[i] - fixed[i];
        value += (double)(w * r * r);
        force[i] = scale * w * r;
    }
    values[WORKER] = value;
}
