"""Settings for the suite's own tests."""

import os

import torch

# The tests' tensors are tiny: a second thread costs more than it brings, and much more on a busy machine.
os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start
torch.set_num_threads(1)
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported, which other libraries do, too
