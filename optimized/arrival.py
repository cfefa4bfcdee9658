"""Programs of one launch that make something together: the last of them to arrive finishes it."""

import triton
import triton.language as tl


@triton.jit
def arrived_last(counter_ptr, count):
    """Whether this program is the last of ``count`` to come here; what the others stored before is then visible."""
    tl.debug_barrier()  # every thread has stored, before one of them says so
    is_last = tl.atomic_add(counter_ptr, 1, sem="acq_rel", scope="gpu") == count - 1
    if is_last:
        tl.store(counter_ptr, 0)  # ready for the next launch
    return is_last
