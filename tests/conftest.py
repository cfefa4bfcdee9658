"""Settings for the suite's own tests."""

import os

import torch

# The tests' tensors are tiny: a second thread costs more than it brings, and much more on a busy machine.
os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start
torch.set_num_threads(1)
