"""histomri: from whole-slide files to a 3D histology volume in MRI space."""

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """``histomri.register``, imported when it is asked for: the package itself must answer at once."""
    if name == "register":
        from histomri.registration.register import register

        return register
    raise AttributeError(f"module 'histomri' has no attribute {name!r}")
