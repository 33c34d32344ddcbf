"""Random calls on four nodes: what judges them, where they are made, and who makes them.

random_calls.py plays them.
"""
