import re

import pytest

from hardware import profile
from hardware.profile import UnknownDeviceError, known_profiles, profile_for


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


def test_each_published_figure_has_a_unit_a_source_and_a_date():
    published = [known.published for known in known_profiles() if known.published]
    assert published
    for figures in published:
        assert figures.source.startswith("https://")
        assert figures.retrieved.year >= 2025
        assert figures.figures
        for name, value in figures.figures.items():
            assert re.search(r"_(tflops|bytes|gb_per_s|w)$", name), name
            assert value > 0, name


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "device_names is missing"),
        ('device_names = ["X"]\n[published]\nbf16_tflops = 1', "lack source or retrieved"),
        ('device_names = ["X"]\n[published]\nsource = "https://x"\nretrieved = "today"', "lack source or retrieved"),
    ],
)
def test_a_profile_without_names_or_source_is_refused(tmp_path, monkeypatch, text, complaint):
    (tmp_path / "new.toml").write_text(text)
    monkeypatch.setattr(profile, "PROFILES", tmp_path)
    with pytest.raises(ValueError, match=f"new.toml: .*{complaint}"):
        known_profiles()
