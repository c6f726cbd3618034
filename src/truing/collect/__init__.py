"""People, real and simulated, to rows."""
