"""Engines whose operators last a set time, so that a slowdown can be planted and a machine's noise does not matter."""

import os
import time
import warnings

from reference.engine import bf16_engine


class Steady:
    """The reference's RMSNorm, each call ``call_s`` long.

    Args:
        wrong: its output is zero.
    """

    profile, device = "bf16", "cpu"

    def __init__(self, call_s, wrong=False):
        self.name, self.call_s, self.wrong = "steady", call_s, wrong

    def ops(self):
        rms_norm = bf16_engine.ops()["rms_norm"]

        def steady(x, weight, eps):
            warnings.warn("an engine may warn", DeprecationWarning, stacklevel=1)
            end = time.perf_counter() + self.call_s
            y = rms_norm(x, weight, eps)
            if self.wrong:
                y.zero_()
            while time.perf_counter() < end:
                pass
            return y

        return {"rms_norm": steady}

    def load_model(self, checkpoint):
        raise NotImplementedError("operators only")


engine = Steady(0.010)
slower = Steady(0.030)
planted = Steady(float(os.environ.get("STEADY_CALL_S", "0.010")))  # the same engine, made slower from outside
wrong = Steady(0.010, wrong=True)
