"""How fast: what each operator must cost, how long it takes on this device, and which share of the device that is."""
