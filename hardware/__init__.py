"""ON WHAT?: what this machine is, and the published figures of the devices that the suite knows."""
