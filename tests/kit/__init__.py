"""What the tests share: nodes to talk with, ways to wait, and the scripted classic peer beside a
node."""
