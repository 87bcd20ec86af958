"""Many hospitals on one machine, through the same two apps as the real thing."""
