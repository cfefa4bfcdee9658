"""Make the judge's options known however pytest is started."""

pytest_plugins = ["conformance.plugin"]
