"""The model's operators, one file and one function of the same name each.

Axes: T tokens, S cached positions, D hidden, N query heads, K key-value heads, G = N / K, H head_dim, R rotary_dim,
F intermediate, O and I a weight's output and input, E experts, A experts per token, V vocabulary. A leading ``...``
stands for batch axes. Every operator computes in ``promote_types(x.dtype, float32)`` and rounds once, to the dtype of
its input: bfloat16 in is the specification, float64 in is the oracle.
"""
