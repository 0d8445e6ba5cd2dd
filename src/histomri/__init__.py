"""histomri: from whole-slide files to a 3D histology volume in MRI space."""

__version__ = "0.1.0"
