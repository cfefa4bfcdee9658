"""Kernels that replace several rows; each file names them in ``REPLACES`` and is tested against them composed."""
