"""Where kernels run in tests: on the first GPU, or interpreted. Import it before any kernel."""

import torch

from optimized.interpreter import interpret

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
if DEVICE.type == "cpu":
    interpret()
