import re

import pytest

from hardware import profile
from hardware.profile import UnknownDeviceError, known_profiles, profile_called, profile_for


def test_a_device_is_found_by_its_exact_name():
    assert profile_for("NVIDIA H200").name == "nvidia_h200_sxm"
    assert profile_for("cpu").name == "generic_cpu"


@pytest.mark.parametrize("name", ["NVIDIA H200 NVL", "nvidia h200", "", "NVIDIA GeForce RTX 9090"])
def test_another_name_is_another_device_and_the_error_says_how_to_add_it(name):
    with pytest.raises(UnknownDeviceError) as raised:
        profile_for(name)
    message = str(raised.value)
    assert repr(name) in message
    assert "'NVIDIA H200'" in message
    assert "hardware/profiles/NAME.toml" in message


def test_no_two_profiles_claim_one_name():
    names = [name for known in known_profiles() for name in known.device_names]
    assert len(names) == len(set(names)) >= 2


def figures():
    return [
        (known, name, figure)
        for known in known_profiles()
        for group in (known.published, known.measured)
        for name, figure in group.items()
    ]


def test_each_figure_has_a_unit_a_source_and_a_date():
    assert len(figures()) > 30
    for known, name, figure in figures():
        where = f"{known.name} {name}"
        assert re.search(r"_(tflops|bytes|gb_per_s|w)$", name), where
        assert figure.value > 0, where
        assert figure.retrieved.year >= 2025, where
        assert figure.source, where
        assert re.match(r"https://|reports/published/|NVIDIA, as ", figure.source), where
        assert figure.read_at is None or figure.read_at.startswith("https://"), where


def test_the_devices_of_the_comparison_are_known():
    names = {known.name for known in known_profiles()}
    assert names >= {
        *("nvidia_h100_sxm", "nvidia_h200_sxm", "nvidia_h20", "nvidia_b200", "nvidia_dgx_spark"),
        *("nvidia_rtx_pro_6000", "apple_m4_max", "apple_m3_ultra", "amd_strix_halo", "amd_mi300x", "generic_cpu"),
    }
    for known in known_profiles():
        if known.name != "generic_cpu":
            assert {"memory_bytes", "memory_gb_per_s"} <= set(known.published), known.name


def test_a_source_that_was_not_opened_is_not_hidden():
    figure = profile_called("m4_max").figure("memory_gb_per_s", "published")
    assert figure.read_at
    assert "not opened; read at https://" in str(figure)


def test_no_two_profiles_share_a_name():
    names = [name for known in known_profiles() for name in (known.name, *known.also_called) if name != "generic_cpu"]
    assert len(names) == len(set(names))


def test_a_command_line_may_use_short_names_and_learns_of_the_known_ones():
    assert profile_called("dgx_spark").name == profile_called("NVIDIA GB10").name == "nvidia_dgx_spark"
    with pytest.raises(
        UnknownDeviceError, match=r"'a100' has no profile; known: .*nvidia_h200_sxm \(h200\).*to add one"
    ):
        profile_called("a100")


def test_a_figure_that_is_not_there_is_an_error_that_lists_those_that_are():
    with pytest.raises(ValueError, match="nvidia_dgx_spark: has no published bf16_tflops; known: memory_bytes, "):
        profile_called("dgx_spark").figure("bf16_tflops", "published")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "device_names is missing"),
        ('device_names = ["X"]\n[[published]]\nbf16_tflops = 1', "lack source or retrieved"),
        ('device_names = ["X"]\n[[published]]\nsource = "https://x"\nretrieved = "today"', "lack source or retrieved"),
        (
            'device_names = ["X"]\n' + 2 * '[[measured]]\nsource = "https://x"\nretrieved = 2026-01-01\npower_w = 1\n',
            "power_w is measured twice",
        ),
    ],
)
def test_a_profile_without_names_or_source_is_refused(tmp_path, monkeypatch, text, complaint):
    (tmp_path / "new.toml").write_text(text)
    monkeypatch.setattr(profile, "PROFILES", tmp_path)
    with pytest.raises(ValueError, match=f"new.toml: .*{complaint}"):
        known_profiles()
