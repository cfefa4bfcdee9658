"""The same contracts as ``reference``, in Triton; it never imports ``reference.ops`` and never falls back to it."""
