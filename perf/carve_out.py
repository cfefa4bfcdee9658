"""The part of the L2 cache that a CUDA context may keep for itself: with it, memory seems faster than it is."""

import ctypes
from typing import Protocol

PERSISTING_L2 = 0x06  # CU_LIMIT_PERSISTING_L2_CACHE_SIZE
DRIVER = "libcuda.so.1"


class CarveOut(Protocol):
    """Gives it back, and tells its size."""

    def reset(self) -> None: ...

    def size_bytes(self) -> int: ...


class DriverCarveOut:
    """Of the current context, by the driver.

    Raises:
        OSError: there is no driver.
    """

    def __init__(self) -> None:
        self._driver = ctypes.CDLL(DRIVER)

    def reset(self) -> None:
        """Set its size to 0: resetting the lines alone leaves the carve-out where it is."""
        self._driver.cuCtxSetLimit(PERSISTING_L2, ctypes.c_size_t(0))
        self._driver.cuCtxResetPersistingL2Cache()

    def size_bytes(self) -> int:
        size = ctypes.c_size_t(0)
        failed = self._driver.cuCtxGetLimit(ctypes.byref(size), PERSISTING_L2)
        return 0 if failed else int(size.value)
