"""The kernels over arrays that are read in parts: NumPy, CuPy, zarr or dask, anything that gives an array for a tuple of slices.

    stencil      a part is computed with a halo as wide as the kernel looks, and only its core is kept
    warp         a part of the output asks for the box of the moving image that its own part of the field leads to, and reads that
    reduction    sums of parts are added in the order of the parts

Tile-wise is whole: bit for bit for warps, to rounding for stencils and sums.
"""
