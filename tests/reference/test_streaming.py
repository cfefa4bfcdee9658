"""A checkpoint larger than the memory that the process may use runs from its files, one layer at a time."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from reference.checkpoint import layer_tensors
from reference.config import ModelConfig
from reference.synthetic import write_random_checkpoint

NANO = Path(__file__).parents[2] / "reference" / "nano"
MIB = 2**20

# Wide experts: nearly all bytes are theirs, as in the published model. 12 layers of about 97 MB each.
WIDE = {
    **json.loads((NANO / "config.json").read_text()),
    "num_hidden_layers": 12,
    "num_nextn_predict_layers": 0,
    "layer_types": ["full_attention", "sliding_attention", "sliding_attention", "sliding_attention"] * 3,
    "rope_theta": [5e6, 1e4, 1e4, 1e4] * 3,
    "partial_rotary_factors": [0.5, 1.0, 1.0, 1.0] * 3,
    "swiglu_limits": [0.0] * 10 + [7.0, 7.0],
    "swiglu_limits_shared": [0.0] * 11 + [16.0],
    "moe_layers_enum": list(range(12)),
    "moe_num_experts": 48,
    "moe_intermediate_size": 1280,
}

# The limit is set once Python and torch are loaded: what is measured is what the model adds.
CHILD = """
import resource, sys
import torch, tokenizers, safetensors.torch
import reference.commands, reference.checkpoint, reference.model, reference.tokenizer
torch.set_num_threads(1)
torch.ones(64, 64) @ torch.ones(64, 64)  # the matrix library's own buffers belong to the baseline
size = next(line for line in open("/proc/self/status") if line.startswith("VmSize:"))
resource.setrlimit(resource.RLIMIT_AS, (int(size.split()[1]) * 1024 + int(sys.argv[1]),) * 2)
import s35
code = s35.main(["logits", "--checkpoint", sys.argv[2], "--prompt", "def ", "--json", *sys.argv[3:]])
sys.exit(code)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="address-space limits and /proc are Linux's")
def test_a_checkpoint_larger_than_the_memory_allowed_is_streamed(tmp_path: Path) -> None:
    total = write_random_checkpoint(tmp_path, WIDE, seed=3, shard_bytes=32 * MIB)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).symlink_to(NANO / name)
    config = ModelConfig.from_dict(WIDE)
    layer_bytes = max(sum(t.nbytes for t in layer_tensors(config, layer).values()) for layer in config.layers)
    # one layer, its neighbours' parts in the same files, and a file's second mapping while it is opened
    allowed = 2 * layer_bytes
    # What Python and torch themselves take comes on top, and depends on torch's build: 0.7 GB for the CPU's, so that
    # there the whole process may use less than the checkpoint's 1.1 GB.
    assert total > 5 * allowed

    def run(*options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", CHILD, str(allowed), str(tmp_path), *options]
        return subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)

    streamed = run("--stream")
    assert streamed.returncode == 0, streamed.stderr
    assert len(json.loads(streamed.stdout)["next"]) == 5

    loaded = run()  # the limit bites: without streaming the same checkpoint does not fit
    assert loaded.returncode != 0
    assert "memory" in loaded.stderr.lower()
    for path in tmp_path.glob("*.safetensors"):  # a gigabyte that pytest would keep for three sessions
        path.unlink()
