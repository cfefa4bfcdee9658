"""One file for each row of ``reference/ops``: what it must cost by formula, at which shapes, on which inputs.

``fused.py`` names the kernels that are no row. Every file has ``cases()``; those of one row share its ``cost``.
"""
