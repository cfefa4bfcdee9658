"""One file for each row of ``reference/ops``, with the same function under the same signature.

Where there is no GPU, import it after ``interpreter.interpret()``: Triton decides how to run a kernel when it is
defined.
"""
