"""Python that owns threads, sockets and the clock."""
