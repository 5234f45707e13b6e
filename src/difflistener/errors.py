"""The one error a user can fix, and the one table of optional packages."""

import importlib


class UserError(Exception):
    """A problem that the user can fix. The command line prints it as two lines, without a traceback."""

    def __init__(self, problem: str, remedy: str):
        super().__init__(f"{problem}\n{remedy}")
        self.problem = problem
        self.remedy = remedy


OPTIONAL_PACKAGES = {
    "mediapipe": ("track", "face tracking (on Python 3.11 or 3.12)"),
    "transformers": ("audio", "wav2vec 2.0 features"),
    "viser": ("view", "the page of difflistener view"),
    "gsplat": ("cuda", "the rasteriser on a CUDA GPU"),
    "aiohttp": ("live", "the page of difflistener live"),
    "aiortc": ("live", "sound and pictures of difflistener live"),
}
"""Import name -> (extra that installs it, what it is for)."""


def require(package: str):
    """Import an optional package; a missing or broken one is a `UserError` that says how to get it."""
    extra, purpose = OPTIONAL_PACKAGES[package]
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UserError(
            f"{purpose} needs the package {package}, which does not load here ({error}).",
            f'Install it with: pip install "difflistener[{extra}]"',
        ) from error
