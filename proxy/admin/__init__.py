"""What operators look at: health, readiness, status. On a listener of its own, in a process of its own, never the public one."""
