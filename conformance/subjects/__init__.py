"""Other people's implementations as engines under test: transformers, mlx-lm and llama.cpp.

One adapter each; what it offers is what the library itself computes. ``README.md`` says what the judge found.
"""
