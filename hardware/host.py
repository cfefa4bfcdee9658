"""Facts about the host: system, processor, memory, installed packages, and the suite's own commit."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

from .machine import Fact

CPUINFO = Path("/proc/cpuinfo")
COMMIT_OF_A_COPY = "S35_COMMIT"  # for machines that get the files without their history
CHECKOUT = Path(__file__).resolve().parent.parent


def os_name() -> Fact:
    return Fact(platform.platform(), "platform.platform")


def python_version() -> Fact:
    return Fact(platform.python_version(), "platform.python_version")


def cpu_model() -> Fact:
    if platform.system() == "Darwin":
        return _output("sysctl", "-n", "machdep.cpu.brand_string")
    try:
        lines = CPUINFO.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        return Fact(None, str(CPUINFO), error.strerror or "unreadable")
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "model name" and value.strip():
            return Fact(value.strip(), str(CPUINFO))
    return Fact(None, str(CPUINFO), "no line 'model name'")


def cpu_cores() -> Fact:
    """Physical cores."""
    import psutil

    cores = psutil.cpu_count(logical=False)
    return Fact(cores, "psutil.cpu_count(logical=False)", None if cores else "psutil does not know on this system")


def cpu_threads() -> Fact:
    """Hardware threads."""
    threads = os.cpu_count()
    return Fact(threads, "os.cpu_count", None if threads else "the system does not say")


def memory_bytes() -> Fact:
    import psutil

    return Fact(psutil.virtual_memory().total, "psutil.virtual_memory")


def package_version(name: str) -> Fact:
    """Read an installed package's version without importing the package."""
    try:
        return Fact(metadata.version(name), "importlib.metadata")
    except metadata.PackageNotFoundError:
        return Fact(None, "importlib.metadata", "not installed")


def suite_commit() -> Fact:
    """The commit of the checkout that this package runs from, or of which S35_COMMIT says that it is a copy."""
    if COMMIT_OF_A_COPY in os.environ:
        return Fact(os.environ[COMMIT_OF_A_COPY], f"environment variable {COMMIT_OF_A_COPY}")
    outside = _not_a_checkout()
    return outside or _output("git", "-C", str(CHECKOUT), "rev-parse", "HEAD")


def suite_dirty() -> Fact:
    """Whether files differ from that commit or are unknown to it; ignored files do not count."""
    if COMMIT_OF_A_COPY in os.environ:
        return Fact(None, f"environment variable {COMMIT_OF_A_COPY}", "a copy without its history")
    outside = _not_a_checkout()
    if outside:
        return outside
    status = _output("git", "-C", str(CHECKOUT), "status", "--porcelain", empty="clean")
    return status if status.value is None else Fact(status.value != "clean", status.source)


def _not_a_checkout() -> Fact | None:
    """A reason if git would answer for another repository that merely contains this folder."""
    top = _output("git", "-C", str(CHECKOUT), "rev-parse", "--show-toplevel")
    if top.value is not None and Path(str(top.value)).resolve() != CHECKOUT:
        return Fact(None, "git rev-parse", "the suite does not run from a checkout of its own")
    return top if top.value is None else None


def _output(*command: str, empty: str | None = None) -> Fact:
    """Run a short command; its name without paths is the source, its first line of complaint the reason."""
    source = " ".join(word for word in command if word not in ("-C", str(CHECKOUT)))
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Fact(None, source, f"{type(error).__name__}: {command[0]} did not answer")
    if done.returncode != 0:
        complaint = done.stderr.strip().partition("\n")[0].replace(str(CHECKOUT), "the checkout")
        return Fact(None, source, complaint or f"exit code {done.returncode}")
    value = done.stdout.strip() or empty
    return Fact(value, source, None if value else "no output")
