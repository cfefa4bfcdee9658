"""Tiles from one warp that takes them to groups of warps that work on them, in turn: two turns have room.

For persistent programs in Gluon whose warps have different work: ``moe_wgmma_kernel`` and ``prefill_wgmma_kernel``.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier


@gluon.jit
def tell(works, told, taken, work, turn):
    """Give the groups the tile of a turn; two turns have room."""
    LAYOUT: gl.constexpr = gl.BlockedLayout([1], [32], [1], [0])
    slot = turn % 2
    mbarrier.wait(taken.index(slot), turn // 2 & 1 ^ 1)
    works.index(slot).store(gl.full([1], 0, gl.int32, LAYOUT) + work)
    mbarrier.arrive(told.index(slot))


@gluon.jit
def hear(works, told, taken, turn):
    """The tile of a turn."""
    LAYOUT: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    slot = turn % 2
    mbarrier.wait(told.index(slot), turn // 2 & 1)
    work = gl.sum(works.index(slot).load(LAYOUT), axis=0)
    mbarrier.arrive(taken.index(slot))
    return work
