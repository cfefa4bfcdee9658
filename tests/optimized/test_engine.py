"""Where the optimised engine offers its whole model to the judge."""

from pathlib import Path

import pytest

from optimized.engine import OptimizedEngine


def test_on_a_cpu_the_model_is_refused_by_name_and_the_refusal_says_what_to_do():
    engine = OptimizedEngine("optimized", "bf16")
    engine.device = "cpu"
    with pytest.raises(NotImplementedError, match="want a CUDA device, or --engine"):
        engine.load_model(Path("never opened"))
