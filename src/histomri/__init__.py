"""histomri: from whole-slide files to a 3D histology volume in MRI space."""

import importlib

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """``histomri.register``, imported when it is asked for: the package itself must answer at once.

    Not by an import statement: every module runs this one, and none would then be free of the registration's fingerprint.
    """
    if name == "register":
        return importlib.import_module(f"{__name__}.registration.register").register
    raise AttributeError(f"module 'histomri' has no attribute {name!r}")
