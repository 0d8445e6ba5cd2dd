"""How unlike two images are, and how that changes with each value of the second: one module per metric.

Every metric takes ``fixed`` and ``warped`` (*shape, c), channels last, and ``weight`` (*shape) >= 0, in 2D or 3D, and returns

    value   dissimilarity, lower is better; over several channels the mean (``ssd``: the sum)
    force   d value / d warped, (*shape, c); 0 wherever the weight is 0

Masks of both images enter through their product in ``weight``, which counts as a constant. Each ``*_reference`` is the formula
in float64 on NumPy or CuPy, whatever the arrays are; the function without the suffix computes the same with numba on the CPU
and CUDA on the GPU, and its ``passes`` the same over parts (:mod:`passes`). Sums run over fixed blocks which are added in order,
in float64, or over whole numbers, so that no result depends on the number of threads.

Where nothing has weight, or an image does not vary, the value is the one of unrelated images and the force is 0:

| metric | value | best | unrelated, constant | no weight |
|---|---|---|---|---|
| ``ssd`` | 0 to infinity | 0 | | infinity |
| ``ncc`` | 0 to 2 | 0 (2: inverted) | 1 | 1 |
| ``lncc``, ``cr``, ``ngf`` | 0 to 1 | 0 | 1 | 1 |
| ``mi`` | -log(bins) to 0 | -log(bins) | 0 | 0 |
| ``nmi`` | -1 to 0 | -1 | 0 | 0 |
"""
