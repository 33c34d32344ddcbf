"""What both front doors are made of: it knows the engine, and never waits."""
